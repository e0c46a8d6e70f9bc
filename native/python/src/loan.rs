//! Filling a slot in place: `with writer.loan(shape, dtype) as array: ...`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use snakepit_shm::{DataFormat, Descriptor, ShmError};

use crate::array::{self, Layout};
use crate::error::{Failure, Outcome};
use crate::shared::{Exported, Shared};

/// The base of an array over a slot on loan: keeps the memory mapped.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    _exported: Arc<Exported>,
    address: usize,
    layout: Descriptor,
    len: usize,
}

impl Slot {
    /// Begins a loan for a value of `len` bytes with the layout given.
    pub(crate) fn begin(
        py: Python<'_>,
        shared: &Arc<Shared>,
        layout: Descriptor,
        len: usize,
        brief: bool,
    ) -> Outcome<Py<Self>> {
        if len == 0 || len > shared.capacity {
            return Err(shared.too_long(len).into());
        }
        let address = py.detach(|| shared.begin(brief))?;
        let slot = Self {
            shared: Arc::clone(shared),
            _exported: shared.export(),
            address,
            layout,
            len,
        };
        Py::new(py, slot).map_err(|error| {
            shared.abandon(py);
            error.into()
        })
    }
}

#[pymethods]
impl Slot {
    /// Address, shape and dtype of the slot's bytes, for numpy; writable.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let layout = Layout::of_value(py, &self.layout, self.len, &self.shared.name)?;
        Ok(layout.interface(self.address, false)?)
    }
}

/// The next slot of a segment, to be filled in place: published when the `with` block ends,
/// dropped when it ends with an exception.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Loan {
    shared: Arc<Shared>,
    descriptor: Descriptor,
    /// Length of the value in bytes.
    len: usize,
    /// 0 until it is published.
    version: AtomicU64,
    stage: Mutex<Stage>,
}

enum Stage {
    Unused,
    /// With the array that was given out.
    Filling(Option<Py<PyAny>>),
    Ended,
}

impl Loan {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        shape: Option<&Bound<'_, PyAny>>,
        dtype: Option<&Bound<'_, PyAny>>,
        format: Option<&str>,
    ) -> Outcome<Self> {
        let shape = shape.map(array::shape).transpose()?;
        let (descriptor, len) = match dtype {
            Some(dtype) => {
                let described = match shape {
                    Some(shape) => array::describe(dtype, &shape)?,
                    None => {
                        let item = array::describe(dtype, &[])?.byte_len().unwrap_or(1);
                        array::describe(dtype, &[(shared.capacity / item) as u64])?
                    }
                };
                (described, described.byte_len().unwrap_or(usize::MAX))
            }
            None => {
                let len = match shape.as_deref() {
                    None => shared.capacity,
                    Some([len]) => usize::try_from(*len).unwrap_or(usize::MAX),
                    Some(_) => {
                        return Err(option(
                            "dtype",
                            "one for a shape of several dimensions",
                            "none",
                        )
                        .into());
                    }
                };
                (Descriptor::RAW, len)
            }
        };
        let descriptor = match (format, descriptor.format()) {
            (None, _) => descriptor,
            (Some("raw"), DataFormat::Raw) | (Some("numpy"), DataFormat::Numpy) => descriptor,
            (Some("arrow_ipc"), DataFormat::Raw) => Descriptor::ARROW_IPC,
            (Some(given), _) => {
                let expected = "\"raw\" or \"arrow_ipc\" without a dtype, \"numpy\" with one";
                return Err(option("format", expected, given).into());
            }
        };
        Ok(Self {
            shared: Arc::clone(shared),
            descriptor,
            len,
            version: AtomicU64::new(0),
            stage: Mutex::new(Stage::Unused),
        })
    }

    fn advance(&self, next: Stage) -> Stage {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *stage, next)
    }
}

fn option(name: &'static str, expected: &str, given: &str) -> ShmError {
    ShmError::InvalidOption {
        option: name,
        reason: format!("expected {expected}, got {given}"),
    }
}

#[pymethods]
impl Loan {
    /// The version that the value was published as; 0 before that.
    #[getter]
    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        match self.advance(Stage::Filling(None)) {
            Stage::Unused => {}
            used => {
                self.advance(used);
                return Err(Failure::views_alive(
                    &self.shared.name,
                    format!("this loan of segment {} was used before", self.shared.name),
                    "ask the writer for another one",
                ));
            }
        }
        let begun = Slot::begin(py, &self.shared, self.descriptor, self.len, false);
        let slot = match begun {
            Ok(slot) => slot,
            Err(failure) => {
                self.advance(Stage::Ended);
                return Err(failure);
            }
        };
        match array::asarray(slot.bind(py).as_any()) {
            Ok(array) => {
                self.advance(Stage::Filling(Some(array.clone().unbind())));
                Ok(array)
            }
            Err(error) => {
                self.advance(Stage::Ended);
                self.shared.abandon(py);
                Err(error.into())
            }
        }
    }

    #[pyo3(signature = (kind=None, _error=None, _traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyAny>>,
        _error: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> Outcome<()> {
        let Stage::Filling(array) = self.advance(Stage::Ended) else {
            return Ok(());
        };
        if let Some(array) = &array {
            // The slot will hold other values: what is left of the array may look, not write.
            array::freeze(array.bind(py))?;
        }
        drop(array);
        if kind.is_some() {
            self.shared.abandon(py);
            return Ok(());
        }
        let version = py.detach(|| self.shared.publish(self.len, &self.descriptor))?;
        self.version.store(version, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Loan {
    /// A loan that was entered and never left (a generator that was thrown away).
    fn drop(&mut self) {
        if let Stage::Filling(_) = self.advance(Stage::Ended) {
            // Without an interpreter there is no GIL to give up either.
            let abandoned = Python::try_attach(|py| self.shared.abandon(py));
            if abandoned.is_none() {
                self.shared.abandon_detached();
            }
        }
    }
}

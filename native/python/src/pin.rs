//! `Pin`: the value of a segment in place, while its writer goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use snakepit_shm::{Descriptor, Pinned, ShmError};

use crate::array::{self, Layout};
use crate::error::{Failure, Outcome};
use crate::fork::Tied;

/// A pinned value and everybody who looks at it.
type Shared = Arc<Tied<Pinned>>;

/// What arrays over a pinned value keep alive, and with it the pin.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct PinnedView {
    segment: String,
    pinned: Shared,
}

#[pymethods]
impl PinnedView {
    /// Address, shape and dtype of the value, for numpy; read-only.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let bytes: &[u8] = self.pinned.get().map_or(&[], |pinned| pinned);
        let descriptor = self
            .pinned
            .get()
            .map_or(Descriptor::RAW, Pinned::descriptor);
        let layout = Layout::of_value(py, &descriptor, bytes.len(), &self.segment)?;
        Ok(layout.interface(bytes.as_ptr().expose_provenance(), true)?)
    }
}

/// The value of a segment as it was when `Reader.pin` was called, until this is released and no array
/// over it is left.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Pin {
    segment: String,
    version: u64,
    in_place: bool,
    pinned: Mutex<Option<Shared>>,
}

impl Pin {
    pub(crate) fn new(pinned: Pinned) -> Self {
        Self {
            segment: pinned.name().to_owned(),
            version: pinned.version(),
            in_place: pinned.in_place(),
            pinned: Mutex::new(Some(Arc::new(Tied::new(pinned)))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Shared>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> Outcome<Shared> {
        let shared = self.lock().clone();
        shared.ok_or_else(|| {
            ShmError::Closed {
                name: self.segment.clone(),
            }
            .into()
        })
    }
}

#[pymethods]
impl Pin {
    /// The segment's name.
    #[getter]
    fn segment(&self) -> &str {
        &self.segment
    }

    /// The value's version.
    #[getter]
    fn version(&self) -> u64 {
        self.version
    }

    /// Whether these are the segment's own bytes; false when they had to be copied.
    #[getter]
    fn in_place(&self) -> bool {
        self.in_place
    }

    /// Whether the bytes have stayed as they were until now.
    #[getter]
    fn is_intact(&self) -> Outcome<bool> {
        let shared = self.shared()?;
        Ok(shared.get().is_some_and(Pinned::is_intact))
    }

    /// A read-only array over the value; it keeps the pin.
    fn numpy<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let view = PinnedView {
            segment: self.segment.clone(),
            pinned: self.shared()?,
        };
        let owner = Bound::new(py, view)?;
        Ok(array::asarray(owner.as_any())?)
    }

    /// A read-only memoryview over the value's bytes; it keeps the pin.
    fn memoryview<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let array = self.numpy(py)?;
        Ok(array::memoryview(&array::flat_in_place(&array)?)?)
    }

    /// Gives the pin back.
    ///
    /// # Errors
    ///
    /// `views_alive` when an array still looks at it; `version_conflict` or `truncated` when the
    /// bytes did not stay as they were.
    fn release(&self) -> Outcome<()> {
        let mut guard = self.lock();
        let Some(shared) = guard.take() else {
            return Ok(());
        };
        let tied = match Arc::try_unwrap(shared) {
            Ok(tied) => tied,
            Err(shared) => {
                *guard = Some(shared);
                return Err(Failure::views_alive(
                    &self.segment,
                    format!(
                        "arrays over a pinned value of {} are still alive",
                        self.segment
                    ),
                    "delete them (or copy what is still needed), then release again",
                ));
            }
        };
        drop(guard);
        match tied.into_inner() {
            Some(pinned) => Ok(pinned.release()?),
            None => Ok(()),
        }
    }

    fn __len__(&self) -> Outcome<usize> {
        let shared = self.shared()?;
        Ok(shared.get().map_or(0, |pinned| pinned.len()))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (kind=None, _error=None, _traceback=None))]
    fn __exit__(
        &self,
        kind: Option<&Bound<'_, PyAny>>,
        _error: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> Outcome<()> {
        match self.release() {
            // The exception on its way says more than the views that its traceback keeps alive.
            Err(failure) if kind.is_some() && failure.is_views_alive() => Ok(()),
            other => other,
        }
    }

    /// For notebooks.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> Outcome<Bound<'py, PyAny>> {
        static SHOW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let show = SHOW.import(slf.py(), "snakepit_shm._html", "pin")?;
        Ok(show.call1((slf,))?)
    }

    fn __repr__(&self) -> String {
        format!(
            "<snakepit_shm.Pin of {:?}, version {}{}>",
            self.segment,
            self.version,
            if self.in_place { "" } else { ", copied" }
        )
    }
}

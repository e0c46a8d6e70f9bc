//! Memory that an array fills before it is shared: `snakepit_shm.empty(shape, dtype)`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use snakepit_shm::{Descriptor, SealedView};

use crate::array::{self, Layout};
use crate::error::Outcome;
use crate::fork::Tied;
use crate::shared::{Exported, Shared};

/// The base of an array that fills a segment's only slot. Until it is shared it keeps the writer from
/// ending under it; from then on it looks at the sealed value, as any reader does, and whoever ends the
/// segment need not wait for it.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Blank {
    shared: Arc<Shared>,
    address: usize,
    layout: Descriptor,
    len: usize,
    hold: Mutex<Hold>,
}

/// What is held for its end alone.
#[expect(dead_code, reason = "nobody looks at it")]
enum Hold {
    Filling(Arc<Exported>),
    Sealed(Tied<SealedView>),
}

impl Blank {
    /// Begins to fill a value of `len` bytes with the layout given.
    pub(crate) fn begin(
        py: Python<'_>,
        shared: &Arc<Shared>,
        layout: Descriptor,
    ) -> Outcome<Py<Self>> {
        let len = layout.byte_len().unwrap_or(0);
        if len == 0 || len > shared.capacity {
            return Err(shared.too_long(len).into());
        }
        let address = py.detach(|| shared.begin(false))?;
        let blank = Self {
            shared: Arc::clone(shared),
            address,
            layout,
            len,
            hold: Mutex::new(Hold::Filling(shared.export())),
        };
        Py::new(py, blank).map_err(|error| {
            shared.abandon(py);
            error.into()
        })
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Blank {
    /// Address, shape and dtype of the memory, for numpy; writable until it is sealed.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let sealed = matches!(*self.hold(), Hold::Sealed(_));
        let layout = Layout::of_value(py, &self.layout, self.len, &self.shared.name)?;
        Ok(layout.interface(self.address, sealed)?)
    }

    /// Publishes what is there, described anew, and seals it. Whoever calls has taken the right to write away
    /// from all arrays over it.
    #[pyo3(signature = (dtype, shape, order))]
    fn seal(
        &self,
        py: Python<'_>,
        dtype: &Bound<'_, PyAny>,
        shape: &Bound<'_, PyAny>,
        order: &str,
    ) -> Outcome<()> {
        let described = array::describe(dtype, &array::shape(shape)?)?;
        let described = described.with_order(array::order(Some(order))?);
        let sealed = py.detach(|| {
            self.shared.publish(self.len, &described)?;
            self.shared.with_detached(|writer| {
                writer.seal()?;
                Ok(writer.sealed()?)
            })
        })?;
        let filling = std::mem::replace(&mut *self.hold(), Hold::Sealed(Tied::new(sealed)));
        drop(filling);
        Ok(())
    }
}

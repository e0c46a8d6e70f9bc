//! This process's registration in a namespace, kept while it has no segment there.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::error::Outcome;
use crate::fork::Tied;
use crate::options;

/// Held until `leave`, or until nobody has the object any more. A forked child registers anew.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Membership(Mutex<Option<Tied<snakepit_shm::Membership>>>);

#[pymethods]
impl Membership {
    /// Ends the registration when nothing else of this process needs it; a second time is fine.
    fn leave(&self, py: Python<'_>) {
        // Whoever leaves last waits for the namespace's lock.
        py.detach(|| {
            let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(held);
        });
    }
}

/// Registers this process in a namespace, so that creating and attaching need not do so each time.
#[pyfunction]
#[pyo3(signature = (namespace=None, directory=None))]
pub(crate) fn join(
    py: Python<'_>,
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
) -> Outcome<Membership> {
    let namespace = options::namespace(namespace.map(options::text));
    let directory = options::directory(directory);
    let joined = py.detach(|| snakepit_shm::join(&namespace, directory))?;
    Ok(Membership(Mutex::new(Some(Tied::new(joined)))))
}

//! Handles: what crosses to another process in place of the bytes.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use snakepit_shm::{Handle, Pool, ShmError};

use crate::error::Outcome;
use crate::fork::Tied;
use crate::options;
use crate::view::View;

/// The handle as the dictionary that `json.loads` makes of it.
pub(crate) fn to_python<'py>(py: Python<'py>, handle: &Handle) -> Outcome<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let text = handle.to_value().to_string();
    Ok(LOADS.import(py, "json", "loads")?.call1((text,))?)
}

fn parse(json: &str) -> Outcome<Handle> {
    let value = serde_json::from_str(json).map_err(|error| ShmError::InvalidHandle {
        reason: format!("not JSON: {error}"),
    })?;
    Ok(Handle::from_value(&value)?)
}

/// The sealed value that a handle (JSON text) names, after all checks.
#[pyfunction]
#[pyo3(signature = (json, directory=None))]
pub(crate) fn open_handle(py: Python<'_>, json: &str, directory: Option<PathBuf>) -> Outcome<View> {
    let handle = parse(json)?;
    let directory = options::directory(directory);
    let sealed = py.detach(|| handle.open(&directory))?;
    Ok(View::new(handle.name.clone(), Arc::new(Tied::new(sealed))))
}

/// Removes the segment that a handle (JSON text) names, if it is still the one it was made for; says whether
/// its memory is kept.
#[pyfunction]
#[pyo3(signature = (json, directory=None))]
pub(crate) fn remove_handle(
    py: Python<'_>,
    json: &str,
    directory: Option<PathBuf>,
) -> Outcome<bool> {
    let handle = parse(json)?;
    let directory = options::directory(directory);
    Ok(py.detach(|| {
        // The token alone would do; opening also refuses a handle that was tampered with.
        handle.open(&directory)?;
        Pool::shared(&handle.namespace, &directory)?.remove(&handle)
    })?)
}

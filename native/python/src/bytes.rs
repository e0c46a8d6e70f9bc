//! Python `bytes` of values; running out of memory is the library's own error, with its details.

use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Failure, Outcome};
use crate::view;

/// New `bytes` of `len` bytes that `fill` fills; as many of them as it says.
pub(crate) fn filled<'py>(
    py: Python<'py>,
    segment: &str,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> Outcome<usize>,
) -> Outcome<Bound<'py, PyBytes>> {
    let mut outcome = Ok(len);
    let made = PyBytes::new_with(py, len, |target| match fill(target) {
        Ok(filled) => {
            outcome = Ok(filled);
            Ok(())
        }
        Err(failure) => {
            outcome = Err(failure);
            Err(PyRuntimeError::new_err("replaced by the outcome"))
        }
    });
    let filled = outcome?;
    let bytes = made.map_err(|error| no_room(py, error, segment, len))?;
    if filled < len {
        return Ok(PyBytes::new(py, &bytes.as_bytes()[..filled]));
    }
    Ok(bytes)
}

/// `bytes` of an array: one copy.
pub(crate) fn of_array<'py>(
    array: &Bound<'py, PyAny>,
    segment: &str,
) -> Outcome<Bound<'py, PyBytes>> {
    let py = array.py();
    let made = array
        .call_method0(intern!(py, "tobytes"))
        .map_err(|error| {
            let len = array
                .getattr(intern!(py, "nbytes"))
                .and_then(|len| len.extract());
            no_room(py, error, segment, len.unwrap_or(0))
        })?;
    Ok(made.cast_into::<PyBytes>().map_err(PyErr::from)?)
}

fn no_room(py: Python<'_>, error: PyErr, segment: &str, len: usize) -> Failure {
    if error.is_instance_of::<PyMemoryError>(py) {
        return view::out_of_memory(segment, len).into();
    }
    error.into()
}

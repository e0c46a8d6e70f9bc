//! Bytes in and out of Python objects, with one copy and no unsafe code.
//!
//! * Out of `bytes`: its memory is immutable, so it is a plain slice, also without the GIL.
//! * Out of any other buffer: [`PyBuffer::copy_to_slice`] straight into the slot.
//! * Into a buffer: as a slice of cells whose addresses the core's copy routine writes to.

use std::cell::Cell;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::array;

/// From this size in bytes on a copy is done without the GIL where that is possible: below,
/// giving it up and taking it back costs more than others could do with it.
pub(crate) const DETACH_FROM: usize = 256 * 1024;

/// The bytes of `object`, in C order; `TypeError` when it has none.
///
/// Buffers of other items than bytes are cast. numpy has dtypes that the buffer protocol has not
/// (datetime64, complex), and arrays with gaps cannot be cast: those go by their bytes as an
/// array, over a copy if there is no other way (`copy`).
pub(crate) fn bytes_of(object: &Bound<'_, PyAny>, copy: bool) -> PyResult<PyBuffer<u8>> {
    if let Ok(buffer) = PyBuffer::<u8>::get(object) {
        return Ok(buffer);
    }
    let py = object.py();
    let cast = PyMemoryView::from(object)
        .and_then(|view| view.call_method1(intern!(py, "cast"), (intern!(py, "B"),)))
        .and_then(|bytes| PyBuffer::get(&bytes));
    match cast {
        Ok(buffer) => Ok(buffer),
        Err(_) if array::is_numpy(object)? => {
            let object = array::asarray(object)?;
            if !copy && !array::is_contiguous(&object)? {
                return Err(gaps());
            }
            PyBuffer::get(&array::flat(&object)?)
        }
        Err(cause) => Err(no_bytes(object, cause)),
    }
}

/// The writable memory of `object` as bytes.
///
/// # Errors
///
/// `TypeError` without a buffer, `BufferError` when it is read-only or has gaps.
pub(crate) fn writable(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<u8>> {
    let buffer = bytes_of(object, false)?;
    if buffer.readonly() {
        return Err(PyBufferError::new_err(
            "the buffer is read-only; pass a bytearray, a writable array or a writable memoryview",
        ));
    }
    if !buffer.is_c_contiguous() {
        return Err(gaps());
    }
    Ok(buffer)
}

fn gaps() -> PyErr {
    PyBufferError::new_err("the buffer is not C-contiguous; pass a contiguous one")
}

/// The buffer's memory, for the core to write to; `None` when it is read-only or has gaps.
///
/// PyO3 deprecated this accessor because another thread may write to the memory while a `Cell` is
/// read or set (PyO3 issue 6267). Nothing here does either: the slice carries address and length
/// to the core, whose copy routine is made for memory that others write to at the same time. The
/// alternative is a second copy.
pub(crate) fn cells<'a>(py: Python<'a>, buffer: &'a PyBuffer<u8>) -> Option<&'a [Cell<u8>]> {
    #[expect(deprecated, reason = "see above")]
    buffer.as_mut_slice(py)
}

/// The buffer's bytes in C order, in private memory: a copy more, for what cannot be lent.
pub(crate) fn to_vec(py: Python<'_>, buffer: &PyBuffer<u8>) -> PyResult<Vec<u8>> {
    let len = buffer.len_bytes();
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| PyMemoryError::new_err(format!("no memory for a copy of {len} bytes")))?;
    bytes.resize(len, 0);
    buffer.copy_to_slice(py, &mut bytes)?;
    Ok(bytes)
}

/// Says what can be written, for the `TypeError` of an object without bytes.
fn no_bytes(object: &Bound<'_, PyAny>, cause: PyErr) -> PyErr {
    let py = object.py();
    let kind = object
        .get_type()
        .qualname()
        .map_or_else(|_| "object".to_owned(), |n| n.to_string());
    let error = PyTypeError::new_err(format!(
        "a bytes-like object or a numpy array is required, not {kind:?}"
    ));
    error.set_cause(py, Some(cause));
    error
}

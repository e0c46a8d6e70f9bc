//! Building numpy arrays over memory, and describing the arrays that users pass in.
//!
//! numpy takes foreign memory by the array interface: an object with an `__array_interface__`
//! attribute (address, shape, type, read-only flag) that the array then keeps alive as its base.
//! That needs no unsafe code here; what must hold is that the object owns the memory (`view`).
//! numpy itself is imported on first use.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{IntoPyObjectExt, intern};
use snakepit_shm::{DataFormat, Descriptor, Order, ShmError};

use crate::error::Outcome;

/// Kinds of dtype that are plain bytes in memory: booleans, integers, floats, complex numbers,
/// times, and strings of fixed width. Everything else (objects, records, variable-width strings)
/// holds pointers or loses its meaning with its name.
const PLAIN_KINDS: &[u8] = b"biufcmMSU";

/// The same and `V`: bytes of a fixed number that mean nothing to numpy. What they mean a handle may say.
const KINDS_OF_BYTES: &[u8] = b"biufcmMSUV";

/// Most dtypes that are remembered.
const KNOWN_AT_MOST: usize = 1024;

fn function<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    cell.import(py, "numpy", name)
}

/// `numpy.ndarray`.
pub(crate) fn ndarray(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TYPE.import(py, "numpy", "ndarray")
}

/// Whether `value` is an array.
pub(crate) fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.is_instance(ndarray(value.py())?)
}

/// Whether `value` is an array or a numpy scalar.
pub(crate) fn is_numpy(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    static SCALAR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = value.py();
    Ok(is_array(value)? || value.is_instance(SCALAR.import(py, "numpy", "generic")?)?)
}

/// `numpy.asarray(owner)`: an array over the memory that `owner` describes, or over its items.
pub(crate) fn asarray<'py>(owner: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    function(owner.py(), &ASARRAY, "asarray")?.call1((owner,))
}

/// `numpy.copyto(target, source)`: one copy, without the GIL for what is large.
pub(crate) fn copy_to(target: &Bound<'_, PyAny>, source: &Bound<'_, PyAny>) -> PyResult<()> {
    static COPYTO: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    function(target.py(), &COPYTO, "copyto")?.call1((target, source))?;
    Ok(())
}

/// The bytes of an array as a one-dimensional uint8 array: over the same memory when it is
/// C-contiguous, else over a copy.
pub(crate) fn flat<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static UINT8: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static CONTIGUOUS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = array.py();
    let uint8 = function(py, &UINT8, "uint8")?;
    let view = |array: &Bound<'py, PyAny>| {
        array
            .call_method1(intern!(py, "reshape"), (-1,))?
            .call_method1(intern!(py, "view"), (uint8,))
    };
    if is_contiguous(array)? {
        return view(array);
    }
    view(&function(py, &CONTIGUOUS, "ascontiguousarray")?.call1((array,))?)
}

/// The bytes of an array that has no gaps, as they lie in memory: in place in either order, else over a copy in
/// C order.
pub(crate) fn flat_in_place<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = array.py();
    let fortran = array
        .getattr(intern!(py, "flags"))?
        .getattr(intern!(py, "f_contiguous"))?
        .is_truthy()?;
    if fortran {
        return flat(&array.getattr(intern!(py, "T"))?);
    }
    flat(array)
}

/// An array over the bytes of `buffer` (anything with the buffer protocol).
pub(crate) fn over_buffer<'py>(
    buffer: &Bound<'py, PyAny>,
    layout: &Layout<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = buffer.py();
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "buffer"), buffer)?;
    if layout.order != Order::C {
        keywords.set_item(intern!(py, "order"), layout.order.as_str())?;
    }
    ndarray(py)?.call((&layout.shape, &layout.dtype), Some(&keywords))
}

/// A one-dimensional uint8 array over the bytes of any C-contiguous buffer.
pub(crate) fn bytes_over<'py>(buffer: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static FROMBUFFER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static UINT8: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = buffer.py();
    function(py, &FROMBUFFER, "frombuffer")?.call1((buffer, function(py, &UINT8, "uint8")?))
}

/// What an array over a value looks like: its checked dtype and its shape.
pub(crate) struct Layout<'py> {
    pub(crate) dtype: Bound<'py, PyAny>,
    pub(crate) shape: Bound<'py, PyTuple>,
    pub(crate) order: Order,
}

impl<'py> Layout<'py> {
    /// The layout that a value's descriptor states, checked against its length. A descriptor
    /// comes from shared memory and is not believed: an object dtype over foreign bytes would be
    /// a bag of wild pointers.
    pub(crate) fn of_value(
        py: Python<'py>,
        descriptor: &Descriptor,
        len: usize,
        segment: &str,
    ) -> Outcome<Self> {
        let corrupted = |reason: String| ShmError::Corrupted {
            name: segment.to_owned(),
            reason,
        };
        if descriptor.format() != DataFormat::Numpy {
            return Ok(Self {
                dtype: dtype(py, "|u1", PLAIN_KINDS)?,
                shape: PyTuple::new(py, [len])?,
                order: Order::C,
            });
        }
        let typestr = descriptor.dtype();
        let dtype = dtype(py, typestr, KINDS_OF_BYTES)
            .map_err(|_| corrupted(format!("{typestr:?} is no dtype of plain bytes")))?;
        let item: usize = dtype.getattr(intern!(py, "itemsize"))?.extract()?;
        let shape: Vec<u64> = descriptor.shape();
        let bytes = shape
            .iter()
            .try_fold(item as u64, |product, dim| product.checked_mul(*dim));
        if bytes != Some(len as u64) {
            return Err(corrupted(format!(
                "a value of {len} bytes cannot hold {typestr} of shape {shape:?}"
            ))
            .into());
        }
        Ok(Self {
            dtype,
            shape: PyTuple::new(py, shape)?,
            order: descriptor.order(),
        })
    }

    /// The array interface of memory with this layout at `address`.
    pub(crate) fn interface(&self, address: usize, readonly: bool) -> PyResult<Bound<'py, PyDict>> {
        let py = self.dtype.py();
        let interface = PyDict::new(py);
        interface.set_item(intern!(py, "version"), 3)?;
        interface.set_item(intern!(py, "shape"), &self.shape)?;
        interface.set_item(
            intern!(py, "typestr"),
            self.dtype.getattr(intern!(py, "str"))?,
        )?;
        interface.set_item(intern!(py, "data"), (address, readonly))?;
        if self.order == Order::Fortran {
            interface.set_item(intern!(py, "strides"), self.strides()?)?;
        }
        Ok(interface)
    }

    /// Bytes from one element to the next of each dimension; the shape was checked not to overflow.
    fn strides(&self) -> PyResult<Bound<'py, PyTuple>> {
        let py = self.dtype.py();
        let mut step: usize = self.dtype.getattr(intern!(py, "itemsize"))?.extract()?;
        let mut strides = Vec::with_capacity(self.shape.len());
        for dim in self.shape.iter() {
            strides.push(step);
            // As numpy does it: a dimension of 0 counts as 1.
            step = step.saturating_mul(dim.extract::<usize>()?.max(1));
        }
        PyTuple::new(py, strides)
    }
}

/// The dtype of an array-protocol string, if it is one of `kinds`.
fn dtype<'py>(py: Python<'py>, typestr: &str, kinds: &[u8]) -> Outcome<Bound<'py, PyAny>> {
    static DTYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    // There are few dtypes in a program and making one costs more than the rest of a read.
    static KNOWN: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let known = KNOWN
        .get_or_init(py, || PyDict::new(py).unbind())
        .bind(py)
        .clone();
    if let Some(dtype) = known.get_item(typestr)? {
        return Ok(dtype);
    }
    let unsupported = || ShmError::Unsupported {
        name: typestr.to_owned(),
        operation: "dtype",
        reason: "only plain dtypes (bool, integers, floats, complex, datetime64, timedelta64, S, U) lie in shared memory",
    };
    if typestr.len() < 3 || !kinds.contains(&typestr.as_bytes()[1]) {
        return Err(unsupported().into());
    }
    let dtype = function(py, &DTYPE, "dtype")?.call1((typestr,))?;
    // `numpy.dtype` also reads abbreviations and records ("f4,f4"); only its own spelling of a
    // plain one counts.
    if typestring(&dtype, kinds)?.as_deref() != Some(typestr) {
        return Err(unsupported().into());
    }
    if known.len() < KNOWN_AT_MOST {
        known.set_item(typestr, &dtype)?;
    }
    Ok(dtype)
}

/// numpy's string of a dtype of one of `kinds`; `None` for any other dtype.
fn typestring(dtype: &Bound<'_, PyAny>, kinds: &[u8]) -> PyResult<Option<String>> {
    let py = dtype.py();
    let kind: String = dtype.getattr(intern!(py, "kind"))?.extract()?;
    let plain = kind.len() == 1
        && kinds.contains(&kind.as_bytes()[0])
        && dtype.getattr(intern!(py, "names"))?.is_none()
        && dtype.getattr(intern!(py, "subdtype"))?.is_none();
    if !plain {
        return Ok(None);
    }
    Ok(Some(dtype.getattr(intern!(py, "str"))?.extract()?))
}

/// The descriptor of `shape` and `dtype` as a user names them: a `numpy.dtype` or anything that
/// `numpy.dtype` takes.
pub(crate) fn describe(dtype: &Bound<'_, PyAny>, shape: &[u64]) -> Outcome<Descriptor> {
    static DTYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = dtype.py();
    // Written out, "|V8" says that these bytes mean nothing here. A dtype of that kind may have a meaning
    // (bfloat16, records), which would be lost.
    let kinds = if dtype.is_instance_of::<PyString>() {
        KINDS_OF_BYTES
    } else {
        PLAIN_KINDS
    };
    let dtype = function(py, &DTYPE, "dtype")?.call1((dtype,))?;
    let Some(typestr) = typestring(&dtype, kinds)? else {
        return Err(ShmError::Unsupported {
            name: dtype.str()?.to_string_lossy().into_owned(),
            operation: "dtype",
            reason: "it holds objects, fields or bytes of no plain type; convert the array (astype, or one array a field) or write its bytes",
        }
        .into());
    };
    Ok(Descriptor::numpy(&typestr, shape)?)
}

/// The descriptor of an array.
pub(crate) fn describe_array(array: &Bound<'_, PyAny>) -> Outcome<Descriptor> {
    // Asking a dtype for its string costs more than copying a small value.
    static KNOWN: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = array.py();
    let shape: Vec<u64> = array.getattr(intern!(py, "shape"))?.extract()?;
    let dtype = array.getattr(intern!(py, "dtype"))?;
    let known = KNOWN.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
    if let Some(typestr) = known.get_item(&dtype)? {
        return Ok(Descriptor::numpy(&typestr.extract::<String>()?, &shape)?);
    }
    let described = describe(&dtype, &shape)?;
    if known.len() < KNOWN_AT_MOST {
        known.set_item(&dtype, described.dtype())?;
    }
    Ok(described)
}

/// The descriptor of an array's memory, whatever its elements mean: "|V2" for what has no plain dtype of its own.
pub(crate) fn describe_memory(array: &Bound<'_, PyAny>) -> Outcome<Descriptor> {
    let py = array.py();
    let dtype = array.getattr(intern!(py, "dtype"))?;
    let is_opaque = dtype
        .getattr(intern!(py, "kind"))?
        .extract::<String>()
        .is_ok_and(|kind| kind == "V");
    if !is_opaque || dtype.getattr(intern!(py, "hasobject"))?.is_truthy()? {
        return describe_array(array);
    }
    let shape: Vec<u64> = array.getattr(intern!(py, "shape"))?.extract()?;
    let size: usize = dtype.getattr(intern!(py, "itemsize"))?.extract()?;
    Ok(Descriptor::numpy(&format!("|V{size}"), &shape)?)
}

/// Whether the array's items lie one after another in C order.
pub(crate) fn is_contiguous(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = array.py();
    array
        .getattr(intern!(py, "flags"))?
        .getattr(intern!(py, "c_contiguous"))?
        .is_truthy()
}

/// Takes the right to write through `array` away.
pub(crate) fn freeze(array: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = array.py();
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "write"), false)?;
    array.call_method(intern!(py, "setflags"), (), Some(&keywords))?;
    Ok(())
}

/// `memoryview(object)`.
pub(crate) fn memoryview<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    Ok(pyo3::types::PyMemoryView::from(object)?.into_any())
}

/// An order as users give it; `"C"` without one.
pub(crate) fn order(given: Option<&str>) -> Outcome<Order> {
    let order = given.map_or(Some(Order::C), Order::from_name);
    order.ok_or_else(|| {
        ShmError::InvalidOption {
            option: "order",
            reason: format!("expected \"C\" or \"F\", got {given:?}"),
        }
        .into()
    })
}

/// A shape as users give it: one number or a sequence of numbers.
pub(crate) fn shape(given: &Bound<'_, PyAny>) -> Outcome<Vec<u64>> {
    if let Ok(length) = given.extract::<u64>() {
        return Ok(vec![length]);
    }
    if !given.is_instance_of::<PyString>()
        && let Ok(shape) = given.extract::<Vec<u64>>()
    {
        return Ok(shape);
    }
    let shown = given.repr()?.into_bound_py_any(given.py())?.to_string();
    Err(ShmError::InvalidOption {
        option: "shape",
        reason: format!("expected a whole number from 0 or a sequence of them, got {shown}"),
    }
    .into())
}

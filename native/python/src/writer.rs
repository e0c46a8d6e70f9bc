//! `Writer`: publishes values in a segment that it creates or takes over.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString};
use snakepit_shm::{Descriptor, Pool, SealedView, SegmentWriter, ShmError};

use crate::array;
use crate::blank::Blank;
use crate::buffer::{self, DETACH_FROM};
use crate::error::Outcome;
use crate::handle;
use crate::loan::{Loan, Slot};
use crate::options::{self, Given};
use crate::seconds::Seconds;
use crate::shared::Shared;
use crate::view::Keeper;

/// Writes a segment. One segment has one writer; threads that share it take turns.
#[pyclass(frozen, weakref, module = "snakepit_shm._native")]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// The value in place, once the segment is sealed and it was asked for.
    kept: Keeper,
}

impl Writer {
    fn new(writer: SegmentWriter) -> Self {
        Self {
            shared: Arc::new(Shared::new(writer)),
            kept: Keeper::default(),
        }
    }

    fn find_sealed(&self, py: Python<'_>) -> Outcome<Option<SealedView>> {
        self.shared.with(py, |writer| Ok(Some(writer.sealed()?)))
    }

    fn sealed_array<'py>(&self, py: Python<'py>) -> Outcome<Option<Bound<'py, PyAny>>> {
        self.kept
            .array(py, &self.shared.name, || self.find_sealed(py))
    }

    /// Publishes `bytes`, without the GIL when they are many.
    fn write_bytes(&self, py: Python<'_>, bytes: &[u8], descriptor: &Descriptor) -> Outcome<u64> {
        let write = |writer: &mut SegmentWriter| Ok(writer.write_described(bytes, descriptor)?);
        if bytes.len() >= DETACH_FROM {
            py.detach(|| self.shared.with_detached(write))
        } else {
            self.shared.with(py, write)
        }
    }

    /// Publishes the bytes of any object with a buffer: one copy, straight into the slot.
    fn write_buffer(&self, object: &Bound<'_, PyAny>, descriptor: &Descriptor) -> Outcome<u64> {
        let py = object.py();
        let source = buffer::bytes_of(object, true)?;
        let len = source.len_bytes();
        if len >= DETACH_FROM && source.is_c_contiguous() && self.can_lend(py)? {
            return self.write_array(&array::bytes_over(object)?, &Descriptor::RAW, descriptor);
        }
        let version = self.shared.with(py, |writer| {
            if let Some(cells) = buffer::cells(py, &source) {
                return Ok(writer.write_cells(cells, descriptor)?);
            }
            if !can_lend(writer) {
                // Neither can be lent, the read-only source nor the only slot: two copies.
                return Ok(writer.write_described(&buffer::to_vec(py, &source)?, descriptor)?);
            }
            let mut loan = writer.loan()?;
            let Some(target) = loan.as_mut_slice().get_mut(..len) else {
                return Err(self.shared.too_long(len).into());
            };
            source.copy_to_slice(py, target)?;
            Ok(loan.publish(len, descriptor)?)
        });
        drop(source);
        version
    }

    fn can_lend(&self, py: Python<'_>) -> Outcome<bool> {
        self.shared.with(py, |writer| Ok(can_lend(writer)))
    }

    /// Publishes an array: one copy, by numpy, which knows every layout and gives the GIL up.
    /// `layout` says what the array in the slot looks like, `descriptor` what readers are told.
    fn write_array(
        &self,
        array: &Bound<'_, PyAny>,
        layout: &Descriptor,
        descriptor: &Descriptor,
    ) -> Outcome<u64> {
        let py = array.py();
        let len: usize = array.getattr(intern!(py, "nbytes"))?.extract()?;
        let slot = Slot::begin(py, &self.shared, *layout, len, true)?;
        let copied = array::asarray(slot.bind(py).as_any())
            .and_then(|target| array::copy_to(&target, array));
        // Before the loan ends: who waits for its end to close the writer finds no array over the slot.
        drop(slot);
        match copied {
            Ok(()) => py.detach(|| self.shared.publish(len, descriptor)),
            Err(error) => {
                self.shared.abandon(py);
                Err(error.into())
            }
        }
    }
}

#[pymethods]
impl Writer {
    /// Publishes a value; returns its version.
    #[pyo3(signature = (data, *, dtype=None, shape=None, order=None))]
    pub(crate) fn write(
        &self,
        data: &Bound<'_, PyAny>,
        dtype: Option<&Bound<'_, PyAny>>,
        shape: Option<&Bound<'_, PyAny>>,
        order: Option<&str>,
    ) -> Outcome<u64> {
        let py = data.py();
        let given = match (dtype, shape) {
            (None, None) if order.is_none() => None,
            (Some(dtype), Some(shape)) => {
                let described = array::describe(dtype, &array::shape(shape)?)?;
                Some(described.with_order(array::order(order)?))
            }
            _ => return Err(half_described().into()),
        };
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let descriptor = given.unwrap_or(Descriptor::RAW);
            return self.write_bytes(py, bytes.as_bytes(), &descriptor);
        }
        if !array::is_numpy(data)? {
            return self.write_buffer(data, &given.unwrap_or(Descriptor::RAW));
        }
        let own = match given {
            None => array::describe_array(data)?,
            // Readers are told what is given, so the meaning of the array's own dtype is nobody's.
            Some(_) => array::describe_memory(data)?,
        };
        let descriptor = given.unwrap_or(own);
        if own.byte_len().is_some_and(|len| len >= DETACH_FROM) && self.can_lend(py)? {
            return self.write_array(&array::asarray(data)?, &own, &descriptor);
        }
        self.write_buffer(data, &descriptor)
    }

    /// Publishes a value without a byte: the array that `dtype` and `shape` describe, else plain bytes.
    #[pyo3(signature = (dtype=None, shape=None))]
    fn _write_nothing(
        &self,
        py: Python<'_>,
        dtype: Option<&Bound<'_, PyAny>>,
        shape: Option<&Bound<'_, PyAny>>,
    ) -> Outcome<u64> {
        let described = match (dtype, shape) {
            (None, None) => Descriptor::NO_BYTES,
            (Some(dtype), Some(shape)) => array::describe(dtype, &array::shape(shape)?)?,
            _ => return Err(half_described().into()),
        };
        self.shared
            .with(py, |writer| Ok(writer.loan()?.publish(0, &described)?))
    }

    /// The only slot, to be filled by an array and sealed.
    #[pyo3(signature = (shape, dtype, order))]
    fn _blank(
        &self,
        py: Python<'_>,
        shape: &Bound<'_, PyAny>,
        dtype: &Bound<'_, PyAny>,
        order: &str,
    ) -> Outcome<Py<Blank>> {
        let described = array::describe(dtype, &array::shape(shape)?)?;
        Blank::begin(
            py,
            &self.shared,
            described.with_order(array::order(Some(order))?),
        )
    }

    /// Publishes the previous value with `data` at `offset`; returns the new version.
    #[pyo3(signature = (offset, data))]
    fn write_at(&self, offset: usize, data: &Bound<'_, PyAny>) -> Outcome<u64> {
        let py = data.py();
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            let patch = |writer: &mut SegmentWriter| Ok(writer.write_at(offset, bytes)?);
            return if bytes.len() >= DETACH_FROM {
                py.detach(|| self.shared.with_detached(patch))
            } else {
                self.shared.with(py, patch)
            };
        }
        let source = buffer::bytes_of(data, true)?;
        let version = self.shared.with(py, |writer| {
            if let Some(cells) = buffer::cells(py, &source) {
                return Ok(writer.write_at_cells(offset, cells)?);
            }
            // Read-only memory cannot be lent out as cells, so this copies twice.
            Ok(writer.write_at(offset, &buffer::to_vec(py, &source)?)?)
        });
        drop(source);
        version
    }

    /// A context manager that gives the next slot itself to fill in place.
    #[pyo3(signature = (shape=None, dtype=None, *, format=None))]
    fn loan(
        &self,
        shape: Option<&Bound<'_, PyAny>>,
        dtype: Option<&Bound<'_, PyAny>>,
        format: Option<&str>,
    ) -> Outcome<Loan> {
        Loan::new(&self.shared, shape, dtype, format)
    }

    /// Makes what was published visible outside this process where the medium buffers.
    fn flush(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| self.shared.with_detached(|writer| Ok(writer.flush()?)))
    }

    /// Makes the present value the last one, for ever.
    fn seal(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| self.shared.with_detached(|writer| Ok(writer.seal()?)))
    }

    /// The sealed value as a read-only array, in place.
    fn numpy<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let Some(array) = self.sealed_array(py)? else {
            return Err(self.not_sealed().into());
        };
        Ok(array.call_method0(intern!(py, "view"))?)
    }

    /// The sealed value's bytes as a read-only memoryview, in place.
    fn memoryview<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let Some(array) = self.sealed_array(py)? else {
            return Err(self.not_sealed().into());
        };
        Ok(array::memoryview(&array::flat_in_place(&array)?)?)
    }

    /// The handle of the sealed value.
    fn handle<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let made = self.shared.with(py, |writer| Ok(writer.handle()?))?;
        handle::to_python(py, &made)
    }

    /// The segment's name.
    #[getter]
    fn name(&self) -> &str {
        &self.shared.name
    }

    /// The most bytes that a value can have.
    #[getter]
    fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// The version published last; 0 before the first.
    #[getter]
    fn version(&self, py: Python<'_>) -> Outcome<u64> {
        self.shared.with(py, |writer| Ok(writer.current_version()))
    }

    /// How many writers the segment has had, this one included.
    #[getter]
    fn generation(&self, py: Python<'_>) -> Outcome<u32> {
        self.shared.with(py, |writer| Ok(writer.generation()))
    }

    /// Whether this object was closed or released.
    #[getter]
    fn closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Gives the claim back; the segment goes when its last reader has gone.
    fn close(&self, py: Python<'_>) -> Outcome<()> {
        self.kept.release(py, &self.shared.name)?;
        self.detach(py)
    }

    /// Gives the claim back and leaves the segment to be read and taken over.
    fn release(&self, py: Python<'_>) -> Outcome<()> {
        self.kept.release(py, &self.shared.name)?;
        py.detach(|| self.shared.end(SegmentWriter::release))
    }

    /// Gives a sealed segment away, to be removed after so many seconds if nobody has taken it. Arrays in its
    /// slots, and views of it, may live on.
    fn give_away(&self, py: Python<'_>, ttl: Seconds) -> Outcome<()> {
        py.detach(|| self.shared.give_away(ttl.0))
    }

    /// [`Self::release`], though arrays over its slots may live.
    fn _leave(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| self.shared.leave())
    }

    /// Random id of this very segment, as in handles.
    #[getter]
    fn _incarnation(&self, py: Python<'_>) -> Outcome<String> {
        self.shared
            .with(py, |writer| Ok(writer.incarnation().to_owned()))
    }

    /// Removes the segment; its memory goes to this process's pool if it may be kept. Says whether.
    fn _retire(&self, py: Python<'_>) -> Outcome<bool> {
        self.kept.release(py, &self.shared.name)?;
        let mut kept = false;
        py.detach(|| {
            self.shared.end(|writer| {
                kept = Pool::of_writer(&writer).retire(writer)?;
                Ok(())
            })
        })?;
        Ok(kept)
    }

    /// Ends what was to be filled and never was shared, and keeps its memory if that may be. For the end of the
    /// last array over it.
    fn _discard(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| {
            self.shared.abandon_detached();
            self.shared.end_beside(1, |writer| {
                Pool::of_writer(&writer).retire(writer).map(|_kept| ())
            })
        })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (kind=None, _error=None, _traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyAny>>,
        _error: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> Outcome<()> {
        match self.close(py) {
            // The exception on its way says more than the views that its traceback keeps alive.
            Err(failure) if kind.is_some() && failure.is_views_alive() => Ok(()),
            outcome => outcome,
        }
    }

    /// For notebooks.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> Outcome<Bound<'py, PyAny>> {
        static SHOW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let show = SHOW.import(slf.py(), "snakepit_shm._html", "writer")?;
        Ok(show.call1((slf,))?)
    }

    fn __repr__(&self) -> String {
        let state = if self.shared.is_closed() {
            ", closed"
        } else {
            ""
        };
        format!(
            "<snakepit_shm.Writer {:?}, {} bytes{state}>",
            self.shared.name, self.shared.capacity
        )
    }
}

impl Writer {
    /// Closes whatever looks at the sealed value: views keep it mapped by themselves.
    pub(crate) fn detach(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| self.shared.end(SegmentWriter::close))
    }

    fn not_sealed(&self) -> ShmError {
        ShmError::NotSealed {
            name: self.shared.name.clone(),
        }
    }
}

/// Whether the writer has a slot to lend: with one slot only before the first value.
fn can_lend(writer: &SegmentWriter) -> bool {
    writer.slots() > 1 || writer.current_version() == 0
}

fn half_described() -> ShmError {
    ShmError::InvalidOption {
        option: "dtype",
        reason: "expected both dtype and shape, or neither (and then no order)".to_owned(),
    }
}

/// Creates a segment of `size` bytes and becomes its writer.
#[pyfunction]
pub(crate) fn create(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    size: usize,
    given: &Bound<'_, PyDict>,
) -> Outcome<Writer> {
    let built = options::segment(name, given)?.size(size);
    let pooled = Given::new(given).value("pooled", "True or False")?;
    Ok(Writer::new(py.detach(|| match pooled {
        Some(true) => Pool::shared(built.get_namespace(), built.get_dir())?.create(&built),
        _ => built.create(),
    })?))
}

/// Becomes the writer of a segment whose writer has gone.
#[pyfunction]
pub(crate) fn attach_writer(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<Writer> {
    let built = options::segment(name, given)?;
    Ok(Writer::new(py.detach(|| built.attach_writer())?))
}

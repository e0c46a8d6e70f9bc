//! `Reader`: the values of a segment, as copies or, once it is sealed, in place.

mod value;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple, PyType};
use snakepit_shm::{SegmentReader, ShmError};

use crate::array;
use crate::attached::Attached;
use crate::bytes;
use crate::error::{Failure, Outcome};
use crate::handle;
use crate::options;
use crate::pin::Pin;
use crate::seconds::Seconds;
use crate::view::Keeper;
use crate::wait;

/// Reads a segment. Any number of readers, in any number of processes; safe to share by threads.
#[pyclass(frozen, weakref, module = "snakepit_shm._native")]
pub(crate) struct Reader {
    pub(crate) attached: Attached,
    /// The value in place, once it was asked for.
    kept: Keeper,
}

impl Reader {
    fn new(reader: SegmentReader) -> Self {
        Self {
            attached: Attached::new(reader),
            kept: Keeper::default(),
        }
    }

    /// Detaches whatever looks at the memory: views keep it mapped by themselves.
    pub(crate) fn detach(&self, py: Python<'_>) -> Outcome<()> {
        self.attached.detach(py)
    }
}

#[pymethods]
impl Reader {
    /// A copy of the value as ``bytes``.
    #[pyo3(signature = (*, max_age=None))]
    pub(crate) fn read<'py>(
        &self,
        py: Python<'py>,
        max_age: Option<Seconds>,
    ) -> Outcome<Bound<'py, PyBytes>> {
        self.attached.check_age(py, max_age)?;
        if let Some(array) = self.sealed_array(py)? {
            return bytes::of_array(&array, &self.attached.name);
        }
        self.attached.sized(py, |info| {
            bytes::filled(py, &self.attached.name, info.len, |target| {
                let read = self.attached.copy_into(py, None, target)?;
                Ok(self.attached.saw(read).len)
            })
        })
    }

    /// The value after the last one read, and how many between the two were missed.
    fn read_next<'py>(&self, py: Python<'py>) -> Outcome<Option<(Bound<'py, PyBytes>, u64)>> {
        // Values of a stream are mostly of one length.
        let mut room = self.attached.with(py, |reader| Ok(reader.len()))?.max(64);
        loop {
            let mut next = None;
            let made = bytes::filled(py, &self.attached.name, room, |target| {
                next = self.attached.next_into(py, target)?;
                Ok(next.map_or(0, |(info, _missed)| self.attached.saw(info).len))
            });
            match made {
                Err(Failure::Core(ShmError::OutOfBounds { len, .. })) if len > room => room = len,
                made => {
                    let data = made?;
                    return Ok(next.map(|(_info, missed)| (data, missed)));
                }
            }
        }
    }

    /// Copies the value into a writable buffer; returns how many bytes it has.
    fn read_into(&self, buffer: &Bound<'_, PyAny>) -> Outcome<usize> {
        Ok(self.copy_into_buffer(buffer)?.len)
    }

    /// Bytes ``offset`` to ``offset + length`` of the value.
    #[pyo3(signature = (offset, length))]
    fn read_range<'py>(
        &self,
        py: Python<'py>,
        offset: usize,
        length: usize,
    ) -> Outcome<Bound<'py, PyBytes>> {
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.attached.capacity)
        {
            return Err(ShmError::OutOfBounds {
                name: self.attached.name.clone(),
                offset,
                len: length,
                capacity: self.attached.capacity,
            }
            .into());
        }
        bytes::filled(py, &self.attached.name, length, |target| {
            let read = self.attached.copy_into(py, Some(offset), target)?;
            self.attached.saw(read);
            Ok(length)
        })
    }

    /// The value as an array with the dtype and shape that the writer gave it.
    fn numpy<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        self.array(py)
    }

    /// Pins the value, to be looked at in place while the writer goes on.
    fn pin(&self, py: Python<'_>) -> Outcome<Pin> {
        let pinned = py.detach(|| self.attached.with_detached(SegmentReader::pin))?;
        self.attached.mark_seen(pinned.version());
        Ok(Pin::new(pinned))
    }

    /// The value's bytes as a read-only memoryview.
    fn memoryview<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        if let Some(array) = self.sealed_array(py)? {
            return Ok(array::memoryview(&array::flat_in_place(&array)?)?);
        }
        Ok(array::memoryview(self.read(py, None)?.as_any())?)
    }

    /// The value as a pyarrow Table (format "arrow_ipc").
    fn arrow<'py>(slf: &Bound<'py, Self>) -> Outcome<Bound<'py, PyAny>> {
        static READ: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let read = READ.import(py, "snakepit_shm._arrow", "read_table")?;
        let value = slf.get().memoryview(py)?;
        Ok(read.call1((value, &slf.get().attached.name))?)
    }

    /// The array protocol: ``numpy.asarray(reader)``.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> Outcome<Bound<'py, PyAny>> {
        let array = self.array(py)?;
        let keywords = PyDict::new(py);
        let method = match (dtype, copy) {
            (None, Some(true)) => return Ok(array.call_method0(intern!(py, "copy"))?),
            (None, _) => return Ok(array),
            (Some(dtype), copy) => {
                keywords.set_item(intern!(py, "dtype"), dtype)?;
                keywords.set_item(intern!(py, "copy"), copy.unwrap_or(false))?;
                intern!(py, "astype")
            }
        };
        Ok(array.call_method(method, (), Some(&keywords))?)
    }

    /// The array-API capsule of the value's array.
    #[pyo3(signature = (**keywords))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> Outcome<Bound<'py, PyAny>> {
        let array = self.array(py)?;
        Ok(array.call_method(intern!(py, "__dlpack__"), (), keywords)?)
    }

    /// Always the CPU: ``(1, 0)``.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (1, 0)
    }

    /// The segment's name.
    #[getter]
    fn name(&self) -> &str {
        &self.attached.name
    }

    /// The most bytes that a value can have.
    #[getter]
    fn capacity(&self) -> usize {
        self.attached.capacity
    }

    /// The version of the newest value; 0 while there is none.
    #[getter]
    fn version(&self, py: Python<'_>) -> Outcome<u64> {
        self.attached.with(py, |reader| Ok(reader.version()))
    }

    /// The version of the value that this reader returned last; 0 before the first.
    #[getter]
    fn last_version(&self) -> u64 {
        self.attached.seen()
    }

    /// Whether there is a newer value than the one that a read or wait returned last.
    fn has_changed(&self, py: Python<'_>) -> Outcome<bool> {
        Ok(self.version(py)? != self.last_version())
    }

    /// Sleeps until there is a value newer than `since`; returns its version.
    #[pyo3(signature = (since=None, timeout=None))]
    fn wait(&self, py: Python<'_>, since: Option<u64>, timeout: Option<Seconds>) -> Outcome<u64> {
        let since = since.unwrap_or_else(|| self.last_version());
        wait::changed(py, &self.attached, since, timeout.map(|given| given.0))
    }

    /// A coroutine of `wait`, for event loops.
    #[pyo3(signature = (since=None, timeout=None))]
    fn wait_async<'py>(
        slf: &Bound<'py, Self>,
        since: Option<u64>,
        timeout: Option<Seconds>,
    ) -> Outcome<Bound<'py, PyAny>> {
        static WAIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let wait = WAIT.import(slf.py(), "snakepit_shm._async", "wait")?;
        let timeout = timeout.map(|given| given.0.as_secs_f64());
        Ok(wait.call1((slf, since, timeout))?)
    }

    /// The newest value each time that there is one, or every value, as an asynchronous iterator.
    #[pyo3(signature = (*, every=false, kind="bytes", into=None, since=0))]
    fn changes<'py>(
        slf: &Bound<'py, Self>,
        every: bool,
        kind: &str,
        into: Option<&Bound<'py, PyAny>>,
        since: u64,
    ) -> Outcome<Bound<'py, PyAny>> {
        static CHANGES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let changes = CHANGES.import(slf.py(), "snakepit_shm._async", "Changes")?;
        Ok(changes.call1((slf, every, kind, into, since))?)
    }

    /// Every value in turn, as an iterator that waits for the next.
    #[pyo3(signature = (*, timeout=None))]
    fn values<'py>(slf: &Bound<'py, Self>, timeout: Option<Seconds>) -> Outcome<Bound<'py, PyAny>> {
        static VALUES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let values = VALUES.import(slf.py(), "snakepit_shm._async", "Values")?;
        let timeout = timeout.map(|given| given.0.as_secs_f64());
        Ok(values.call1((slf, timeout))?)
    }

    /// Seconds since the value was published.
    fn age(&self, py: Python<'_>) -> Outcome<f64> {
        Ok(self.attached.with(py, SegmentReader::age)?.as_secs_f64())
    }

    /// What the current value is, without its bytes.
    fn info<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let info = self.attached.with(py, SegmentReader::info)?;
        let class = CLASS.import(py, "snakepit_shm._types", "ValueInfo")?;
        let descriptor = self.attached.descriptor(&info)?;
        let shape = PyTuple::new(py, descriptor.shape())?;
        Ok(class.call1((
            info.version,
            info.len,
            info.timestamp_ns,
            descriptor.format().as_str(),
            descriptor.dtype(),
            shape,
        ))?)
    }

    /// Whether the value can never change again.
    #[getter]
    fn is_sealed(&self, py: Python<'_>) -> Outcome<bool> {
        self.attached.with(py, |reader| Ok(reader.is_sealed()))
    }

    /// How many writers the segment has had, the present one included.
    #[getter]
    fn generation(&self, py: Python<'_>) -> Outcome<u32> {
        self.attached.with(py, |reader| Ok(reader.generation()))
    }

    /// The schema id that the segment was created with.
    #[getter]
    fn schema_id(&self, py: Python<'_>) -> Outcome<u64> {
        self.attached.with(py, |reader| Ok(reader.schema_id()))
    }

    /// The handle of the sealed value.
    fn handle<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        let made = self.attached.with(py, SegmentReader::handle)?;
        handle::to_python(py, &made)
    }

    /// Whether this object was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.attached.is_closed(py)
    }

    /// Detaches. Calls of other threads that wait on this reader end with `ClosedError`.
    fn close(&self, py: Python<'_>) -> Outcome<()> {
        let name = &self.attached.name;
        self.kept.release(py, name)?;
        let pinned = self.attached.with(py, |reader| {
            reader.end_watches();
            Ok(reader.has_views())
        });
        if matches!(pinned, Ok(true)) {
            return Err(Failure::views_alive(
                name,
                format!("pins of segment {name} are still held"),
                "release them, then close again",
            ));
        }
        self.detach(py)
    }

    fn __len__(&self, py: Python<'_>) -> Outcome<usize> {
        self.attached.with(py, |reader| match reader.info() {
            Ok(info) => Ok(info.len),
            Err(ShmError::Empty { .. } | ShmError::Closed { .. }) => Ok(0),
            Err(error) => Err(error),
        })
    }

    /// A reader is not false because nothing was published yet.
    fn __bool__(&self) -> bool {
        true
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
            // The exception on its way says more than the views that its traceback keeps alive;
            // the reader goes when they do.
            Err(failure) if kind.is_some() && failure.is_views_alive() => Ok(()),
            outcome => outcome,
        }
    }

    /// For notebooks.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> Outcome<Bound<'py, PyAny>> {
        static SHOW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let show = SHOW.import(slf.py(), "snakepit_shm._html", "reader")?;
        Ok(show.call1((slf,))?)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.version(py) {
            Ok(version) => format!(
                "<snakepit_shm.Reader {:?}, {} bytes, version {version}{}>",
                self.attached.name,
                self.attached.capacity,
                if self.is_sealed(py).unwrap_or(false) {
                    ", sealed"
                } else {
                    ""
                }
            ),
            Err(_) => format!("<snakepit_shm.Reader {:?}, closed>", self.attached.name),
        }
    }
}

/// Attaches to a segment.
#[pyfunction]
pub(crate) fn attach(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<Reader> {
    let built = options::segment(name, given)?;
    let reader = py.detach(|| built.attach_reader())?;
    Ok(Reader::new(reader))
}

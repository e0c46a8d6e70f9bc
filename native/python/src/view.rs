//! The objects that own the memory under an array. Each is what numpy keeps as the array's base,
//! so the memory lives as long as any array, memoryview or DLPack capsule over it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use snakepit_shm::{Descriptor, Resource, SealedView, ShmError};

use crate::array::{self, Layout};
use crate::error::{Failure, Outcome};
use crate::fork::Tied;

/// The value of a sealed segment, in place. It can never change again.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct View {
    segment: String,
    sealed: Shared,
}

/// A sealed value and everybody who looks at it: its strong count is the number of views, plus
/// one for the reader or writer that hands them out.
pub(crate) type Shared = Arc<Tied<SealedView>>;

impl View {
    pub(crate) fn new(segment: String, sealed: Shared) -> Self {
        Self { segment, sealed }
    }

    fn bytes(&self) -> &[u8] {
        self.sealed.get().map_or(&[], |sealed| sealed)
    }

    fn descriptor(&self) -> Descriptor {
        self.sealed
            .get()
            .map_or(Descriptor::RAW, |sealed| sealed.descriptor())
    }

    fn layout<'py>(&self, py: Python<'py>) -> Outcome<Layout<'py>> {
        Layout::of_value(py, &self.descriptor(), self.bytes().len(), &self.segment)
    }
}

#[pymethods]
impl View {
    /// Address, shape and dtype of the value, for numpy; read-only.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let address = self.bytes().as_ptr().expose_provenance();
        Ok(self.layout(py)?.interface(address, true)?)
    }

    /// The segment's name.
    #[getter]
    fn segment(&self) -> &str {
        &self.segment
    }

    /// Address of the value and its length in bytes, to tell what lies in it.
    #[getter]
    fn place(&self) -> (usize, usize) {
        let bytes = self.bytes();
        (bytes.as_ptr().addr(), bytes.len())
    }

    /// "raw", "numpy" or "arrow_ipc".
    #[getter]
    fn format(&self) -> &'static str {
        self.descriptor().format().as_str()
    }

    /// A read-only array over the value.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        array::asarray(slf.as_any())
    }

    /// A read-only memoryview over the value's bytes.
    fn memoryview<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        array::memoryview(&array::flat_in_place(&Self::numpy(slf)?)?)
    }
}

/// A sealed value and one array over it, so that asking for the array again costs no more than
/// numpy's own `view()`.
struct Kept {
    view: Shared,
    array: Py<PyAny>,
}

/// Where a reader or writer keeps its sealed value once somebody asked for it.
#[derive(Default)]
pub(crate) struct Keeper(Mutex<Option<Kept>>);

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `pick` takes of the kept value; on first use `find` is asked for it, which answers
    /// `None` while the segment is not sealed.
    fn get<R>(
        &self,
        py: Python<'_>,
        segment: &str,
        find: impl FnOnce() -> Outcome<Option<SealedView>>,
        pick: impl Fn(&Kept) -> R,
    ) -> Outcome<Option<R>> {
        if let Some(kept) = self.lock().as_ref() {
            if kept.view.get().is_some_and(|sealed| !sealed.is_intact()) {
                // Cut by another program since: what is there now is zeros.
                return Err(ShmError::Truncated {
                    name: segment.to_owned(),
                }
                .into());
            }
            return Ok(Some(pick(kept)));
        }
        let Some(sealed) = find()? else {
            return Ok(None);
        };
        // Made outside the lock, for it runs Python code; of two threads the later one's is kept.
        let view = Arc::new(Tied::new(sealed));
        let owner = Bound::new(py, View::new(segment.to_owned(), Arc::clone(&view)))?;
        let array = array::asarray(owner.as_any())?.unbind();
        let made = Kept { view, array };
        let picked = pick(&made);
        let replaced = self.lock().replace(made);
        drop(replaced);
        Ok(Some(picked))
    }

    /// The array over the sealed value; shared, for making views of it.
    pub(crate) fn array<'py>(
        &self,
        py: Python<'py>,
        segment: &str,
        find: impl FnOnce() -> Outcome<Option<SealedView>>,
    ) -> Outcome<Option<Bound<'py, PyAny>>> {
        self.get(py, segment, find, |kept| kept.array.bind(py).clone())
    }

    /// Lets the kept value go.
    ///
    /// # Errors
    ///
    /// `views_alive` when somebody else still looks at it.
    pub(crate) fn release(&self, py: Python<'_>, segment: &str) -> Outcome<()> {
        let Some(Kept { view, array }) = self.lock().take() else {
            return Ok(());
        };
        array.drop_ref(py);
        if Arc::strong_count(&view) == 1 {
            return Ok(());
        }
        // Kept on: who looks must be found again by the next close.
        let owner = Bound::new(py, View::new(segment.to_owned(), Arc::clone(&view)))?;
        let array = array::asarray(owner.as_any())?.unbind();
        let replaced = self.lock().replace(Kept { view, array });
        drop(replaced);
        Err(Failure::views_alive(
            segment,
            format!("arrays or memoryviews of segment {segment} are still alive"),
            "delete them (or copy what is still needed), then close again",
        ))
    }
}

/// A copy of a value that numpy may write to, unmapped with its last array.
///
/// For large values: the copy runs without the GIL, and the fresh pages are not written twice.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Copied {
    segment: String,
    /// Neither read nor written from here after construction, only through the array.
    _memory: MmapMut,
    len: usize,
    address: usize,
    descriptor: Descriptor,
}

impl Copied {
    /// Private memory of `len` bytes, all zero, to copy into.
    pub(crate) fn memory(segment: &str, len: usize) -> snakepit_shm::Result<MmapMut> {
        MmapMut::map_anon(len).map_err(|_| out_of_memory(segment, len))
    }

    /// The first `len` bytes of `memory`.
    pub(crate) fn new(
        segment: String,
        mut memory: MmapMut,
        len: usize,
        descriptor: Descriptor,
    ) -> Self {
        Self {
            segment,
            len: len.min(memory.len()),
            address: memory.as_mut_ptr().expose_provenance(),
            _memory: memory,
            descriptor,
        }
    }
}

#[pymethods]
impl Copied {
    /// Address, shape and dtype of the copy, for numpy; writable.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let layout = Layout::of_value(py, &self.descriptor, self.len, &self.segment)?;
        Ok(layout.interface(self.address, false)?)
    }
}

/// No address space is left for a copy of `len` bytes.
pub(crate) fn out_of_memory(segment: &str, len: usize) -> ShmError {
    ShmError::ResourceExhausted {
        name: Some(segment.to_owned()),
        resource: Resource::AddressSpace,
        needed: len as u64,
        available: None,
    }
}

//! A reader's value as an array or in a buffer: in place and kept once it is sealed, else a copy.

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use snakepit_shm::{ReadInfo, SealedView, ShmError};

use super::Reader;
use crate::array;
use crate::buffer::{self, DETACH_FROM};
use crate::error::Outcome;
use crate::view::Copied;

impl Reader {
    /// The sealed value; `None` while the segment is not sealed.
    fn find_sealed(&self, py: Python<'_>) -> Outcome<Option<SealedView>> {
        let sealed = self.attached.with(py, |reader| {
            reader.is_sealed().then(|| reader.sealed()).transpose()
        })?;
        if let Some(sealed) = &sealed {
            self.attached.mark_seen(sealed.version());
        }
        Ok(sealed)
    }

    /// The kept array over the sealed value.
    pub(super) fn sealed_array<'py>(&self, py: Python<'py>) -> Outcome<Option<Bound<'py, PyAny>>> {
        self.kept
            .array(py, &self.attached.name, || self.find_sealed(py))
    }

    /// The array over the sealed value, or a fresh one with a copy.
    pub(super) fn array<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        Ok(self.array_and_version(py)?.0)
    }

    pub(crate) fn array_and_version<'py>(
        &self,
        py: Python<'py>,
    ) -> Outcome<(Bound<'py, PyAny>, u64)> {
        if let Some(array) = self.sealed_array(py)? {
            // It is the last one.
            let version = self.attached.with(py, |reader| Ok(reader.version()))?;
            return Ok((array.call_method0(intern!(py, "view"))?, version));
        }
        self.attached.sized(py, |info| {
            if info.len >= DETACH_FROM {
                return self.copied_array(py, info.len);
            }
            let mut read = info;
            let mut failure = None;
            let bytes = PyByteArray::new_with(py, info.len, |target| {
                match self.attached.copy_into(py, None, target) {
                    Ok(info) => {
                        read = info;
                        Ok(())
                    }
                    Err(error) => {
                        failure = Some(error);
                        Err(PyRuntimeError::new_err("replaced below"))
                    }
                }
            });
            if let Some(failure) = failure {
                return Err(failure);
            }
            self.attached.saw(read);
            let layout = self.attached.layout(py, &read)?;
            let array = array::over_buffer(bytes?.as_any(), &layout)?;
            Ok((array, read.version))
        })
    }

    fn copied_array<'py>(&self, py: Python<'py>, len: usize) -> Outcome<(Bound<'py, PyAny>, u64)> {
        let name = &self.attached.name;
        let (memory, read) = py.detach(|| {
            let mut memory = Copied::memory(name, len)?;
            let read = self
                .attached
                .with_detached(|reader| reader.read_into(&mut memory))?;
            Ok::<_, ShmError>((memory, read))
        })?;
        self.attached.saw(read);
        // Refuses a hostile descriptor with its own error, not from within numpy.
        self.attached.layout(py, &read)?;
        let descriptor = self.attached.descriptor(&read)?;
        let copied = Copied::new(name.clone(), memory, read.len, descriptor);
        let owner = Bound::new(py, copied)?;
        Ok((array::asarray(owner.as_any())?, read.version))
    }

    /// Copies the value into a writable buffer.
    pub(crate) fn copy_into_buffer(&self, buffer: &Bound<'_, PyAny>) -> Outcome<ReadInfo> {
        let py = buffer.py();
        let target = buffer::writable(buffer)?;
        let cells = buffer::cells(py, &target).unwrap_or_default();
        let read = self.attached.with(py, |reader| {
            reader.read_into_cells(cells).map_err(|error| match error {
                ShmError::OutOfBounds {
                    name, offset, len, ..
                } => ShmError::OutOfBounds {
                    name,
                    offset,
                    len,
                    capacity: cells.len(),
                },
                other => other,
            })
        })?;
        Ok(self.attached.saw(read))
    }
}

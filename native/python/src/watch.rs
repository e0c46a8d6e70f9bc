//! What an event loop needs: a descriptor to poll, waits begun and cancelled, and values with their versions.

use std::os::fd::AsRawFd;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use snakepit_shm::{ShmError, Watched};

use crate::bytes;
use crate::error::{Failure, Outcome};
use crate::fork::Tied;
use crate::reader::Reader;
use crate::seconds::Seconds;

/// Tells one event loop of changes in any number of segments.
#[pyclass(frozen, module = "snakepit_shm._native")]
pub(crate) struct Notifier(Tied<snakepit_shm::Notifier>);

impl Notifier {
    /// The core's notifier; one of a forked child's parent has no descriptor here and answers so itself.
    fn core(&self) -> Option<&snakepit_shm::Notifier> {
        self.0.get()
    }
}

#[pymethods]
impl Notifier {
    #[new]
    fn new() -> Outcome<Self> {
        Ok(Self(Tied::new(snakepit_shm::Notifier::new()?)))
    }

    /// The descriptor: readable while there is something to take. -1 in a forked child.
    fn fileno(&self) -> i32 {
        self.core()
            .and_then(snakepit_shm::Notifier::fd)
            .map_or(-1, |fd| fd.as_raw_fd())
    }

    /// Begins a wait: `(True, version)` when there is one already, else `(False, token)`.
    fn watch(
        &self,
        py: Python<'_>,
        reader: &Bound<'_, Reader>,
        since: u64,
    ) -> Outcome<(bool, u64)> {
        let attached = &reader.get().attached;
        let begun = py.detach(|| {
            attached.with_detached(|segment| match self.core() {
                Some(notifier) => notifier.watch(segment, since),
                None => Err(ShmError::Closed {
                    name: attached.name.clone(),
                }),
            })
        })?;
        Ok(match begun {
            Watched::Now(version) => {
                attached.mark_seen(version);
                (true, version)
            }
            Watched::Later(token) => (false, token),
        })
    }

    /// Ends a wait that nobody waits for any more.
    fn cancel(&self, token: u64) {
        if let Some(notifier) = self.core() {
            notifier.cancel(token);
        }
    }

    /// The waits that have ended: `(token, version)`, or the exception in the version's place.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        let notices = self.core().map_or_else(Vec::new, |n| n.take());
        notices
            .into_iter()
            .map(|notice| {
                let outcome = match notice.outcome {
                    Ok(version) => version.into_pyobject(py)?.into_any(),
                    Err(error) => PyErr::from(Failure::from(error))
                        .into_value(py)
                        .into_bound(py)
                        .into_any(),
                };
                Ok((notice.token, outcome))
            })
            .collect()
    }
}

/// Notes that a wait returned this version.
#[pyfunction]
pub(crate) fn saw(reader: &Bound<'_, Reader>, version: u64) {
    reader.get().attached.mark_seen(version);
}

/// What a wait answers whose time is over: a version that came in the last moment, or `TimeoutError`.
#[pyfunction]
pub(crate) fn timed_out(
    py: Python<'_>,
    reader: &Bound<'_, Reader>,
    since: u64,
    after: Seconds,
) -> Outcome<u64> {
    let attached = &reader.get().attached;
    let version = attached.with(py, |segment| {
        match segment.wait_changed(since, Some(Duration::ZERO)) {
            Err(ShmError::Timeout { name, .. }) => Err(ShmError::Timeout {
                name,
                after: after.0,
            }),
            other => other,
        }
    })?;
    attached.mark_seen(version);
    Ok(version)
}

/// A copy of the value as `bytes`, and its version.
#[pyfunction]
pub(crate) fn take_bytes<'py>(
    py: Python<'py>,
    reader: &Bound<'py, Reader>,
) -> Outcome<(Bound<'py, PyBytes>, u64)> {
    let attached = &reader.get().attached;
    attached.sized(py, |info| {
        let mut version = 0;
        let copy = bytes::filled(py, &attached.name, info.len, |target| {
            let read = attached.copy_into(py, None, target)?;
            version = attached.saw(read).version;
            Ok(read.len)
        })?;
        Ok((copy, version))
    })
}

/// `Reader.read_into`, and the version beside the length.
#[pyfunction]
pub(crate) fn take_into(
    reader: &Bound<'_, Reader>,
    buffer: &Bound<'_, PyAny>,
) -> Outcome<(usize, u64)> {
    let read = reader.get().copy_into_buffer(buffer)?;
    Ok((read.len, read.version))
}

/// `Reader.numpy`, and the version of the value.
#[pyfunction]
pub(crate) fn take_array<'py>(
    py: Python<'py>,
    reader: &Bound<'py, Reader>,
) -> Outcome<(Bound<'py, PyAny>, u64)> {
    reader.get().array_and_version(py)
}

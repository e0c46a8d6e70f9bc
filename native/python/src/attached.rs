//! A reader's hold on its segment: the core's reader, until it is closed, and what was seen of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use pyo3::prelude::*;
use pyo3::sync::RwLockExt;
use snakepit_shm::{Descriptor, ReadInfo, SegmentReader, ShmError};

use crate::array::Layout;
use crate::buffer::DETACH_FROM;
use crate::error::{Failure, Outcome};
use crate::fork::Tied;
use crate::seconds::Seconds;

/// How often a value that grows between asking its length and copying it is tried again.
const GROWN_AT_MOST: usize = 64;

pub(crate) struct Attached {
    pub(crate) name: String,
    /// The most bytes that a value can have.
    pub(crate) capacity: usize,
    /// Empty once closed. Nobody runs Python code while holding it, and nobody who has the GIL
    /// waits for it: whoever gets it may have to take the GIL next (`read_py_attached` does).
    inner: RwLock<Option<Tied<SegmentReader>>>,
    /// Set while a close waits for the calls that are under way.
    closing: AtomicBool,
    /// The newest version that a call has returned.
    seen: AtomicU64,
}

impl Attached {
    pub(crate) fn new(reader: SegmentReader) -> Self {
        Self {
            name: reader.name().to_owned(),
            capacity: reader.capacity(),
            inner: RwLock::new(Some(Tied::new(reader))),
            closing: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        }
    }

    fn closed_error(&self) -> ShmError {
        ShmError::Closed {
            name: self.name.clone(),
        }
    }

    /// Runs `f` on the core's reader with the GIL held; for calls that take no time.
    pub(crate) fn with<R>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&SegmentReader) -> snakepit_shm::Result<R>,
    ) -> Outcome<R> {
        let guard = self
            .inner
            .read_py_attached(py)
            .unwrap_or_else(PoisonError::into_inner);
        match guard.as_ref().and_then(Tied::get) {
            Some(reader) => Ok(f(reader)?),
            None => Err(self.closed_error().into()),
        }
    }

    /// Runs `f` on the core's reader; the caller holds no GIL.
    pub(crate) fn with_detached<R>(
        &self,
        f: impl FnOnce(&SegmentReader) -> snakepit_shm::Result<R>,
    ) -> snakepit_shm::Result<R> {
        let guard = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        match guard.as_ref().and_then(Tied::get) {
            Some(reader) if !self.closing.load(Ordering::Acquire) => f(reader),
            _ => Err(self.closed_error()),
        }
    }

    /// The newest version that a call has returned; 0 before the first.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    pub(crate) fn mark_seen(&self, version: u64) {
        self.seen.fetch_max(version, Ordering::Relaxed);
    }

    pub(crate) fn saw(&self, info: ReadInfo) -> ReadInfo {
        self.mark_seen(info.version);
        info
    }

    /// Copies the value into `target`, without the GIL when it is large.
    pub(crate) fn copy_into(
        &self,
        py: Python<'_>,
        range: Option<usize>,
        target: &mut [u8],
    ) -> Outcome<ReadInfo> {
        let copy = |reader: &SegmentReader, target: &mut [u8]| match range {
            None => reader.read_into(target),
            Some(offset) => reader.read_range_into(offset, target),
        };
        if target.len() >= DETACH_FROM {
            Ok(py.detach(|| self.with_detached(|reader| copy(reader, target)))?)
        } else {
            self.with(py, |reader| copy(reader, target))
        }
    }

    /// Copies the value after the last one read into `target`, without the GIL when there is much room.
    pub(crate) fn next_into(
        &self,
        py: Python<'_>,
        target: &mut [u8],
    ) -> Outcome<Option<(ReadInfo, u64)>> {
        if target.len() >= DETACH_FROM {
            Ok(py.detach(|| self.with_detached(|reader| reader.read_next_into(target)))?)
        } else {
            self.with(py, |reader| reader.read_next_into(target))
        }
    }

    /// Runs `attempt` with the value's length until the value it copies is not longer than that.
    pub(crate) fn sized<T>(
        &self,
        py: Python<'_>,
        mut attempt: impl FnMut(ReadInfo) -> Outcome<T>,
    ) -> Outcome<T> {
        let mut tried = 0;
        loop {
            let info = self.with(py, SegmentReader::info)?;
            match attempt(info) {
                Err(Failure::Core(ShmError::OutOfBounds { .. })) if tried < GROWN_AT_MOST => {
                    tried += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// What the value is, as the slot's header says.
    pub(crate) fn descriptor(&self, read: &ReadInfo) -> Outcome<Descriptor> {
        read.descriptor().map_err(|_| {
            ShmError::Corrupted {
                name: self.name.clone(),
                reason: "the description of its value does not fit the value".to_owned(),
            }
            .into()
        })
    }

    /// What an array over the value looks like.
    pub(crate) fn layout<'py>(&self, py: Python<'py>, read: &ReadInfo) -> Outcome<Layout<'py>> {
        Layout::of_value(py, &self.descriptor(read)?, read.len, &self.name)
    }

    /// Refuses a value that is older than `max_age`.
    pub(crate) fn check_age(&self, py: Python<'_>, max_age: Option<Seconds>) -> Outcome<()> {
        let Some(Seconds(max_age)) = max_age else {
            return Ok(());
        };
        let age = self.with(py, SegmentReader::age)?;
        if age > max_age {
            return Err(ShmError::Stale {
                name: self.name.clone(),
                age,
                max_age,
            }
            .into());
        }
        Ok(())
    }

    pub(crate) fn is_closed(&self, py: Python<'_>) -> bool {
        self.inner
            .read_py_attached(py)
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }

    /// Detaches, after the calls of other threads that are under way; waits are ended.
    pub(crate) fn detach(&self, py: Python<'_>) -> Outcome<()> {
        self.closing.store(true, Ordering::Release);
        // A waker counts as a reader, so it must not outlive this statement.
        if let Ok(waker) = self.with(py, |reader| Ok(reader.waker())) {
            py.detach(|| waker.wake());
        }
        let closed = py.detach(|| {
            let taken = self
                .inner
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            match taken.and_then(Tied::into_inner) {
                Some(reader) => {
                    // Those that were begun before `closing` was seen.
                    reader.end_watches();
                    reader.close()
                }
                None => Ok(()),
            }
        });
        Ok(closed?)
    }
}

//! How a value gets into its slot: checks, the choice of the slot, the words of its header.

use super::SegmentWriter;
use super::crowd::{self, Crowd};
use crate::descriptor::Descriptor;
use crate::error::{Resource, Result, ShmError};
use crate::hazard;
use crate::layout::{SegmentState, flags, publish_word};
use crate::mapping::SlotWord;
use crate::platform;
use crate::seqlock;
use std::sync::atomic::Ordering;

impl SegmentWriter {
    #[inline]
    pub(crate) fn check_range(&self, offset: usize, len: usize) -> Result<()> {
        let capacity = self.capacity();
        let fits = len > 0 && offset.checked_add(len).is_some_and(|end| end <= capacity);
        if fits {
            return Ok(());
        }
        Err(ShmError::OutOfBounds {
            name: self.segment.name.clone(),
            offset,
            len,
            capacity,
        })
    }

    /// After a commit: whether there was memory to write to.
    #[inline]
    pub(crate) fn check_kept(&self, version: u64) -> Result<u64> {
        if self.segment.mapping.lost() {
            return Err(self.truncated());
        }
        Ok(version)
    }

    #[cold]
    fn truncated(&self) -> ShmError {
        self.segment.mapping.loss(&self.segment.name)
    }

    #[inline]
    pub(crate) fn check_writable(&self) -> Result<()> {
        let active = SegmentState::Active.to_word();
        let mapping = &*self.segment.mapping;
        let state = mapping.state_word().load(Ordering::Relaxed);
        if state == active && !self.in_child() && !mapping.lost() {
            return Ok(());
        }
        Err(self.not_writable())
    }

    #[cold]
    fn not_writable(&self) -> ShmError {
        let name = self.segment.name.clone();
        if self.segment.mapping.lost() {
            return self.truncated();
        }
        if self.in_child() {
            return ShmError::SegmentBusy {
                pid: self.segment.writer_pid(),
                name,
            };
        }
        match self.segment.state() {
            Ok(SegmentState::Sealed) => ShmError::Sealed { name },
            Ok(_) => ShmError::Closed { name },
            Err(corrupted) => corrupted,
        }
    }

    /// Picks the slot for the next value and marks it as being written.
    #[inline]
    pub(crate) fn begin(&mut self) -> Result<(usize, u64)> {
        self.check_writable()?;
        let version = self.version + 2;
        if version > publish_word::MAX_VERSION {
            return Err(ShmError::ResourceExhausted {
                name: Some(self.segment.name.clone()),
                resource: Resource::Versions,
                needed: 1,
                available: Some(0),
            });
        }
        let current = (self.version != 0).then_some(self.current);
        let mapping = &*self.segment.mapping;
        let slot = hazard::begin(mapping, &mut self.lookout, current, version);
        Ok((slot, version))
    }

    /// Wakes a few sleepers, or has a crowd of them woken.
    #[cold]
    fn wake(&mut self, sleepers: u32) {
        if sleepers > crowd::FEW {
            if self.crowd.is_none() {
                self.crowd = Crowd::join(&self.segment);
            }
            if let Some(crowd) = &self.crowd {
                crowd.hand_over();
                return;
            }
        }
        crowd::wake(&self.segment);
    }

    /// Publishes what is in the slot.
    #[inline]
    pub(crate) fn commit(
        &mut self,
        slot: usize,
        version: u64,
        len: usize,
        descriptor: Descriptor,
        crc: u32,
    ) {
        let mapping = &*self.segment.mapping;
        let geometry = mapping.geometry();
        let now = if geometry.has(flags::TIMESTAMP_COARSE) {
            platform::monotonic_coarse_ns()
        } else if geometry.has(flags::TIMESTAMP_PRECISE) {
            platform::monotonic_ns()
        } else {
            0
        };
        let [kind, dtype, shape0, shape1, shape2] = descriptor.encode();
        let put = |word, value| {
            mapping
                .slot_word(slot, word)
                .store(value, Ordering::Relaxed);
        };
        put(SlotWord::Len, len as u64);
        put(SlotWord::Timestamp, now);
        put(SlotWord::Check, kind | u64::from(crc));
        put(SlotWord::Dtype, dtype);
        put(SlotWord::Shape0, shape0);
        put(SlotWord::Shape1, shape1);
        put(SlotWord::Shape2, shape2);
        seqlock::commit(mapping, slot, version);
        if geometry.has(flags::NOTIFY) {
            let handoff = self.crowd.as_ref().map(|crowd| &crowd.handoff);
            let sleepers = seqlock::sleepers(mapping, handoff);
            if sleepers > 0 {
                self.wake(sleepers);
            }
        }
        self.current = slot;
        self.version = version;
        self.len = len;
        self.descriptor = descriptor;
    }
}

//! How a value gets into its slot: checks, the choice of the slot, the words of its header.

use super::SegmentWriter;
use super::crowd::{self, Crowd};
use crate::descriptor::Descriptor;
use crate::error::{Resource, Result, ShmError};
use crate::hazard;
use crate::layout::{Geometry, SegmentState, flags, publish_word};
use crate::mapping::{SlotWord, Slots};
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
        Err(self.outside(offset, len))
    }

    #[cold]
    fn outside(&self, offset: usize, len: usize) -> ShmError {
        ShmError::OutOfBounds {
            name: self.segment.name.clone(),
            offset,
            len,
            capacity: self.capacity(),
        }
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

    #[cold]
    fn out_of_versions(&self) -> ShmError {
        ShmError::ResourceExhausted {
            name: Some(self.segment.name.clone()),
            resource: Resource::Versions,
            needed: 1,
            available: Some(0),
        }
    }

    /// The version of the next value, if there may be one.
    #[inline]
    pub(super) fn next_version(&self) -> Result<u64> {
        self.check_writable()?;
        let version = self.version + 2;
        if version > publish_word::MAX_VERSION {
            return Err(self.out_of_versions());
        }
        Ok(version)
    }

    /// The slot of the current value.
    #[inline]
    pub(super) fn current_slot(&self) -> Option<usize> {
        (self.version != 0).then_some(self.current)
    }

    /// Picks the slot for the next value and marks it as being written.
    #[inline]
    pub(crate) fn begin(&mut self) -> Result<(usize, u64)> {
        let version = self.next_version()?;
        let current = self.current_slot();
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
        let slots = self.segment.mapping.slots_now();
        publish(&slots, slot, version, len, &descriptor, crc);
        self.published(slot, version, len, descriptor);
    }

    /// Wakes who waits for what was just published, and notes it.
    #[inline]
    pub(super) fn published(
        &mut self,
        slot: usize,
        version: u64,
        len: usize,
        descriptor: Descriptor,
    ) {
        let mapping = &*self.segment.mapping;
        if mapping.geometry().has(flags::NOTIFY) {
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

/// Fills in the header of a slot and makes it the current one.
#[inline]
pub(super) fn publish(
    slots: &Slots<'_>,
    slot: usize,
    version: u64,
    len: usize,
    descriptor: &Descriptor,
    crc: u32,
) {
    const STAMPED: u32 = flags::TIMESTAMP_COARSE | flags::TIMESTAMP_PRECISE;
    let geometry = slots.mapping().geometry();
    let now = if geometry.has(STAMPED) {
        now(geometry)
    } else {
        0
    };
    let [kind, dtype, shape0, shape1, shape2] = descriptor.encode();
    let put = |word, value| slots.word(slot, word).store(value, Ordering::Relaxed);
    put(SlotWord::Len, len as u64);
    put(SlotWord::Timestamp, now);
    put(SlotWord::Check, kind | u64::from(crc));
    put(SlotWord::Dtype, dtype);
    put(SlotWord::Shape0, shape0);
    put(SlotWord::Shape1, shape1);
    put(SlotWord::Shape2, shape2);
    seqlock::commit(slots, slot, version);
}

/// The timestamp of a value, for segments that have them.
#[inline(never)]
fn now(geometry: &Geometry) -> u64 {
    if geometry.has(flags::TIMESTAMP_COARSE) {
        platform::monotonic_coarse_ns()
    } else {
        platform::monotonic_ns()
    }
}

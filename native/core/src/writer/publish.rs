//! How a value gets into its slot: checks, the choice of the slot, the words of its header.

use super::crowd::{self, Crowd};
use super::{SHORT, SegmentWriter};
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
        if self.is_writable() {
            return Ok(());
        }
        Err(self.not_writable())
    }

    #[inline(always)]
    fn is_writable(&self) -> bool {
        let active = SegmentState::Active.to_word();
        let mapping = &*self.segment.mapping;
        let state = mapping.state_word().load(Ordering::Relaxed);
        state == active && !self.in_child() && !mapping.lost()
    }

    /// A short value of plain bytes by the straight way: one that fits, in a segment where nobody is to be looked
    /// for. `None` when there is more to it; nothing was changed then, and the way for all values finds out what.
    // Never: among a caller's own values there are not enough registers for those of a write.
    #[inline(never)]
    pub(super) fn write_at_once(&mut self, data: &[u8]) -> Option<u64> {
        let slots = self.segment.mapping.slots_now();
        let geometry = slots.mapping().geometry();
        let version = self.version + 2;
        let straight = slots.holds(data.len())
            && version <= publish_word::MAX_VERSION
            && !geometry.has(flags::CRC32C)
            && data.len() <= SHORT
            && self.is_writable();
        if !straight {
            return None;
        }
        // Asked before anything else is in registers; the copy takes less than the clock's step.
        let now = stamp(geometry);
        let slot = hazard::begin_at_once(&slots, &self.lookout, self.current_slot(), version)?;
        slots.copy_in(slot, data);
        let raw = Descriptor::RAW;
        publish(&slots, slot, version, data.len(), &raw, 0, now);
        self.rewritten = true;
        self.published(slot, version, data.len(), raw);
        Some(version)
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
        let now = stamp(slots.mapping().geometry());
        publish(&slots, slot, version, len, &descriptor, crc, now);
        self.published(slot, version, len, descriptor);
    }

    /// Notes what was just published, and wakes who waits for it.
    #[inline(always)]
    pub(super) fn published(
        &mut self,
        slot: usize,
        version: u64,
        len: usize,
        descriptor: Descriptor,
    ) {
        self.current = slot;
        self.version = version;
        self.len = len;
        self.descriptor = descriptor;
        let mapping = &*self.segment.mapping;
        if mapping.geometry().has(flags::NOTIFY) {
            let handoff = self.crowd.as_ref().map(|crowd| &crowd.handoff);
            let sleepers = seqlock::sleepers(mapping, handoff);
            if sleepers > 0 {
                self.wake(sleepers);
            }
        }
    }
}

/// Fills in the header of a slot and makes it the current one.
#[inline(always)]
pub(super) fn publish(
    slots: &Slots<'_>,
    slot: usize,
    version: u64,
    len: usize,
    descriptor: &Descriptor,
    crc: u32,
    now: u64,
) {
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

/// The timestamp of a value that is published now; 0 where values have none.
#[inline]
pub(super) fn stamp(geometry: &Geometry) -> u64 {
    const STAMPED: u32 = flags::TIMESTAMP_COARSE | flags::TIMESTAMP_PRECISE;
    if geometry.has(STAMPED) {
        now(geometry)
    } else {
        0
    }
}

/// [`stamp`] in segments that have them.
#[inline(never)]
fn now(geometry: &Geometry) -> u64 {
    if geometry.has(flags::TIMESTAMP_COARSE) {
        platform::monotonic_coarse_ns()
    } else {
        platform::monotonic_ns()
    }
}

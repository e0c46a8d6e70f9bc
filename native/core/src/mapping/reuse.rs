//! The memory of one segment as that of the next (`pool`).

use super::{Access, Mapping, SlotWord};
use crate::copy;
use crate::hazard::Hazards;
use crate::layout::{Geometry, SegmentState};
use crate::platform;
use crate::seqlock::Words;
use std::sync::atomic::Ordering;

impl Mapping {
    /// Bytes that are mapped.
    pub(crate) fn len(&self) -> usize {
        self.header.len() + self.control.len() + self.slots.len()
    }

    /// Whether a segment of another geometry could lie in what is mapped here.
    pub(crate) fn fits(&self, geometry: &Geometry) -> bool {
        let page = platform::page_size();
        geometry.control == self.header.len()
            && geometry.control_len(page) == self.control.len()
            && geometry.file_len(page) <= self.len()
    }

    /// The same memory as another segment. Panics unless it fits: callers check first.
    pub(crate) fn recast(mut self, geometry: Geometry) -> Self {
        assert!(self.fits(&geometry));
        self.first_slot = geometry.first_slot - self.header.len() - self.control.len();
        self.geometry = geometry;
        self
    }

    /// Makes what lies here, and nobody uses, the beginning of a segment: no value, no reader's pin, no
    /// mark but the one of removal, which stays until it is published. The reader table is empty already.
    pub(crate) fn reset(&self) {
        assert_eq!(self.access, Access::Writer);
        // Relaxed, all of it: the release of `removed`, after this, publishes it to whoever comes late.
        for (word, value) in [
            (self.publish(), 0),
            (self.orphaned(), 0),
            (self.ttl(), 0),
            (self.lender(), 0),
            (self.home_word(), 0),
            (self.takeovers(), 0),
            (self.discarded(), 0),
            (self.pins(), 0),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        self.reader_high().store(0, Ordering::Relaxed);
        self.waiters().store(0, Ordering::Relaxed);
        let slots = self.slots_now();
        for slot in 0..self.geometry.slots {
            self.seq(slot).store(0, Ordering::Relaxed);
            for word in SlotWord::ALL {
                slots.word(slot, word).store(0, Ordering::Relaxed);
            }
        }
        let active = SegmentState::Active.to_word();
        self.state_word().store(active, Ordering::Relaxed);
    }

    /// Zeroes all that the slots of any geometry ever held, up to `end` of the file.
    pub(crate) fn wipe(&self, end: usize) {
        assert_eq!(self.access, Access::Writer);
        let before = self.header.len() + self.control.len();
        let len = self.slots.len().min(end.saturating_sub(before));
        // SAFETY: writable and in range.
        unsafe { copy::zero(self.slots.as_mut_ptr(), len) };
    }
}

impl SlotWord {
    const ALL: [Self; 7] = [
        Self::Len,
        Self::Timestamp,
        Self::Check,
        Self::Dtype,
        Self::Shape0,
        Self::Shape1,
        Self::Shape2,
    ];
}

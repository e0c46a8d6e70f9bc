//! What a slot's header says about its value.

use crate::descriptor::Descriptor;
use crate::error::Result;
use crate::mapping::{Mapping, SlotWord, Slots};
use crate::segment::corrupted;
use std::sync::atomic::Ordering;

/// What a reader learns about a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadInfo {
    /// Its version.
    pub version: u64,
    /// Length of the whole value, in bytes; 0 only for one that is described as having none.
    pub len: usize,
    /// When it was published: CLOCK_MONOTONIC nanoseconds, 0 without timestamps.
    pub timestamp_ns: u64,
    words: [u64; 5],
}

impl ReadInfo {
    /// Format, element type and shape.
    ///
    /// # Errors
    ///
    /// [`ShmError::Corrupted`](crate::ShmError::Corrupted) when they do not fit the value.
    pub fn descriptor(&self) -> Result<Descriptor> {
        Descriptor::decode(&self.words, self.len)
            .ok_or_else(|| corrupted("value", "its description does not fit its length"))
    }

    /// Loads the words; whether they belong together is the seqlock's to say.
    #[inline]
    pub(crate) fn load(mapping: &Mapping, slot: usize, version: u64) -> Self {
        let slots = mapping.slots_now();
        let len = slots.word(slot, SlotWord::Len).load(Ordering::Relaxed) as usize;
        Self::load_rest(&slots, slot, version, len)
    }

    /// [`Self::load`] when the length was loaded, and checked, before.
    #[inline]
    pub(crate) fn load_rest(slots: &Slots<'_>, slot: usize, version: u64, len: usize) -> Self {
        let [timestamp_ns, words @ ..] = slots.words_from_timestamp(slot);
        Self {
            version,
            len,
            timestamp_ns,
            words,
        }
    }

    /// Whether a slot of that capacity can hold a value of this length. Of a copy that was not whole it says
    /// nothing.
    #[inline]
    pub(crate) fn is_possible(&self, capacity: usize) -> bool {
        self.len <= capacity && (self.len > 0 || self.is_nothing())
    }

    /// A length of 0 that is meant.
    #[cold]
    fn is_nothing(&self) -> bool {
        Descriptor::decode(&self.words, self.len).is_some_and(|described| described.is_empty())
    }

    pub(crate) fn crc(&self) -> u32 {
        self.words[0] as u32
    }
}

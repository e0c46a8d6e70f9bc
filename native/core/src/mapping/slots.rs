//! Where the slots of a mapping are, in registers.

use super::{Access, Mapping, SlotWord};
use crate::copy;
use crate::hazard::Hazards;
use crate::layout::{SLOT_HEADER, slot as slot_field};
use crate::seqlock::Words;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Where the slots of a mapping are, for one read or write. The compiler must take every access to shared
/// memory for one that changes the mapping's own fields, and would load them, find the slot and check its
/// number again each time; these it keeps in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots<'a> {
    first: *mut u8,
    stride: usize,
    count: usize,
    capacity: usize,
    mapping: &'a Mapping,
}

/// The bytes of a value, of which that many were seen to be inside their slot: checked once, for all that is
/// done with them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a> {
    at: *mut u8,
    len: usize,
    slots: PhantomData<&'a Mapping>,
}

impl Mapping {
    /// Where its slots are, noted once for one read or write.
    #[inline(always)]
    pub(crate) fn slots_now(&self) -> Slots<'_> {
        // SAFETY: slot 0 lies inside the slot pages by `Geometry`.
        let first = unsafe { self.slots.as_mut_ptr().add(self.first_slot) };
        Slots {
            first,
            stride: self.geometry.stride,
            count: self.geometry.slots,
            capacity: self.geometry.capacity,
            mapping: self,
        }
    }
}

impl<'a> Slots<'a> {
    /// The mapping that they are of.
    #[inline]
    pub(crate) fn mapping(&self) -> &'a Mapping {
        self.mapping
    }

    #[inline]
    fn at(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.count);
        // SAFETY: as `Mapping::slot_at`.
        unsafe { self.first.add(slot * self.stride) }
    }

    /// A word of a slot header.
    #[inline]
    pub(crate) fn word(&self, slot: usize, field: SlotWord) -> &'a AtomicU64 {
        // SAFETY: as `Mapping::slot_u64`; the mapping lives for 'a.
        unsafe { &*self.at(slot).add(field as usize).cast::<AtomicU64>() }
    }

    /// The words of a slot header from the timestamp on.
    #[inline]
    pub(crate) fn words_from_timestamp(&self, slot: usize) -> [u64; 6] {
        // SAFETY: a slot header is a cache line of eight words, aligned; the timestamp is its third.
        unsafe { copy::six_words(self.at(slot).add(slot_field::TIMESTAMP)) }
    }

    /// Whether a value can have that length.
    #[inline]
    pub(crate) fn holds(&self, len: usize) -> bool {
        len.wrapping_sub(1) < self.capacity
    }

    /// As many bytes of a slot as its header says; `None` when no value has that length.
    #[inline]
    pub(crate) fn value(&self, slot: usize) -> Option<Bytes<'a>> {
        let len = self.word(slot, SlotWord::Len).load(Ordering::Relaxed) as usize;
        if !self.holds(len) {
            return None;
        }
        // SAFETY: the slot's bytes follow its header, and there are at least `len`.
        let at = unsafe { self.at(slot).add(SLOT_HEADER) };
        Some(Bytes {
            at,
            len,
            slots: PhantomData,
        })
    }

    /// Copies into a slot. Panics unless they fit: callers check first and return an error.
    #[inline(always)]
    pub(crate) fn copy_in(&self, slot: usize, bytes: &[u8]) {
        assert!(self.mapping.access == Access::Writer && self.holds(bytes.len()));
        // SAFETY: the slot's bytes follow its header, and there are at least so many.
        let to = unsafe { self.at(slot).add(SLOT_HEADER) };
        // SAFETY: as `Mapping::copy_in`.
        unsafe { copy::copy(to, bytes.as_ptr(), bytes.len()) };
    }
}

impl Bytes<'_> {
    /// How many.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies them, while they may be overwritten; `None` when they do not fit into `buffer`.
    #[inline(always)]
    pub(crate) fn copy_out(&self, buffer: &mut [u8]) -> Option<()> {
        if self.len > buffer.len() {
            return None;
        }
        // SAFETY: readable, as checked when `self` was made, and the buffer, which is private, has room.
        unsafe { copy::copy(buffer.as_mut_ptr(), self.at, self.len) };
        Some(())
    }
}

impl Words for Slots<'_> {
    #[inline]
    fn publish(&self) -> &AtomicU64 {
        self.mapping.publish()
    }
    #[inline]
    fn seq(&self, slot: usize) -> &AtomicU64 {
        // SAFETY: as `word`.
        unsafe { &*self.at(slot).add(slot_field::SEQ).cast::<AtomicU64>() }
    }
    #[inline]
    fn slots(&self) -> usize {
        self.count
    }
    #[inline]
    fn notify(&self) -> &AtomicU32 {
        self.mapping.notify()
    }
    #[inline]
    fn waiters(&self) -> &AtomicU32 {
        self.mapping.waiters()
    }
}

impl<'a> Hazards for Slots<'a> {
    #[inline]
    fn pins(&self) -> &AtomicU64 {
        self.mapping.pins()
    }
    #[inline]
    fn pinnable(&self) -> &AtomicU32 {
        self.mapping.pinnable()
    }
    fn entries(&self) -> usize {
        self.mapping.entries()
    }
    fn used(&self) -> usize {
        self.mapping.used()
    }
    fn taken(&self, entry: usize) -> bool {
        self.mapping.taken(entry)
    }
    fn pinned_by(&self, entry: usize) -> &AtomicU32 {
        self.mapping.reader_pin(entry)
    }
    type Whole = Mapping;
    #[inline]
    fn whole(&self) -> &Mapping {
        self.mapping
    }
}

//! Where the slots of a mapping are, in registers.

use super::{Access, Mapping, SlotWord};
use crate::copy;
use crate::hazard::Hazards;
use crate::layout::{SLOT_HEADER, slot as slot_field};
use crate::seqlock::Words;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Where the slots of a mapping are, for one read or write. The compiler must take every access to shared
/// memory for one that changes the mapping's own fields, and would load them, find the slot and check its
/// number again each time; these it keeps in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots<'a> {
    first: *mut u8,
    stride: usize,
    count: usize,
    capacity: usize,
    writable: bool,
    mapping: &'a Mapping,
}

impl Mapping {
    /// Where its slots are, noted once for one read or write.
    #[inline]
    pub(crate) fn slots_now(&self) -> Slots<'_> {
        // SAFETY: slot 0 lies inside the slot pages by `Geometry`.
        let first = unsafe { self.slots.as_mut_ptr().add(self.first_slot) };
        Slots {
            first,
            stride: self.geometry.stride,
            count: self.geometry.slots,
            capacity: self.geometry.capacity,
            writable: self.access == Access::Writer,
            mapping: self,
        }
    }
}

impl<'a> Slots<'a> {
    /// Longest value, in bytes.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

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

    #[inline]
    fn data(&self, slot: usize, len: usize) -> *mut u8 {
        assert!(len <= self.capacity);
        // SAFETY: the slot's bytes follow its header, and there are at least `len`.
        unsafe { self.at(slot).add(SLOT_HEADER) }
    }

    /// [`Mapping::copy_out`] from the start of the value.
    #[inline]
    pub(crate) fn copy_out(&self, slot: usize, bytes: &mut [u8]) {
        let from = self.data(slot, bytes.len());
        // SAFETY: readable and in range; `bytes` is private.
        unsafe { copy::copy(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    /// [`Mapping::copy_in`] at the start of the value.
    #[inline]
    pub(crate) fn copy_in(&self, slot: usize, bytes: &[u8]) {
        assert!(self.writable);
        let to = self.data(slot, bytes.len());
        // SAFETY: as `Mapping::copy_in`.
        unsafe { copy::copy(to, bytes.as_ptr(), bytes.len()) };
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

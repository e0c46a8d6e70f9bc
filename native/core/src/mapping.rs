//! The mapped bytes of a segment, and the only way to them.
//!
//! A mapping has three parts: header pages, control pages, slot pages. A writer maps all of them
//! writable; a reader maps the control pages writable where it may and everything else `PROT_READ`.
//! Offsets come from a [`Geometry`] that was validated against the file and is kept in private
//! memory, and every access is checked against it: nothing read from the file is ever used as an
//! offset unchecked. No Rust reference to bytes that may change leaves this module.

mod backing;
pub(crate) mod kept;
mod reuse;
mod slots;

pub(crate) use self::slots::{Bytes, Slots};

use crate::copy;
use crate::error::{Resource, Result, ShmError};
use crate::hazard::Hazards;
use crate::home::Home;
use crate::layout::{
    Geometry, IDENTITY_AT, IDENTITY_LEN, READER_ENTRY, READER_TABLE, SLOT_HEADER, SegmentState,
    control, flags, header, reader_entry, slot as slot_field,
};
use crate::platform;
use crate::platform::guard::{Guard, Loss};
use crate::platform::pages::{self, Area, Part};
use crate::seqlock::Words;
use crate::tenure::Tenure;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Mappings from this size on are unmapped by a background thread: unmapping 100 MB takes
/// milliseconds, and a destructor may run where nothing may block.
const UNMAP_IN_BACKGROUND: usize = 4 << 20;

/// Who maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything writable.
    Writer,
    /// Control pages writable.
    Reader,
    /// Nothing writable: a reader that may not open the file for writing.
    Observer,
}

/// The mapped bytes of one segment.
#[derive(Debug)]
pub(crate) struct Mapping {
    geometry: Geometry,
    access: Access,
    /// Given up before anything is unmapped.
    guard: ManuallyDrop<Guard>,
    /// Taken out when it is dropped, all three, perhaps to be unmapped elsewhere.
    header: ManuallyDrop<Area>,
    control: ManuallyDrop<Area>,
    slots: ManuallyDrop<Area>,
    /// Where slot 0's header is, in `slots`.
    first_slot: usize,
}

/// The only right to write a slot's bytes through a slice; made by the writer's loans.
#[derive(Debug)]
pub(crate) struct LoanToken {
    pub(crate) slot: usize,
}

/// The segment was seen sealed, and so it is for ever. Holds for the mapping that made it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealProof(());

/// The slot is pinned, by the one entry that whoever holds this holds as well.
#[derive(Debug)]
pub(crate) struct PinToken {
    pub(crate) slot: usize,
}

impl Mapping {
    /// Maps a file whose length was checked against `geometry`.
    pub(crate) fn new(name: &str, file: &File, geometry: Geometry, access: Access) -> Result<Self> {
        let len = geometry.file_len(platform::page_size());
        Self::with_room(name, file, geometry, access, len)
    }

    /// Maps `len` bytes of a file that has as many, whole pages, and no fewer than `geometry` needs.
    pub(crate) fn with_room(
        name: &str,
        file: &File,
        geometry: Geometry,
        access: Access,
        len: usize,
    ) -> Result<Self> {
        let page = platform::page_size();
        let control_len = geometry.control_len(page);
        let slots_at = geometry.control + control_len;
        let slots_len = len.max(geometry.file_len(page)) - slots_at;
        let writer = access == Access::Writer;
        let part = |offset: usize, len: usize, writable: bool| Part {
            offset,
            len,
            writable,
        };
        let parts = [
            part(0, geometry.control, writer),
            part(geometry.control, control_len, access != Access::Observer),
            part(slots_at, slots_len, writer),
        ];
        let [header, control, slots] = pages::map(file, parts, geometry.has(flags::HUGE))
            .map_err(|source| map_error(name, geometry.file_len(page), source))?;
        let range = |part: &Area| (part.as_ptr() as usize, part.len());
        let guard = Guard::new([range(&header), range(&control), range(&slots)]);
        Ok(Self {
            guard: ManuallyDrop::new(guard),
            header: ManuallyDrop::new(header),
            control: ManuallyDrop::new(control),
            slots: ManuallyDrop::new(slots),
            first_slot: geometry.first_slot - slots_at,
            geometry,
            access,
        })
    }

    /// Sizes and places.
    #[inline]
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether pages were lost: the file was cut, or there was none for a hole. What is read is zeros
    /// then, and what is written goes nowhere.
    #[inline]
    pub(crate) fn lost(&self) -> bool {
        self.guard.lost()
    }

    /// What to answer when pages were [lost](Self::lost).
    #[cold]
    pub(crate) fn loss(&self, name: &str) -> ShmError {
        let name = name.to_owned();
        match self.guard.loss() {
            Some(Loss::NotInherited) => ShmError::NotInherited { name },
            Some(Loss::Cut) | None => ShmError::Truncated { name },
        }
    }

    /// Whether the control pages can be written.
    pub(crate) fn registers(&self) -> bool {
        self.access != Access::Observer
    }

    /// Writes the immutable cache line of a new segment.
    pub(crate) fn write_header(&self) {
        assert_eq!(self.access, Access::Writer);
        let line = self.geometry.encode();
        // SAFETY: the header page is mapped writable and longer than a cache line.
        unsafe { copy::copy(self.header.as_mut_ptr(), line.as_ptr(), line.len()) };
    }

    /// Writes the identity block of a new segment.
    pub(crate) fn write_identity(&self, block: &[u8; IDENTITY_LEN]) {
        assert_eq!(self.access, Access::Writer);
        // SAFETY: the block ends inside the header page (asserted in `layout`), which is writable.
        unsafe {
            copy::copy(
                self.header.as_mut_ptr().add(IDENTITY_AT),
                block.as_ptr(),
                IDENTITY_LEN,
            );
        }
    }

    /// The immutable cache line as it is now, to compare with what was validated.
    pub(crate) fn header_line(&self) -> [u8; crate::layout::HEADER_LEN] {
        let mut line = [0u8; crate::layout::HEADER_LEN];
        // SAFETY: the header page is readable and longer than a cache line.
        unsafe { copy::copy(line.as_mut_ptr(), self.header.as_ptr(), line.len()) };
        line
    }

    /// A word of the header page; `offset` is one of the constants of [`header`].
    #[inline]
    fn header_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the header page lives as long as `self`, the constants are aligned and inside it
        // (asserted in `layout`), and shared words are only accessed as atomics.
        unsafe { &*self.header.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    #[inline]
    fn header_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as `header_u64`.
        unsafe { &*self.header.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// `state`.
    #[inline]
    pub(crate) fn state_word(&self) -> &AtomicU32 {
        self.header_u32(header::STATE)
    }

    /// `state`, decoded; `None` for garbage.
    #[inline]
    pub(crate) fn state(&self) -> Option<SegmentState> {
        // Pairs with the Release store in `seal` and `close`: what was published before is seen.
        SegmentState::from_word(self.state_word().load(Ordering::Acquire))
    }

    /// `generation`.
    pub(crate) fn generation(&self) -> &AtomicU32 {
        self.header_u32(header::GENERATION)
    }

    /// `writer`.
    pub(crate) fn writer_key(&self) -> &AtomicU64 {
        self.header_u64(header::WRITER)
    }

    /// `orphaned`, for whoever has mapped the header writable.
    pub(crate) fn orphaned(&self) -> &AtomicU64 {
        assert_eq!(self.access, Access::Writer);
        self.header_u64(header::ORPHANED)
    }

    /// What `orphaned` says, for everybody.
    pub(crate) fn orphaned_since(&self) -> u64 {
        self.header_u64(header::ORPHANED).load(Ordering::Relaxed)
    }

    /// `ttl`, for whoever has mapped the header writable.
    pub(crate) fn ttl(&self) -> &AtomicU64 {
        assert_eq!(self.access, Access::Writer);
        self.header_u64(header::TTL)
    }

    /// What `ttl` says, for everybody.
    pub(crate) fn ttl_now(&self) -> u64 {
        self.header_u64(header::TTL).load(Ordering::Relaxed)
    }

    /// `lender`, for whoever has mapped the header writable.
    pub(crate) fn lender(&self) -> &AtomicU64 {
        assert_eq!(self.access, Access::Writer);
        self.header_u64(header::LENDER)
    }

    /// What `lender` says, for everybody.
    pub(crate) fn lender_now(&self) -> u64 {
        self.header_u64(header::LENDER).load(Ordering::Relaxed)
    }

    /// `home`, for whoever has mapped the header writable.
    pub(crate) fn home_word(&self) -> &AtomicU64 {
        assert_eq!(self.access, Access::Writer);
        self.header_u64(header::HOME)
    }

    /// `takeovers`.
    pub(crate) fn takeovers(&self) -> &AtomicU64 {
        self.header_u64(header::TAKEOVERS)
    }

    /// `discarded`.
    pub(crate) fn discarded(&self) -> &AtomicU64 {
        self.header_u64(header::DISCARDED)
    }

    fn control_at(&self, offset: usize, len: usize) -> *const u8 {
        assert!(offset + len <= self.control.len());
        // SAFETY: inside the control pages, as just checked.
        unsafe { self.control.as_ptr().add(offset) }
    }

    fn entry(&self, index: usize, field: usize, len: usize) -> *const u8 {
        assert!(index < self.geometry.max_readers);
        self.control_at(READER_TABLE + index * READER_ENTRY + field, len)
    }

    /// Entries of the reader table that were ever used lie below this.
    pub(crate) fn reader_high(&self) -> &AtomicU32 {
        let at = self.control_at(control::HIGH, 4);
        // SAFETY: as `reader_key`.
        unsafe { &*at.cast::<AtomicU32>() }
    }

    /// Whether somebody who left has a child that may still look; for all that can write the control pages.
    pub(crate) fn inherited(&self) -> &AtomicU32 {
        let at = self.control_at(control::INHERITED, 4);
        // SAFETY: as `reader_key`.
        unsafe { &*at.cast::<AtomicU32>() }
    }

    /// Participant key of a reader-table entry.
    pub(crate) fn reader_key(&self, index: usize) -> &AtomicU64 {
        let at = self.entry(index, reader_entry::KEY, 8);
        // SAFETY: aligned (entries are 16 bytes from 64 on), inside the control pages, atomic only.
        unsafe { &*at.cast::<AtomicU64>() }
    }

    /// Pinned slot + 1 of a reader-table entry.
    pub(crate) fn reader_pin(&self, index: usize) -> &AtomicU32 {
        let at = self.entry(index, reader_entry::PIN, 4);
        // SAFETY: as `reader_key`.
        unsafe { &*at.cast::<AtomicU32>() }
    }

    /// Sleeping calls of a reader-table entry.
    pub(crate) fn reader_waiting(&self, index: usize) -> &AtomicU32 {
        let at = self.entry(index, reader_entry::WAITING, 4);
        // SAFETY: as `reader_key`.
        unsafe { &*at.cast::<AtomicU32>() }
    }

    /// File range of the page that holds a reader-table entry, for reservation.
    pub(crate) fn entry_page(&self, index: usize) -> (usize, usize) {
        let page = platform::page_size();
        let at = READER_TABLE + index * READER_ENTRY;
        (self.geometry.control + at / page * page, page)
    }

    #[inline]
    fn slot_at(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.geometry.slots);
        // SAFETY: `slot` is in range, so header and bytes lie inside the slot pages by `Geometry`.
        unsafe {
            self.slots
                .as_mut_ptr()
                .add(self.first_slot + slot * self.geometry.stride)
        }
    }

    #[inline]
    fn slot_u64(&self, slot: usize, field: usize) -> &AtomicU64 {
        let at = self.slot_at(slot);
        // SAFETY: slot headers are 64 bytes, aligned to a cache line; fields are constants inside.
        unsafe { &*at.add(field).cast::<AtomicU64>() }
    }

    #[inline]
    fn data_at(&self, slot: usize, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.geometry.capacity));
        // SAFETY: inside the slot's bytes, as just checked.
        unsafe { self.slot_at(slot).add(SLOT_HEADER + offset) }
    }

    /// Copies into a slot. Panics unless the range fits: callers check first and return an error.
    #[inline]
    pub(crate) fn copy_in(&self, slot: usize, offset: usize, bytes: &[u8]) {
        assert!(self.access == Access::Writer);
        let to = self.data_at(slot, offset, bytes.len());
        // SAFETY: writable and in range; no references to slot bytes exist while the writer writes
        // (views exist of sealed segments only, which writers refuse).
        unsafe { copy::copy(to, bytes.as_ptr(), bytes.len()) };
    }

    /// Copies from a slot that may be overwritten meanwhile.
    #[inline]
    pub(crate) fn copy_out(&self, slot: usize, offset: usize, bytes: &mut [u8]) {
        let from = self.data_at(slot, offset, bytes.len());
        // SAFETY: readable and in range; `bytes` is private.
        unsafe { copy::copy(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    /// [`Self::copy_out`] into memory that others in this process may alias.
    pub(crate) fn copy_out_cells(&self, slot: usize, offset: usize, cells: &[std::cell::Cell<u8>]) {
        let from = self.data_at(slot, offset, cells.len());
        // SAFETY: readable and in range; cells may be written through a shared reference.
        unsafe { copy::copy(cells.as_ptr().cast::<u8>().cast_mut(), from, cells.len()) };
    }

    /// [`Self::copy_in`] from memory that others in this process may alias.
    pub(crate) fn copy_in_cells(&self, slot: usize, offset: usize, cells: &[std::cell::Cell<u8>]) {
        assert!(self.access == Access::Writer);
        let to = self.data_at(slot, offset, cells.len());
        // SAFETY: as `copy_in`; cells may be read while others hold them.
        unsafe { copy::copy(to, cells.as_ptr().cast::<u8>(), cells.len()) };
    }

    /// Copies a range from one slot to the same range of another.
    pub(crate) fn copy_across(&self, from: usize, to: usize, offset: usize, len: usize) {
        assert!(self.access == Access::Writer && from != to);
        let source = self.data_at(from, offset, len);
        let target = self.data_at(to, offset, len);
        // SAFETY: both in range, apart because the slots differ, and only this writer writes.
        unsafe { copy::copy(target, source, len) };
    }

    /// Zeroes a range of a slot.
    pub(crate) fn zero(&self, slot: usize, offset: usize, len: usize) {
        assert!(self.access == Access::Writer);
        let at = self.data_at(slot, offset, len);
        // SAFETY: writable and in range.
        unsafe { copy::zero(at, len) };
    }

    /// CRC32C of the first `len` bytes of a slot.
    pub(crate) fn checksum(&self, slot: usize, len: usize) -> u32 {
        let mut piece = [0u8; 4096];
        let (mut sum, mut done) = (0, 0);
        while done < len {
            let n = (len - done).min(piece.len());
            self.copy_out(slot, done, &mut piece[..n]);
            sum = crc32c::crc32c_append(sum, &piece[..n]);
            done += n;
        }
        sum
    }

    /// The slot's bytes, to be filled in place. Other processes may read them meanwhile, through
    /// the copy that is no data race, and throw away what they got.
    pub(crate) fn loan_slice<'a>(&'a self, token: &'a mut LoanToken) -> &'a mut [u8] {
        assert!(self.access == Access::Writer);
        let capacity = self.geometry.capacity;
        let at = self.data_at(token.slot, 0, capacity);
        // SAFETY: in range and writable; the token is the only one for its slot, so no other
        // reference to these bytes exists in this process, and other processes hold none of ours.
        unsafe { std::slice::from_raw_parts_mut(at, capacity) }
    }

    /// Proof that the segment is sealed; `None` unless it is.
    pub(crate) fn sealed(&self) -> Option<SealProof> {
        (self.state() == Some(SegmentState::Sealed)).then_some(SealProof(()))
    }

    /// The bytes of a sealed segment's slot. Panics unless the range fits: callers check first.
    pub(crate) fn sealed_slice(&self, _sealed: &SealProof, slot: usize, len: usize) -> &[u8] {
        let at = self.data_at(slot, 0, len);
        // SAFETY: in range and readable. The segment is sealed, so by the protocol nobody writes it
        // any more. A program that breaks the protocol can change these bytes, as it could change
        // any private memory of its own user's processes (docs/limitations.md).
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// The bytes of a pinned slot. Panics unless the range fits: callers check first.
    pub(crate) fn pinned_slice(&self, pin: &PinToken, len: usize) -> &[u8] {
        let at = self.data_at(pin.slot, 0, len);
        // SAFETY: in range and readable. The slot is pinned, so by the protocol the writer passes it
        // over. As with a sealed one, a program that breaks the protocol can change these bytes; so
        // can one that fills the table with pins against the rule (docs/limitations.md).
        unsafe { std::slice::from_raw_parts(at, len) }
    }
}

/// Words of a slot header.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(crate) enum SlotWord {
    Len = slot_field::LEN,
    Timestamp = slot_field::TIMESTAMP,
    Check = slot_field::CHECK,
    Dtype = slot_field::DTYPE,
    Shape0 = slot_field::SHAPE,
    Shape1 = slot_field::SHAPE + 8,
    Shape2 = slot_field::SHAPE + 16,
}

impl Words for Mapping {
    #[inline]
    fn publish(&self) -> &AtomicU64 {
        self.header_u64(header::PUBLISH)
    }
    #[inline]
    fn seq(&self, slot: usize) -> &AtomicU64 {
        self.slot_u64(slot, slot_field::SEQ)
    }
    #[inline]
    fn slots(&self) -> usize {
        self.geometry.slots
    }
    #[inline]
    fn notify(&self) -> &AtomicU32 {
        self.header_u32(header::NOTIFY)
    }
    #[inline]
    fn waiters(&self) -> &AtomicU32 {
        let at = self.control.as_ptr();
        // SAFETY: the control pages live as long as `self`; the constant is aligned and inside.
        unsafe { &*at.add(control::WAITERS).cast::<AtomicU32>() }
    }
}

impl Hazards for Mapping {
    #[inline]
    fn pins(&self) -> &AtomicU64 {
        let at = self.control.as_ptr();
        // SAFETY: as `waiters`.
        unsafe { &*at.add(control::PINS).cast::<AtomicU64>() }
    }
    #[inline]
    fn pinnable(&self) -> &AtomicU32 {
        self.header_u32(header::PINNABLE)
    }
    fn entries(&self) -> usize {
        self.geometry.max_readers
    }
    fn used(&self) -> usize {
        let high = self.reader_high().load(Ordering::Acquire) as usize;
        high.min(self.geometry.max_readers)
    }
    fn taken(&self, entry: usize) -> bool {
        self.reader_key(entry).load(Ordering::Relaxed) != 0
    }
    fn pinned_by(&self, entry: usize) -> &AtomicU32 {
        self.reader_pin(entry)
    }
    type Whole = Self;
    fn whole(&self) -> &Self {
        self
    }
}

impl Tenure for Mapping {
    fn removed(&self) -> &AtomicU32 {
        self.header_u32(header::REMOVED)
    }
    fn mark_word(&self) -> &AtomicU32 {
        assert_eq!(self.access, Access::Writer);
        self.removed()
    }
    fn is_entered(&self) -> bool {
        (0..self.used()).any(|entry| self.reader_key(entry).load(Ordering::SeqCst) != 0)
    }
    fn is_same(&self) -> bool {
        self.header_line() == self.geometry.encode()
    }
}

impl Home for Mapping {
    fn home(&self) -> &AtomicU64 {
        self.home_word()
    }
    fn writer(&self) -> &AtomicU64 {
        self.writer_key()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: dropped once, here, before its ranges are unmapped.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        // SAFETY: taken once, here; none of them is used afterwards.
        let (header, control, slots) = unsafe {
            (
                ManuallyDrop::take(&mut self.header),
                ManuallyDrop::take(&mut self.control),
                ManuallyDrop::take(&mut self.slots),
            )
        };
        let large = slots.len() >= UNMAP_IN_BACKGROUND;
        // Neighbours most often, and then unmapped by one call.
        let (front, rest) = header.join(control);
        let all = match rest {
            None => front.join(slots),
            Some(control) => {
                drop(control);
                (front, Some(slots))
            }
        };
        if large {
            platform::background::run(move || drop(all));
        }
    }
}

fn map_error(name: &str, len: usize, source: io::Error) -> ShmError {
    match source.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => ShmError::ResourceExhausted {
            name: Some(name.to_owned()),
            resource: Resource::AddressSpace,
            needed: len as u64,
            available: None,
        },
        _ => ShmError::from_io(name, "map", source),
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Mapping>();
};

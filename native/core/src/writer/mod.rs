//! The one writer of a segment: whole writes, patches, seal, hand-over (FR-001, FR-003).

mod claim;
mod crowd;
mod handover;
mod publish;

pub(crate) use claim::torn_by_death;
pub use handover::{Lent, MAX_TTL, Onlooker};

use crate::descriptor::{DataFormat, Descriptor};
use crate::error::{Result, ShmError};
use crate::hazard::{self, Lookout};
use crate::layout::{SegmentState, flags};
use crate::mapping::{Mapping, Slots};
use crate::options::SegmentOptions;
use crate::patch::Ranges;
use crate::platform::{self, fork};
use crate::segment::Segment;
use crate::seqlock::Words;
use crate::view::{Attachment, SealedView};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A value up to this length is copied by a handful of instructions.
const SHORT: usize = 64;

/// Exclusive right to write a segment, until it is closed, released or dropped.
///
/// A write is wait-free: no lock, no system call (but for waking readers that sleep), no allocation.
/// Nothing that a reader does, or how it dies, makes it wait.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::SegmentOptions;
///
/// let mut writer = SegmentOptions::new("state").dir(dir.path()).create().unwrap();
/// let first = writer.write(b"position=0;speed=0").unwrap();
/// let second = writer.write_at(9, b"7").unwrap();
/// assert_eq!((first, second), (2, 4));
/// writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct SegmentWriter {
    pub(crate) segment: Arc<Segment>,
    /// The slot of the current value, and the value's length and version (0 = none yet).
    current: usize,
    len: usize,
    version: u64,
    descriptor: Descriptor,
    /// For each slot, where it differs from the current value; out of date after whole writes.
    lacks: Box<[Ranges]>,
    /// Since the last patch came a whole value, of which all slots but its own lack everything.
    /// Noted here, so that a whole write touches no list; `lacks` is filled by the next patch.
    rewritten: bool,
    holds_claim: bool,
    /// Since there were many sleepers once.
    crowd: Option<Arc<crowd::Crowd>>,
    /// What it knows of readers' pins.
    lookout: Lookout,
}

impl SegmentOptions {
    /// Creates the segment and publishes its name. Either all of it is there afterwards or nothing.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    /// let writer = SegmentOptions::new("frames").dir(dir.path()).size(1 << 20).create().unwrap();
    /// assert_eq!(writer.capacity(), 1 << 20);
    /// writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::AlreadyExists`], [`ShmError::InvalidName`], [`ShmError::InvalidSize`],
    /// [`ShmError::InvalidOption`], [`ShmError::ResourceExhausted`], [`ShmError::PermissionDenied`].
    pub fn create(&self) -> Result<SegmentWriter> {
        Ok(SegmentWriter::of_new(Segment::create(self)?))
    }
}

impl SegmentWriter {
    /// The writer of a segment that was just created.
    pub(crate) fn of_new(segment: Segment) -> Self {
        tracing::debug!(name = %segment.name, file = %segment.file, "created");
        let lookout = Lookout::of_new(&*segment.mapping, platform::barrier::register);
        Self::new(segment, lookout)
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    fn new(segment: Segment, lookout: Lookout) -> Self {
        Self::of_shared(Arc::new(segment), lookout)
    }

    fn of_shared(segment: Arc<Segment>, lookout: Lookout) -> Self {
        let geometry = *segment.mapping.geometry();
        // A new segment's slots are all zeros: they lack nothing of an empty value.
        Self {
            lacks: vec![Ranges::default(); geometry.slots].into_boxed_slice(),
            segment,
            current: 0,
            len: 0,
            version: 0,
            descriptor: Descriptor::RAW,
            rewritten: false,
            holds_claim: true,
            crowd: None,
            lookout,
        }
    }

    /// Publishes a whole value of 1 to `capacity` bytes; returns its version.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// assert_eq!(writer.write(b"hello").unwrap(), 2);
    /// assert_eq!(writer.write(b"").unwrap_err().code(), "out_of_bounds");
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::OutOfBounds`], [`ShmError::Sealed`], [`ShmError::Closed`] when somebody removed the
    /// segment, [`ShmError::SegmentBusy`] in a forked child of the writer.
    #[inline]
    pub fn write(&mut self, data: &[u8]) -> Result<u64> {
        self.write_raw(data)
    }

    /// [`Self::write`] with format, element type and shape.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// use snakepit_shm::Descriptor;
    /// writer.write_described(&[0; 12], &Descriptor::numpy("<f4", &[3]).unwrap()).unwrap();
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Also [`ShmError::InvalidOption`] when the descriptor makes another length.
    #[inline]
    pub fn write_described(&mut self, data: &[u8], descriptor: &Descriptor) -> Result<u64> {
        if descriptor.format() == DataFormat::Raw {
            return self.write_raw(data);
        }
        self.write_long(data, descriptor)
    }

    #[inline]
    fn write_raw(&mut self, data: &[u8]) -> Result<u64> {
        if data.len() <= SHORT
            && let Some(version) = self.write_at_once(data)
        {
            return self.check_kept(version);
        }
        self.write_raw_long(data)
    }

    /// Apart from [`Self::write_long`], for the words of a description that is known are constants.
    #[inline(never)]
    fn write_raw_long(&mut self, data: &[u8]) -> Result<u64> {
        self.write_slice(data, &Descriptor::RAW)
    }

    #[inline(never)]
    fn write_long(&mut self, data: &[u8], descriptor: &Descriptor) -> Result<u64> {
        self.write_slice(data, descriptor)
    }

    #[inline(always)]
    fn write_slice(&mut self, data: &[u8], descriptor: &Descriptor) -> Result<u64> {
        self.write_whole(data.len(), descriptor, |slots, slot, crc| {
            slots.copy_in(slot, data);
            if crc { crc32c::crc32c(data) } else { 0 }
        })
    }

    /// [`Self::write_described`] of the concatenation of `parts`, each copied straight into the slot.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// use snakepit_shm::Descriptor;
    /// writer.write_vectored(&[b"head", b"", b"body"], &Descriptor::RAW).unwrap();
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::write_described`].
    pub fn write_vectored(&mut self, parts: &[&[u8]], descriptor: &Descriptor) -> Result<u64> {
        let len = parts
            .iter()
            .try_fold(0usize, |n, part| n.checked_add(part.len()))
            .unwrap_or(usize::MAX);
        self.write_whole(len, descriptor, |slots, slot, crc| {
            let mapping = slots.mapping();
            let (mut at, mut sum) = (0, 0);
            for part in parts {
                mapping.copy_in(slot, at, part);
                at += part.len();
                if crc {
                    sum = crc32c::crc32c_append(sum, part);
                }
            }
            sum
        })
    }

    /// [`Self::write_described`] from memory that others may alias (a Python buffer, say).
    ///
    /// # Errors
    ///
    /// As [`Self::write_described`].
    pub fn write_cells(&mut self, data: &[Cell<u8>], descriptor: &Descriptor) -> Result<u64> {
        self.write_whole(data.len(), descriptor, |slots, slot, crc| {
            let mapping = slots.mapping();
            mapping.copy_in_cells(slot, 0, data);
            if crc {
                mapping.checksum(slot, data.len())
            } else {
                0
            }
        })
    }

    #[inline(always)]
    fn write_whole(
        &mut self,
        len: usize,
        descriptor: &Descriptor,
        fill: impl FnOnce(&Slots<'_>, usize, bool) -> u32,
    ) -> Result<u64> {
        self.check_range(0, len)?;
        descriptor.check_len(len)?;
        let version = self.next_version()?;
        let current = self.current_slot();
        let slots = self.segment.mapping.slots_now();
        let slot = hazard::begin(&slots, &mut self.lookout, current, version);
        let crc = slots.mapping().geometry().has(flags::CRC32C);
        let crc = fill(&slots, slot, crc);
        let now = publish::stamp(slots.mapping().geometry());
        publish::publish(&slots, slot, version, len, descriptor, crc, now);
        self.published(slot, version, len, *descriptor);
        self.rewritten = true;
        self.check_kept(version)
    }

    /// Publishes the previous value with `data` at `offset`; the value grows when the patch ends
    /// beyond it, and bytes between its old end and `offset` are zero. Only what the slot lacks is
    /// copied, not the whole value.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// writer.write(b"0123456789").unwrap();
    /// writer.write_at(4, b"__").unwrap();
    /// let error = writer.write_at(usize::MAX - 1, b"__").unwrap_err();
    /// assert_eq!(error.code(), "out_of_bounds");
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_at(&mut self, offset: usize, data: &[u8]) -> Result<u64> {
        self.patch(offset, data.len(), |mapping, slot| {
            mapping.copy_in(slot, offset, data);
        })
    }

    /// [`Self::write_at`] from memory that others may alias.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_at_cells(&mut self, offset: usize, data: &[Cell<u8>]) -> Result<u64> {
        self.patch(offset, data.len(), |mapping, slot| {
            mapping.copy_in_cells(slot, offset, data);
        })
    }

    fn patch(
        &mut self,
        offset: usize,
        len: usize,
        copy: impl FnOnce(&Mapping, usize),
    ) -> Result<u64> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let (slot, version) = self.begin()?;
        if std::mem::take(&mut self.rewritten) {
            self.lacks.fill(Ranges::whole(self.capacity()));
            self.lacks[self.current] = Ranges::default();
        }
        let mapping = &*self.segment.mapping;
        if slot != self.current {
            for (start, stop) in self.lacks[slot].iter() {
                // What the patch covers needs no carrying over; nor does what lies beyond the value.
                let stop = stop.min(self.len);
                let before = (start, stop.min(offset));
                let after = (start.max(end), stop);
                for (start, stop) in [before, after] {
                    if start < stop {
                        mapping.copy_across(self.current, slot, start, stop - start);
                    }
                }
            }
        }
        if self.len < offset {
            mapping.zero(slot, self.len, offset - self.len);
        }
        copy(mapping, slot);
        let value_len = self.len.max(end);
        let crc = if mapping.geometry().has(flags::CRC32C) {
            mapping.checksum(slot, value_len)
        } else {
            0
        };
        let descriptor = if value_len == self.len {
            self.descriptor
        } else {
            Descriptor::RAW
        };
        let changed_from = offset.min(self.len);
        self.commit(slot, version, value_len, descriptor, crc);
        for lacks in &mut self.lacks {
            lacks.add(changed_from, end);
        }
        self.lacks[slot] = Ranges::default();
        self.check_kept(version)
    }

    /// Orders everything written before it against everything after it, for all processes (T022).
    /// Published values need no flush to be seen; there is no storage behind the memory.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// writer.write(b"x").unwrap();
    /// writer.flush().unwrap();
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::Corrupted`] when the header was overwritten.
    pub fn flush(&mut self) -> Result<()> {
        fence(Ordering::SeqCst);
        self.segment.check_header()
    }

    /// Makes the current value the last: from now on the segment never changes, and readers may view
    /// it without a copy.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let mut writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// writer.write(b"for ever").unwrap();
    /// writer.seal().unwrap();
    /// assert_eq!(writer.write(b"x").unwrap_err().code(), "sealed");
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::Empty`] before the first write, [`ShmError::Closed`] when somebody removed it.
    pub fn seal(&mut self) -> Result<()> {
        self.check_writable()?;
        if self.version == 0 {
            return Err(self.empty());
        }
        // Release: who sees the seal sees the value behind it.
        self.segment
            .mapping
            .state_word()
            .store(SegmentState::Sealed.to_word(), Ordering::Release);
        self.segment.wake_all();
        Ok(())
    }

    /// A view of the sealed value, without a copy. Of a pool's segment it counts as a reader.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`]; of a pool's segment [`ShmError::ResourceExhausted`] when its reader table is
    /// full.
    pub fn sealed(&self) -> Result<SealedView> {
        SealedView::open(Arc::new(Attachment::of_writer(self.segment.clone())?))
    }

    /// Version of the last value, 0 before the first; see [`version_parts`](crate::version_parts).
    pub fn current_version(&self) -> u64 {
        self.version
    }

    /// One more with every writer of this segment; 1 for its creator.
    pub fn generation(&self) -> u32 {
        self.segment.mapping.generation().load(Ordering::Relaxed)
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.segment.name
    }

    /// Random id of this very segment (32 hex digits): another segment of the same name has another.
    pub fn incarnation(&self) -> &str {
        &self.segment.incarnation
    }

    /// Longest value, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.segment.mapping.geometry().capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.segment.mapping.slots()
    }

    /// Readers attached now, of all processes.
    pub fn reader_count(&self) -> usize {
        self.segment.reader_count()
    }

    #[inline]
    pub(crate) fn in_child(&self) -> bool {
        self.segment.epoch != fork::epoch()
    }

    pub(crate) fn empty(&self) -> ShmError {
        ShmError::Empty {
            name: self.segment.name.clone(),
        }
    }

    pub(crate) fn has_value(&self) -> bool {
        self.version != 0
    }

    /// A loan begins: whatever becomes of it, the slot's content is unknown from here on.
    pub(crate) fn note_unknown(&mut self, slot: usize) {
        self.lacks[slot] = Ranges::whole(self.capacity());
    }

    /// A loan was published as a whole value.
    pub(crate) fn note_rewritten(&mut self) {
        self.rewritten = true;
    }
}

//! The one writer of a segment: whole writes, patches, seal, hand-over (FR-001, FR-003).

use crate::descriptor::Descriptor;
use crate::error::{Resource, Result, ShmError};
use crate::layout::{SegmentState, flags, publish_word};
use crate::mapping::{Mapping, SlotWord};
use crate::options::SegmentOptions;
use crate::patch::Ranges;
use crate::platform::{self, fork};
use crate::reclaim;
use crate::segment::{Segment, corrupted};
use crate::seqlock::{self, NoValue, Words};
use crate::view::{Attachment, SealedView};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

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
        let segment = Segment::create(self)?;
        tracing::debug!(name = %segment.name, file = %segment.file, "created");
        Ok(SegmentWriter::new(segment))
    }

    /// Takes over a segment whose writer has gone: released it, or died. The last complete value
    /// stays, versions go on, the generation is one more; what the dead writer had half written is
    /// discarded.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    /// let options = SegmentOptions::new("handed-over").dir(dir.path());
    /// let mut old = options.create().unwrap();
    /// old.write(b"one").unwrap();
    /// assert_eq!(options.attach_writer().unwrap_err().code(), "segment_busy");
    /// old.release().unwrap();
    ///
    /// let mut new = options.attach_writer().unwrap();
    /// assert_eq!(new.write(b"two").unwrap(), 4);
    /// new.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::SegmentBusy`] while a living process (this one included) holds the claim,
    /// [`ShmError::Sealed`], and those of [`SegmentOptions::attach_reader`].
    pub fn attach_writer(&self) -> Result<SegmentWriter> {
        let (segment, _) = Segment::open(self, true)?;
        claim(&segment)?;
        let mut writer = SegmentWriter::new(segment);
        writer.resume()?;
        tracing::info!(name = %writer.segment.name, "took over");
        Ok(writer)
    }
}

/// Takes the writer claim, or says who has it.
fn claim(segment: &Segment) -> Result<()> {
    let Some(participant) = &segment.participant else {
        return Err(corrupted(&segment.name, "writer without participant"));
    };
    let mapping = &segment.mapping;
    // Refused without the lock: within microseconds.
    let held = mapping.writer_key().load(Ordering::Acquire);
    let busy = || ShmError::SegmentBusy {
        name: segment.name.clone(),
        pid: segment.writer_pid(),
    };
    if held != 0 && participant.is_alive(held) {
        return Err(busy());
    }
    let _lock = participant.lock_namespace()?;
    if reclaim::still_named(segment)?.is_none() {
        return Err(ShmError::NotFound {
            name: segment.name.clone(),
        });
    }
    // Nobody removes it while we hold the lock: a mark is of a remover that died.
    mapping.removed().store(0, Ordering::SeqCst);
    match segment.state()? {
        SegmentState::Active => {}
        SegmentState::Sealed => {
            return Err(ShmError::Sealed {
                name: segment.name.clone(),
            });
        }
        SegmentState::Closed => {
            return Err(ShmError::Closed {
                name: segment.name.clone(),
            });
        }
    }
    // Acquire pairs with the Release of whoever gave the claim back. A claim taken since we looked
    // makes this fail.
    mapping
        .writer_key()
        .compare_exchange(held, participant.key(), Ordering::AcqRel, Ordering::Acquire)
        .map_err(|_| busy())?;
    mapping.orphaned().store(0, Ordering::Relaxed);
    mapping.generation().fetch_add(1, Ordering::Relaxed);
    if held != 0 {
        mapping.takeovers().fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

impl SegmentWriter {
    fn new(segment: Segment) -> Self {
        let geometry = *segment.mapping.geometry();
        // A new segment's slots are all zeros: they lack nothing of an empty value.
        Self {
            lacks: vec![Ranges::default(); geometry.slots].into_boxed_slice(),
            segment: Arc::new(segment),
            current: 0,
            len: 0,
            version: 0,
            descriptor: Descriptor::RAW,
            rewritten: false,
            holds_claim: true,
        }
    }

    /// After a takeover: finds the last complete value and discards what is half written.
    fn resume(&mut self) -> Result<()> {
        let mapping = &self.segment.mapping;
        let capacity = mapping.geometry().capacity;
        self.lacks.fill(Ranges::whole(capacity));
        let (published, slot) = seqlock::latest(mapping);
        if published % 2 != 0 || slot >= mapping.slots() {
            return Err(corrupted(
                &self.segment.name,
                "its publish word names no slot",
            ));
        }
        let (mut version, mut current) = (published, slot);
        for slot in 0..mapping.slots() {
            let seq = mapping.seq(slot).load(Ordering::Acquire);
            if seq == version + 2 && version < publish_word::MAX_VERSION - 2 {
                // Complete, but its writer died before it could say so.
                (version, current) = (seq, slot);
                mapping
                    .publish()
                    .store(publish_word::pack(version, slot), Ordering::Release);
                break;
            }
        }
        let torn = (0..mapping.slots())
            .filter(|slot| mapping.seq(*slot).load(Ordering::Relaxed) % 2 != 0)
            .count();
        mapping
            .discarded()
            .fetch_add(torn as u64, Ordering::Relaxed);
        let intact = version != 0 && mapping.seq(current).load(Ordering::Relaxed) == version;
        self.version = version;
        self.current = current;
        if intact {
            let len = mapping
                .slot_word(current, SlotWord::Len)
                .load(Ordering::Relaxed) as usize;
            self.len = len.min(capacity);
            self.descriptor =
                load_descriptor(mapping, current, self.len).unwrap_or(Descriptor::RAW);
        } else {
            // One slot, torn: a patch has nothing to build on, so it builds on nothing.
            self.len = 0;
        }
        Ok(())
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
        self.write_described(data, &Descriptor::RAW)
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
        self.write_whole(data.len(), descriptor, |mapping, slot, crc| {
            mapping.copy_in(slot, 0, data);
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
        self.write_whole(len, descriptor, |mapping, slot, crc| {
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
        self.write_whole(data.len(), descriptor, |mapping, slot, crc| {
            mapping.copy_in_cells(slot, 0, data);
            if crc {
                mapping.checksum(slot, data.len())
            } else {
                0
            }
        })
    }

    #[inline]
    fn write_whole(
        &mut self,
        len: usize,
        descriptor: &Descriptor,
        fill: impl FnOnce(&Mapping, usize, bool) -> u32,
    ) -> Result<u64> {
        self.check_range(0, len)?;
        descriptor.check_len(len)?;
        let (slot, version) = self.begin()?;
        let mapping = &self.segment.mapping;
        let crc = fill(mapping, slot, mapping.geometry().has(flags::CRC32C));
        self.commit(slot, version, len, *descriptor, crc);
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
        let mapping = &self.segment.mapping;
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

    /// A view of the sealed value, without a copy.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`].
    pub fn sealed(&self) -> Result<SealedView> {
        SealedView::open(Arc::new(Attachment::uncounted(self.segment.clone())))
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

    /// Longest value, in bytes.
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

    /// Gives the claim back and ends the segment: with no reader left it is removed at once, else
    /// when the last one detaches.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// let writer = snakepit_shm::SegmentOptions::new("w").dir(dir.path()).create().unwrap();
    /// writer.close().unwrap();
    /// assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::PermissionDenied`] or [`ShmError::Io`] when the files cannot be removed.
    pub fn close(mut self) -> Result<()> {
        self.give_back(true);
        reclaim::settle(&self.segment)
    }

    /// Gives the claim back and leaves the segment for another writer (hand-over, rolling updates).
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn release(mut self) -> Result<()> {
        self.give_back(false);
        Ok(())
    }

    /// Returns whether the claim was ours to give back.
    fn give_back(&mut self, close: bool) -> bool {
        if !std::mem::take(&mut self.holds_claim) || self.in_child() {
            return false;
        }
        let mapping = &self.segment.mapping;
        // Released: the grace for the next writer begins. Closed: there is none.
        let since = if close {
            0
        } else {
            platform::monotonic_ns().max(1)
        };
        mapping.orphaned().store(since, Ordering::Relaxed);
        if close {
            // A sealed segment stays sealed; its end shows in the claim that nobody holds.
            let _ = mapping.state_word().compare_exchange(
                SegmentState::Active.to_word(),
                SegmentState::Closed.to_word(),
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        if let Some(participant) = &self.segment.participant {
            // Release: the next writer sees all that this one wrote. Only if it still is ours.
            let _ = mapping.writer_key().compare_exchange(
                participant.key(),
                0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        self.segment.wake_all();
        true
    }

    fn in_child(&self) -> bool {
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
        ShmError::Truncated {
            name: self.segment.name.clone(),
        }
    }

    #[inline]
    fn check_writable(&self) -> Result<()> {
        let active = SegmentState::Active.to_word();
        let mapping = &self.segment.mapping;
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
            return ShmError::Truncated { name };
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
        let mapping = &self.segment.mapping;
        let next = self.current + 1;
        let slot = if self.version == 0 || next >= mapping.slots() {
            0
        } else {
            next
        };
        seqlock::begin(mapping, slot, version);
        Ok((slot, version))
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
        let mapping = &self.segment.mapping;
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
        if geometry.has(flags::NOTIFY) && seqlock::must_wake(mapping) {
            platform::futex_wake(mapping.notify());
        }
        self.current = slot;
        self.version = version;
        self.len = len;
        self.descriptor = descriptor;
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

impl Drop for SegmentWriter {
    /// Does what [`Self::close`] does; the files are removed in the background.
    fn drop(&mut self) {
        if self.give_back(true) {
            reclaim::settle_later(self.segment.clone());
        }
    }
}

pub(crate) fn load_descriptor(mapping: &Mapping, slot: usize, len: usize) -> Option<Descriptor> {
    let get = |word| mapping.slot_word(slot, word).load(Ordering::Relaxed);
    let words = [
        get(SlotWord::Check),
        get(SlotWord::Dtype),
        get(SlotWord::Shape0),
        get(SlotWord::Shape1),
        get(SlotWord::Shape2),
    ];
    Descriptor::decode(&words, len)
}

/// Whether `NoValue` came of a value that will never be completed.
pub(crate) fn torn_by_death(segment: &Segment, why: NoValue) -> bool {
    why == NoValue::Busy
        && segment.mapping.slots() == 1
        && segment.mapping.seq(0).load(Ordering::Acquire) % 2 != 0
        && segment.writer_alive() == Some(false)
}

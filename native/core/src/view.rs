//! Attachment of a reader, and zero-copy views of sealed values.

use crate::descriptor::Descriptor;
use crate::error::{Resource, Result, ShmError};
use crate::hazard;
use crate::layout::flags;
use crate::mapping::{PinToken, SealProof};
use crate::options::SegmentOptions;
use crate::participant::Participant;
use crate::platform::{self, fork};
use crate::reclaim::{self, MAX_TTL};
use crate::segment::{Segment, corrupted};
use crate::seqlock::{self, NoValue, Started, Words};
use crate::tenure;
use crate::value::ReadInfo;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A segment with an entry in its reader table, which is given back when this is dropped: the reader
/// and all its views hold it.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub segment: Arc<Segment>,
    /// `None`: not counted (an observer, or the writer's own view of what is no pool's).
    entry: Option<usize>,
    /// Whoever closes looks by itself whether the segment has ended.
    closing: AtomicBool,
    /// Not on the way of any other read.
    pins: Mutex<Pins>,
}

/// What the entry of an attachment pins.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    pub pin: Option<Pin>,
}

#[derive(Debug)]
pub(crate) struct Pin {
    pub started: Started,
    /// Never 0.
    pub holders: usize,
}

/// A share in the pin of an attachment.
#[derive(Debug)]
pub(crate) struct Held {
    attachment: Arc<Attachment>,
    token: PinToken,
}

impl Held {
    /// Its share was counted in already.
    pub(crate) fn new(attachment: Arc<Attachment>, slot: usize) -> Self {
        Self {
            attachment,
            token: PinToken { slot },
        }
    }

    pub(crate) fn slot(&self) -> usize {
        self.token.slot
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.attachment.segment
    }

    pub(crate) fn slice(&self, len: usize) -> &[u8] {
        self.attachment
            .segment
            .mapping
            .pinned_slice(&self.token, len)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let segment = &self.attachment.segment;
        // In a forked child the pin is the parent's, and so is the lock, which nobody may free.
        if segment.epoch != fork::epoch() {
            return;
        }
        let mut pins = self.attachment.pins();
        let Some(pin) = &mut pins.pin else { return };
        pin.holders -= 1;
        if pin.holders == 0 {
            pins.pin = None;
            if let Some(entry) = self.attachment.entry {
                hazard::unpin(&*segment.mapping, entry);
            }
        }
    }
}

impl Attachment {
    pub(crate) fn uncounted(segment: Arc<Segment>) -> Self {
        Self {
            segment,
            entry: None,
            closing: AtomicBool::new(false),
            pins: Mutex::default(),
        }
    }

    pub(crate) fn pins(&self) -> MutexGuard<'_, Pins> {
        // Nothing panics while it is held.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's own. Of a pool's segment it is counted: the view may outlive the claim, and whoever
    /// takes that over may keep the memory for another segment.
    pub(crate) fn of_writer(segment: Arc<Segment>) -> Result<Self> {
        let Some(participant) = segment.participant.clone() else {
            return Ok(Self::uncounted(segment));
        };
        // In a forked child the key is the parent's.
        let inherited = segment.epoch != fork::epoch();
        if inherited || !segment.mapping.geometry().has(flags::POOLED) {
            return Ok(Self::uncounted(segment));
        }
        Self::registered(segment, participant.key())
    }

    /// Of a writer that lends its place, counted always.
    pub(crate) fn of_lender(segment: Arc<Segment>) -> Result<Self> {
        match segment.participant.clone() {
            Some(participant) => Self::registered(segment, participant.key()),
            None => Err(corrupted(&segment.name, "writer without participant")),
        }
    }

    fn registered(segment: Arc<Segment>, key: u64) -> Result<Self> {
        let entry = take_entry(&segment, None, key)?;
        let mut attachment = Self::uncounted(segment);
        match entry {
            Some(entry) => attachment.entry = Some(entry),
            None => return Err(full(&attachment.segment)),
        }
        Ok(attachment)
    }

    /// Takes an entry of the reader table; `None` when the segment is being removed.
    pub(crate) fn counted(segment: Segment, file: &File) -> Result<Option<Self>> {
        let participant = segment.participant.clone();
        let Some(participant) = participant.filter(|_| segment.mapping.registers()) else {
            // Nobody would know that it reads on when the memory becomes another segment's.
            if segment.mapping.geometry().has(flags::POOLED) {
                return Err(ShmError::PermissionDenied {
                    name: segment.name.clone(),
                    operation: "register a reader of",
                });
            }
            return Ok(Some(Self::uncounted(Arc::new(segment))));
        };
        let entry = match take_entry(&segment, Some(file), participant.key())? {
            Some(entry) => entry,
            None => {
                // Full: of the living?
                let lock = participant.lock_namespace()?;
                reclaim::clear_dead_readers(&segment.mapping, &participant);
                drop(lock);
                take_entry(&segment, Some(file), participant.key())?
                    .ok_or_else(|| full(&segment))?
            }
        };
        let attachment = Self {
            segment: Arc::new(segment),
            entry: Some(entry),
            closing: AtomicBool::new(false),
            pins: Mutex::default(),
        };
        let segment = &attachment.segment;
        if !tenure::is_admitted(&*segment.mapping) {
            let segment = segment.clone();
            attachment.closing();
            drop(attachment);
            reclaim::await_removal(&segment)?;
            return Ok(None);
        }
        Ok(Some(attachment))
    }

    /// Told by a reader that closes: nothing is left to the background.
    pub(crate) fn closing(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// The entry in the reader table.
    pub(crate) fn entry(&self) -> Option<usize> {
        self.entry
    }
}

fn full(segment: &Segment) -> ShmError {
    ShmError::ResourceExhausted {
        name: Some(segment.name.clone()),
        resource: Resource::Readers,
        needed: 1,
        available: Some(0),
    }
}

/// A free entry of the reader table; `None` when there is none. Without the file only of the first page,
/// which is reserved.
fn take_entry(segment: &Segment, file: Option<&File>, key: u64) -> Result<Option<usize>> {
    let mapping = &*segment.mapping;
    let most = mapping.geometry().max_readers;
    let page = platform::page_size();
    let mut reserved_page = mapping.entry_page(0).0;
    for index in 0..most {
        let (at, _) = mapping.entry_page(index);
        if at != reserved_page {
            let Some(file) = file else { break };
            // Reserved by whoever needs it first; a page that is there already costs one call.
            platform::reserve(file, at, page)
                .map_err(|e| ShmError::from_io(&segment.name, "reserve reader table of", e))?;
            reserved_page = at;
        }
        // Acquire pairs with the Release of whoever gave the entry back: its pin is cleared.
        let free = mapping.reader_key(index).compare_exchange(
            0,
            key,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if free.is_ok() {
            mapping
                .reader_high()
                .fetch_max(index as u32 + 1, Ordering::Release);
            return Ok(Some(index));
        }
    }
    Ok(None)
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // In a forked child the entry is the parent's.
        let Some(entry) = self.entry.filter(|_| self.segment.epoch == fork::epoch()) else {
            return;
        };
        self.segment.tell_inherited();
        let mapping = &*self.segment.mapping;
        mapping.reader_pin(entry).store(0, Ordering::Relaxed);
        // Nobody sleeps on it here any more: what is left is of a child that was killed asleep.
        let left = mapping.reader_waiting(entry).swap(0, Ordering::Relaxed);
        let less = |n: u32| Some(n.saturating_sub(left));
        let _ = mapping
            .waiters()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if let Some(participant) = &self.segment.participant {
            // Release: the next owner of the entry sees it clean. Only if it still is ours.
            let _ = mapping.reader_key(entry).compare_exchange(
                participant.key(),
                0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        // The last reader of a segment that has ended; one that closes removes it itself. What waits for somebody
        // to take it has not: that one would only have to wait for the namespace's lock.
        let ended = mapping.writer_key().load(Ordering::Relaxed) == 0 && !reclaim::waits(mapping);
        if ended && !*self.closing.get_mut() {
            reclaim::settle_later(self.segment.clone());
        }
    }
}

/// The bytes of a sealed value, in place. Cheap to clone; the last one unmaps (large mappings in a
/// background thread).
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::SegmentOptions;
///
/// let options = SegmentOptions::new("table").dir(dir.path()).slots(1);
/// let mut writer = options.create().unwrap();
/// writer.write(b"rows").unwrap();
/// let reader = options.attach_reader().unwrap();
/// assert_eq!(reader.sealed().unwrap_err().code(), "not_sealed");
/// writer.seal().unwrap();
/// let view = reader.sealed().unwrap();
/// writer.close().unwrap();
/// reader.close().unwrap();
/// assert_eq!(&view[..], b"rows"); // whatever becomes of the others
/// ```
#[derive(Debug, Clone)]
pub struct SealedView {
    attachment: Arc<Attachment>,
    sealed: SealProof,
    slot: usize,
    len: usize,
    version: u64,
    timestamp_ns: u64,
    descriptor: Descriptor,
}

impl SealedView {
    pub(crate) fn open(attachment: Arc<Attachment>) -> Result<Self> {
        let segment = &attachment.segment;
        let name = &segment.name;
        let mapping = &*segment.mapping;
        segment.state()?; // cut, or garbage?
        let Some(sealed) = mapping.sealed() else {
            return Err(ShmError::NotSealed { name: name.clone() });
        };
        segment.check_header()?;
        let started = seqlock::start_read(mapping).map_err(|why| match why {
            NoValue::Empty => ShmError::Empty { name: name.clone() },
            _ => corrupted(name, "sealed, but its value is not complete"),
        })?;
        let info = ReadInfo::load(mapping, started.slot, started.version);
        let len = info.len;
        if !info.is_possible(mapping.geometry().capacity) {
            return Err(corrupted(name, "length of its value"));
        }
        if mapping.lost() {
            return Err(mapping.loss(name));
        }
        let descriptor = info
            .descriptor()
            .map_err(|_| corrupted(name, "description of its value"))?;
        let checked = mapping.geometry().has(flags::CRC32C);
        if checked && mapping.checksum(started.slot, len) != info.crc() {
            return Err(corrupted(name, "checksum of its value"));
        }
        Ok(Self {
            sealed,
            slot: started.slot,
            len,
            version: started.version,
            timestamp_ns: info.timestamp_ns,
            descriptor,
            attachment,
        })
    }

    /// The sealed value of a segment that this process means to take over: mapped as a writer maps it, for both.
    /// `None` when it must be looked at in the usual way: it may not be written here, or is being removed.
    pub(crate) fn of_heir(options: &SegmentOptions, incarnation: &str) -> Result<Option<Self>> {
        let (segment, file) = match Segment::open(options, true) {
            Err(ShmError::PermissionDenied { .. }) => return Ok(None),
            opened => opened?,
        };
        if segment.incarnation != incarnation {
            return Err(ShmError::NotFound { name: segment.name });
        }
        match Attachment::counted(segment, &file)? {
            Some(attachment) => Ok(Some(Self::open(Arc::new(attachment))?)),
            None => Ok(None),
        }
    }

    pub(crate) fn shared_segment(&self) -> &Arc<Segment> {
        &self.attachment.segment
    }

    /// Whether its writer has given it away ([`SegmentWriter::give_away`]) and it is nobody's: nobody has taken
    /// it, and nobody had lent it.
    ///
    /// [`SegmentWriter::give_away`]: crate::SegmentWriter::give_away
    pub fn is_given_away(&self) -> bool {
        self.given_away_for().is_some()
    }

    /// [`Self::is_given_away`], and for how long it was.
    pub fn given_away_for(&self) -> Option<Duration> {
        let segment = self.segment();
        let mapping = &*segment.mapping;
        let lent = |p: &Arc<Participant>| reclaim::is_lent(mapping, p);
        // Acquire pairs with the Release of the claim: the time is there with it.
        let nobodys = mapping.writer_key().load(Ordering::Acquire) == 0;
        let ttl = Duration::from_nanos(mapping.ttl_now()).min(MAX_TTL);
        let is_it = nobodys && !ttl.is_zero() && !segment.participant.as_ref().is_some_and(lent);
        is_it.then_some(ttl)
    }

    /// Whether the bytes are still there: `false` when the file was cut under the view, which then
    /// reads as zeros from the cut on.
    pub fn is_intact(&self) -> bool {
        !self.attachment.segment.mapping.lost()
    }

    /// Version of the value.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Format, element type and shape.
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// When it was published: CLOCK_MONOTONIC nanoseconds, 0 without timestamps.
    pub fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.attachment.segment.name
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.attachment.segment
    }

    /// Other views and readers that hold the same attachment.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.attachment) > 1
    }
}

impl std::ops::Deref for SealedView {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.attachment
            .segment
            .mapping
            .sealed_slice(&self.sealed, self.slot, self.len)
    }
}

impl AsRef<[u8]> for SealedView {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

//! Lock-free readers (FR-002, FR-003, FR-007): loads only, on read-only mappings.

mod failure;
mod next;
mod notifier;
mod once;
mod pin;
mod sized;
mod wait;
mod watchers;

pub use crate::value::ReadInfo;
pub use next::Next;
pub use notifier::{Notice, Notifier, Watched};
pub use pin::Pinned;
pub use sized::Sink;
pub use wait::Waker;

use crate::error::{Result, ShmError};
use crate::layout::{SegmentState, flags};
use crate::mapping::Mapping;
use crate::options::SegmentOptions;
use crate::platform;
use crate::reclaim;
use crate::segment::Segment;
use crate::seqlock::{self, Words};
use crate::view::{Attachment, SealedView};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wait::Bell;

/// Copies that a read attempts before it gives up with `VersionConflict`.
const COPIES: u32 = 64;
/// A buffer up to this length is filled by a handful of instructions.
const SHORT: usize = 64;
/// An observer cannot announce itself to the writer, so it looks this often.
const OBSERVER_PAUSE: Duration = Duration::from_millis(1);

/// A reader of a segment. Methods that take `&self` may be called from several threads at once.
///
/// A read ends in a whole value or, within a bounded number of attempts, in
/// [`ShmError::VersionConflict`]; it never waits for the writer and never disturbs it.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::SegmentOptions;
///
/// let options = SegmentOptions::new("state").dir(dir.path());
/// let mut writer = options.create().unwrap();
/// let mut reader = options.attach_reader().unwrap();
/// assert_eq!(reader.read().unwrap_err().code(), "empty");
///
/// writer.write(b"first").unwrap();
/// assert!(reader.has_changed());
/// assert_eq!(reader.read().unwrap(), b"first");
/// assert!(!reader.has_changed());
/// assert_eq!(reader.read_range(1, 3).unwrap(), b"irs");
/// reader.close().unwrap();
/// writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct SegmentReader {
    attachment: Arc<Attachment>,
    /// Version of the last value read.
    seen: AtomicU64,
    buffer: Vec<u8>,
    bell: Arc<Bell>,
}

/// What came of copying a slot, before it is known whether the copy is whole.
enum Copied {
    Done(ReadInfo),
    /// The range asked for is not inside the value.
    Outside(ReadInfo),
    /// The buffer is too short for the value.
    Short(ReadInfo),
    /// No value has this length.
    Impossible,
}

impl SegmentOptions {
    /// Attaches to a segment to read it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    /// let options = SegmentOptions::new("nothing-here").dir(dir.path());
    /// assert_eq!(options.attach_reader().unwrap_err().code(), "not_found");
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`], [`ShmError::InvalidName`], [`ShmError::SchemaMismatch`],
    /// [`ShmError::Corrupted`], [`ShmError::Truncated`], [`ShmError::PermissionDenied`],
    /// [`ShmError::ResourceExhausted`] (table full, or address space).
    pub fn attach_reader(&self) -> Result<SegmentReader> {
        // Again when the segment was being removed in this moment: then it is gone, or another has
        // its name.
        let attachment = loop {
            let (segment, file) = Segment::open(self, false)?;
            if let Some(attachment) = Attachment::counted(segment, &file)? {
                break attachment;
            }
        };
        Ok(SegmentReader {
            attachment: Arc::new(attachment),
            seen: AtomicU64::new(0),
            buffer: Vec::new(),
            bell: Arc::new(Bell::default()),
        })
    }
}

impl SegmentReader {
    #[inline]
    fn segment(&self) -> &Segment {
        &self.attachment.segment
    }

    #[inline]
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.attachment.segment.mapping
    }

    /// Copies the current value and returns it. The buffer belongs to the reader and is reused.
    ///
    /// # Errors
    ///
    /// [`ShmError::Empty`], [`ShmError::VersionConflict`], [`ShmError::Torn`],
    /// [`ShmError::Corrupted`].
    pub fn read(&mut self) -> Result<&[u8]> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.read_to_vec(&mut buffer);
        self.buffer = buffer;
        let len = result?.len;
        Ok(&self.buffer[..len])
    }

    /// Copies the current value into `buffer`, which grows as needed and is longer than the value
    /// afterwards if it was before.
    fn read_to_vec(&self, buffer: &mut Vec<u8>) -> Result<ReadInfo> {
        loop {
            match self.read_into(buffer) {
                Err(ShmError::OutOfBounds { len, .. }) if len > buffer.len() => {
                    buffer.resize(len, 0);
                }
                other => return other,
            }
        }
    }

    /// Copies `len` bytes at `offset` of the current value and returns them.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`], and [`ShmError::OutOfBounds`] for what is not inside the value.
    pub fn read_range(&mut self, offset: usize, len: usize) -> Result<&[u8]> {
        if len > self.capacity() {
            return Err(self.outside(offset, len, self.capacity()));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = self.read_range_into(offset, &mut buffer[..len]);
        self.buffer = buffer;
        result?;
        Ok(&self.buffer[..len])
    }

    /// Copies the current value into `buffer` and allocates nothing. The value's length is in the
    /// result.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("r").dir(dir.path());
    /// # let mut writer = options.create().unwrap();
    /// writer.write(b"value").unwrap();
    /// let reader = options.attach_reader().unwrap();
    /// let mut buffer = [0; 64];
    /// let info = reader.read_into(&mut buffer).unwrap();
    /// assert_eq!((&buffer[..info.len], info.version), (&b"value"[..], 2));
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`], and [`ShmError::OutOfBounds`] with the length needed in `len` when
    /// the buffer is too short.
    // Always: handed back through memory, what was learnt of a short value costs as much as the read.
    #[inline(always)]
    pub fn read_into(&self, buffer: &mut [u8]) -> Result<ReadInfo> {
        // Only where no copy of many bytes can be called: nothing is kept in memory for it then.
        if buffer.len() <= SHORT
            && let Some(info) = self.read_at_once(buffer)
        {
            return Ok(self.note(info));
        }
        let mut info = ReadInfo::default();
        self.read_otherwise(buffer, &mut info)?;
        Ok(info)
    }

    /// [`Self::read_into`] memory that others may alias (a Python buffer, say).
    ///
    /// # Errors
    ///
    /// Those of [`Self::read_into`].
    pub fn read_into_cells(&self, buffer: &[Cell<u8>]) -> Result<ReadInfo> {
        if self.mapping().geometry().has(flags::CRC32C) {
            // The checksum is of a copy that nobody else can change.
            let mut private = vec![0; buffer.len().min(self.capacity())];
            let info = self.read_into(&mut private)?;
            for (to, from) in buffer.iter().zip(&private[..info.len]) {
                to.set(*from);
            }
            return Ok(info);
        }
        self.copy(|mapping, slot, info| {
            if info.len > buffer.len() {
                return Copied::Short(info);
            }
            mapping.copy_out_cells(slot, 0, &buffer[..info.len]);
            Copied::Done(info)
        })
        .map(|info| self.note(info))
    }

    /// Fills `buffer` from `offset` of the current value on.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read_range`].
    pub fn read_range_into(&self, offset: usize, buffer: &mut [u8]) -> Result<ReadInfo> {
        let len = buffer.len();
        let Some(end) = offset
            .checked_add(len)
            .filter(|end| *end <= self.capacity())
        else {
            return Err(self.outside(offset, len, self.capacity()));
        };
        if self.mapping().geometry().has(flags::CRC32C) {
            // A checksum covers the whole value, so the whole value is read.
            let mut whole = Vec::new();
            let info = self.read_to_vec(&mut whole)?;
            let Some(part) = whole[..info.len].get(offset..end) else {
                return Err(self.outside(offset, len, info.len));
            };
            buffer.copy_from_slice(part);
            return Ok(info);
        }
        self.copy(|mapping, slot, info| {
            if end > info.len {
                return Copied::Outside(info);
            }
            mapping.copy_out(slot, offset, buffer);
            Copied::Done(info)
        })
        .map(|info| self.note(info))
        .map_err(|error| match error {
            ShmError::OutOfBounds { capacity, .. } => self.outside(offset, len, capacity),
            other => other,
        })
    }

    /// [`Self::read`], refused when the value is older than `max_age`.
    ///
    /// # Errors
    ///
    /// Also [`ShmError::Stale`]; [`ShmError::Unsupported`] on a segment without timestamps.
    pub fn read_fresh(&mut self, max_age: Duration) -> Result<&[u8]> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.read_to_vec(&mut buffer);
        self.buffer = buffer;
        let info = result?;
        let age = self.age_of(&info)?;
        if age > max_age {
            return Err(ShmError::Stale {
                name: self.name().to_owned(),
                age,
                max_age,
            });
        }
        Ok(&self.buffer[..info.len])
    }

    /// About the current value, without its bytes. Does not count as reading it.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`].
    pub fn info(&self) -> Result<ReadInfo> {
        self.copy(|_, _, info| Copied::Done(info))
    }

    /// How old the current value is.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`]; [`ShmError::Unsupported`] on a segment without timestamps.
    pub fn age(&self) -> Result<Duration> {
        self.age_of(&self.info()?)
    }

    fn age_of(&self, info: &ReadInfo) -> Result<Duration> {
        if info.timestamp_ns == 0 {
            return Err(ShmError::Unsupported {
                name: self.name().to_owned(),
                operation: "age",
                reason: "its values carry no timestamps",
            });
        }
        let now = platform::monotonic_ns();
        Ok(Duration::from_nanos(now.saturating_sub(info.timestamp_ns)))
    }

    /// Copies with `copy` until a copy was whole.
    #[inline]
    fn copy(&self, mut copy: impl FnMut(&Mapping, usize, ReadInfo) -> Copied) -> Result<ReadInfo> {
        let mapping = self.mapping();
        let capacity = mapping.geometry().capacity;
        let copied = seqlock::read(mapping, self.limits(), |started| {
            let info = ReadInfo::load(mapping, started.slot, started.version);
            if !info.is_possible(capacity) {
                return Copied::Impossible;
            }
            copy(mapping, started.slot, info)
        });
        if mapping.lost() {
            return Err(self.truncated());
        }
        match copied {
            Ok((_, Copied::Done(info))) => Ok(info),
            Ok((_, other)) => Err(self.no_fit(&other)),
            Err(why) => Err(self.no_value(why)),
        }
    }

    /// Notes what this reader has read last.
    #[inline]
    fn note(&self, info: ReadInfo) -> ReadInfo {
        // Stored only when it differs: threads that share a reader do not fight for its cache line.
        if self.seen.load(Ordering::Relaxed) != info.version {
            self.seen.store(info.version, Ordering::Relaxed);
        }
        info
    }

    #[inline]
    fn limits(&self) -> seqlock::Limits {
        let geometry = self.mapping().geometry();
        seqlock::Limits {
            copies: COPIES,
            // With one slot a reader may come in the middle of every write: it has the patience for
            // about one write's time.
            spins: 1000 + (geometry.capacity / 256) as u32,
        }
    }

    /// Version of the last published value, 0 = none.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("r").dir(dir.path());
    /// # let mut writer = options.create().unwrap();
    /// let reader = options.attach_reader().unwrap();
    /// assert_eq!(reader.version(), 0);
    /// writer.write(b"x").unwrap();
    /// assert_eq!(reader.version(), 2);
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    #[inline]
    pub fn version(&self) -> u64 {
        seqlock::latest(self.mapping()).0
    }

    /// Version of the value that this reader read last, 0 = none.
    pub fn last_version(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Whether there is a value that this reader has not read.
    #[inline]
    pub fn has_changed(&self) -> bool {
        self.version() != self.last_version()
    }

    /// Length of the current value, 0 when there is none or it is being overwritten.
    pub fn len(&self) -> usize {
        self.info().map_or(0, |info| info.len)
    }

    /// Whether nothing was published yet.
    pub fn is_empty(&self) -> bool {
        self.version() == 0
    }

    /// A view of the sealed value, without a copy.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`], [`ShmError::Corrupted`].
    pub fn sealed(&self) -> Result<SealedView> {
        SealedView::open(self.attachment.clone())
    }

    /// Whether the segment will never change again.
    pub fn is_sealed(&self) -> bool {
        self.mapping().state() == Some(SegmentState::Sealed)
    }

    /// State of the segment.
    ///
    /// # Errors
    ///
    /// [`ShmError::Corrupted`].
    pub fn state(&self) -> Result<SegmentState> {
        self.segment().state()
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.segment().name
    }

    /// Longest value, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.mapping().geometry().capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.mapping().slots()
    }

    /// Schema id given at creation.
    pub fn schema_id(&self) -> u64 {
        self.mapping().geometry().schema_id
    }

    /// One more with every writer of this segment.
    pub fn generation(&self) -> u32 {
        self.mapping().generation().load(Ordering::Relaxed)
    }

    /// Readers attached now, of all processes.
    pub fn reader_count(&self) -> usize {
        self.segment().reader_count()
    }

    /// Process id of the writer; 0 = there is none.
    pub fn writer_pid(&self) -> u32 {
        self.segment().writer_pid()
    }

    /// Views of this reader that are alive.
    pub fn has_views(&self) -> bool {
        Arc::strong_count(&self.attachment) > 1
    }

    /// Detaches; the last reader of a segment whose writer has closed it removes it.
    ///
    /// # Errors
    ///
    /// [`ShmError::PermissionDenied`] or [`ShmError::Io`] when the files cannot be removed.
    pub fn close(self) -> Result<()> {
        let segment = self.attachment.segment.clone();
        if !self.has_views() {
            self.attachment.closing();
        }
        drop(self);
        reclaim::settle(&segment)
    }

    /// Random id of this very segment (32 hex digits): another segment of the same name has another.
    pub fn incarnation(&self) -> &str {
        &self.segment().incarnation
    }
}

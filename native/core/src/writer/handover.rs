//! A segment that changes hands: given away for good, or lent to be filled by another process.

use super::SegmentWriter;
use super::claim::{self, For};
use crate::error::{Result, ShmError};
use crate::handle::Handle;
use crate::layout::{SegmentState, flags};
use crate::platform::fork;
pub use crate::reclaim::MAX_TTL;
use crate::segment::Segment;
use crate::view::{Attachment, SealedView};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A segment whose writer's place its owner has lent to another process.
///
/// The owner is attached to it meanwhile, so that it is not removed however the other one ends, and nobody adopts
/// it; should the owner die, the rules for segments without a writer decide.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::SegmentOptions;
///
/// let options = SegmentOptions::new("to-fill").dir(dir.path()).slots(1);
/// let lent = options.create().unwrap().lend().unwrap();
///
/// let mut worker = options.attach_writer().unwrap(); // most often in another process
/// worker.write(b"filled").unwrap();
/// let busy = lent.take_back().unwrap_err();
/// assert_eq!(busy.1.code(), "segment_busy");
/// worker.seal().unwrap();
/// worker.release().unwrap();
///
/// let owner = busy.0.take_back().unwrap();
/// assert_eq!(&owner.sealed().unwrap()[..], b"filled");
/// owner.close().unwrap();
/// ```
#[derive(Debug)]
pub struct Lent {
    attachment: Arc<Attachment>,
}

/// Keeps memory of a segment mapped, and from being used again, until dropped; made by [`SegmentWriter::onlooker`].
#[derive(Debug)]
pub struct Onlooker {
    _attachment: Attachment,
}

impl SegmentWriter {
    /// Takes over what was given away, in the mapping of the view that found it so; `None` when somebody else was
    /// faster, or its time ran out in this moment.
    pub(crate) fn of_view(view: &SealedView) -> Result<Option<Self>> {
        let segment = view.shared_segment().clone();
        match claim::claim(&segment, For::Keeping) {
            Ok(()) => {}
            Err(
                ShmError::SegmentBusy { .. } | ShmError::NotFound { .. } | ShmError::Closed { .. },
            ) => return Ok(None),
            Err(error) => return Err(error),
        }
        Self::of_claimed(segment).map(Some)
    }

    /// Permission bits of the segment's file, as far as they can be told.
    pub fn permissions(&self) -> Option<u32> {
        let path = self.segment.place.dir.join(&self.segment.file);
        let found = path.symlink_metadata().ok()?;
        Some(found.permissions().mode() & 0o777)
    }

    /// Whether values carry a checksum, which whoever views one computes.
    pub fn is_checked(&self) -> bool {
        self.segment.mapping.geometry().has(flags::CRC32C)
    }

    /// For memory of the slots that is still in use here when the writer has gone, in ways that this crate does not
    /// know of: the segment has a reader more, and no pool uses its memory again, until this is dropped. To be had
    /// before the claim is given back.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    ///
    /// let options = SegmentOptions::new("looked-at").dir(dir.path());
    /// let writer = options.create().unwrap();
    /// let onlooker = writer.onlooker();
    /// writer.release().unwrap();
    /// options.attach_writer().unwrap().close().unwrap();
    /// drop(onlooker);
    /// ```
    pub fn onlooker(&self) -> Onlooker {
        let segment = &self.segment;
        let attachment = Attachment::of_writer(segment.clone()).unwrap_or_else(|_full| {
            // No room in the table to say until when: for ever, then.
            segment.mapping.inherited().store(1, Ordering::Relaxed);
            Attachment::uncounted(segment.clone())
        });
        Onlooker {
            _attachment: attachment,
        }
    }

    /// Gives the claim on a sealed segment back: whoever has its handle may take it, and if nobody has in
    /// `ttl`, it is removed by whoever cleans up next. Views of it stay valid; a second call does nothing. A writer
    /// whose memory comes from a pool gives it away through that ([`Pool::give_away`](crate::Pool::give_away)).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    /// use std::time::Duration;
    ///
    /// let options = SegmentOptions::new("result").dir(dir.path());
    /// let mut writer = options.create().unwrap();
    /// writer.write(b"for you").unwrap();
    /// writer.seal().unwrap();
    /// writer.give_away(Duration::from_secs(60)).unwrap();
    ///
    /// let taken = options.adopt().unwrap();
    /// assert_eq!(&taken.sealed().unwrap()[..], b"for you");
    /// taken.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`], and [`ShmError::InvalidOption`] for no time at all or more than [`MAX_TTL`].
    pub fn give_away(&mut self, ttl: Duration) -> Result<()> {
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(ShmError::InvalidOption {
                option: "ttl",
                reason: format!("expected more than 0 and at most {MAX_TTL:?}, got {ttl:?}"),
            });
        }
        if self.segment.state()? != SegmentState::Sealed {
            return Err(ShmError::NotSealed {
                name: self.segment.name.clone(),
            });
        }
        if !self.holds_claim || self.in_child() {
            return Ok(());
        }
        let mapping = &*self.segment.mapping;
        // MAX_TTL fits. Relaxed, both: the Release of the claim publishes them.
        let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        mapping.ttl().store(nanos, Ordering::Relaxed);
        self.give_back(false);
        Ok(())
    }

    /// Gives another process the writer's place, and keeps the segment: [`SegmentOptions::attach_writer`]
    /// takes that place, until it is released, closed without the seal, or its process dies.
    ///
    /// [`SegmentOptions::attach_writer`]: crate::SegmentOptions::attach_writer
    ///
    /// # Errors
    ///
    /// [`ShmError::Sealed`], [`ShmError::Closed`], [`ShmError::ResourceExhausted`] when the reader table is
    /// full, together with the writer.
    pub fn lend(mut self) -> Result<Lent, Box<(Self, ShmError)>> {
        match self.attached() {
            Ok(attachment) => {
                let mapping = &*self.segment.mapping;
                if let Some(participant) = &self.segment.participant {
                    // Relaxed: the Release of the claim publishes it.
                    mapping.lender().store(participant.key(), Ordering::Relaxed);
                }
                self.give_back(false);
                Ok(Lent {
                    attachment: Arc::new(attachment),
                })
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// An entry in the reader table, before the claim goes.
    fn attached(&mut self) -> Result<Attachment> {
        self.check_writable()?;
        if self.in_child() {
            return Err(ShmError::NotInherited {
                name: self.segment.name.clone(),
            });
        }
        Attachment::of_lender(self.segment.clone())
    }
}

impl Lent {
    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.attachment.segment.name
    }

    /// Random id of this very segment (32 hex digits).
    pub fn incarnation(&self) -> &str {
        &self.attachment.segment.incarnation
    }

    /// Takes the writer's place again once nobody has it: sealed or not, with the last complete value.
    ///
    /// # Errors
    ///
    /// [`ShmError::SegmentBusy`] while the other one has it, [`ShmError::NotFound`] when the segment was
    /// removed, [`ShmError::Closed`], together with this.
    pub fn take_back(self) -> Result<SegmentWriter, Box<(Self, ShmError)>> {
        let segment = self.attachment.segment.clone();
        // In a forked child the segment is its parent's.
        if segment.epoch != fork::epoch() {
            let name = segment.name.clone();
            return Err(Box::new((self, ShmError::NotInherited { name })));
        }
        if let Err(error) = claim::claim(&segment, For::TakingBack) {
            return Err(Box::new((self, error)));
        }
        match SegmentWriter::of_claimed(segment) {
            Ok(writer) => {
                self.close();
                Ok(writer)
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// Removes the segment, whoever writes it: that one is told that it is closed.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`] when it was removed already, and those of removing files.
    pub fn remove(self) -> Result<()> {
        let segment: Arc<Segment> = self.attachment.segment.clone();
        self.close();
        claim::remove(&segment)
    }

    /// A view of the value, once the other one has sealed it.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`].
    pub fn sealed(&self) -> Result<SealedView> {
        SealedView::open(self.attachment.clone())
    }

    /// The handle of the value, once the other one has sealed it.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`].
    pub fn handle(&self) -> Result<Handle> {
        let view = self.sealed()?;
        let generation = view.segment().mapping.generation();
        Ok(Handle::of(
            view.segment(),
            &view,
            generation.load(Ordering::Relaxed),
        ))
    }

    /// Whoever has the segment next sees to its end, unless views of it go last.
    fn close(self) {
        if let Some(last) = Arc::into_inner(self.attachment) {
            last.closing();
        }
    }
}

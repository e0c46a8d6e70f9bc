//! The writer claim: how it is taken over, given back, and what the next writer finds.

use super::SegmentWriter;
use crate::descriptor::Descriptor;
use crate::error::{Result, ShmError};
use crate::hazard::Lookout;
use crate::layout::{SegmentState, publish_word};
use crate::options::SegmentOptions;
use crate::patch::Ranges;
use crate::platform;
use crate::reclaim;
use crate::retired::{Ended, Retired};
use crate::segment::{Segment, corrupted};
use crate::seqlock::{self, NoValue, Words};
use crate::tenure;
use crate::value::ReadInfo;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl SegmentOptions {
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
        self.follow(For::Writing, None)
    }

    /// [`Self::attach_writer`] for whoever means to keep the segment rather than to write it: a sealed one
    /// is taken over, too. That one stays sealed and as it is, generation included, so that handles that
    /// others hold go on naming it; the new writer can hand it on or remove it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    /// let options = SegmentOptions::new("result").dir(dir.path());
    /// let mut old = options.create().unwrap();
    /// old.write(b"for ever").unwrap();
    /// old.seal().unwrap();
    /// old.release().unwrap();
    ///
    /// let mut heir = options.adopt().unwrap();
    /// assert_eq!(heir.generation(), 1);
    /// assert_eq!(heir.write(b"else").unwrap_err().code(), "sealed");
    /// heir.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::attach_writer`], without [`ShmError::Sealed`]; [`ShmError::SegmentBusy`] also while a living
    /// process has lent it.
    pub fn adopt(&self) -> Result<SegmentWriter> {
        self.follow(For::Keeping, None)
    }

    /// [`Self::adopt`] of one incarnation of the name: another that has the name by now is left as it is, with the
    /// time that it waits for somebody to take it.
    ///
    /// # Errors
    ///
    /// As [`Self::adopt`]; [`ShmError::NotFound`] also when the name stands for another segment.
    pub fn adopt_incarnation(&self, incarnation: &str) -> Result<SegmentWriter> {
        self.follow(For::Keeping, Some(incarnation))
    }

    fn follow(&self, what: For, only: Option<&str>) -> Result<SegmentWriter> {
        let (segment, _) = Segment::open(self, true)?;
        if only.is_some_and(|only| only != segment.incarnation) {
            return Err(ShmError::NotFound {
                name: segment.name.clone(),
            });
        }
        claim(&segment, what)?;
        let writer = SegmentWriter::of_claimed(Arc::new(segment))?;
        tracing::info!(name = %writer.segment.name, "took over");
        Ok(writer)
    }
}

/// What the claim is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Of what is not sealed; also of what was lent.
    Writing,
    /// Of what nobody owns.
    Keeping,
    /// Of what this process has lent.
    TakingBack,
}

/// Takes the writer claim, or says who has it.
pub(super) fn claim(segment: &Segment, what: For) -> Result<()> {
    let Some(participant) = &segment.participant else {
        return Err(corrupted(&segment.name, "writer without participant"));
    };
    let mapping = &*segment.mapping;
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
    // Once more: whoever claims has the lock, so it is nobody's now or remains its owner's, and the state that is
    // looked at below is not from before somebody claimed, sealed and released it.
    let held = mapping.writer_key().load(Ordering::Acquire);
    if held != 0 && participant.is_alive(held) {
        return Err(busy());
    }
    let lent = reclaim::is_lent(mapping, participant);
    if lent && what == For::Keeping {
        let lender = participant.describe(mapping.lender_now());
        return Err(ShmError::SegmentBusy {
            name: segment.name.clone(),
            pid: lender.map_or(0, |process| process.pid),
        });
    }
    if reclaim::still_named(segment)?.is_none() {
        return Err(ShmError::NotFound {
            name: segment.name.clone(),
        });
    }
    // Nobody removes it while we hold the lock: a mark is of a remover that died.
    tenure::admit(mapping);
    let state = segment.state()?;
    match state {
        SegmentState::Active => {}
        SegmentState::Sealed if what == For::Writing => {
            return Err(ShmError::Sealed {
                name: segment.name.clone(),
            });
        }
        // Not when it was closed after the seal.
        SegmentState::Sealed if held != 0 || mapping.orphaned().load(Ordering::Relaxed) != 0 => {}
        SegmentState::Sealed | SegmentState::Closed => {
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
    // Whoever takes it has it: should that one die, the usual grace begins.
    mapping.ttl().store(0, Ordering::Relaxed);
    // A borrower leaves it to its lender, as long as there is one.
    if !lent || what == For::TakingBack {
        mapping.lender().store(0, Ordering::Relaxed);
    }
    // What is sealed has no further writer, and its handles name the generation.
    if state == SegmentState::Active {
        mapping.generation().fetch_add(1, Ordering::Relaxed);
    }
    if held != 0 {
        mapping.takeovers().fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

impl SegmentWriter {
    /// The next writer of a segment that this process has claimed; on an error the claim is given back.
    pub(super) fn of_claimed(segment: Arc<Segment>) -> Result<Self> {
        let lookout = Lookout::of_next(&*segment.mapping, platform::barrier::register);
        let mut writer = Self::of_shared(segment, lookout);
        if let Err(error) = writer.resume() {
            writer.give_back(false);
            return Err(error);
        }
        Ok(writer)
    }

    /// After a takeover: finds the last complete value and discards what is half written.
    fn resume(&mut self) -> Result<()> {
        let mapping = &*self.segment.mapping;
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
        // What is sealed stays as it is.
        let unsealed = self.segment.state()? != SegmentState::Sealed;
        let slots = if unsealed { 0..mapping.slots() } else { 0..0 };
        for slot in slots {
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
            let info = ReadInfo::load(mapping, current, version);
            self.len = info.len.min(capacity);
            self.descriptor = info.descriptor().unwrap_or(Descriptor::RAW);
        } else {
            // One slot, torn: a patch has nothing to build on, so it builds on nothing.
            self.len = 0;
        }
        Ok(())
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

    /// Gives the claim back and removes the segment at once, whoever reads it: attached readers keep
    /// what they have mapped and are told that it is closed.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`] when it was removed already, and those of [`Self::close`].
    pub fn remove(mut self) -> Result<()> {
        // Under the claim: what it has been given back of, others may remove first.
        let removed = remove(&self.segment);
        self.give_back(true);
        removed
    }

    /// Takes the segment out of its name and keeps its memory, if it is `wanted` here or expected elsewhere and is
    /// to be had. Attached readers keep what they have mapped and are told that it is closed.
    pub(crate) fn retire(mut self, wanted: bool) -> Result<Ended> {
        if let Some(crowd) = self.crowd.take() {
            crowd.leave(); // holds the segment
        }
        if !self.segment.plain || !self.holds_claim || self.in_child() {
            self.remove()?;
            return Ok(Ended::Removed);
        }
        // Views of the sealed value, in this process, hold the mapping: the memory cannot be kept here. Elsewhere it
        // waits for them as for all who look.
        if Arc::strong_count(&self.segment) > 1 {
            self.holds_claim = false;
            return Retired::send(&self.segment);
        }
        self.holds_claim = false;
        let segment = self.segment.clone();
        drop(self);
        match Arc::try_unwrap(segment) {
            Ok(segment) => Retired::of(segment, wanted),
            // Somebody in this process came to look at it in this moment, a pool that made it for one.
            Err(shared) => {
                let removed = remove(&shared);
                shared.give_claim_back(true);
                removed?;
                Ok(Ended::Removed)
            }
        }
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
    pub(super) fn give_back(&mut self, close: bool) -> bool {
        if !std::mem::take(&mut self.holds_claim) || self.in_child() {
            return false;
        }
        if let Some(crowd) = self.crowd.take() {
            crowd.leave();
        }
        self.segment.give_claim_back(close);
        true
    }
}

/// Removes this very segment.
pub(super) fn remove(segment: &Segment) -> Result<()> {
    SegmentOptions::new(&segment.name)
        .namespace(&segment.place.namespace)
        .dir(&segment.place.dir)
        .remove_if(&segment.place, &segment.incarnation)
}

impl Drop for SegmentWriter {
    /// Does what [`Self::close`] does; the files are removed in the background.
    fn drop(&mut self) {
        if self.give_back(true) {
            reclaim::settle_later(self.segment.clone());
        }
    }
}

/// Whether `NoValue` came of a value that will never be completed.
pub(crate) fn torn_by_death(segment: &Segment, why: NoValue) -> bool {
    why == NoValue::Busy
        && segment.mapping.slots() == 1
        && segment.mapping.seq(0).load(Ordering::Acquire) % 2 != 0
        && segment.writer_alive() == Some(false)
}

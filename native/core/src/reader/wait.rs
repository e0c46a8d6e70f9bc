//! Sleeping until something is published.

use super::{OBSERVER_PAUSE, SegmentReader};
use crate::error::{Result, ShmError};
use crate::layout::{SegmentState, flags};
use crate::platform;
use crate::segment::Segment;
use crate::seqlock::{self, Words};
use crate::view::Attachment;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A sleeper looks whether its mapping is still there this often; changes wake it at once.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl SegmentReader {
    /// Sleeps until a version other than `since` is published; returns it. `None` waits for ever. No
    /// polling: the writer wakes whoever sleeps.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("r").dir(dir.path());
    /// # let mut writer = options.create().unwrap();
    /// use std::time::Duration;
    /// let reader = options.attach_reader().unwrap();
    /// let sleeper = std::thread::spawn(move || reader.wait_changed(0, None));
    /// writer.write(b"awake").unwrap();
    /// assert_eq!(sleeper.join().unwrap().unwrap(), 2);
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::Timeout`] (also when a [`Waker`] ends the wait), [`ShmError::Closed`] and
    /// [`ShmError::Sealed`] when nothing newer will come, [`ShmError::Unsupported`] on a segment
    /// without `notify`.
    pub fn wait_changed(&self, since: u64, timeout: Option<Duration>) -> Result<u64> {
        self.can_wait("wait_changed")?;
        let started = Instant::now();
        let rung = self.bell.rung.load(Ordering::SeqCst);
        loop {
            if let Some(version) = newer(self.segment(), since)? {
                return Ok(version);
            }
            let left = timeout.map(|t| t.saturating_sub(started.elapsed()));
            if left == Some(Duration::ZERO) || self.bell.rung.load(Ordering::SeqCst) != rung {
                return Err(ShmError::Timeout {
                    name: self.name().to_owned(),
                    after: started.elapsed(),
                });
            }
            if !may_come(self.segment(), since)? {
                continue;
            }
            self.sleep(since, left, rung);
        }
    }

    /// Refuses a segment that tells nobody of changes.
    pub(super) fn can_wait(&self, operation: &'static str) -> Result<()> {
        if self.mapping().geometry().has(flags::NOTIFY) {
            return Ok(());
        }
        Err(ShmError::Unsupported {
            name: self.name().to_owned(),
            operation,
            reason: "it was created without notify",
        })
    }

    /// Sleeps once; may wake for no reason.
    fn sleep(&self, since: u64, left: Option<Duration>, rung: u32) {
        let mapping = self.mapping();
        if !mapping.registers() {
            std::thread::sleep(left.map_or(OBSERVER_PAUSE, |l| l.min(OBSERVER_PAUSE)));
            return;
        }
        if let Some(word) = announce(&self.attachment, since) {
            self.bell.sleepers.fetch_add(1, Ordering::SeqCst);
            // A state change rings too; it bumps the futex word before it wakes, so it is seen here
            // or ends the sleep.
            let active = self
                .segment()
                .state()
                .is_ok_and(|s| s == SegmentState::Active);
            if active && self.bell.rung.load(Ordering::SeqCst) == rung {
                // Bounded: should the file be cut, the word that others wake is not ours any more.
                let bounded = left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN));
                platform::futex_wait(mapping.notify(), word, Some(bounded));
            }
            self.bell.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
        retract(&self.attachment);
    }

    /// Ends this reader's waits from another thread.
    pub fn waker(&self) -> Waker {
        Waker {
            attachment: Arc::downgrade(&self.attachment),
            bell: self.bell.clone(),
        }
    }
}

/// A version other than `since`, when there is one.
pub(super) fn newer(segment: &Segment, since: u64) -> Result<Option<u64>> {
    let version = seqlock::latest(&*segment.mapping).0;
    // Before the version is believed: what was lost reads as zeros.
    if segment.mapping.lost() {
        return Err(segment.mapping.loss(&segment.name));
    }
    Ok((version != since).then_some(version))
}

/// Whether it is worth sleeping; `false` when a value was published just before the end, which is to be
/// looked at again. Otherwise an end is an error.
pub(super) fn may_come(segment: &Segment, since: u64) -> Result<bool> {
    let name = || segment.name.clone();
    match segment.state()? {
        SegmentState::Active => Ok(true),
        _ if seqlock::latest(&*segment.mapping).0 != since => Ok(false),
        SegmentState::Sealed => Err(ShmError::Sealed { name: name() }),
        SegmentState::Closed => Err(ShmError::Closed { name: name() }),
    }
}

/// Announces a sleeper to the writer; the futex word, unless there is a version other than `since`. Counted
/// in the table, so that a sweep can take back what a dead sleeper left: the segment's count first, so that
/// dying in between leaves it too high, never too low.
pub(super) fn announce(attachment: &Attachment, since: u64) -> Option<u32> {
    let mapping = &attachment.segment.mapping;
    let word = seqlock::announce_wait(&**mapping, since);
    if let Some(entry) = attachment.entry() {
        mapping
            .reader_waiting(entry)
            .fetch_add(1, Ordering::Relaxed);
    }
    word
}

/// Takes back an [`announce`].
pub(super) fn retract(attachment: &Attachment) {
    let mapping = &attachment.segment.mapping;
    if let Some(entry) = attachment.entry() {
        let mine = mapping.reader_waiting(entry);
        let _ = mine.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }
    seqlock::retract_wait(&**mapping);
}

/// Ends the waits of one reader in this process.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicU32,
    sleepers: AtomicU32,
    /// Waits of notifiers.
    pub(super) watches: AtomicU32,
}

/// Ends the waits of a [`SegmentReader`] from another thread.
#[derive(Debug, Clone)]
pub struct Waker {
    /// Weak: a waker that is kept somewhere keeps no segment.
    attachment: Weak<Attachment>,
    bell: Arc<Bell>,
}

impl Waker {
    /// Makes the calls of [`SegmentReader::wait_changed`] that are under way return with `Timeout`.
    pub fn wake(&self) {
        self.bell.rung.fetch_add(1, Ordering::SeqCst);
        // A reader cannot change the futex word, so a sleeper between its last look at the bell and
        // its sleep needs another wake.
        for _ in 0..1000 {
            if self.bell.sleepers.load(Ordering::SeqCst) == 0 {
                return;
            }
            let Some(attachment) = self.attachment.upgrade() else {
                return; // whoever sleeps holds it
            };
            platform::futex_wake(attachment.segment.mapping.notify());
            drop(attachment);
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

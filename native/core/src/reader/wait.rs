//! Sleeping until something is published.

use super::{OBSERVER_PAUSE, SegmentReader};
use crate::error::{Result, ShmError};
use crate::layout::{SegmentState, flags};
use crate::platform;
use crate::seqlock::{self, Words};
use crate::view::Attachment;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A sleeper looks whether its mapping is still there this often; changes wake it at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
        let mapping = self.mapping();
        if !mapping.geometry().has(flags::NOTIFY) {
            return Err(ShmError::Unsupported {
                name: self.name().to_owned(),
                operation: "wait_changed",
                reason: "it was created without notify",
            });
        }
        let started = Instant::now();
        let rung = self.bell.rung.load(Ordering::SeqCst);
        loop {
            let version = self.version();
            // Before the version is believed: what was lost reads as zeros.
            if mapping.lost() {
                return Err(self.truncated());
            }
            if version != since {
                return Ok(version);
            }
            let left = timeout.map(|t| t.saturating_sub(started.elapsed()));
            if left == Some(Duration::ZERO) || self.bell.rung.load(Ordering::SeqCst) != rung {
                return Err(ShmError::Timeout {
                    name: self.name().to_owned(),
                    after: started.elapsed(),
                });
            }
            match self.segment().state()? {
                SegmentState::Active => {}
                // Looked at again: the value may have been published just before.
                _ if self.version() != since => continue,
                SegmentState::Sealed => {
                    return Err(ShmError::Sealed {
                        name: self.name().to_owned(),
                    });
                }
                SegmentState::Closed => {
                    return Err(ShmError::Closed {
                        name: self.name().to_owned(),
                    });
                }
            }
            self.sleep(since, left, rung);
        }
    }

    /// Sleeps once; may wake for no reason.
    fn sleep(&self, since: u64, left: Option<Duration>, rung: u32) {
        let mapping = self.mapping();
        if !mapping.registers() {
            std::thread::sleep(left.map_or(OBSERVER_PAUSE, |l| l.min(OBSERVER_PAUSE)));
            return;
        }
        // Counted in the table, so that a sweep can take back what a dead sleeper left: the segment's
        // count first, so that dying in between leaves it too high, never too low.
        let mine = self.attachment.entry().map(|e| mapping.reader_waiting(e));
        let word = seqlock::announce_wait(mapping, since);
        if let Some(mine) = mine {
            mine.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(word) = word {
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
        if let Some(mine) = mine {
            let _ = mine.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        }
        seqlock::retract_wait(mapping);
    }

    /// Ends this reader's waits from another thread.
    pub fn waker(&self) -> Waker {
        Waker {
            attachment: Arc::downgrade(&self.attachment),
            bell: self.bell.clone(),
        }
    }
}

/// Ends the waits of one reader in this process.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicU32,
    sleepers: AtomicU32,
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

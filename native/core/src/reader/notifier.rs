//! Waiting for many segments without a thread for each: what an event loop needs.
//!
//! A [`Notifier`] belongs to one event loop. It has a descriptor that the loop polls, and says which of the
//! waits that were begun with it have ended. The waiting itself is done in `watchers`.

use super::SegmentReader;
use super::watchers::{WATCHERS, Watch, news};
use crate::error::{Result, ShmError};
use crate::platform::waitv::PolledBell;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What came of beginning a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// This version was there already; there is nothing to wait for.
    Now(u64),
    /// It goes on, and [`Notifier::take`] tells its end under this number.
    Later(u64),
}

/// The end of a wait.
#[derive(Debug)]
pub struct Notice {
    /// Which: the number that [`Notifier::watch`] gave.
    pub token: u64,
    /// The version that was published, or what [`SegmentReader::wait_changed`] would have answered.
    pub outcome: Result<u64>,
}

/// Waits for changes of many segments and tells them through one descriptor. May be used by several threads.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let options = snakepit_shm::SegmentOptions::new("r").dir(dir.path());
/// # let mut writer = options.create().unwrap();
/// use snakepit_shm::{Notifier, Watched};
/// let reader = options.attach_reader().unwrap();
/// let notifier = Notifier::new().unwrap();
/// let Watched::Later(token) = notifier.watch(&reader, 0).unwrap() else { panic!() };
/// writer.write(b"awake").unwrap();
/// # let notices = loop {
/// #     let notices = notifier.take(); // an event loop polls notifier.fd() first
/// #     if !notices.is_empty() { break notices; }
/// #     std::thread::yield_now();
/// # };
/// assert_eq!(notices[0].token, token);
/// assert_eq!(*notices[0].outcome.as_ref().unwrap(), 2);
/// # reader.close().unwrap(); writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct Notifier {
    outbox: Arc<Outbox>,
    next: AtomicU64,
}

/// What one notifier has to tell.
#[derive(Debug)]
pub(super) struct Outbox {
    bell: PolledBell,
    ended: Mutex<Vec<Notice>>,
    /// Told with the bell, for who waits without polling.
    told: Condvar,
}

impl Outbox {
    pub(super) fn post(&self, notice: Notice) {
        let mut ended = lock(&self.ended);
        ended.push(notice);
        // For the others it is ringing.
        if ended.len() == 1 {
            self.bell.ring();
            self.told.notify_one();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under our locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notifier {
    /// Makes one, with its descriptor.
    ///
    /// # Errors
    ///
    /// [`ShmError::ResourceExhausted`] when there are no descriptors left.
    pub fn new() -> Result<Self> {
        let bell = PolledBell::new().map_err(|e| ShmError::from_io("notifier", "create", e))?;
        Ok(Self {
            outbox: Arc::new(Outbox {
                bell,
                ended: Mutex::default(),
                told: Condvar::new(),
            }),
            next: AtomicU64::new(1),
        })
    }

    /// Readable while there is something to [`take`](Self::take). `None` in a forked child, which does not
    /// have it: it makes a notifier of its own.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.outbox.bell.fd()
    }

    /// Begins to wait for a version other than `since`. The reader stays attached until the wait has ended
    /// or was [cancelled](Self::cancel), also when it is dropped; [`SegmentReader::end_watches`] ends it.
    ///
    /// # Errors
    ///
    /// Those of [`SegmentReader::wait_changed`]; [`ShmError::Unsupported`] also in a forked child;
    /// [`ShmError::ResourceExhausted`] when no thread can be started.
    pub fn watch(&self, reader: &SegmentReader, since: u64) -> Result<Watched> {
        reader.can_wait("watch")?;
        if self.fd().is_none() {
            return Err(ShmError::Unsupported {
                name: reader.name().to_owned(),
                operation: "watch",
                reason: "the notifier is that of the process that forked this one",
            });
        }
        // As a rule it is there: nothing is locked for that.
        if let Some(version) = news(&reader.attachment.segment, since)? {
            return Ok(Watched::Now(version));
        }
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let watch = Watch {
            attachment: reader.attachment.clone(),
            bell: reader.bell.clone(),
            since,
            token,
            outbox: self.outbox.clone(),
        };
        WATCHERS.get().begin(watch)
    }

    /// [`Self::watch`] for who wants all by way of notices: what is there already, and why nothing can come, is
    /// told by one as well. Returns its number.
    pub fn watch_and_tell(&self, reader: &SegmentReader, since: u64) -> u64 {
        let outcome = match self.watch(reader, since) {
            Ok(Watched::Later(token)) => return token,
            Ok(Watched::Now(version)) => Ok(version),
            Err(error) => Err(error),
        };
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.outbox.post(Notice { token, outcome });
        token
    }

    /// Ends a wait without a notice. `false`: it had ended, and its notice was taken or will be.
    pub fn cancel(&self, token: u64) -> bool {
        let mine = |watch: &Watch| watch.token == token && Arc::ptr_eq(&watch.outbox, &self.outbox);
        self.fd().is_some() && !WATCHERS.get().end(mine).is_empty()
    }

    /// The waits that have ended since the last call. Does not wait.
    pub fn take(&self) -> Vec<Notice> {
        if self.fd().is_none() {
            return Vec::new(); // the lock may be held by a thread that only the parent has
        }
        // Silenced first: what is posted from here on is taken now or rings again.
        self.outbox.bell.silence();
        std::mem::take(&mut *lock(&self.outbox.ended))
    }

    /// [`Self::take`] that sleeps until there is something; for a thread that does nothing else. In a forked
    /// child there never is: it returns at once.
    pub fn wait(&self) -> Vec<Notice> {
        while self.fd().is_some() {
            let ended = lock(&self.outbox.ended);
            let told = self.outbox.told.wait_while(ended, |ended| ended.is_empty());
            drop(told.unwrap_or_else(PoisonError::into_inner));
            let notices = self.take();
            if !notices.is_empty() {
                return notices;
            }
        }
        Vec::new()
    }
}

impl Drop for Notifier {
    /// Ends its waits.
    fn drop(&mut self) {
        if self.fd().is_some() {
            WATCHERS
                .get()
                .end(|watch| Arc::ptr_eq(&watch.outbox, &self.outbox));
        }
    }
}

impl SegmentReader {
    /// Ends all waits that notifiers have begun for this reader, with [`ShmError::Closed`].
    pub fn end_watches(&self) {
        // In a forked child this counts those of its parent as well; none of them is found then.
        if self.bell.watches.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mine = |watch: &Watch| Arc::ptr_eq(&watch.attachment, &self.attachment);
        for (outbox, token) in WATCHERS.get().end(mine) {
            let outcome = Err(ShmError::Closed {
                name: self.name().to_owned(),
            });
            outbox.post(Notice { token, outcome });
        }
    }
}

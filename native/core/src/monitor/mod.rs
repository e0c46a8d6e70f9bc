//! The reaper: a thread that notices deaths at once and cleans up after them (FR-008, SC-006).

mod manager;

pub use self::manager::{LifecycleManager, ShmLifecycleManager, ShmUser, evo};

use crate::error::{Resource, Result, ShmError};
use crate::lifecycle::{CleanupOptions, CleanupReport};
use crate::name::Place;
use crate::options::{RunMode, SegmentOptions};
use crate::participant::{self, Participant};
use crate::platform::watch::{Bell, Poller, Watch, process_descriptor};
use crate::reclaim;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a [`Reaper`] works.
#[derive(Debug, Clone)]
pub struct ReaperOptions {
    cleanup: CleanupOptions,
    mode: RunMode,
    interval: Option<Duration>,
}

impl ReaperOptions {
    /// Of a namespace in a directory: at once by pidfd, a sweep every second besides, 10 s grace.
    pub fn new(namespace: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            cleanup: CleanupOptions::new(namespace, dir),
            mode: RunMode::RealTime,
            interval: None,
        }
    }

    /// Of the namespace, directory and mode that segments are created with.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::{Reaper, ReaperOptions, RunMode, SegmentOptions};
    /// let segments = SegmentOptions::new("state").dir(dir.path()).mode(RunMode::Simulation);
    /// let reaper = Reaper::start(ReaperOptions::of(&segments), |_| {}).unwrap();
    /// assert_eq!(reaper.stats().watched, 0);
    /// ```
    pub fn of(segments: &SegmentOptions) -> Self {
        Self::new(segments.get_namespace(), segments.get_dir()).mode(segments.mode)
    }

    /// `Simulation` notices deaths by the sweep alone.
    pub fn mode(mut self, mode: RunMode) -> Self {
        self.mode = mode;
        self
    }

    /// Time between sweeps: 1 s unless given, 5 s in `Simulation`.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval.max(Duration::from_millis(1)));
        self
    }

    /// How long a crashed writer's segment waits for a takeover. Once started it holds, as with
    /// [`set_grace`](crate::set_grace), for all that this process does in the namespace.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.cleanup = self.cleanup.grace(grace);
        self
    }

    fn every(&self) -> Duration {
        self.interval.unwrap_or(match self.mode {
            RunMode::RealTime => Duration::from_secs(1),
            RunMode::Simulation => Duration::from_secs(5),
        })
    }
}

/// What a [`Reaper`] tells its listener.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReaperEvent {
    /// A process of the namespace ended.
    ProcessEnded {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A sweep that removed, cleared, recovered or found something corrupted.
    Swept(CleanupReport),
    /// A sweep that failed.
    Failed {
        /// Why.
        error: String,
    },
}

type Listener = Box<dyn Fn(&ReaperEvent) + Send>;

/// Counters of a [`Reaper`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaperStats {
    /// Processes watched now.
    pub watched: u64,
    /// Deaths noticed.
    pub deaths: u64,
    /// Sweeps made.
    pub sweeps: u64,
    /// Segments removed.
    pub removed: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    watched: AtomicU64,
    deaths: AtomicU64,
    sweeps: AtomicU64,
    removed: AtomicU64,
}

/// A thread that cleans up a namespace until it is dropped. Any number of processes may run one.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{Reaper, ReaperOptions};
/// let reaper = Reaper::start(ReaperOptions::new("docs", dir.path()), |event| println!("{event:?}")).unwrap();
/// assert_eq!(reaper.stats().removed, 0);
/// drop(reaper);
/// ```
pub struct Reaper {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    /// Fork epoch of the process whose thread it is.
    epoch: u32,
}

const BELL: u64 = 0; // never a participant's key
const TABLE: u64 = u64::MAX;

impl Reaper {
    /// Starts the thread; `listener` is called on it.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`], [`ShmError::PermissionDenied`], [`ShmError::ResourceExhausted`]
    /// (descriptors, threads), [`ShmError::Io`].
    pub fn start(
        options: ReaperOptions,
        listener: impl Fn(&ReaperEvent) + Send + 'static,
    ) -> Result<Self> {
        let namespace = options.cleanup.namespace.clone();
        let place = Place::new(&options.cleanup.dir, &namespace)?;
        let failed = |e| ShmError::from_io(&namespace, "watch", e);
        reclaim::set_grace(&place, options.cleanup.grace);
        let participant = participant::join(&place)?;
        let bell = Arc::new(Bell::new().map_err(failed)?);
        let poller = Poller::new().map_err(failed)?;
        poller.add(&*bell, BELL).map_err(failed)?;
        let table = match options.mode {
            RunMode::RealTime => {
                let watch = Watch::file(&place.participants_path()).map_err(failed)?;
                poller.add(&watch, TABLE).map_err(failed)?;
                Some(watch)
            }
            RunMode::Simulation => None,
        };
        let shared = Arc::new(Shared::default());
        let mut run = Run {
            options,
            place,
            participant,
            poller,
            table,
            watched: HashMap::new(),
            told: Vec::new(),
            shared: shared.clone(),
            bell: bell.clone(),
            listener: Box::new(listener),
        };
        crate::platform::keep_loaded();
        let thread = std::thread::Builder::new()
            .name("shm-reaper".into())
            .spawn(move || run.forever())
            .map_err(|_| ShmError::ResourceExhausted {
                name: Some(namespace),
                resource: Resource::Threads,
                needed: 1,
                available: None,
            })?;
        Ok(Self {
            shared,
            bell,
            thread: Some(thread),
            epoch: crate::platform::fork::epoch(),
        })
    }

    /// Sweeps as soon as possible.
    pub fn sweep_now(&self) {
        self.bell.ring();
    }

    /// Counters.
    pub fn stats(&self) -> ReaperStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReaperStats {
            watched: get(&self.shared.watched),
            deaths: get(&self.shared.deaths),
            sweeps: get(&self.shared.sweeps),
            removed: get(&self.shared.removed),
        }
    }
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper")
            .field("stats", &self.stats())
            .finish()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if self.epoch != crate::platform::fork::epoch() {
            // A forked child has neither the thread nor a bell of its own.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Run {
    options: ReaperOptions,
    place: Place,
    participant: Arc<Participant>,
    poller: Poller,
    table: Option<Watch>,
    /// A pidfd for each living process of the namespace, by its key.
    watched: HashMap<u64, (OwnedFd, participant::ProcessInfo)>,
    /// Corrupted segments that were told of already.
    told: Vec<String>,
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    listener: Listener,
}

impl Run {
    fn forever(&mut self) {
        let every = self.options.every();
        let mut due = Some(Duration::ZERO);
        let mut swept = Instant::now();
        while !self.shared.stop.load(Ordering::SeqCst) {
            let mut now = due.is_some_and(|due| swept.elapsed() >= due) || swept.elapsed() >= every;
            if !now {
                let next = due.map_or(every, |due| due.min(every));
                let wait = next.saturating_sub(swept.elapsed());
                match self.poller.wait(wait) {
                    Ok(tokens) => now = self.handle(&tokens),
                    Err(error) => {
                        self.tell(&ReaperEvent::Failed {
                            error: error.to_string(),
                        });
                        std::thread::sleep(every.min(Duration::from_millis(100)));
                    }
                }
            }
            if now {
                self.watch_processes();
                swept = Instant::now();
                due = self.sweep();
            }
        }
    }

    /// Returns whether a sweep is due.
    fn handle(&mut self, tokens: &[u64]) -> bool {
        let mut sweep = false;
        for token in tokens {
            match *token {
                BELL => {
                    self.bell.silence();
                    sweep = true;
                }
                TABLE => {
                    if let Some(table) = &self.table {
                        table.changes();
                    }
                    self.watch_processes();
                }
                key => {
                    self.note_death(key);
                    sweep = true;
                }
            }
        }
        sweep
    }

    /// Opens a pidfd for every process that has registered since. One that cannot be opened (another
    /// pid namespace, out of descriptors) is left to the sweep.
    fn watch_processes(&mut self) {
        if self.table.is_none() {
            return;
        }
        let living = self.participant.others();
        // Their pidfds say so too, in a moment; whoever comes first counts.
        let gone = |key: &u64| !living.iter().any(|(other, _)| other == key);
        let dead: Vec<u64> = self.watched.keys().copied().filter(gone).collect();
        for key in dead {
            self.note_death(key);
        }
        for (key, process) in living {
            if self.watched.contains_key(&key) {
                continue;
            }
            let Ok(fd) = process_descriptor(process.pid) else {
                continue;
            };
            // The pid may be another's by now: the lock says whether it still is this one.
            if self.participant.is_alive(key) && self.poller.add(&fd, key).is_ok() {
                self.watched.insert(key, (fd, process));
            }
        }
        self.count_watched();
    }

    fn note_death(&mut self, key: u64) {
        if let Some((fd, process)) = self.watched.remove(&key) {
            self.poller.remove(&fd);
            self.count_watched();
            self.shared.deaths.fetch_add(1, Ordering::Relaxed);
            self.tell(&ReaperEvent::ProcessEnded {
                pid: process.pid,
                name: process.name,
            });
        }
    }

    fn count_watched(&self) {
        self.shared
            .watched
            .store(self.watched.len() as u64, Ordering::Relaxed);
    }

    /// Returns when the next segment is due.
    fn sweep(&mut self) -> Option<Duration> {
        let mut report = CleanupReport::default();
        let result = self
            .options
            .cleanup
            .sweep(&self.place, &self.participant, &mut report);
        self.shared.sweeps.fetch_add(1, Ordering::Relaxed);
        self.shared
            .removed
            .fetch_add(report.removed.len() as u64, Ordering::Relaxed);
        let due = report.next_due;
        match result {
            Err(error) => self.tell(&ReaperEvent::Failed {
                error: error.to_string(),
            }),
            Ok(()) => {
                let broken: Vec<_> = report.corrupted.iter().map(|c| c.name.clone()).collect();
                let news = broken.iter().any(|name| !self.told.contains(name));
                self.told = broken;
                let notable = !report.removed.is_empty()
                    || news
                    || !report.recovered.is_empty()
                    || report.cleared_readers > 0;
                if notable {
                    self.tell(&ReaperEvent::Swept(report));
                }
            }
        }
        due
    }

    /// A listener that panics must not end the reaper.
    fn tell(&self, event: &ReaperEvent) {
        let call = std::panic::AssertUnwindSafe(|| (self.listener)(event));
        if std::panic::catch_unwind(call).is_err() {
            tracing::error!("a listener of the reaper panicked");
        }
    }
}

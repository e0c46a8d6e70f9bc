//! Which segments there are (FR-006, T037-T041).
//!
//! A discovery that is asked a second time keeps what it sees: the directory is watched by inotify, and
//! of each segment the metadata and a read-only mapping are kept, so that the next list makes no system
//! call but one. (The first list watches nothing: ending a watch costs milliseconds in the kernel, which
//! whoever lists once should not pay.) Names are looked up directly, never by listing.
//!
//! A kept mapping keeps the memory of a segment that was removed. Whoever keeps a discovery calls `tidy`
//! now and then; `forget` is for when memory is short.

mod known;
mod watch;

use crate::error::{Result, ShmError};
use crate::inspect;
use crate::name::{DEFAULT_DIR, DEFAULT_NAMESPACE, Place};
use crate::participant::{self, Participant};
use crate::platform;
use crate::platform::watch::{Change, Watch};
use crate::reclaim;
use crate::segment::corrupted;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

pub use crate::inspect::SegmentInfo;
use known::Known;
pub use watch::{SegmentChange, SegmentWatch};

/// All that a namespace has.
#[derive(Debug, Clone)]
pub struct Survey {
    /// What can be attached, by name.
    pub segments: Vec<SegmentInfo>,
    /// Names of what cannot, and what is wrong with each.
    pub corrupted: Vec<(String, String)>,
}

/// Finds the segments of a namespace in a directory.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{SegmentChange, SegmentDiscovery, SegmentOptions};
/// use std::time::Duration;
///
/// let discovery = SegmentDiscovery::new("snakepit", dir.path()).unwrap();
/// let mut watch = discovery.watch().unwrap();
/// let writer = SegmentOptions::new("a").dir(dir.path()).create().unwrap();
///
/// let found = discovery.list().unwrap();
/// assert_eq!((found[0].name.as_str(), found[0].writer_pid), ("a", std::process::id()));
/// let changes = watch.next(Duration::from_secs(5)).unwrap();
/// assert_eq!(changes, [SegmentChange::Appeared("a".into())]);
/// writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct SegmentDiscovery {
    place: Place,
    seen: Mutex<Memory>,
}

/// What a discovery remembers, from its second list on.
#[derive(Debug, Default)]
enum Memory {
    #[default]
    Fresh,
    AskedOnce,
    Keeps(Seen),
}

struct Seen {
    watch: Option<Watch>,
    /// Device and inode of the directory that is watched.
    directory: Option<(u64, u64)>,
    /// Fork epoch of the process that watches: a child would take its parent's events.
    epoch: u32,
    segments: BTreeMap<String, Result<Known>>,
    /// Names that something happened to since they were looked at.
    changed: BTreeSet<String>,
    /// Process ids by participant key: a key never means another process.
    pids: HashMap<u64, u32>,
    /// When a list was asked for last.
    asked: Instant,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.segments.keys()).finish()
    }
}

impl SegmentDiscovery {
    /// Of a namespace in a directory. Nothing is looked at yet.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`].
    pub fn new(namespace: &str, dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            place: Place::new(dir.as_ref(), namespace)?,
            seen: Mutex::default(),
        })
    }

    /// All segments that can be attached, by name. Corrupted ones are in [`Self::corrupted`].
    ///
    /// # Errors
    ///
    /// [`ShmError::PermissionDenied`] or [`ShmError::Io`] when the directory cannot be read or
    /// watched.
    pub fn list(&self) -> Result<Vec<SegmentInfo>> {
        if self.is_first() {
            return Ok(self.glance()?.segments);
        }
        self.with_seen(Seen::list)
    }

    /// Looks at one segment after the other, and maps none: a process that has as many regions mapped itself
    /// has no memory areas left for that.
    fn glance(&self) -> Result<Survey> {
        // As the directory has them, which is how they lie in memory; sorted when they are looked at.
        let names = reclaim::names_unsorted(&self.place)?;
        let dir = platform::open_directory(&self.place.dir)
            .map_err(|e| ShmError::from_io(&self.place.dir.display().to_string(), "list", e))?;
        // Held, so that not each look at a segment joins anew.
        let participant = if names.is_empty() {
            None
        } else {
            participant::join(&self.place).ok()
        };
        let (mut pids, mut living) = (HashMap::new(), HashMap::new());
        let mut found = Survey {
            segments: Vec::with_capacity(names.len()),
            corrupted: Vec::new(),
        };
        for name in names {
            match inspect::glance(
                &self.place,
                dir.as_fd(),
                &name,
                &mut pids,
                &mut living,
                participant.as_ref(),
            ) {
                Ok(info) => found.segments.push(info),
                Err(ShmError::NotFound { .. }) => {}
                Err(error @ (ShmError::ResourceExhausted { .. } | ShmError::Io { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%name, %error, "isolated");
                    found.corrupted.push((name, error.to_string()));
                }
            }
        }
        found.segments.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        found.corrupted.sort_unstable();
        Ok(found)
    }

    /// Whether this is the first question; the next is not.
    fn is_first(&self) -> bool {
        let mut memory = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = matches!(&*memory, Memory::Fresh);
        if first {
            *memory = Memory::AskedOnce;
        }
        first
    }

    /// Segments that nobody can attach to, and what is wrong with each.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn corrupted(&self) -> Result<Vec<(String, String)>> {
        Ok(self.survey()?.corrupted)
    }

    /// [`Self::list`] and [`Self::corrupted`] in one.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn survey(&self) -> Result<Survey> {
        if self.is_first() {
            return self.glance();
        }
        self.with_seen(|seen, participant| {
            let segments = seen.list(participant); // finds what went bad since it was opened
            let broken = seen.segments.iter().filter_map(|(name, known)| {
                let error = known.as_ref().err()?;
                Some((name.clone(), error.to_string()))
            });
            Survey {
                segments,
                corrupted: broken.collect(),
            }
        })
    }

    /// Gives back what is kept of segments that were removed since the last list; when that is longer ago
    /// than `idle`, all that is kept. Cheap: one system call when nothing has changed. A list that is under
    /// way in another thread is not waited for.
    pub fn tidy(&self, idle: Duration) {
        let mut memory = match self.seen.try_lock() {
            Ok(memory) => memory,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Memory::Keeps(seen) = &mut *memory else {
            return;
        };
        let ours = seen.epoch == platform::fork::epoch();
        if !ours || seen.asked.elapsed() >= idle || !seen.let_go(&self.place) {
            *memory = Memory::AskedOnce;
        }
    }

    /// Gives back all that is kept. The next list looks at everything anew.
    pub fn forget(&self) {
        let mut memory = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*memory, Memory::Keeps(_)) {
            *memory = Memory::AskedOnce;
        }
    }

    /// Tells of changes from now on.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn watch(&self) -> Result<SegmentWatch> {
        SegmentWatch::new(self.place.clone())
    }

    fn with_seen<T>(
        &self,
        use_it: impl FnOnce(&mut Seen, Option<&Arc<Participant>>) -> T,
    ) -> Result<T> {
        let mut memory = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*memory, Memory::Keeps(seen) if seen.epoch != platform::fork::epoch()) {
            *memory = Memory::AskedOnce;
        }
        let seen = match &mut *memory {
            Memory::Keeps(seen) => {
                // What it was told and could not look at it would not be told again.
                if let Err(error) = seen.update(&self.place) {
                    *memory = Memory::AskedOnce;
                    return Err(error);
                }
                seen
            }
            asked => {
                *asked = Memory::Keeps(Seen::watching(&self.place)?);
                let Memory::Keeps(seen) = asked else {
                    return Err(corrupted(&self.place.namespace, "nothing seen"));
                };
                seen
            }
        };
        let participant = if seen.segments.is_empty() {
            None
        } else {
            participant::join(&self.place).ok()
        };
        Ok(use_it(seen, participant.as_ref()))
    }
}

impl Seen {
    fn new(place: &Place, watch: Option<Watch>) -> Result<Self> {
        let mut seen = Self {
            watch,
            directory: None,
            epoch: platform::fork::epoch(),
            segments: BTreeMap::new(),
            changed: BTreeSet::new(),
            pids: HashMap::new(),
            asked: Instant::now(),
        };
        for name in reclaim::names(place)? {
            seen.look(place, &name)?;
        }
        Ok(seen)
    }

    fn watching(place: &Place) -> Result<Self> {
        // In this order: whatever changes in between is told, or the directory is found to be another.
        let directory = identity(place);
        let watch = watch_directory(place)?;
        let mut seen = Self::new(place, Some(watch))?;
        seen.directory = directory;
        Ok(seen)
    }

    fn list(&mut self, participant: Option<&Arc<Participant>>) -> Vec<SegmentInfo> {
        let mut infos = Vec::with_capacity(self.segments.len());
        let mut broken = Vec::new();
        // Asked once for each process, not for each segment.
        let mut living = HashMap::new();
        for (name, known) in &self.segments {
            let Ok(known) = known else { continue };
            match known.info(&mut self.pids, &mut living, participant) {
                Ok(info) => infos.push(info),
                Err(error) => broken.push((name.clone(), error)),
            }
        }
        for (name, error) in broken {
            tracing::warn!(%name, %error, "isolated");
            self.segments.insert(name, Err(error));
        }
        infos
    }

    fn update(&mut self, place: &Place) -> Result<()> {
        self.asked = Instant::now();
        // Nobody tells that a directory was removed while somebody has it open, or its parent moved.
        if !self.notice(place) || self.directory != identity(place) {
            *self = Self::watching(place)?;
            return Ok(());
        }
        // What could not be attached may have been mended, of which nobody tells.
        let broken = self.segments.iter().filter(|(_, known)| known.is_err());
        self.changed.extend(broken.map(|(name, _)| name.clone()));
        for name in std::mem::take(&mut self.changed) {
            self.look(place, &name)?;
        }
        Ok(())
    }

    /// Lets go of what has changed, to be looked at by the next list; false when it is not known what has.
    fn let_go(&mut self, place: &Place) -> bool {
        let noticed = self.notice(place);
        for name in &self.changed {
            self.segments.remove(name);
        }
        noticed
    }

    /// Takes the events in; false when some were lost, or the directory itself has gone.
    fn notice(&mut self, place: &Place) -> bool {
        for change in self.watch.as_ref().map(Watch::changes).unwrap_or_default() {
            match change {
                Change::Appeared(file) | Change::Vanished(file) => {
                    if let Some(name) = place.name_of_meta(&file) {
                        self.changed.insert(name.to_owned());
                    }
                }
                Change::Unknown => return false,
            }
        }
        true
    }

    /// Looks at one name anew. What is wrong with the segment is remembered; what is wrong with us (no
    /// address space, no descriptors) is an error.
    fn look(&mut self, place: &Place, name: &str) -> Result<()> {
        match Known::open(place, name) {
            Err(ShmError::NotFound { .. }) => {
                self.segments.remove(name);
            }
            Err(error @ (ShmError::ResourceExhausted { .. } | ShmError::Io { .. })) => {
                return Err(error);
            }
            known => {
                self.segments.insert(name.to_owned(), known);
            }
        }
        Ok(())
    }
}

fn identity(place: &Place) -> Option<(u64, u64)> {
    let found = std::fs::metadata(&place.dir).ok()?;
    Some((found.dev(), found.ino()))
}

fn watch_directory(place: &Place) -> Result<Watch> {
    Watch::directory(&place.dir)
        .map_err(|e| ShmError::from_io(&place.dir.display().to_string(), "watch", e))
}

/// Segments of the default namespace in `/dev/shm` (plan, "API Contracts").
///
/// # Errors
///
/// As [`SegmentDiscovery::list`].
pub fn list_segments() -> Result<Vec<SegmentInfo>> {
    SegmentDiscovery::new(DEFAULT_NAMESPACE, DEFAULT_DIR)?.list()
}

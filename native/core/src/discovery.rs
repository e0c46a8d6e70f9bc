//! Which segments there are (FR-006, T037-T041).
//!
//! A discovery that is asked a second time keeps what it sees: the directory is watched by inotify, and
//! of each segment the metadata and a read-only mapping are kept, so that the next list makes no system
//! call but one. (The first list watches nothing: ending a watch costs milliseconds in the kernel, which
//! whoever lists once should not pay.) Names are looked up directly, never by listing.

use crate::error::{Result, ShmError};
use crate::inspect;
use crate::layout::{SegmentState, publish_word};
use crate::mapping::{Access, Mapping, SlotWord};
use crate::meta::Meta;
use crate::name::{DEFAULT_DIR, DEFAULT_NAMESPACE, Place};
use crate::participant::{self, Participant};
use crate::platform::watch::{Change, Poller, Watch};
use crate::platform::{self};
use crate::reclaim;
use crate::segment::{corrupted, read_geometry};
use crate::seqlock::{self, Words};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a list says about a segment.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentInfo {
    /// The segment's name.
    pub name: String,
    /// Longest value, in bytes.
    pub size: usize,
    /// Process that holds the writer claim; 0 = nobody.
    pub writer_pid: u32,
    /// When it was created.
    pub created_at: SystemTime,
    /// When its current value was published; when it was created before the first value, or without
    /// timestamps.
    pub last_accessed: SystemTime,
    /// Attached readers.
    pub reader_count: u32,
    /// Its namespace.
    pub namespace: String,
    /// Its module, `_` written `-`.
    pub module: String,
    /// Its file, in the namespace's directory.
    pub file: String,
    /// Number of slots.
    pub slots: usize,
    /// Version of the current value, 0 = none.
    pub version: u64,
    /// One more with every writer.
    pub generation: u32,
    /// State.
    pub state: SegmentState,
    /// Length of the current value, in bytes; 0 when there is none or it is being overwritten.
    pub len: usize,
}

/// A change of what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SegmentChange {
    /// A segment was created, or appeared anew under a name that was there.
    Appeared(String),
    /// A segment was removed.
    Vanished(String),
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
    /// Fork epoch of the process that watches: a child would take its parent's events.
    epoch: u32,
    segments: BTreeMap<String, Result<Found>>,
    /// Process ids by participant key: a key never means another process.
    pids: HashMap<u64, u32>,
}

/// A segment that can be attached. Whoever lists once maps nothing: a process has 65,530 mappings, and its
/// regions may have taken most of them.
enum Found {
    Seen(SegmentInfo),
    Kept(Known),
}

struct Known {
    meta: Meta,
    mapping: Mapping,
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
        self.with_seen(Seen::list)
    }

    /// Segments that nobody can attach to, and what is wrong with each.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn corrupted(&self) -> Result<Vec<(String, String)>> {
        self.with_seen(|seen, participant| {
            seen.list(participant); // finds what went bad since it was opened
            let broken = seen.segments.iter().filter_map(|(name, known)| {
                let error = known.as_ref().err()?;
                Some((name.clone(), error.to_string()))
            });
            broken.collect()
        })
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
        let mut once;
        let seen = match &mut *memory {
            Memory::Fresh => {
                *memory = Memory::AskedOnce;
                once = Seen::new(&self.place, None)?;
                &mut once
            }
            Memory::Keeps(seen) => {
                seen.update(&self.place)?;
                seen
            }
            asked @ Memory::AskedOnce => {
                // Watched before it is looked at, so that nothing falls between.
                let watch = watch_directory(&self.place)?;
                *asked = Memory::Keeps(Seen::new(&self.place, Some(watch))?);
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
            epoch: platform::fork::epoch(),
            segments: BTreeMap::new(),
            pids: HashMap::new(),
        };
        let names = reclaim::names(place)?;
        // Held, so that not each look at a segment joins anew.
        let _participant = (!names.is_empty()).then(|| participant::join(place).ok());
        for name in names {
            seen.look(place, &name)?;
        }
        Ok(seen)
    }

    fn list(&mut self, participant: Option<&Arc<Participant>>) -> Vec<SegmentInfo> {
        let mut infos = Vec::with_capacity(self.segments.len());
        let mut broken = Vec::new();
        for (name, known) in &self.segments {
            let info = match known {
                Ok(Found::Seen(info)) => Ok(info.clone()),
                Ok(Found::Kept(known)) => known.info(&mut self.pids, participant),
                Err(_) => continue,
            };
            match info {
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
        let changes = self.watch.as_ref().map(Watch::changes);
        for change in changes.unwrap_or_default() {
            match change {
                Change::Appeared(file) | Change::Vanished(file) => {
                    if let Some(name) = place.name_of_meta(&file) {
                        self.look(place, name)?;
                    }
                }
                Change::Unknown => {
                    // Lost events, or the directory itself was replaced.
                    let watch = watch_directory(place)?;
                    *self = Self::new(place, Some(watch))?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Looks at one name anew. What is wrong with the segment is remembered; what is wrong with us (no
    /// address space, no descriptors) is an error.
    fn look(&mut self, place: &Place, name: &str) -> Result<()> {
        let found = if self.watch.is_some() {
            Known::open(place, name).map(Found::Kept)
        } else {
            inspect::glance(place, name, &mut self.pids).map(Found::Seen)
        };
        match found {
            Err(ShmError::NotFound { .. }) => {
                self.segments.remove(name);
            }
            Err(error @ (ShmError::ResourceExhausted { .. } | ShmError::Io { .. })) => {
                return Err(error);
            }
            found => {
                self.segments.insert(name.to_owned(), found);
            }
        }
        Ok(())
    }
}

impl Known {
    fn open(place: &Place, name: &str) -> Result<Self> {
        let meta = Meta::load(place, name)?;
        let file =
            platform::open_existing(&meta.path(place), false).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => corrupted(name, "its file is missing"),
                _ => ShmError::from_io(name, "open", e),
            })?;
        let geometry = read_geometry(name, &file)?;
        if geometry.created_ns != meta.created_ns {
            return Err(corrupted(
                name,
                "metadata and segment do not belong together",
            ));
        }
        let mapping = Mapping::new(name, &file, geometry, Access::Observer)?;
        Ok(Self { meta, mapping })
    }

    fn info(
        &self,
        pids: &mut HashMap<u64, u32>,
        participant: Option<&Arc<Participant>>,
    ) -> Result<SegmentInfo> {
        let (meta, mapping) = (&self.meta, &self.mapping);
        let broken = |reason| corrupted(&meta.name, reason);
        let (version, slot) = seqlock::latest(mapping);
        if slot >= mapping.slots() || version % 2 != 0 {
            return Err(broken("its publish word names no slot"));
        }
        let state = mapping.state().ok_or_else(|| broken("its state is none"))?;
        if mapping.header_line() != mapping.geometry().encode() {
            return Err(broken("its header was overwritten"));
        }
        let get = |word| mapping.slot_word(slot, word).load(Ordering::Relaxed);
        let (len, at) = (get(SlotWord::Len), get(SlotWord::Timestamp));
        let whole = version != 0 && mapping.seq(slot).load(Ordering::Acquire) == version;
        if mapping.lost() {
            return Err(ShmError::Truncated {
                name: meta.name.clone(),
            });
        }
        let key = mapping.writer_key().load(Ordering::Relaxed);
        let describe = || {
            participant
                .and_then(|p| p.describe(key))
                .map_or(0, |p| p.pid)
        };
        let created_at = since_1970(mapping.geometry().created_ns);
        Ok(SegmentInfo {
            name: meta.name.clone(),
            size: mapping.geometry().capacity,
            writer_pid: *pids.entry(key).or_insert_with(describe),
            created_at,
            last_accessed: if whole && at != 0 {
                let age = platform::monotonic_ns().saturating_sub(at);
                SystemTime::now()
                    .checked_sub(Duration::from_nanos(age))
                    .unwrap_or(created_at)
            } else {
                created_at
            },
            reader_count: reclaim::readers(mapping) as u32,
            namespace: meta.namespace.clone(),
            module: meta.module.clone(),
            file: meta.file.clone(),
            slots: mapping.slots(),
            version: version.min(publish_word::MAX_VERSION),
            generation: mapping.generation().load(Ordering::Relaxed),
            state,
            len: if whole { len as usize } else { 0 },
        })
    }
}

pub(crate) fn since_1970(ns: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_nanos(ns))
        .unwrap_or(UNIX_EPOCH)
}

fn watch_directory(place: &Place) -> Result<Watch> {
    Watch::directory(&place.dir)
        .map_err(|e| ShmError::from_io(&place.dir.display().to_string(), "watch", e))
}

/// Changes of a namespace, as they happen.
pub struct SegmentWatch {
    place: Place,
    watch: Watch,
    poller: Poller,
    /// Fork epoch of the process that watches.
    epoch: u32,
    known: BTreeSet<String>,
}

impl SegmentWatch {
    fn new(place: Place) -> Result<Self> {
        let failed = |e| ShmError::from_io(&place.namespace, "watch", e);
        let watch = watch_directory(&place)?;
        let poller = Poller::new().map_err(failed)?;
        poller.add(&watch, 0).map_err(failed)?;
        Ok(Self {
            known: reclaim::names(&place)?.into_iter().collect(),
            place,
            watch,
            poller,
            epoch: platform::fork::epoch(),
        })
    }

    /// The next changes; none when there was none within `timeout`. When the system lost events, what
    /// is there is compared with what was.
    ///
    /// # Errors
    ///
    /// [`ShmError::Io`] when the directory is gone.
    pub fn next(&mut self, timeout: Duration) -> Result<Vec<SegmentChange>> {
        let started = Instant::now();
        loop {
            let changes = self.drain()?;
            let left = timeout.saturating_sub(started.elapsed());
            if !changes.is_empty() || left.is_zero() {
                return Ok(changes);
            }
            self.poller
                .wait(left)
                .map_err(|e| ShmError::from_io(&self.place.namespace, "watch", e))?;
        }
    }

    fn drain(&mut self) -> Result<Vec<SegmentChange>> {
        if self.epoch != platform::fork::epoch() {
            // A forked child watches for itself, from now on.
            *self = Self::new(self.place.clone())?;
        }
        let mut changes = Vec::new();
        for change in self.watch.changes() {
            match change {
                Change::Appeared(file) => {
                    if let Some(name) = self.place.name_of_meta(&file) {
                        self.known.insert(name.to_owned());
                        changes.push(SegmentChange::Appeared(name.to_owned()));
                    }
                }
                Change::Vanished(file) => {
                    if let Some(name) = self.place.name_of_meta(&file) {
                        self.known.remove(name);
                        changes.push(SegmentChange::Vanished(name.to_owned()));
                    }
                }
                Change::Unknown => {
                    let there = reclaim::names(&self.place)?.into_iter().collect();
                    let gone = self.known.difference(&there).cloned();
                    changes.extend(gone.map(SegmentChange::Vanished));
                    let new = there.difference(&self.known).cloned();
                    changes.extend(new.map(SegmentChange::Appeared));
                    self.known = there;
                }
            }
        }
        Ok(changes)
    }
}

impl std::fmt::Debug for SegmentWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SegmentWatch").field(&self.place).finish()
    }
}

/// Segments of the default namespace in `/dev/shm` (plan, "API Contracts").
///
/// # Errors
///
/// As [`SegmentDiscovery::list`].
pub fn list_segments() -> Result<Vec<SegmentInfo>> {
    SegmentDiscovery::new(DEFAULT_NAMESPACE, DEFAULT_DIR)?.list()
}

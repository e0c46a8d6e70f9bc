//! Which processes are attached to a namespace, and which of them live (DESIGN 6).
//!
//! Every process registers once per namespace in `{ns}.participants`: it takes an open-file-description
//! lock on one byte and holds it for life. The kernel drops the lock when the process ends, however it
//! ends, so **the lock is the truth**: it survives pid reuse, pid namespaces, clock steps and suspended
//! processes. The entry (pid, start time, name) is for people.
//!
//! One more byte serialises creation, takeover and removal in the namespace.

use crate::error::{Resource, Result, ShmError};
use crate::name::Place;
use crate::platform::{self, fork};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

/// `SNKPARTS`, little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"SNKPARTS");
const VERSION: u32 = 1;
/// Processes that a namespace has room for.
pub(crate) const CAPACITY: u32 = 16_384;
const ENTRIES_AT: u64 = 4096;
const ENTRY: u64 = 64;
/// Entries in the part of the file that is reserved at creation.
const RESERVED: u32 = 64;
/// Lock bytes lie beyond the end of the file.
const LOCKS_AT: u64 = 1 << 32;
const NAMESPACE_LOCK: u64 = LOCKS_AT - 1;
/// The namespace lock is held for microseconds; whoever waits longer than this gets an error.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Whoever leaves waits no longer than this for it: then the file stays for the next.
const LEAVING_PATIENCE: Duration = Duration::from_millis(250);

/// This process's registration in a namespace. Dropping the last one gives the entry back.
#[derive(Debug)]
pub(crate) struct Participant {
    place: Place,
    fd: fork::ForkFd,
    index: u32,
    generation: u32,
    /// Orders the threads of this process; the byte lock orders processes.
    threads: Mutex<()>,
    /// When this process swept the namespace last, in CLOCK_MONOTONIC nanoseconds; 0 = never.
    swept: AtomicU64,
}

/// One cell a namespace, so that waiting for one stops no other.
type Registry = Mutex<HashMap<Place, Arc<Mutex<Weak<Participant>>>>>;
static REGISTRY: fork::PerProcess<Registry> = fork::PerProcess::new();

/// Registers this process in a namespace, or finds that it is registered.
pub(crate) fn join(place: &Place) -> Result<Arc<Participant>> {
    let cell = {
        let mut registry = lock(REGISTRY.get());
        match registry.get(place) {
            Some(cell) => cell.clone(),
            None => {
                // Those that nobody uses now and that nobody is about to use.
                registry
                    .retain(|_, cell| Arc::strong_count(cell) > 1 || lock(cell).strong_count() > 0);
                registry.entry(place.clone()).or_default().clone()
            }
        }
    };
    let mut known = lock(&cell);
    if let Some(participant) = known.upgrade()
        && participant.is_named()
    {
        return Ok(participant);
    }
    let participant = Arc::new(Participant::register(place)?);
    *known = Arc::downgrade(&participant);
    Ok(participant)
}

fn random_generation() -> Result<u32> {
    let random = getrandom::u32().map_err(|e| ShmError::Io {
        name: None,
        operation: "getrandom",
        source: io::Error::other(e),
    })?;
    Ok(random.max(1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packs an entry's index and generation; never 0.
fn pack_key(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index + 1)
}

/// Splits a key; `None` for 0 and for garbage.
fn unpack_key(key: u64) -> Option<(u32, u32)> {
    let index = (key as u32).checked_sub(1)?;
    (index < CAPACITY).then_some((index, (key >> 32) as u32))
}

/// What the table says about a participant, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct ProcessInfo {
    /// Process id in its own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (proc(5)).
    pub start_time: u64,
    /// Command name.
    pub name: String,
}

struct Entry {
    /// Whether its checksum is right: otherwise it tells nothing, and the lock alone decides.
    intact: bool,
    generation: u32,
    info: ProcessInfo,
}

impl Entry {
    fn read(fd: BorrowedFd<'_>, index: u32) -> io::Result<Self> {
        // Beyond the end of the file: an entry never used, all zeros.
        let mut bytes = [0u8; ENTRY as usize];
        platform::read_at(fd, &mut bytes, ENTRIES_AT + u64::from(index) * ENTRY)?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8; ENTRY as usize]) -> Self {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let intact = word(56) == crc32c::crc32c(&bytes[..56]);
        let name: Vec<u8> = bytes[16..56]
            .iter()
            .copied()
            .take_while(|b| *b != 0)
            .collect();
        Self {
            intact,
            generation: word(0),
            info: ProcessInfo {
                pid: word(4),
                start_time: u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i])),
                name: String::from_utf8_lossy(&name).into_owned(),
            },
        }
    }

    fn write(&self, fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
        let mut bytes = [0u8; ENTRY as usize];
        bytes[..4].copy_from_slice(&self.generation.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.info.pid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.info.start_time.to_le_bytes());
        let name = self.info.name.as_bytes();
        let n = name.len().min(40);
        bytes[16..16 + n].copy_from_slice(&name[..n]);
        let sum = crc32c::crc32c(&bytes[..56]);
        bytes[56..60].copy_from_slice(&sum.to_le_bytes());
        platform::write_at(fd, &bytes, ENTRIES_AT + u64::from(index) * ENTRY)
    }
}

impl Participant {
    fn register(place: &Place) -> Result<Self> {
        // Whoever leaves last removes the file, under the namespace lock: under the same lock we see
        // whether the file that we opened still is the one. If not, we open again.
        for _ in 0..100 {
            let opened = open_or_create(place)?;
            let failed = |e| ShmError::from_io(&place.namespace, "register in", e);
            let Some(fd) = opened.get() else { continue };
            let lock = ByteLock::take(fd, place, LOCK_PATIENCE)?;
            if !platform::names(&place.participants_path(), fd) {
                continue;
            }
            let Some(index) = take_entry(fd).map_err(failed)? else {
                return Err(ShmError::ResourceExhausted {
                    name: Some(place.namespace.clone()),
                    resource: Resource::Participants,
                    needed: 1,
                    available: Some(0),
                });
            };
            let before = Entry::read(fd, index).map_err(failed)?.generation;
            // A random first generation: keys of an earlier file of the same name do not come back
            // to life.
            let generation = match before {
                0 => random_generation()?,
                n => n.wrapping_add(1).max(1),
            };
            let pid = std::process::id();
            let entry = Entry {
                intact: true,
                generation,
                info: ProcessInfo {
                    pid,
                    start_time: platform::process_start_time(pid),
                    name: platform::process_name(pid),
                },
            };
            entry.write(fd, index).map_err(failed)?;
            drop(lock);
            return Ok(Self {
                place: place.clone(),
                fd: opened,
                index,
                generation,
                threads: Mutex::new(()),
                swept: AtomicU64::new(0),
            });
        }
        Err(ShmError::Timeout {
            name: place.namespace.clone(),
            after: Duration::ZERO,
        })
    }

    /// Whether this process should sweep the namespace now: `Some(true)` for the first time,
    /// `Some(false)` when the last was more than `interval` ago. Notes that it does.
    pub(crate) fn sweep_due(&self, interval: Duration) -> Option<bool> {
        let now = platform::monotonic_ns().max(1);
        let last = self.swept.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) > interval.as_nanos() as u64;
        let ours = due
            && self
                .swept
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        ours.then_some(last == 0)
    }

    /// Every entry whose process lives, as (key, what the table says), but this process's own.
    pub(crate) fn others(&self) -> Vec<(u64, ProcessInfo)> {
        let Some(fd) = self.fd.get() else {
            return Vec::new();
        };
        // The file is as long as the highest entry ever used.
        let mut table = Vec::new();
        let mut piece = vec![0u8; 64 * ENTRY as usize];
        while table.len() < CAPACITY as usize * ENTRY as usize {
            match platform::read_at(fd, &mut piece, ENTRIES_AT + table.len() as u64) {
                Ok(n) if n > 0 => table.extend_from_slice(&piece[..n]),
                _ => break,
            }
        }
        (0..(table.len() / ENTRY as usize) as u32)
            .filter(|index| *index != self.index)
            .filter_map(|index| {
                let at = index as usize * ENTRY as usize;
                let entry = Entry::parse(table[at..].first_chunk()?);
                let key = pack_key(index, entry.generation);
                (entry.intact && self.is_alive(key)).then_some((key, entry.info))
            })
            .collect()
    }

    /// Names this process in segments.
    #[inline]
    pub(crate) fn key(&self) -> u64 {
        pack_key(self.index, self.generation)
    }

    /// Whether the process that a key names is alive. A key that never was a key is dead.
    pub(crate) fn is_alive(&self, key: u64) -> bool {
        let Some((index, generation)) = unpack_key(key) else {
            return false;
        };
        if index == self.index {
            return generation == self.generation;
        }
        let Some(fd) = self.fd.get() else {
            return true; // a forked child that has not registered anew condemns nobody
        };
        match platform::locked_by_others(fd, LOCKS_AT + u64::from(index), 1) {
            // Somebody holds the entry: is it still the same process? Where the entry cannot tell
            // (scribbled, cut, being written), it is not condemned.
            Ok(true) => self
                .entry(index)
                .is_none_or(|e| !e.intact || e.generation == generation),
            Ok(false) => false,
            Err(_) => true,
        }
    }

    /// What the table says about the process that a key names.
    pub(crate) fn describe(&self, key: u64) -> Option<ProcessInfo> {
        let (index, generation) = unpack_key(key)?;
        let entry = self.entry(index)?;
        (entry.intact && entry.generation == generation).then_some(entry.info)
    }

    fn entry(&self, index: u32) -> Option<Entry> {
        Entry::read(self.fd.get()?, index).ok()
    }

    /// Whether the participants file still has its name: others register in the file of that name.
    fn is_named(&self) -> bool {
        self.fd
            .get()
            .is_some_and(|fd| platform::names(&self.place.participants_path(), fd))
    }

    /// Takes the lock that serialises creation, takeover and removal in the namespace.
    pub(crate) fn lock_namespace(&self) -> Result<NamespaceLock<'_>> {
        let started = Instant::now();
        let threads = loop {
            match self.threads.try_lock() {
                Ok(guard) => break guard,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(ShmError::Timeout {
                        name: self.place.namespace.clone(),
                        after: started.elapsed(),
                    });
                }
            }
        };
        let patience = LOCK_PATIENCE.saturating_sub(started.elapsed());
        let fd = self.fd.get().ok_or_else(|| ShmError::Closed {
            name: self.place.namespace.clone(),
        })?;
        Ok(NamespaceLock {
            _byte: ByteLock::take(fd, &self.place, patience)?,
            _threads: threads,
        })
    }

    /// Gives the entry back, and removes the participants file when nobody is left who needs it.
    fn leave(&self) {
        let Some(fd) = self.fd.get() else { return };
        // Of two who leave at once, the second must see that the first is gone: hence the lock around
        // both steps. Whoever cannot have it leaves the file to the next.
        let lock = ByteLock::take(fd, &self.place, LEAVING_PATIENCE);
        // Closing would do, but for a child between fork and exec that has the descriptor too.
        let _ = platform::unlock_byte(fd, LOCKS_AT + u64::from(self.index));
        if lock.is_err() {
            return;
        }
        let others = platform::locked_by_others(fd, LOCKS_AT, u64::from(CAPACITY));
        let path = self.place.participants_path();
        if matches!(others, Ok(false)) && !self.has_segments() && platform::names(&path, fd) {
            let _ = std::fs::remove_file(path);
        }
    }

    fn has_segments(&self) -> bool {
        std::fs::read_dir(&self.place.dir).is_ok_and(|files| {
            files.filter_map(|f| f.ok()).any(|f| {
                let name = f.file_name();
                name.to_str()
                    .is_some_and(|n| self.place.name_of_meta(n).is_some())
            })
        })
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The namespace is ours until this is dropped: against other processes by the byte, against other
/// threads of this one by the mutex.
pub(crate) struct NamespaceLock<'a> {
    _byte: ByteLock<'a>,
    _threads: MutexGuard<'a, ()>,
}

/// The namespace's lock byte, of one open file description.
struct ByteLock<'a>(BorrowedFd<'a>);

impl<'a> ByteLock<'a> {
    fn take(fd: BorrowedFd<'a>, place: &Place, patience: Duration) -> Result<Self> {
        let started = Instant::now();
        let mut pause = Duration::from_micros(1);
        loop {
            let taken = platform::try_lock_byte(fd, NAMESPACE_LOCK)
                .map_err(|e| ShmError::from_io(&place.namespace, "lock", e))?;
            if taken {
                return Ok(Self(fd));
            }
            // Only a stopped holder keeps it longer than microseconds. Waiting in the kernel could
            // not be bounded.
            if started.elapsed() > patience {
                return Err(ShmError::Timeout {
                    name: place.namespace.clone(),
                    after: started.elapsed(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }
}

impl Drop for ByteLock<'_> {
    fn drop(&mut self) {
        let _ = platform::unlock_byte(self.0, NAMESPACE_LOCK);
    }
}

fn open_or_create(place: &Place) -> Result<fork::ForkFd> {
    let path = place.participants_path();
    let failed = |e| ShmError::from_io(&place.namespace, "open participants of", e);
    let file = loop {
        match fork::ForkFd::open(|| platform::open_existing(&path, true).map(Into::into)) {
            Ok(file) => break file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => match create(place) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(e)),
            },
            Err(e) => return Err(failed(e)),
        }
    };
    let mut head = [0u8; 16];
    if let Some(fd) = file.get() {
        platform::read_at(fd, &mut head, 0).map_err(failed)?;
    }
    let magic = u64::from_le_bytes(std::array::from_fn(|i| head[i]));
    let version = u32::from_le_bytes(std::array::from_fn(|i| head[8 + i]));
    if magic != MAGIC || version != VERSION {
        return Err(ShmError::Corrupted {
            name: path.display().to_string(),
            reason: "it is no participants file; remove it when no process of the namespace lives"
                .into(),
        });
    }
    Ok(file)
}

fn create(place: &Place) -> io::Result<()> {
    let unnamed = platform::Unnamed::create(&place.dir, 0o600)?;
    let mut head = [0u8; 16];
    head[..8].copy_from_slice(&MAGIC.to_le_bytes());
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..].copy_from_slice(&CAPACITY.to_le_bytes());
    let reserved = ENTRIES_AT as usize + RESERVED as usize * ENTRY as usize;
    platform::reserve(&unnamed.file, 0, reserved)?;
    platform::write_at(unnamed.file.as_fd(), &head, 0)?;
    unnamed.link(&place.participants_path())
}

/// Locks an entry: one of the reserved ones, or else from a place that depends on the pid, so that
/// thousands do not all try the same.
fn take_entry(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let spread = std::process::id().wrapping_mul(2_654_435_761) % CAPACITY;
    let order = (0..RESERVED).chain((0..CAPACITY).map(|i| (spread + i) % CAPACITY));
    for index in order {
        if platform::try_lock_byte(fd, LOCKS_AT + u64::from(index))? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_zero_and_garbage_is_nobody() {
        assert_eq!(unpack_key(pack_key(0, 1)), Some((0, 1)));
        assert_ne!(pack_key(0, 0), 0);
        assert_eq!(unpack_key(0), None);
        assert_eq!(unpack_key(u64::MAX), None);
    }

    #[test]
    fn registers_once_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "t").unwrap();
        let first = join(&place).unwrap();
        let again = join(&place).unwrap();
        assert_eq!(first.key(), again.key());
        assert!(first.is_alive(first.key()));
        assert!(!first.is_alive(pack_key(7, 1)));
        assert_eq!(first.describe(first.key()).unwrap().pid, std::process::id());
        drop((first, again));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn foreign_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "t").unwrap();
        std::fs::write(place.participants_path(), b"notes of somebody").unwrap();
        assert_eq!(join(&place).unwrap_err().code(), "corrupted");
        assert!(place.participants_path().exists());
    }

    #[test]
    fn namespace_lock_orders_threads() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "t").unwrap();
        let participant = join(&place).unwrap();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _lock = participant.lock_namespace().unwrap();
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
    }
}

//! Which processes are attached to a namespace, and which of them live (DESIGN 6).
//!
//! Every process registers once per namespace in `{ns}.participants`: it takes an open-file-description
//! lock on one byte and holds it for life. The kernel drops the lock when the process ends, however it
//! ends, so **the lock is the truth**: it survives pid reuse, pid namespaces, clock steps and suspended
//! processes. The entry (pid, start time, name) is for people.
//!
//! One more byte serialises creation, takeover and removal in the namespace.

pub(crate) mod linger;
mod lock;
mod table;

use self::lock::{ByteLock, LOCK_PATIENCE, LOCKS_AT};
use self::table::{ENTRIES_AT, ENTRY, Entry, open_or_create, pack_key, take_entry, unpack_key};
use crate::error::{Resource, Result, ShmError};
use crate::name::Place;
use crate::platform::{self, fork};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

pub use self::linger::linger;
pub(crate) use self::lock::NamespaceLock;
pub(crate) use self::table::CAPACITY;
pub use self::table::ProcessInfo;

/// Whoever leaves waits no longer than this for it: then the file stays for the next.
const LEAVING_PATIENCE: Duration = Duration::from_millis(250);

/// This process's registration in a namespace. Dropping the last one gives the entry back.
#[derive(Debug)]
pub(crate) struct Participant {
    place: Place,
    fd: fork::ForkFd,
    /// Which file that is; asked once, for every attach looks whether it still has its name.
    file: (u64, u64),
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

/// What the table says of this process: as of its first registration, for /proc is slow.
fn this_process() -> ProcessInfo {
    static KNOWN: fork::PerProcess<OnceLock<ProcessInfo>> = fork::PerProcess::new();
    let pid = std::process::id();
    let look = || ProcessInfo {
        pid,
        start_time: platform::process_start_time(pid),
        name: platform::process_name(pid),
    };
    let known = KNOWN.get().get_or_init(look);
    // A child that was made in a way that tells nobody has what its parent knew.
    if known.pid == pid {
        known.clone()
    } else {
        look()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            let entry = Entry {
                intact: true,
                generation,
                info: this_process(),
            };
            entry.write(fd, index).map_err(failed)?;
            drop(lock);
            let file = platform::identity(fd);
            return Ok(Self {
                place: place.clone(),
                file: file.ok_or_else(|| failed(std::io::Error::last_os_error()))?,
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
        self.fd.get().is_some() && platform::names_one(&self.place.participants_path(), self.file)
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
    fn an_intact_entry_or_a_held_lock_says_whose_file_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "t").unwrap();
        let path = place.participants_path();
        let member = join(&place).unwrap();
        let kept = std::fs::read(&path).unwrap();
        drop(member);
        // Nobody holds a lock; then nothing of it is left but its name.
        for content in [[&[0xA5; 16], &kept[16..]].concat(), Vec::new()] {
            std::fs::write(&path, content).unwrap();
            drop(join(&place).unwrap());
            assert!(!path.exists());
        }
        // Of another version: a newer program's.
        std::fs::write(&path, [&kept[..8], &[9, 0, 0, 0], &kept[12..]].concat()).unwrap();
        assert_eq!(join(&place).unwrap_err().code(), "corrupted");
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

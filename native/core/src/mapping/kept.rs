//! Mappings that outlive their readers, and writers that came after the first, for a while.
//!
//! To fault 100 MB in takes ten times as long as to copy it, and a file of a pool comes back under other
//! names again and again. So whoever attached to such a file does not unmap it when it lets go: the next of
//! its kind takes the mapping, page tables and all, and its first touch faults nothing. What
//! it takes is memory, not meaning: the segment in the file is another one, checked and registered
//! with as if it had just been mapped.

use super::{Access, Mapping};
use crate::layout::Geometry;
use crate::platform::fork::{self, PerProcess};
use crate::platform::{self, background};
use std::fs::Metadata;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A mapping that nobody took for so long is unmapped. While it is kept, it holds the pages of a file
/// that its pool may have removed.
const IDLE: Duration = Duration::from_secs(5);
/// No more than this is kept: bytes of address space, and mappings.
const MOST_BYTES: usize = 2 << 30;
const MOST: usize = 64;

/// Which file a mapping is of. The mapping keeps the file from being another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    dev: u64,
    ino: u64,
}

/// A mapping that is kept for the next who attaches to its file rather than unmapped, where that pays.
#[derive(Debug)]
pub(crate) struct Keepable {
    /// Taken out once, at the end.
    mapping: ManuallyDrop<Mapping>,
    /// `None`: not to be kept.
    file: Option<FileId>,
    epoch: u32,
}

struct Kept {
    file: FileId,
    mapping: Mapping,
    since: Instant,
}

#[derive(Default)]
struct Held {
    list: Vec<Kept>,
    /// Whether the background will look for what is old. Asked once, however often the list is emptied and
    /// filled in between: else a reader that comes and goes would leave an order each time.
    watched: bool,
}

#[derive(Default)]
struct Store {
    kept: Mutex<Held>,
}

static STORE: PerProcess<Store> = PerProcess::new();

fn kept() -> MutexGuard<'static, Held> {
    let store = STORE.get().kept.lock();
    store.unwrap_or_else(PoisonError::into_inner)
}

impl Keepable {
    /// One that is unmapped at its end.
    pub(crate) fn never(mapping: Mapping) -> Self {
        Self {
            mapping: ManuallyDrop::new(mapping),
            file: None,
            epoch: fork::epoch(),
        }
    }

    /// One of a pool's file, which is kept at its end.
    pub(crate) fn of_file(mapping: Mapping, file: &Metadata) -> Self {
        let mut kept = Self::never(mapping);
        kept.file = Some(FileId::of(file));
        kept
    }

    /// The mapping itself, for whoever has a use for it.
    pub(crate) fn into_inner(mut self) -> Mapping {
        self.file = None;
        // SAFETY: taken once: `self` is forgotten, so its destructor does not take it again.
        let mapping = unsafe { ManuallyDrop::take(&mut self.mapping) };
        std::mem::forget(self);
        mapping
    }
}

impl Deref for Keepable {
    type Target = Mapping;

    #[inline]
    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

impl Drop for Keepable {
    fn drop(&mut self) {
        // SAFETY: taken once, here: `into_inner` forgets the rest.
        let mapping = unsafe { ManuallyDrop::take(&mut self.mapping) };
        match self.file {
            Some(file) if self.epoch == fork::epoch() && !mapping.lost() => keep(file, mapping),
            _ => drop(mapping),
        }
    }
}

impl FileId {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            dev: file.dev(),
            ino: file.ino(),
        }
    }
}

fn keep(file: FileId, mapping: Mapping) {
    let now = Instant::now();
    let mut out = Vec::new();
    {
        let mut held = kept();
        if !held.watched {
            held.watched = order_expiry(IDLE);
        }
        if !held.watched {
            return; // nobody would unmap it
        }
        let kept = &mut held.list;
        kept.push(Kept {
            file,
            mapping,
            since: now,
        });
        let bytes = |kept: &Vec<Kept>| kept.iter().map(|k| k.mapping.len()).sum::<usize>();
        while kept.len() > MOST || bytes(kept) > MOST_BYTES {
            out.push(kept.remove(0));
        }
    }
    drop(out); // large ones are unmapped in the background; not under the lock
}

/// A mapping of this file that was kept, as one of the segment that is in the file now.
pub(crate) fn take(file: &Metadata, geometry: Geometry, access: Access) -> Option<Mapping> {
    let id = FileId::of(file);
    let mut held = kept();
    let kept = &mut held.list;
    let at = kept.iter().rposition(|one| {
        one.file == id && one.mapping.access == access && one.mapping.fits(&geometry)
    })?;
    let one = kept.remove(at);
    drop(held);
    (!one.mapping.lost()).then(|| one.mapping.recast(geometry))
}

fn order_expiry(delay: Duration) -> bool {
    #[cfg(test)]
    tests::ORDERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    background::run_after(delay, expire)
}

/// Unmaps what nobody took for long, and comes back while there is something left.
fn expire() {
    let now = Instant::now();
    let mut held = kept();
    let (old, young) = std::mem::take(&mut held.list)
        .into_iter()
        .partition::<Vec<_>, _>(|one| now.duration_since(one.since) >= IDLE);
    held.list = young;
    let next = held.list.first().map(|one| one.since + IDLE);
    held.watched = next.is_some_and(|next| order_expiry(next.saturating_duration_since(now)));
    drop(held);
    drop(old);
}

/// Unmaps what is kept of a file that no segment will be in again.
pub(crate) fn forget_file(file: FileId) {
    let mut kept = kept();
    let (gone, rest) = std::mem::take(&mut kept.list)
        .into_iter()
        .partition::<Vec<_>, _>(|one| one.file == file);
    kept.list = rest;
    drop(kept);
    drop(gone); // not under the lock
}

/// Unmaps all that is kept.
pub(crate) fn forget() {
    let old = std::mem::take(&mut kept().list);
    drop(old);
    platform::background::settle();
}

/// Mappings that are kept, and their bytes.
pub(crate) fn held() -> (usize, usize) {
    let held = kept();
    let bytes = held.list.iter().map(|one| one.mapping.len()).sum();
    (held.list.len(), bytes)
}

#[cfg(test)]
mod tests {
    use crate::{PoolOptions, SegmentOptions};
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub(super) static ORDERS: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn readers_that_come_and_go_leave_no_order_each() {
        let dir = tempfile::tempdir().unwrap();
        let pool = PoolOptions::new("kept", dir.path()).open().unwrap();
        let options = SegmentOptions::new("x").namespace("kept").dir(dir.path());
        let writer = pool.create(&options).unwrap();
        let before = ORDERS.load(Ordering::Relaxed);
        for _ in 0..1000 {
            options.attach_reader().unwrap().close().unwrap();
        }
        let orders = ORDERS.load(Ordering::Relaxed) - before;
        assert!(orders < 100, "{orders} orders of 1000 readers");
        writer.close().unwrap();
    }
}

//! The participants file: its head, its entries, the bytes that are locked, and the keys that name an
//! entry in segments.

use super::lock::{LOCKS_AT, NAMESPACE_LOCK};
use crate::error::{Result, ShmError};
use crate::name::Place;
use crate::platform::{self, fork};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// `SNKPARTS`, little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"SNKPARTS");
const VERSION: u32 = 1;
/// Processes that a namespace has room for.
pub(crate) const CAPACITY: u32 = 16_384;
pub(super) const ENTRIES_AT: u64 = 4096;
pub(super) const ENTRY: u64 = 64;
/// Entries in the part of the file that is reserved at creation.
const RESERVED: u32 = 64;

/// Packs an entry's index and generation; never 0.
pub(super) fn pack_key(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index + 1)
}

/// Splits a key; `None` for 0 and for garbage.
pub(super) fn unpack_key(key: u64) -> Option<(u32, u32)> {
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

pub(super) struct Entry {
    /// Whether its checksum is right: otherwise it tells nothing, and the lock alone decides.
    pub(super) intact: bool,
    pub(super) generation: u32,
    pub(super) info: ProcessInfo,
}

impl Entry {
    pub(super) fn read(fd: BorrowedFd<'_>, index: u32) -> io::Result<Self> {
        // Beyond the end of the file: an entry never used, all zeros.
        let mut bytes = [0u8; ENTRY as usize];
        platform::read_at(fd, &mut bytes, ENTRIES_AT + u64::from(index) * ENTRY)?;
        Ok(Self::parse(&bytes))
    }

    pub(super) fn parse(bytes: &[u8; ENTRY as usize]) -> Self {
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

    pub(super) fn write(&self, fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
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

pub(super) fn open_or_create(place: &Place) -> Result<fork::ForkFd> {
    let path = place.participants_path();
    let failed = |e| ShmError::from_io(&place.namespace, "open participants of", e);
    let file = loop {
        let opened = fork::ForkFd::open(|| match platform::open_existing(&path, true) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => create(place, &path).map(Into::into),
            opened => opened.map(Into::into),
        });
        match opened {
            Ok(file) => break file,
            // Another process has created it in this moment.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
    };
    if let Some(fd) = file.get() {
        let mut have = [0u8; 16];
        platform::read_at(fd, &mut have, 0).map_err(failed)?;
        if have != head() {
            mend(&path, fd, &have).map_err(failed)??;
        }
    }
    Ok(file)
}

/// What the file begins with.
fn head() -> [u8; 16] {
    let mut head = [0u8; 16];
    head[..8].copy_from_slice(&MAGIC.to_le_bytes());
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..].copy_from_slice(&CAPACITY.to_le_bytes());
    head
}

/// Puts back a head that was overwritten or cut off, when the file certainly is a table of participants:
/// somebody holds one of its locks, or one of its entries is intact. Several may do so at once, for all
/// write the same.
fn mend(path: &Path, fd: BorrowedFd<'_>, have: &[u8; 16]) -> io::Result<Result<()>> {
    let refused = |reason: &str| {
        Ok(Err(ShmError::Corrupted {
            name: path.display().to_string(),
            reason: reason.into(),
        }))
    };
    if have[..8] == MAGIC.to_le_bytes() && have[8..12] != VERSION.to_le_bytes() {
        return refused("it is a participants file of another version of this program");
    }
    let held = platform::locked_by_others(fd, NAMESPACE_LOCK, u64::from(CAPACITY) + 1)?;
    if !held && !has_intact_entry(fd)? && !is_empty(fd)? {
        return refused(
            "it is no participants file; remove it when no process of the namespace lives",
        );
    }
    tracing::warn!(file = %path.display(), "the head of a participants file was damaged, and is mended");
    platform::write_at(fd, &head(), 0).map(Ok)
}

fn has_intact_entry(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut piece = vec![0u8; 64 * ENTRY as usize];
    for first in (0..CAPACITY).step_by(64) {
        let have = platform::read_at(fd, &mut piece, ENTRIES_AT + u64::from(first) * ENTRY)?;
        let (entries, _) = piece[..have].as_chunks();
        if entries.iter().any(|bytes| Entry::parse(bytes).intact) {
            return Ok(true);
        }
        if have < piece.len() {
            break;
        }
    }
    Ok(false)
}

fn is_empty(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(platform::read_at(fd, &mut [0], 0)? == 0)
}

fn create(place: &Place, path: &Path) -> io::Result<File> {
    let unnamed = platform::Unnamed::create(&place.dir, 0o600)?;
    let reserved = ENTRIES_AT as usize + RESERVED as usize * ENTRY as usize;
    platform::reserve(&unnamed.file, 0, reserved)?;
    platform::write_at(unnamed.file.as_fd(), &head(), 0)?;
    unnamed.link(path)?;
    Ok(unnamed.file)
}

/// Locks an entry: one of the reserved ones, or else from a place that depends on the pid, so that
/// thousands do not all try the same.
pub(super) fn take_entry(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let spread = std::process::id().wrapping_mul(2_654_435_761) % CAPACITY;
    let order = (0..RESERVED).chain((0..CAPACITY).map(|i| (spread + i) % CAPACITY));
    for index in order {
        if platform::try_lock_byte(fd, LOCKS_AT + u64::from(index))? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

//! Looking at a segment without attaching to it: by `pread`, so that a file cut or scribbled on by
//! others harms nobody who looks.

use crate::error::{Result, ShmError};
use crate::layout::{
    Geometry, READER_ENTRY, READER_TABLE, SLOT_HEADER, SegmentState, control, flags, header,
    publish_word, reader_entry, slot,
};
use crate::meta::Meta;
use crate::name::Place;
use crate::options::SegmentOptions;
use crate::participant::{self, Participant, ProcessInfo};
use crate::platform;
use crate::reclaim;
use crate::segment::{corrupted, decode_geometry};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Whether it waits for another writer: its own has died, or has given it up.
    pub orphaned: bool,
}

/// Everything that can be seen of a segment from outside.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{SegmentOptions, SegmentState};
///
/// let options = SegmentOptions::new("seen").dir(dir.path());
/// let mut writer = options.create().unwrap();
/// writer.write(b"12345").unwrap();
/// let report = options.inspect().unwrap();
/// assert_eq!((report.version, report.len, report.slots.len()), (2, 5, 4));
/// assert_eq!(report.state, SegmentState::Active);
/// assert_eq!(report.writer.unwrap().pid, std::process::id());
/// writer.close().unwrap();
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct SegmentReport {
    /// The segment's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its module, `_` written `-`.
    pub module: String,
    /// Its file, in the namespace's directory.
    pub file: String,
    /// Version of the format.
    pub format_version: u16,
    /// Length of the file, in bytes.
    pub file_len: u64,
    /// Longest value, in bytes.
    pub capacity: usize,
    /// Distance between slots, in bytes.
    pub stride: usize,
    /// Room in the reader table.
    pub max_readers: usize,
    /// Schema id given at creation.
    pub schema_id: u64,
    /// When it was created.
    pub created_at: SystemTime,
    /// Whether writers wake readers.
    pub notify: bool,
    /// Whether values carry a CRC32C.
    pub crc32c: bool,
    /// Whether values carry a time.
    pub timestamps: bool,
    /// Whether huge pages were asked for at creation; [`SegmentOptions::inspect_pages`] tells how many there are.
    pub huge_pages_asked: bool,
    /// State.
    pub state: SegmentState,
    /// One more with every writer.
    pub generation: u32,
    /// The process that holds the writer claim, when there is one and it is known.
    pub writer: Option<ProcessInfo>,
    /// Whether that process lives; `None` when it cannot be known.
    pub writer_alive: Option<bool>,
    /// Whether it is this process; the pid does not tell, for another pid namespace may have it, too.
    pub writer_is_own: bool,
    /// Whether it waits for another writer: its own has died, or has given it up.
    pub orphaned: bool,
    /// Version of the current value, 0 = none.
    pub version: u64,
    /// Slot of the current value.
    pub current_slot: usize,
    /// Length of the current value, in bytes; 0 when there is none or it is being overwritten.
    pub len: usize,
    /// Age of the current value; `None` without one or without timestamps.
    pub age: Option<Duration>,
    /// Writers that followed a dead one.
    pub takeovers: u64,
    /// Half-written values that a takeover discarded.
    pub discarded: u64,
    /// Readers that sleep.
    pub waiters: u32,
    /// Attached readers.
    pub readers: Vec<ReaderReport>,
    /// Slots.
    pub slots: Vec<SlotReport>,
}

/// An attached reader.
#[derive(Debug, Clone, Serialize)]
pub struct ReaderReport {
    /// Entry in the reader table.
    pub entry: usize,
    /// Its process, when it is known.
    pub process: Option<ProcessInfo>,
    /// Whether that process lives; `None` when it cannot be known.
    pub alive: Option<bool>,
    /// Whether it is this process; the pid does not tell, for another pid namespace may have it, too.
    pub own: bool,
    /// Slot that it has pinned.
    pub pinned: Option<u32>,
    /// Calls of it that sleep.
    pub waiting: u32,
}

/// A slot.
#[derive(Debug, Clone, Serialize)]
pub struct SlotReport {
    /// Version that it holds; odd while it is being written.
    pub seq: u64,
    /// Length of its value, in bytes, as it says.
    pub len: u64,
}

/// Bytes of the header page that tell about a segment.
const HEAD: usize = 256;
/// Where the control pages begin when a page is 4 KiB long.
const CONTROL: usize = 4096;
/// Bytes of the control pages that hold the words before the reader table, and its first entries.
const NEAR: usize = READER_TABLE + 4 * READER_ENTRY;

/// A segment's file, opened to be looked at.
struct Look {
    meta: Meta,
    geometry: Geometry,
    file: File,
    file_len: u64,
    head: [u8; HEAD],
    /// The beginning of the control pages, where that came with the head.
    near: Option<[u8; NEAR]>,
    participant: Option<Arc<Participant>>,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Whose a table entry is, when it is anybody's.
fn reader_key(entry: &[u8]) -> Option<u64> {
    Some(u64_at(entry, reader_entry::KEY)).filter(|key| *key != 0 && *key != reader_entry::CLEARING)
}

/// What a list says of a segment, without a mapping of it. `pids` are process ids by participant key;
/// `participant` is this process, where it may be one.
pub(crate) fn glance(
    place: &Place,
    dir: BorrowedFd<'_>,
    name: &str,
    pids: &mut HashMap<u64, u32>,
    living: &mut HashMap<u64, bool>,
    participant: Option<&Arc<Participant>>,
) -> Result<SegmentInfo> {
    let load = || Meta::load_in(place, name, dir);
    let meta = load()?;
    let file = PathBuf::from(meta.file.as_str());
    let look = match Look::open(meta, dir, &file, || participant.cloned()) {
        // The metadata goes first: without its file it is damaged, unless both went just now.
        Err(ShmError::NotFound { .. }) => {
            load()?;
            return Err(corrupted(name, "its file is missing"));
        }
        look => look?,
    };
    if look.geometry.created_ns != look.meta.created_ns {
        return Err(corrupted(
            name,
            "metadata and segment do not belong together",
        ));
    }
    look.info(pids, living)
}

impl Look {
    /// `participant` is asked for when there is something to look at.
    fn open(
        meta: Meta,
        dir: BorrowedFd<'_>,
        path: &Path,
        participant: impl FnOnce() -> Option<Arc<Participant>>,
    ) -> Result<Self> {
        let name = meta.name.as_str();
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => ShmError::NotFound { name: name.into() },
            _ => ShmError::from_io(name, "inspect", e),
        };
        let (file, found) = platform::open_known(dir, path, false).map_err(failed)?;
        // With pages of 4 KiB the control page's beginning comes along, for less than a call of its own.
        let mut start = [0u8; CONTROL + NEAR];
        let have = platform::read_once_at(file.as_fd(), &mut start, 0).map_err(failed)?;
        let geometry = decode_geometry(name, &start[..have.min(HEAD)], found.len())?;
        let near = (geometry.control == CONTROL)
            .then(|| start[CONTROL..have.max(CONTROL)].first_chunk().copied());
        Ok(Self {
            geometry,
            file,
            file_len: found.len(),
            head: std::array::from_fn(|i| start[i]),
            near: near.flatten(),
            participant: participant(),
            meta,
        })
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0u8; N];
        // A file cut meanwhile reads as zeros, which are valid everywhere.
        let _ = platform::read_at(self.file.as_fd(), &mut bytes, at as u64);
        bytes
    }

    fn state(&self) -> Result<SegmentState> {
        SegmentState::from_word(u32_at(&self.head, header::STATE))
            .ok_or_else(|| corrupted(&self.meta.name, "its state is none"))
    }

    fn generation(&self) -> u32 {
        u32_at(&self.head, header::GENERATION)
    }

    fn writer(&self) -> Option<ProcessInfo> {
        let key = u64_at(&self.head, header::WRITER);
        self.participant.as_ref()?.describe(key)
    }

    /// `living` is asked once for each process, not for each segment.
    fn orphaned(&self, writer: u64, living: &mut HashMap<u64, bool>) -> Result<bool> {
        let since = u64_at(&self.head, header::ORPHANED);
        // Whoever cannot look into the table condemns nobody.
        let look = |key| self.participant.as_ref().is_none_or(|p| p.is_alive(key));
        let is_alive = |key| *living.entry(key).or_insert_with(|| look(key));
        let lender = u64_at(&self.head, header::LENDER);
        let state = self.state()?;
        Ok(reclaim::is_orphan(state, writer, lender, since, is_alive))
    }

    fn published(&self) -> Result<(u64, usize)> {
        let (version, slot) = publish_word::unpack(u64_at(&self.head, header::PUBLISH));
        if slot < self.geometry.slots && version % 2 == 0 {
            return Ok((version, slot));
        }
        Err(corrupted(&self.meta.name, "its publish word names no slot"))
    }

    fn slot(&self, slot: usize) -> [u8; SLOT_HEADER] {
        self.read(self.geometry.first_slot + slot * self.geometry.stride)
    }

    /// Length and timestamp of the current value, unless it is being overwritten.
    fn current(&self) -> Result<Option<(usize, u64)>> {
        let (version, at) = self.published()?;
        if version == 0 {
            return Ok(None);
        }
        let bytes = self.slot(at);
        let len = u64_at(&bytes, slot::LEN);
        let whole = u64_at(&bytes, slot::SEQ) == version;
        if whole && len > self.geometry.capacity as u64 {
            return Err(corrupted(&self.meta.name, "length of its value"));
        }
        Ok(whole.then(|| (len as usize, u64_at(&bytes, slot::TIMESTAMP))))
    }

    /// The beginning of the control pages.
    fn near(&self) -> [u8; NEAR] {
        self.near
            .unwrap_or_else(|| self.read(self.geometry.control))
    }

    /// The part of the reader table that has ever been used.
    fn reader_table(&self) -> Vec<u8> {
        let near = self.near();
        let high = (u32_at(&near, control::HIGH) as usize).min(self.geometry.max_readers);
        let len = high * READER_ENTRY;
        if let Some(table) = near.get(READER_TABLE..READER_TABLE + len) {
            return table.to_vec();
        }
        let mut table = vec![0u8; len];
        let at = self.geometry.control + READER_TABLE;
        let _ = platform::read_at(self.file.as_fd(), &mut table, at as u64);
        table
    }

    fn readers(&self) -> Vec<ReaderReport> {
        let participant = self.participant.as_ref();
        self.reader_table()
            .chunks_exact(READER_ENTRY)
            .enumerate()
            .filter_map(|(entry, bytes)| {
                let key = reader_key(bytes)?;
                Some(ReaderReport {
                    entry,
                    process: participant.and_then(|p| p.describe(key)),
                    alive: participant.map(|p| p.is_alive(key)),
                    own: participant.is_some_and(|p| p.key() == key),
                    pinned: u32_at(bytes, reader_entry::PIN).checked_sub(1),
                    waiting: u32_at(bytes, reader_entry::WAITING),
                })
            })
            .collect()
    }

    /// What a list says, by the same rules as of a segment that is kept mapped.
    fn info(
        &self,
        pids: &mut HashMap<u64, u32>,
        living: &mut HashMap<u64, bool>,
    ) -> Result<SegmentInfo> {
        let (version, _slot) = self.published()?;
        let current = self.current()?;
        let created_at = self.created_at();
        let written = current.filter(|(_, at)| *at != 0).and_then(|(_, at)| {
            let age = Duration::from_nanos(platform::monotonic_ns().saturating_sub(at));
            SystemTime::now().checked_sub(age)
        });
        let key = u64_at(&self.head, header::WRITER);
        Ok(SegmentInfo {
            name: self.meta.name.clone(),
            size: self.geometry.capacity,
            writer_pid: *pids
                .entry(key)
                .or_insert_with(|| self.writer().map_or(0, |process| process.pid)),
            created_at,
            last_accessed: written.unwrap_or(created_at),
            reader_count: self
                .reader_table()
                .chunks_exact(READER_ENTRY)
                .filter_map(reader_key)
                .count() as u32,
            namespace: self.meta.namespace.clone(),
            module: self.meta.module.clone(),
            file: self.meta.file.clone(),
            slots: self.geometry.slots,
            version,
            generation: self.generation(),
            state: self.state()?,
            len: current.map_or(0, |(len, _)| len),
            orphaned: self.orphaned(key, living)?,
        })
    }

    fn created_at(&self) -> SystemTime {
        since_1970(self.geometry.created_ns)
    }

    fn report(&self) -> Result<SegmentReport> {
        let geometry = &self.geometry;
        let (version, current_slot) = self.published()?;
        let current = self.current()?;
        let writer_key = u64_at(&self.head, header::WRITER);
        let control = self.near();
        Ok(SegmentReport {
            name: self.meta.name.clone(),
            namespace: self.meta.namespace.clone(),
            module: self.meta.module.clone(),
            file: self.meta.file.clone(),
            format_version: crate::layout::FORMAT_VERSION,
            file_len: self.file_len,
            capacity: geometry.capacity,
            stride: geometry.stride,
            max_readers: geometry.max_readers,
            schema_id: geometry.schema_id,
            created_at: self.created_at(),
            notify: geometry.has(flags::NOTIFY),
            crc32c: geometry.has(flags::CRC32C),
            timestamps: geometry.has(flags::TIMESTAMP_COARSE | flags::TIMESTAMP_PRECISE),
            huge_pages_asked: geometry.has(flags::HUGE),
            state: self.state()?,
            generation: self.generation(),
            writer: self.writer(),
            writer_alive: self
                .participant
                .as_ref()
                .filter(|_| writer_key != 0)
                .map(|p| p.is_alive(writer_key)),
            writer_is_own: self
                .participant
                .as_ref()
                .is_some_and(|p| p.key() == writer_key),
            orphaned: self.orphaned(writer_key, &mut HashMap::new())?,
            version,
            current_slot,
            len: current.map_or(0, |(len, _)| len),
            age: current.and_then(|(_, at)| {
                (at != 0).then(|| Duration::from_nanos(platform::monotonic_ns().saturating_sub(at)))
            }),
            takeovers: u64_at(&self.head, header::TAKEOVERS),
            discarded: u64_at(&self.head, header::DISCARDED),
            waiters: u32_at(&control, control::WAITERS),
            readers: self.readers(),
            slots: (0..geometry.slots)
                .map(|slot_index| {
                    let bytes = self.slot(slot_index);
                    SlotReport {
                        seq: u64_at(&bytes, slot::SEQ),
                        len: u64_at(&bytes, slot::LEN),
                    }
                })
                .collect(),
        })
    }
}

impl SegmentOptions {
    /// Reads a segment's header, slots and reader table without attaching.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`], [`ShmError::Corrupted`], [`ShmError::Truncated`],
    /// [`ShmError::PermissionDenied`].
    pub fn inspect(&self) -> Result<SegmentReport> {
        let place = self.place()?;
        let meta = Meta::load(&place, &self.name)?;
        let path = meta.path(&place);
        let participant = || participant::join(&place).ok();
        Look::open(meta, platform::NO_DIRECTORY, &path, participant)?.report()
    }
}

pub(crate) fn since_1970(ns: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_nanos(ns))
        .unwrap_or(UNIX_EPOCH)
}

//! How a segment is created and found.

mod memory;

pub use memory::{HugePages, Numa};

use crate::error::{Result, ShmError};
use crate::layout::{
    DEFAULT_MAX_READERS, MAX_CAPACITY, MAX_READERS, MAX_SLOTS, MIN_CAPACITY, flags,
    nearest_capacity,
};
use crate::name::{DEFAULT_DIR, DEFAULT_MODULE, DEFAULT_NAMESPACE, Place};
use crate::platform;
use std::path::{Path, PathBuf};

/// How deaths of other processes are noticed (FR-008).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunMode {
    /// At once, by `pidfd` and `epoll`.
    #[default]
    RealTime,
    /// By a periodic sweep: for environments without `pidfd`.
    Simulation,
}

/// When the pages of a segment are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reserve {
    /// At creation: a full file system is an error then, and touching a page never fails later.
    #[default]
    Eager,
    /// When they are touched: for sparse giants, on file systems that do not fill up.
    Lazy,
}

/// Whether values carry a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Integrity {
    /// No.
    #[default]
    None,
    /// A CRC32C that every read checks; costs a pass over the value on both sides.
    Crc32c,
}

/// Whether values carry the time of their publication, for [`age`](crate::SegmentReader::age).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timestamps {
    /// No.
    Off,
    /// Of the last timer tick: 1 to 10 ms old, a few loads.
    #[default]
    Coarse,
    /// Exact: one clock read a write.
    Precise,
}

/// Builder for creating a segment or attaching to one.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{Integrity, SegmentOptions};
///
/// let options = SegmentOptions::new("sensor")
///     .dir(dir.path())
///     .namespace("docs")
///     .size(64 * 1024)
///     .slots(4)
///     .integrity(Integrity::Crc32c);
/// let mut writer = options.create().unwrap();
/// writer.write(b"21.5 C").unwrap();
///
/// let mut reader = options.attach_reader().unwrap();
/// assert_eq!(reader.read().unwrap(), b"21.5 C");
/// reader.close().unwrap();
/// writer.close().unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct SegmentOptions {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) module: String,
    pub(crate) dir: PathBuf,
    pub(crate) size: usize,
    pub(crate) slots: Option<usize>,
    pub(crate) max_readers: usize,
    pub(crate) mode: RunMode,
    pub(crate) reserve: Reserve,
    pub(crate) lock_memory: bool,
    pub(crate) huge_pages: HugePages,
    pub(crate) prefault: bool,
    pub(crate) numa: Option<Numa>,
    pub(crate) dont_fork: bool,
    pub(crate) integrity: Integrity,
    pub(crate) notify: bool,
    pub(crate) timestamps: Timestamps,
    pub(crate) schema_id: Option<u64>,
    pub(crate) permissions: u32,
    pub(crate) tenant: String,
}

impl SegmentOptions {
    /// Defaults: namespace `snakepit`, module `default`, directory `/dev/shm`, 4 KiB, slots by size
    /// (4 up to 1 MiB, 2 above), 1,024 readers, pages reserved, notification on, coarse timestamps,
    /// mode 0600.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: DEFAULT_NAMESPACE.into(),
            module: DEFAULT_MODULE.into(),
            dir: DEFAULT_DIR.into(),
            size: MIN_CAPACITY,
            slots: None,
            max_readers: DEFAULT_MAX_READERS,
            mode: RunMode::default(),
            reserve: Reserve::default(),
            lock_memory: false,
            huge_pages: HugePages::default(),
            prefault: false,
            numa: None,
            dont_fork: false,
            integrity: Integrity::default(),
            notify: true,
            timestamps: Timestamps::default(),
            schema_id: None,
            permissions: 0o600,
            tenant: String::new(),
        }
    }

    /// Capacity of a slot in bytes: the longest value. 4 KiB to 1 GiB, a multiple of the page size
    /// (FR-009); see [`round_up_capacity`].
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// Namespace: which participants table and which names; `snakepit` unless given, `evo` for the
    /// controller. No underscore.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Module that the segment belongs to; part of the file name, for people and for filters.
    pub fn module(mut self, module: impl Into<String>) -> Self {
        self.module = module.into();
        self
    }

    /// Directory of the files; should be on a memory file system.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// Number of slots, 1 to 64. With two or more a complete value always exists; with one, readers
    /// get nothing while the writer writes.
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = Some(slots);
        self
    }

    /// Room in the reader table, 1 to 16,384.
    pub fn max_readers(mut self, readers: usize) -> Self {
        self.max_readers = readers;
        self
    }

    /// How deaths are noticed by a reaper of these options
    /// ([`ReaperOptions::of`](crate::ReaperOptions::of)). Segments of both modes are the same.
    pub fn mode(mut self, mode: RunMode) -> Self {
        self.mode = mode;
        self
    }

    /// When pages are reserved.
    pub fn reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// Whether values carry a checksum.
    pub fn integrity(mut self, integrity: Integrity) -> Self {
        self.integrity = integrity;
        self
    }

    /// Whether writes wake waiting readers; without it a write spares a fence, and
    /// [`wait_changed`](crate::SegmentReader::wait_changed) is `Unsupported`.
    pub fn notify(mut self, notify: bool) -> Self {
        self.notify = notify;
        self
    }

    /// Whether values carry a time.
    pub fn timestamps(mut self, timestamps: Timestamps) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// Identifies the layout of the value. Set at creation (0 unless given); when given at attach, a
    /// segment with another id is refused with `SchemaMismatch`.
    pub fn schema_id(mut self, id: u64) -> Self {
        self.schema_id = Some(id);
        self
    }

    /// Permission bits of the files, 0600 unless given.
    pub fn permissions(mut self, mode: u32) -> Self {
        self.permissions = mode;
        self
    }

    /// For whom the segment is: a [`Pool`](crate::Pool) zeroes memory that had another tenant. The same
    /// nobody unless given.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }

    /// The segment's name.
    pub fn get_name(&self) -> &str {
        &self.name
    }

    /// The namespace.
    pub fn get_namespace(&self) -> &str {
        &self.namespace
    }

    /// The directory.
    pub fn get_dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn place(&self) -> Result<Place> {
        Place::new(&self.dir, &self.namespace)
    }

    /// Checks what creation depends on; returns the number of slots.
    pub(crate) fn check_create(&self) -> Result<usize> {
        check_size(self.size)?;
        let slots = self
            .slots
            .unwrap_or(if self.size <= 1 << 20 { 4 } else { 2 });
        let in_range = |option, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(ShmError::InvalidOption {
                option,
                reason: format!("expected 1..={most}, got {value}"),
            })
        };
        in_range("slots", slots, MAX_SLOTS)?;
        in_range("max_readers", self.max_readers, MAX_READERS)?;
        if self.permissions & !0o777 != 0 || self.permissions & 0o600 != 0o600 {
            return Err(ShmError::InvalidOption {
                option: "permissions",
                reason: format!(
                    "expected permission bits that let the owner read and write, got {:#o}",
                    self.permissions
                ),
            });
        }
        self.check_memory()?;
        Ok(slots)
    }

    pub(crate) fn flags(&self) -> u32 {
        let mut set = 0;
        if self.notify {
            set |= flags::NOTIFY;
        }
        if self.integrity == Integrity::Crc32c {
            set |= flags::CRC32C;
        }
        if self.reserve == Reserve::Lazy {
            set |= flags::LAZY;
        }
        if self.huge_pages != HugePages::No {
            set |= flags::HUGE;
        }
        set | match self.timestamps {
            Timestamps::Off => 0,
            Timestamps::Coarse => flags::TIMESTAMP_COARSE,
            Timestamps::Precise => flags::TIMESTAMP_PRECISE,
        }
    }
}

fn check_size(size: usize) -> Result<()> {
    let page = platform::page_size();
    let nearest = nearest_capacity(size, page);
    if size == nearest {
        return Ok(());
    }
    Err(ShmError::InvalidSize {
        size,
        nearest,
        multiple: page.max(MIN_CAPACITY),
    })
}

/// The smallest valid capacity that holds `len` bytes.
///
/// ```
/// assert_eq!(snakepit_shm::round_up_capacity(1).unwrap(), 4096);
/// assert_eq!(snakepit_shm::round_up_capacity(4097).unwrap(), 8192);
/// assert!(snakepit_shm::round_up_capacity(0).is_err());
/// assert!(snakepit_shm::round_up_capacity((1 << 30) + 1).is_err());
/// ```
///
/// # Errors
///
/// [`ShmError::InvalidSize`] for 0 and for more than 1 GiB.
pub fn round_up_capacity(len: usize) -> Result<usize> {
    let unit = platform::page_size().max(MIN_CAPACITY);
    if (1..=MAX_CAPACITY).contains(&len) {
        return Ok(len.next_multiple_of(unit));
    }
    Err(ShmError::InvalidSize {
        size: len,
        nearest: nearest_capacity(len, unit),
        multiple: unit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_name_the_nearest() {
        for (size, near) in [
            (0, 4096),
            (4095, 4096),
            (5000, 4096),
            (usize::MAX, MAX_CAPACITY),
        ] {
            match SegmentOptions::new("x").size(size).check_create() {
                Err(ShmError::InvalidSize { nearest, .. }) => assert_eq!(nearest, near),
                other => panic!("{size}: {other:?}"),
            }
        }
    }

    #[test]
    fn default_slots_follow_the_size() {
        let slots = |size| SegmentOptions::new("x").size(size).check_create().unwrap();
        assert_eq!(slots(4096), 4);
        assert_eq!(slots(1 << 20), 4);
        assert_eq!(slots((1 << 20) + 4096), 2);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let base = || SegmentOptions::new("x");
        for (options, named) in [
            (base().slots(0), "slots"),
            (base().slots(65), "slots"),
            (base().max_readers(0), "max_readers"),
            (base().max_readers(16_385), "max_readers"),
            (base().permissions(0o4600), "permissions"),
            (base().permissions(0o400), "permissions"),
        ] {
            match options.check_create() {
                Err(ShmError::InvalidOption { option, .. }) => assert_eq!(option, named),
                other => panic!("{named}: {other:?}"),
            }
        }
    }
}

//! Where the benches put their segments, and how those are set up.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snakepit_shm::{MIN_CAPACITY, Result, SegmentOptions, Timestamps, round_up_capacity};

/// Their namespace.
pub const NAMESPACE: &str = "bench";
const MEMORY_FILE_SYSTEM: &str = "/dev/shm";

/// A directory for the segments of one bench, removed with everything in it
/// when dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A fresh directory in `$SNAKEPIT_BENCH_DIR`, by default in `/dev/shm`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new() -> crate::Result<Self> {
        let parent = std::env::var_os("SNAKEPIT_BENCH_DIR")
            .map_or_else(|| MEMORY_FILE_SYSTEM.into(), PathBuf::from);
        let made = tempfile::Builder::new()
            .prefix("snakepit-bench-")
            .tempdir_in(&parent);
        made.map(Self)
            .map_err(|e| format!("no directory in {}: {e}", parent.display()).into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Which options a segment is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tuning {
    /// What a caller gets who sets nothing.
    Defaults,
    /// Timestamps and notification off: the bare protocol.
    Bare,
}

impl Tuning {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bare, Self::Defaults];

    /// The word that stands for it in a figure's id.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Bare => "bare",
        }
    }
}

/// One segment of a bench: enough for another process to open the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Directory of the namespace.
    pub dir: PathBuf,
    /// Name of the segment.
    pub name: String,
    /// Bytes of a value; the capacity is the next valid one.
    pub size: usize,
    /// Slots; the default for the size when `None`.
    pub slots: Option<usize>,
    /// Options.
    pub tuning: Tuning,
}

impl Spec {
    /// A segment for values of `size` bytes with the default slots.
    #[must_use]
    pub fn new(dir: &Path, name: impl Into<String>, size: usize, tuning: Tuning) -> Self {
        Self {
            dir: dir.into(),
            name: name.into(),
            size,
            slots: None,
            tuning,
        }
    }

    /// The same with a given number of slots.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        Self {
            slots: Some(slots),
            ..self
        }
    }

    /// The core's options for it.
    ///
    /// # Errors
    /// When no valid capacity holds `size` bytes.
    pub fn options(&self) -> Result<SegmentOptions> {
        let capacity = round_up_capacity(self.size.max(MIN_CAPACITY))?;
        let mut options = SegmentOptions::new(&self.name)
            .namespace(NAMESPACE)
            .dir(&self.dir)
            .size(capacity);
        if let Some(slots) = self.slots {
            options = options.slots(slots);
        }
        Ok(match self.tuning {
            Tuning::Defaults => options,
            Tuning::Bare => options.timestamps(Timestamps::Off).notify(false),
        })
    }
}

/// The sizes that the core is measured at, in bytes.
pub const SIZES: [usize; 5] = [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

/// `size` as a person writes it.
#[must_use]
pub fn human(size: usize) -> String {
    match size {
        n if n >= 1 << 30 && n.is_multiple_of(1 << 30) => format!("{} GiB", n >> 30),
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n >= 1_000_000 && n.is_multiple_of(1_000_000) => format!("{} MB", n / 1_000_000),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let words: Vec<_> = SIZES
            .into_iter()
            .chain([1 << 30, 100_000_000])
            .map(human)
            .collect();
        assert_eq!(
            words,
            [
                "64 B", "4 KiB", "64 KiB", "1 MiB", "16 MiB", "1 GiB", "100 MB"
            ]
        );
    }
}

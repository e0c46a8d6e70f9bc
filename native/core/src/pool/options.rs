//! Limits and strategy of a pool, and what it tells of itself.

use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Which of the files that a segment fits in is taken. Files are not divided: what is too much stays with the
/// segment, at most as much again as it needs, until [`Pool::defragment`](crate::Pool::defragment).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The one that became idle last: its pages are the likeliest to be in a cache.
    #[default]
    FirstFit,
    /// The shortest: wastes least.
    BestFit,
    /// The longest: leaves the short ones to the small.
    WorstFit,
}

/// When kept memory is zeroed before a segment gets it. Readers never see what is beyond a value; this is for
/// whoever looks into the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Zero {
    /// It is not.
    Never,
    /// When the segment's [`tenant`](crate::SegmentOptions::tenant) is another than the last one's, or that is
    /// unknown, for another process or pool made the segment.
    #[default]
    BetweenTenants,
    /// Each time.
    Always,
}

/// Builder of a [`Pool`](crate::Pool).
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{PoolOptions, Strategy};
/// use std::time::Duration;
///
/// let pool = PoolOptions::new("docs", dir.path())
///     .max_idle_bytes(64 << 20)
///     .idle_timeout(Duration::from_secs(10))
///     .strategy(Strategy::BestFit)
///     .open()
///     .unwrap();
/// assert_eq!(pool.stats().idle_bytes, 0);
/// ```
#[derive(Debug, Clone)]
pub struct PoolOptions {
    pub(super) namespace: String,
    pub(super) dir: PathBuf,
    pub(super) enabled: bool,
    pub(super) max_idle_bytes: usize,
    pub(super) max_idle: usize,
    pub(super) idle_timeout: Duration,
    pub(super) strategy: Strategy,
    pub(super) zero: Zero,
}

impl PoolOptions {
    /// Up to 512 MiB and 256 files are kept, for 30 s each; first fit; zeroed between tenants.
    pub fn new(namespace: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            namespace: namespace.into(),
            dir: dir.into(),
            enabled: true,
            max_idle_bytes: 512 << 20,
            max_idle: 256,
            idle_timeout: Duration::from_secs(30),
            strategy: Strategy::default(),
            zero: Zero::default(),
        }
    }

    /// Whether anything is kept at all.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Bytes of files that are kept at most; beyond it the longest idle are removed.
    pub fn max_idle_bytes(mut self, bytes: usize) -> Self {
        self.max_idle_bytes = bytes;
        self
    }

    /// Files that are kept at most.
    pub fn max_idle(mut self, files: usize) -> Self {
        self.max_idle = files;
        self
    }

    /// How long a file is kept that nobody takes.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Which file is taken.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// When memory is zeroed.
    pub fn zero(mut self, zero: Zero) -> Self {
        self.zero = zero;
        self
    }
}

/// What a [`Pool`](crate::Pool) keeps and did.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PoolStats {
    /// Files that are kept, those that readers still use included.
    pub idle: usize,
    /// Their bytes.
    pub idle_bytes: usize,
    /// Of the kept, files that readers of their last segment still use.
    pub draining: usize,
    /// Files that were given away with their values and are expected back.
    pub away: usize,
    /// Segments that live in files of the pool.
    pub live: usize,
    /// Bytes of those files.
    pub live_bytes: usize,
    /// Of these, bytes that the segments need.
    pub needed_bytes: usize,
    /// Segments that were created in kept memory.
    pub reused: u64,
    /// Segments that were created in new memory.
    pub fresh: u64,
    /// Kept files that were removed: too many, too old, or in the way.
    pub removed: u64,
}

impl PoolStats {
    /// The part of the pool's memory that no segment needs: 0.0 (none) to 1.0 (all of it).
    pub fn fragmentation(&self) -> f64 {
        let held = self.idle_bytes + self.live_bytes;
        if held == 0 {
            return 0.0;
        }
        (held - self.needed_bytes) as f64 / held as f64
    }
}

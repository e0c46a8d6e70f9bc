//! The public names, and the short forms for the default namespace (plan, "API Contracts").

pub use crate::capabilities::{Capabilities, capabilities};
pub use crate::descriptor::{DataFormat, Descriptor, MAX_DIMS, Order};
pub use crate::discovery::{
    SegmentChange, SegmentDiscovery, SegmentInfo, SegmentWatch, Survey, list_segments,
};
pub use crate::handle::Handle;
pub use crate::health::{GuardState, Space, guard_state, kept_mappings, settle, space};
pub use crate::inspect::{ReaderReport, SegmentReport, SlotReport};
pub use crate::lifecycle::{CleanupItem, CleanupOptions, CleanupReport, cleanup_orphaned_segments};
pub use crate::loan::{Loan, OwnedLoan};
pub use crate::monitor::{
    LifecycleManager, Reaper, ReaperEvent, ReaperOptions, ReaperStats, ShmLifecycleManager,
    ShmUser, evo,
};
pub use crate::name::{DEFAULT_DIR, DEFAULT_MODULE, DEFAULT_NAMESPACE, EVO_NAMESPACE, MAX_NAME};
pub use crate::options::{
    HugePages, Integrity, Numa, Reserve, RunMode, SegmentOptions, Timestamps, round_up_capacity,
};
pub use crate::order::in_c_order;
pub use crate::page_report::{NodeBytes, Pages};
pub use crate::participant::{ProcessInfo, linger};
pub use crate::pool::{Pool, PoolOptions, PoolStats, Strategy, Zero};
pub use crate::reader::{
    Next, Notice, Notifier, Pinned, ReadInfo, SegmentReader, Sink, Waker, Watched,
};
pub use crate::view::SealedView;
pub use crate::writer::{Lent, MAX_TTL, Onlooker, SegmentWriter};

use crate::error::Result;
use crate::name::Place;
use crate::participant::{self, Participant};
use crate::reclaim;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Keeps this process registered in a namespace while it has no segment of it, so that creating and
/// attaching need not register it each time.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let membership = snakepit_shm::join("docs", dir.path()).unwrap();
/// assert!(dir.path().join("docs.participants").exists());
/// drop(membership); // the last to leave removes the file
/// assert!(!dir.path().join("docs.participants").exists());
/// ```
#[derive(Debug, Clone)]
pub struct Membership {
    _participant: Arc<Participant>,
}

/// Sets how long the segment of a crashed writer waits for a takeover before this process, whenever it
/// creates, attaches or detaches in the namespace, removes it in passing: 10 s unless set.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use std::time::Duration;
/// snakepit_shm::set_grace("docs", dir.path(), Duration::from_secs(60)).unwrap();
/// ```
///
/// # Errors
///
/// [`ShmError::InvalidName`](crate::ShmError::InvalidName).
pub fn set_grace(namespace: &str, dir: impl AsRef<Path>, grace: Duration) -> Result<()> {
    reclaim::set_grace(&Place::new(dir.as_ref(), namespace)?, grace);
    Ok(())
}

/// Registers this process in a namespace.
///
/// # Errors
///
/// [`ShmError::InvalidName`](crate::ShmError::InvalidName),
/// [`ShmError::PermissionDenied`](crate::ShmError::PermissionDenied),
/// [`ShmError::ResourceExhausted`](crate::ShmError::ResourceExhausted) when the table is full.
pub fn join(namespace: &str, dir: impl AsRef<Path>) -> Result<Membership> {
    let place = Place::new(dir.as_ref(), namespace)?;
    Ok(Membership {
        _participant: participant::join(&place)?,
    })
}

/// Creates a segment of `size` bytes in the default namespace.
///
/// ```
/// # let name = format!("create-docs-{}", std::process::id());
/// # let name = name.as_str();
/// let mut writer = snakepit_shm::create_segment(name, 4096).unwrap();
/// writer.write(b"value").unwrap();
/// writer.close().unwrap();
/// ```
///
/// # Errors
///
/// As [`SegmentOptions::create`].
pub fn create_segment(name: &str, size: usize) -> Result<SegmentWriter> {
    SegmentOptions::new(name).size(size).create()
}

/// Attaches to a segment of the default namespace to read it.
///
/// # Errors
///
/// As [`SegmentOptions::attach_reader`].
pub fn attach_reader(name: &str) -> Result<SegmentReader> {
    SegmentOptions::new(name).attach_reader()
}

/// Takes over a segment of the default namespace whose writer has gone.
///
/// # Errors
///
/// As [`SegmentOptions::attach_writer`].
pub fn attach_writer(name: &str) -> Result<SegmentWriter> {
    SegmentOptions::new(name).attach_writer()
}

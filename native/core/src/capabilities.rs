//! What the machine gives us in a directory, each found out by trying it.

use crate::error::{Result, ShmError};
use crate::platform::{self, Unnamed, numa, pages, populate, waitv, watch};
use serde::Serialize;
use std::os::fd::AsFd;
use std::path::Path;

/// What can be done in a directory of this machine; see [`capabilities`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Bytes of a memory page.
    pub page_size: usize,
    /// Bytes of the file system.
    pub space_total: u64,
    /// Bytes of it that are still there for this user.
    pub space_available: u64,
    /// The mount's `huge=` option: with `always` or `within_size` files have huge pages without being asked,
    /// with `advise` when asked. `None` without one, or with `never`.
    pub huge_pages: Option<String>,
    /// Bytes of a huge page; 0 where the kernel has none.
    pub huge_page_size: usize,
    /// The kernel's setting for all memory file systems (`shmem_enabled`): `deny` and `force` overrule the mount.
    pub shmem_enabled: Option<String>,
    /// Whether a segment here has huge pages when it asks for them now: by the mount, or by the kernel on request
    /// (Linux 6.1). Tried with one; `false` also when free memory has no piece that large.
    pub huge_pages_possible: bool,
    /// NUMA nodes that this process may use; empty on a kernel without NUMA, or where it does not say.
    pub numa_nodes: Vec<u32>,
    /// Whether files can be made without a name (`O_TMPFILE`); otherwise a random name stands in.
    pub unnamed_files: bool,
    /// Whether a lock belongs to an open file (`F_OFD_SETLK`): without it nobody can tell who lives.
    pub file_locks: bool,
    /// Whether a death is noticed at once (`pidfd_open`); otherwise by sweeps.
    pub process_descriptors: bool,
    /// Whether one thread can sleep for many segments (`futex_waitv`, Linux 5.16); otherwise those of notifiers
    /// look every millisecond.
    pub waits_for_many: bool,
}

/// Finds out what the machine gives us in `dir`. Leaves nothing there.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let found = snakepit_shm::capabilities(dir.path()).unwrap();
/// assert!(found.file_locks && found.page_size >= 4096);
/// assert!(found.space_available <= found.space_total);
/// assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
/// ```
///
/// # Errors
///
/// [`ShmError::PermissionDenied`] or [`ShmError::Io`] when no file can be made in `dir`.
pub fn capabilities(dir: impl AsRef<Path>) -> Result<Capabilities> {
    let dir = dir.as_ref();
    let name = dir.display().to_string();
    let (space_total, space_available) =
        platform::space(dir).map_err(|error| ShmError::from_io(&name, "statvfs of", error))?;
    let probe = Unnamed::create(dir, 0o600)
        .map_err(|error| ShmError::from_io(&name, "create a file in", error))?;

    Ok(Capabilities {
        page_size: platform::page_size(),
        space_total,
        space_available,
        huge_pages: platform::huge_option(dir),
        huge_page_size: pages::huge_page_size(),
        shmem_enabled: pages::shmem_enabled(),
        huge_pages_possible: populate::can_be_huge(&probe.file),
        numa_nodes: numa::allowed_nodes().map_or_else(|_| Vec::new(), |nodes| nodes.numbers()),
        unnamed_files: probe.is_unnamed(),
        file_locks: platform::try_lock_byte(probe.file.as_fd(), 0).is_ok_and(|held| held),
        process_descriptors: watch::process_descriptor(std::process::id()).is_ok(),
        waits_for_many: waitv::can_wait_for_many(),
    })
}

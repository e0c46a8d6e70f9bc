//! What the machine gives us in a directory, each found out by trying it.

use crate::error::{Result, ShmError};
use crate::platform::{self, Unnamed, watch};
use std::os::fd::AsFd;
use std::path::Path;

/// What can be done in a directory of this machine; see [`capabilities`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Bytes of a memory page.
    pub page_size: usize,
    /// Bytes of the file system.
    pub space_total: u64,
    /// Bytes of it that are still there for this user.
    pub space_available: u64,
    /// The mount's `huge=` option, without which there are no huge pages.
    pub huge_pages: Option<String>,
    /// Whether files can be made without a name (`O_TMPFILE`); otherwise a random name stands in.
    pub unnamed_files: bool,
    /// Whether a lock belongs to an open file (`F_OFD_SETLK`): without it nobody can tell who lives.
    pub file_locks: bool,
    /// Whether a death is noticed at once (`pidfd_open`); otherwise by sweeps.
    pub process_descriptors: bool,
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
        unnamed_files: probe.is_unnamed(),
        file_locks: platform::try_lock_byte(probe.file.as_fd(), 0).is_ok_and(|held| held),
        process_descriptors: watch::process_descriptor(std::process::id()).is_ok(),
    })
}

//! What a health check asks of the process and of the machine.

use crate::error::{Result, ShmError};
use crate::mapping::kept;
use crate::platform;
use std::path::Path;

pub use crate::platform::guard::GuardState;

/// Whether the guard against lost pages would be asked first now (see the limitations).
pub fn guard_state() -> GuardState {
    platform::guard::state()
}

/// Room on the file system of a directory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What this process may still take.
    pub available: u64,
}

/// The room that the file system of `dir` has.
///
/// ```
/// let space = snakepit_shm::space("/dev/shm").unwrap();
/// assert!(space.available <= space.total);
/// assert_eq!(snakepit_shm::space("/no/such/directory").unwrap_err().code(), "io");
/// ```
///
/// # Errors
///
/// [`ShmError::PermissionDenied`] or [`ShmError::Io`].
pub fn space(dir: impl AsRef<Path>) -> Result<Space> {
    let dir = dir.as_ref();
    let (total, available) = platform::space(dir)
        .map_err(|e| ShmError::from_io(&dir.to_string_lossy(), "look at the space of", e))?;
    Ok(Space { total, available })
}

/// Waits until what was dropped in this process before has been unmapped, and its memory given back: large
/// mappings are unmapped by a background thread. For whoever lacks memory and tries again.
///
/// What readers of a pool's segments have left mapped for the next is given up for that.
pub fn settle() {
    kept::forget();
}

/// Mappings that readers of a [`Pool`](crate::Pool)'s segments have left for the next readers, for seconds
/// at most: how many, and their bytes.
pub fn kept_mappings() -> (usize, usize) {
    kept::held()
}

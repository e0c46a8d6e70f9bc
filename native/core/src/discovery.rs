//! Which segments there are (FR-006, T037-T041).

use crate::error::{Result, ShmError};
use crate::inspect::Look;
use crate::layout::SegmentState;
use crate::name::{DEFAULT_DIR, DEFAULT_NAMESPACE, Place};
use crate::participant;
use crate::reclaim;
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;

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
    /// When its file was last read or written, as far as the file system keeps it.
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
    /// Length of the current value, in bytes.
    pub len: usize,
}

/// Finds the segments of a namespace in a directory.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{SegmentDiscovery, SegmentOptions};
///
/// let writer = SegmentOptions::new("a").dir(dir.path()).create().unwrap();
/// let found = SegmentDiscovery::new("snakepit", dir.path()).unwrap().list().unwrap();
/// assert_eq!(found.len(), 1);
/// assert_eq!((found[0].name.as_str(), found[0].writer_pid), ("a", std::process::id()));
/// writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct SegmentDiscovery {
    place: Place,
}

impl SegmentDiscovery {
    /// Of a namespace in a directory.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`].
    pub fn new(namespace: &str, dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            place: Place::new(dir.as_ref(), namespace)?,
        })
    }

    /// All segments that can be attached, by name. What is broken is left out and logged; it can be
    /// looked at by name.
    ///
    /// # Errors
    ///
    /// [`ShmError::PermissionDenied`] or [`ShmError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<SegmentInfo>> {
        let names = reclaim::names(&self.place)?;
        let participant = if names.is_empty() {
            None
        } else {
            participant::join(&self.place).ok()
        };
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            match Look::open(&self.place, &name, participant.clone()).and_then(|l| info(&l)) {
                Ok(info) => found.push(info),
                Err(ShmError::NotFound { .. }) => {} // removed since
                Err(error) => tracing::warn!(%name, %error, "left out of the list"),
            }
        }
        Ok(found)
    }
}

fn info(look: &Look) -> Result<SegmentInfo> {
    let meta = &look.meta;
    Ok(SegmentInfo {
        name: meta.name.clone(),
        size: look.geometry.capacity,
        writer_pid: look.writer().map_or(0, |process| process.pid),
        created_at: look.created_at(),
        last_accessed: look.last_accessed(),
        reader_count: look.readers().len() as u32,
        namespace: meta.namespace.clone(),
        module: meta.module.clone(),
        file: meta.file.clone(),
        slots: look.geometry.slots,
        version: look.published()?.0,
        generation: look.generation(),
        state: look.state()?,
        len: look.current()?.map_or(0, |(len, _)| len),
    })
}

/// Segments of the default namespace in `/dev/shm` (plan, "API Contracts").
///
/// # Errors
///
/// As [`SegmentDiscovery::list`].
pub fn list_segments() -> Result<Vec<SegmentInfo>> {
    SegmentDiscovery::new(DEFAULT_NAMESPACE, DEFAULT_DIR)?.list()
}

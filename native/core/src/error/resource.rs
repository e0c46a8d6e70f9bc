//! What can be exhausted.

/// What ran out, in [`ShmError::ResourceExhausted`](crate::ShmError::ResourceExhausted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Space of the memory file system (`/dev/shm`).
    Space,
    /// Address space or mappings (`ENOMEM` from `mmap`, `RLIMIT_AS`, `vm.max_map_count`).
    AddressSpace,
    /// File descriptors (`EMFILE`, `ENFILE`).
    Descriptors,
    /// Locked memory (`RLIMIT_MEMLOCK`).
    LockedMemory,
    /// Entries of the segment's reader table.
    Readers,
    /// Entries of the namespace's participant table.
    Participants,
    /// Version numbers of a segment.
    Versions,
    /// Threads.
    Threads,
    /// Huge pages: free memory in pieces large enough.
    HugePages,
}

impl Resource {
    /// Stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Space => "space",
            Self::AddressSpace => "address space",
            Self::Descriptors => "file descriptors",
            Self::LockedMemory => "locked memory",
            Self::Readers => "reader table",
            Self::Participants => "participant table",
            Self::Versions => "version numbers",
            Self::Threads => "threads",
            Self::HugePages => "huge pages",
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

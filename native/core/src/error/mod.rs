//! The one error type of the library.
//!
//! Every variant has a stable [`code`](ShmError::code) that all bindings share, says what
//! happened and to which segment, and carries a [`remedy`](ShmError::remedy): what to do about
//! it (R8.1).

mod resource;

pub use self::resource::Resource;

use std::io;
use std::time::Duration;

/// Result of every fallible call of this crate.
pub type Result<T, E = ShmError> = std::result::Result<T, E>;

/// Everything that can go wrong, with stable codes (plan, "API Contracts"; R8.1).
///
/// ```
/// use snakepit_shm::{SegmentOptions, ShmError};
///
/// let error = SegmentOptions::new("../etc/passwd").size(4096).create().unwrap_err();
/// assert!(matches!(error, ShmError::InvalidName { .. }));
/// assert_eq!(error.code(), "invalid_name");
/// assert_eq!(error.segment(), Some("../etc/passwd"));
/// assert!(!error.remedy().is_empty());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShmError {
    /// The name is taken: its `.meta` file exists.
    #[error("segment already exists: {name}")]
    AlreadyExists {
        /// The segment.
        name: String,
    },
    /// No segment of that name is published in the namespace and directory.
    #[error("segment not found: {name}")]
    NotFound {
        /// The segment.
        name: String,
    },
    /// A name, module or namespace breaks the naming rules (format.md, "Names").
    #[error("invalid name {name:?}: {reason}")]
    InvalidName {
        /// What was given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A capacity that is not a multiple of 4096 between 4 KiB and 1 GiB (FR-009).
    #[error(
        "invalid segment size: {size} bytes (must be 4096..=1073741824 and a multiple of {multiple}; \
         nearest valid: {nearest})"
    )]
    InvalidSize {
        /// The size asked for, in bytes.
        size: usize,
        /// The nearest size that is valid, in bytes.
        nearest: usize,
        /// What a size must be a multiple of on this machine, in bytes.
        multiple: usize,
    },
    /// An option has a value outside its range, or the machine refuses what it asks for.
    #[error("invalid option {option}: {reason}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What is expected, and what came.
        reason: String,
    },
    /// A handle lacks a field, has an unknown one, or its fields contradict one another or the
    /// segment.
    #[error("invalid handle: {reason}")]
    InvalidHandle {
        /// What is wrong with it.
        reason: String,
    },
    /// The writer overwrote the value in each of a bounded number of attempts to copy it.
    #[error("version conflict in {name}: overwritten during each of {attempts} attempts")]
    VersionConflict {
        /// The segment.
        name: String,
        /// How many attempts were made.
        attempts: u32,
    },
    /// The only slot holds half a value, and the writer that could complete it is dead.
    #[error("the only value of {name} is torn: its writer died while writing it")]
    Torn {
        /// The segment.
        name: String,
    },
    /// Nothing has been published yet.
    #[error("nothing has been published in {name} yet")]
    Empty {
        /// The segment.
        name: String,
    },
    /// The operating system refuses access.
    #[error("permission denied: {operation} {name}")]
    PermissionDenied {
        /// The segment or file.
        name: String,
        /// What was tried.
        operation: &'static str,
    },
    /// A resource or a limit is used up.
    #[error("{resource} exhausted{}: needed {needed}{}", of(.name), room(.available))]
    ResourceExhausted {
        /// The segment, where there is one.
        name: Option<String>,
        /// Which resource.
        resource: Resource,
        /// How much was needed (bytes, or a count).
        needed: u64,
        /// How much there was, when it can be known.
        available: Option<u64>,
    },
    /// An operation took longer than its caller allowed.
    #[error("real-time deadline violated: {operation}")]
    DeadlineViolation {
        /// Which operation.
        operation: String,
    },
    /// Any other refusal of the operating system.
    #[error("input/output error in {operation}{}: {source}", of(.name))]
    Io {
        /// The segment or file, where there is one.
        name: Option<String>,
        /// What was tried.
        operation: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// Another living process (or writer object) holds the writer claim (FR-001).
    #[error("segment {name} has a writer: process {pid}")]
    SegmentBusy {
        /// The segment.
        name: String,
        /// The process that holds the claim (0 when it cannot be told).
        pid: u32,
    },
    /// An offset and length do not fit, checked before a byte moves.
    #[error("out of bounds in {name}: {len} bytes at offset {offset}, limit {capacity}")]
    OutOfBounds {
        /// The segment.
        name: String,
        /// Offset asked for, in bytes.
        offset: usize,
        /// Length asked for or needed, in bytes.
        len: usize,
        /// What they must fit into, in bytes: the capacity, the value's length or the buffer's.
        capacity: usize,
    },
    /// A structure in shared memory or a file contradicts itself.
    #[error("segment {name} is corrupted: {reason}")]
    Corrupted {
        /// The segment or file.
        name: String,
        /// What was found.
        reason: String,
    },
    /// The file was cut shorter than its header says.
    #[error("segment {name} is truncated")]
    Truncated {
        /// The segment.
        name: String,
    },
    /// A sealed segment cannot be written.
    #[error("segment {name} is sealed")]
    Sealed {
        /// The segment.
        name: String,
    },
    /// Only sealed segments are viewed without a copy.
    #[error("segment {name} is not sealed")]
    NotSealed {
        /// The segment.
        name: String,
    },
    /// The segment was made for another layout of the value.
    #[error("schema mismatch in {name}: expected {expected:#018x}, found {found:#018x}")]
    SchemaMismatch {
        /// The segment.
        name: String,
        /// Schema id that the caller asked for.
        expected: u64,
        /// Schema id in the header.
        found: u64,
    },
    /// The value is older than the caller accepts.
    #[error("value of {name} is stale: {age:?} old, at most {max_age:?} accepted")]
    Stale {
        /// The segment.
        name: String,
        /// How old the value is.
        age: Duration,
        /// How old it may be.
        max_age: Duration,
    },
    /// Nothing happened within the time given.
    #[error("no change of {name} within {after:?}")]
    Timeout {
        /// The segment.
        name: String,
        /// How long was waited.
        after: Duration,
    },
    /// The writer has closed the segment, or this object was closed.
    #[error("segment {name} is closed")]
    Closed {
        /// The segment.
        name: String,
    },
    /// This is a forked child, and the segment was mapped by its parent with `dont_fork`.
    #[error(
        "the mapping of {name} is its parent's: made with dont_fork, before this process was forked"
    )]
    NotInherited {
        /// The segment.
        name: String,
    },
    /// The segment, the platform or the mode cannot do that.
    #[error("{operation} is not supported on {name}: {reason}")]
    Unsupported {
        /// The segment, or what else cannot do it.
        name: String,
        /// What was asked for.
        operation: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

fn of(name: &Option<String>) -> String {
    name.as_ref().map(|n| format!(" ({n})")).unwrap_or_default()
}

fn room(amount: &Option<u64>) -> String {
    amount
        .map(|n| format!(", available {n}"))
        .unwrap_or_default()
}

impl ShmError {
    /// Codes of all variants, for bindings that map them to their own error classes.
    pub const CODES: &'static [&'static str] = &[
        "already_exists",
        "not_found",
        "invalid_name",
        "invalid_size",
        "invalid_option",
        "invalid_handle",
        "version_conflict",
        "torn",
        "empty",
        "permission_denied",
        "resource_exhausted",
        "deadline_violation",
        "io",
        "segment_busy",
        "out_of_bounds",
        "corrupted",
        "truncated",
        "sealed",
        "not_sealed",
        "schema_mismatch",
        "stale",
        "timeout",
        "closed",
        "unsupported",
        "not_inherited",
    ];

    /// The stable code of this error, the same in every binding.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlreadyExists { .. } => "already_exists",
            Self::NotFound { .. } => "not_found",
            Self::InvalidName { .. } => "invalid_name",
            Self::InvalidSize { .. } => "invalid_size",
            Self::InvalidOption { .. } => "invalid_option",
            Self::InvalidHandle { .. } => "invalid_handle",
            Self::VersionConflict { .. } => "version_conflict",
            Self::Torn { .. } => "torn",
            Self::Empty { .. } => "empty",
            Self::PermissionDenied { .. } => "permission_denied",
            Self::ResourceExhausted { .. } => "resource_exhausted",
            Self::DeadlineViolation { .. } => "deadline_violation",
            Self::Io { .. } => "io",
            Self::SegmentBusy { .. } => "segment_busy",
            Self::OutOfBounds { .. } => "out_of_bounds",
            Self::Corrupted { .. } => "corrupted",
            Self::Truncated { .. } => "truncated",
            Self::Sealed { .. } => "sealed",
            Self::NotSealed { .. } => "not_sealed",
            Self::SchemaMismatch { .. } => "schema_mismatch",
            Self::Stale { .. } => "stale",
            Self::Timeout { .. } => "timeout",
            Self::Closed { .. } => "closed",
            Self::Unsupported { .. } => "unsupported",
            Self::NotInherited { .. } => "not_inherited",
        }
    }

    /// The segment (or file) that the error is about, where there is one.
    pub fn segment(&self) -> Option<&str> {
        match self {
            Self::AlreadyExists { name }
            | Self::NotFound { name }
            | Self::InvalidName { name, .. }
            | Self::VersionConflict { name, .. }
            | Self::Torn { name }
            | Self::Empty { name }
            | Self::PermissionDenied { name, .. }
            | Self::SegmentBusy { name, .. }
            | Self::OutOfBounds { name, .. }
            | Self::Corrupted { name, .. }
            | Self::Truncated { name }
            | Self::Sealed { name }
            | Self::NotSealed { name }
            | Self::SchemaMismatch { name, .. }
            | Self::Stale { name, .. }
            | Self::Timeout { name, .. }
            | Self::Closed { name }
            | Self::NotInherited { name }
            | Self::Unsupported { name, .. } => Some(name),
            Self::ResourceExhausted { name, .. } | Self::Io { name, .. } => name.as_deref(),
            Self::InvalidSize { .. }
            | Self::InvalidOption { .. }
            | Self::InvalidHandle { .. }
            | Self::DeadlineViolation { .. } => None,
        }
    }

    /// What to do about it, for the person who reads the error (R8.1, R8.4).
    pub fn remedy(&self) -> String {
        let text: &str = match self {
            Self::AlreadyExists { .. } => {
                "choose another name, attach to the segment, or remove it first"
            }
            Self::NotFound { .. } => {
                "check the name, namespace and directory; its creator may not have started or may have removed it"
            }
            Self::InvalidName { .. } => {
                "use 1 to 128 of A-Z a-z 0-9 . _ - without a leading dot; a namespace has no underscore"
            }
            Self::InvalidSize { nearest, .. } => {
                return format!("ask for {nearest} bytes");
            }
            Self::InvalidOption { .. } => "give the option a value in the range named",
            Self::InvalidHandle { .. } => {
                "pass the handle exactly as share returned it; a handle to a removed or rewritten region is refused"
            }
            Self::VersionConflict { .. } => {
                "read again, create the segment with more slots, or write less often"
            }
            Self::Torn { .. } => {
                "start a writer: the next write makes the segment readable again; two or more slots keep the last complete value"
            }
            Self::Empty { .. } => "wait for the first write (wait_changed with version 0)",
            Self::PermissionDenied { .. } => {
                "run as the segment's owner, or create the segment with wider permissions"
            }
            Self::ResourceExhausted { resource, .. } => match resource {
                Resource::Space => {
                    "remove segments that are not needed, or enlarge the file system (mount -o remount,size=… /dev/shm; --shm-size for containers)"
                }
                Resource::AddressSpace => {
                    "unmap regions, or raise RLIMIT_AS (ulimit -v) or vm.max_map_count"
                }
                Resource::Descriptors => "close files, or raise RLIMIT_NOFILE (ulimit -n)",
                Resource::LockedMemory => {
                    "raise RLIMIT_MEMLOCK (ulimit -l), grant CAP_IPC_LOCK, or do without lock_memory"
                }
                Resource::Readers => {
                    "close readers, or create the segment with a larger max_readers"
                }
                Resource::Participants => {
                    "end processes of this namespace, or spread them over several namespaces"
                }
                Resource::Versions => "create the segment anew",
                Resource::Threads => "end threads, or raise RLIMIT_NPROC (ulimit -u)",
                Resource::HugePages => {
                    "have the kernel put free memory together (echo 1 > /proc/sys/vm/compact_memory), free some, or prefer huge pages instead of requiring them"
                }
            },
            Self::DeadlineViolation { .. } => "lower the load, pin the thread, or allow more time",
            Self::Io { .. } => "see the system's error; check the directory and its file system",
            Self::SegmentBusy { .. } => {
                "let that writer close or end first; one segment has one writer"
            }
            Self::OutOfBounds { .. } => {
                "keep offset + length within the limit; a value has at least 1 byte; create a larger segment for more"
            }
            Self::Corrupted { .. } => {
                "do not use the segment; remove it and let its writer create it anew"
            }
            Self::Truncated { .. } => {
                "the file was cut by another program; remove the segment and create it anew"
            }
            Self::Sealed { .. } => "create a new segment for a new value",
            Self::NotSealed { .. } => "seal the segment first, or read a copy",
            Self::SchemaMismatch { .. } => {
                "run the same version of the program on both sides, or attach with the schema found"
            }
            Self::Stale { .. } => {
                "check the writer; read without max_age if an old value is acceptable"
            }
            Self::Timeout { .. } => "wait longer, or check that the writer is running",
            Self::Closed { .. } => "attach again when a writer has created the segment anew",
            Self::Unsupported { .. } => {
                "see the reason; create the segment with options that allow it"
            }
            Self::NotInherited { .. } => {
                "attach to the segment in the forked child, or do without dont_fork"
            }
        };
        text.to_owned()
    }

    /// Turns a system error of `operation` on `name` into the variant that says most.
    pub(crate) fn from_io(name: &str, operation: &'static str, source: io::Error) -> Self {
        let name = name.to_owned();
        let exhausted = |resource, needed| Self::ResourceExhausted {
            name: Some(name.clone()),
            resource,
            needed,
            available: None,
        };
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                Self::PermissionDenied { name, operation }
            }
            Some(libc::EMFILE | libc::ENFILE) => exhausted(Resource::Descriptors, 1),
            Some(libc::ENOSPC | libc::EDQUOT) => exhausted(Resource::Space, 1),
            _ => Self::Io {
                name: Some(name),
                operation,
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once() {
        let mut codes = ShmError::CODES.to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ShmError::CODES.len());
        let error = ShmError::Torn { name: "x".into() };
        assert!(ShmError::CODES.contains(&error.code()));
    }

    #[test]
    fn system_errors_become_the_named_ones() {
        let of = |errno| ShmError::from_io("n", "open", io::Error::from_raw_os_error(errno)).code();
        assert_eq!(of(libc::EACCES), "permission_denied");
        assert_eq!(of(libc::EMFILE), "resource_exhausted");
        assert_eq!(of(libc::ENOSPC), "resource_exhausted");
        assert_eq!(of(libc::EIO), "io");
    }

    #[test]
    fn exhaustion_says_needed_and_available() {
        let error = ShmError::ResourceExhausted {
            name: Some("big".into()),
            resource: Resource::Space,
            needed: 8192,
            available: Some(4096),
        };
        let text = error.to_string();
        assert!(text.contains("8192") && text.contains("4096") && text.contains("big"));
    }
}

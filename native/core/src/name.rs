//! Names and the files they stand for (DESIGN 3).
//!
//! A namespace has no `_` and a module's `_` is written `-`, so `{ns}_{module}_{name}_{pid}` splits in
//! one way only and no two names meet in one file. File names are made here and never parsed for
//! truth: the `.meta` says which file is meant.

use crate::error::{Result, ShmError};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest segment name, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest namespace or module, in bytes: all parts together stay below NAME_MAX (255).
pub const MAX_PART: usize = 32;
/// Namespace unless another is given.
pub const DEFAULT_NAMESPACE: &str = "snakepit";
/// Module unless another is given.
pub const DEFAULT_MODULE: &str = "default";
/// Directory unless another is given.
pub const DEFAULT_DIR: &str = "/dev/shm";
/// Namespace of the industrial controller that the format comes from (plan).
pub const EVO_NAMESPACE: &str = "evo";

fn check(name: &str, longest: usize, underscore: bool) -> Result<()> {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || (b == b'_' && underscore);
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > longest {
        "it is too long"
    } else if name.starts_with('.') {
        "it starts with a dot"
    } else if !name.bytes().all(allowed) {
        "it has a character outside A-Z a-z 0-9 . _ - (no _ in a namespace)"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(MAX_NAME).collect();
    Err(ShmError::InvalidName {
        name: shown,
        reason,
    })
}

/// Where a namespace's files are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub dir: PathBuf,
    pub namespace: String,
}

/// Whether a path is absolute and has nothing that `std::path::absolute` would change, which most often is
/// so: that one takes it to pieces and puts it together again.
fn is_plain(dir: &Path) -> bool {
    let bytes = dir.as_os_str().as_bytes();
    let dubious = |two: &[u8]| two[0] == b'/' && matches!(two[1], b'/' | b'.');
    bytes.first() == Some(&b'/') && bytes.last() != Some(&b'/') && !bytes.windows(2).any(dubious)
}

impl Place {
    pub(crate) fn new(dir: &Path, namespace: &str) -> Result<Self> {
        check(namespace, MAX_PART, false)?;
        // Absolute: what a relative path means changes with the working directory.
        let dir = if is_plain(dir) {
            dir.to_path_buf()
        } else {
            std::path::absolute(dir)
                .map_err(|e| ShmError::from_io(&dir.display().to_string(), "find", e))?
        };
        Ok(Self {
            dir,
            namespace: namespace.to_owned(),
        })
    }

    /// The `.meta` of a name, which must be valid.
    pub(crate) fn meta_path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.dir.join(self.meta_file(name)?))
    }

    /// The same, in the directory.
    pub(crate) fn meta_file(&self, name: &str) -> Result<String> {
        check(name, MAX_NAME, true)?;
        Ok([&self.namespace, "_", name, ".meta"].concat())
    }

    /// The name that a `.meta` file of this namespace stands for.
    pub(crate) fn name_of_meta<'a>(&self, file: &'a str) -> Option<&'a str> {
        let name = file
            .strip_prefix(self.namespace.as_str())?
            .strip_prefix('_')?
            .strip_suffix(".meta")?;
        check(name, MAX_NAME, true).ok()?;
        Some(name)
    }

    /// The segment file of a name.
    pub(crate) fn segment_file(&self, module: &str, name: &str, pid: u32) -> String {
        format!("{}_{module}_{name}_{pid}", self.namespace)
    }

    /// Whether `file` is [`Self::segment_file`] of the rest, without making one.
    pub(crate) fn is_segment_file(&self, file: &str, module: &str, name: &str, pid: u32) -> bool {
        let parts = [&self.namespace, "_", module, "_", name, "_"];
        let rest = parts
            .iter()
            .try_fold(file, |rest, part| rest.strip_prefix(part));
        // A number can be written in other ways, too.
        let canonical = |n: &str| n == "0" || n.starts_with(|c: char| matches!(c, '1'..='9'));
        rest.is_some_and(|n| canonical(n) && n.parse() == Ok(pid))
    }

    /// A file of a pool: `{ns}.pool.` and 16 hex digits. No segment's file can have that name.
    pub(crate) fn pool_path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{}.pool.{id:016x}", self.namespace))
    }

    /// Whether a file has the name of a pool's.
    pub(crate) fn is_pool_file(&self, file: &str) -> bool {
        let id = file
            .strip_prefix(self.namespace.as_str())
            .and_then(|rest| rest.strip_prefix(".pool."));
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        id.is_some_and(|id| id.len() == 16 && id.bytes().all(hex))
    }

    /// The participants file.
    pub(crate) fn participants_path(&self) -> PathBuf {
        self.dir.join(format!("{}.participants", self.namespace))
    }
}

/// A module's name as it stands in file names.
pub(crate) fn module_part(module: &str) -> Result<String> {
    check(module, MAX_PART, true)?;
    Ok(module.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Place {
        Place::new(Path::new("/dev/shm"), "ns").unwrap()
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(129);
        for bad in ["", ".", ".x", "a/b", "..", "a b", "ü", "a\0b", &long, "*"] {
            let error = place().meta_path(bad).unwrap_err();
            assert_eq!(error.code(), "invalid_name", "{bad:?}");
        }
        assert!(place().meta_path(&"x".repeat(128)).is_ok());
        assert!(Place::new(Path::new("/"), "a_b").is_err());
        assert!(module_part("a/b").is_err());
        assert_eq!(module_part("control_unit").unwrap(), "control-unit");
    }

    #[test]
    fn a_directory_is_made_absolute_and_no_other() {
        for dir in [
            "/dev/shm", "/a", "/", "//a", "/a/", "/a//b", "/a/./b", "/a/../b", "/a/.b", "a", "./a",
        ] {
            let found = Place::new(Path::new(dir), "ns").unwrap().dir;
            let expected = std::path::absolute(dir).unwrap();
            assert_eq!(found.as_os_str(), expected.as_os_str(), "{dir}");
        }
        assert!(is_plain(Path::new("/dev/shm")));
    }

    #[test]
    fn longest_file_name_fits() {
        let p = Place::new(Path::new("/"), &"n".repeat(MAX_PART)).unwrap();
        let file = p.segment_file(&"m".repeat(MAX_PART), &"x".repeat(MAX_NAME), u32::MAX);
        assert!(file.len() < 255);
    }

    #[test]
    fn only_own_meta_files_have_a_name() {
        assert_eq!(place().name_of_meta("ns_a_b.meta"), Some("a_b"));
        assert_eq!(place().name_of_meta("ns_notes.txt"), None);
        assert_eq!(place().name_of_meta("nsx_a.meta"), None);
        assert_eq!(place().name_of_meta("ns_.meta"), None);
    }

    #[test]
    fn only_own_pool_files_are_pool_files() {
        let path = place().pool_path(0xab);
        let file = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(file, "ns.pool.00000000000000ab");
        assert!(place().is_pool_file(file));
        for other in [
            "ns.pool.00000000000000aB",
            "ns.pool.ab",
            "ns.pool.participants",
            "nsx.pool.00000000000000ab",
            "ns_pool.00000000000000ab",
        ] {
            assert!(!place().is_pool_file(other), "{other}");
        }
    }

    const PART: &str = "[A-Za-z0-9.-]{1,8}";
    const NAME: &str = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}";

    proptest! {
        #[test]
        fn a_segment_file_is_known_by_its_parts(m in PART, n in NAME, p: u32, more in "[0-9+ -]{0,2}") {
            let file = place().segment_file(&m, &n, p);
            let known = |file: &str, p| place().is_segment_file(file, &m, &n, p);
            prop_assert!(known(&file, p));
            prop_assert!(!known(&file, p ^ 1));
            prop_assert_eq!(known(&format!("{file}{more}"), p), more.is_empty());
            let padded = file.replace(&format!("_{p}"), &format!("_{more}{p}"));
            prop_assert_eq!(known(&padded, p), padded == file);
        }

        #[test]
        fn two_names_never_meet_in_one_file(
            m1 in PART, n1 in NAME, p1: u32, m2 in PART, n2 in NAME, p2: u32,
        ) {
            let file = |m: &str, n: &str, p| place().segment_file(m, n, p);
            prop_assert_eq!(
                file(&m1, &n1, p1) == file(&m2, &n2, p2),
                (&m1, &n1, p1) == (&m2, &n2, p2)
            );
            prop_assert_ne!(
                place().meta_path(&n1).unwrap(),
                place().dir.join(file(&m2, &n2, p2))
            );
        }
    }
}

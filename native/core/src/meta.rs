//! The `.meta` file: JSON that makes a name findable and unique (DESIGN 3).
//!
//! It is hostile input like everything else in the directory: its length is bounded, and the file
//! it names must be one that this very name can have.

use crate::error::{Result, ShmError};
use crate::layout::{IDENTITY_AT, IDENTITY_LEN};
use crate::name::{Place, module_part};
use crate::platform;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// A `.meta` is a few hundred bytes; anything longer is none of ours.
const LONGEST: usize = 16 * 1024;

/// What a `.meta` file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Version of this file's format.
    pub format: u32,
    pub name: String,
    pub namespace: String,
    /// As in the file name: `_` is `-`.
    pub module: String,
    /// The segment's file, in the same directory.
    pub file: String,
    pub size: u64,
    pub slots: u32,
    pub schema_id: u64,
    /// The process that created it.
    pub creator_pid: u32,
    /// Nanoseconds since 1970; equal to the header's.
    pub created_ns: u64,
    /// Random: tells this segment from an earlier one of the same name.
    pub incarnation: String,
}

impl Meta {
    /// Parses bytes that are said to be the `.meta` of `name`.
    pub(crate) fn parse(place: &Place, name: &str, bytes: &[u8]) -> Result<Self> {
        let corrupted = |reason: String| ShmError::Corrupted {
            name: name.to_owned(),
            reason: format!("metadata: {reason}"),
        };
        let meta = match Self::as_written(place, name, bytes) {
            Some(meta) => meta,
            None => serde_json::from_slice(bytes).map_err(|e| corrupted(e.to_string()))?,
        };
        if meta.format != 1 {
            return Err(corrupted(format!("format {}", meta.format)));
        }
        if meta.name != name || meta.namespace != place.namespace {
            return Err(corrupted("it is of another segment".into()));
        }
        let module = module_part(&meta.module).map_err(|_| corrupted("module".into()))?;
        if !place.is_segment_file(&meta.file, &module, name, meta.creator_pid) {
            return Err(corrupted("it names a file of another segment".into()));
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if meta.incarnation.len() != 32 || !meta.incarnation.bytes().all(hex) {
            return Err(corrupted("incarnation".into()));
        }
        Ok(meta)
    }

    /// Reads what [`Self::to_json`] writes, letter for letter; `None` for anything else, which may be good JSON
    /// all the same. Half of the instructions that the reader of any JSON needs, which was two fifths of an
    /// attach outside of the kernel.
    fn as_written(place: &Place, name: &str, bytes: &[u8]) -> Option<Self> {
        let mut text = Written(std::str::from_utf8(bytes).ok()?);
        text.skip("{\n  \"format\": 1,\n  \"name\": \"")?;
        text.skip(name)?;
        text.skip("\",\n  \"namespace\": \"")?;
        text.skip(&place.namespace)?;
        text.skip("\",\n  \"module\": \"")?;
        let module = text.string()?;
        text.skip(",\n  \"file\": \"")?;
        let file = text.string()?;
        text.skip(",\n  \"size\": ")?;
        let size = text.number()?;
        text.skip(",\n  \"slots\": ")?;
        let slots = text.number()?.try_into().ok()?;
        text.skip(",\n  \"schema_id\": ")?;
        let schema_id = text.number()?;
        text.skip(",\n  \"creator_pid\": ")?;
        let creator_pid = text.number()?.try_into().ok()?;
        text.skip(",\n  \"created_ns\": ")?;
        let created_ns = text.number()?;
        text.skip(",\n  \"incarnation\": \"")?;
        let incarnation = text.string()?;
        text.skip("\n}\n")?;
        text.0.is_empty().then(|| Self {
            format: 1,
            name: name.to_owned(),
            namespace: place.namespace.clone(),
            module: module.to_owned(),
            file: file.to_owned(),
            size,
            slots,
            schema_id,
            creator_pid,
            created_ns,
            incarnation: incarnation.to_owned(),
        })
    }

    /// Loads the `.meta` of `name`.
    pub(crate) fn load(place: &Place, name: &str) -> Result<Self> {
        Self::load_from(place, name, platform::NO_DIRECTORY, &place.meta_path(name)?)
    }

    /// [`Self::load`] when the place's directory is open.
    pub(crate) fn load_in(place: &Place, name: &str, dir: BorrowedFd<'_>) -> Result<Self> {
        Self::load_from(place, name, dir, place.meta_file(name)?.as_ref())
    }

    fn load_from(place: &Place, name: &str, dir: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let bytes =
            platform::read_small(dir, path, LONGEST).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ShmError::NotFound {
                    name: name.to_owned(),
                },
                io::ErrorKind::InvalidInput => ShmError::Corrupted {
                    name: name.to_owned(),
                    reason: "metadata: not a regular file".into(),
                },
                _ if source.raw_os_error() == Some(libc::ELOOP) => ShmError::Corrupted {
                    name: name.to_owned(),
                    reason: "metadata: a symbolic link".into(),
                },
                _ => ShmError::from_io(name, "open", source),
            })?;
        Self::parse(place, name, &bytes)
    }

    /// The segment's file.
    pub(crate) fn path(&self, place: &Place) -> PathBuf {
        place.dir.join(&self.file)
    }

    /// The copy that lies in the segment's own header page, so that a lost `.meta` can be made again.
    pub(crate) fn identity(&self) -> [u8; IDENTITY_LEN] {
        let mut block = [0u8; IDENTITY_LEN];
        let json = serde_json::to_vec(self).unwrap_or_default();
        // Names are bounded, so this always fits.
        if let Some(place) = block.get_mut(8..8 + json.len()) {
            place.copy_from_slice(&json);
            block[..4].copy_from_slice(&(json.len() as u32).to_le_bytes());
            block[4..8].copy_from_slice(&crc32c::crc32c(&json).to_le_bytes());
        }
        block
    }

    /// From the header page of a segment's file; `None` unless it is whole and of that file.
    pub(crate) fn from_identity(place: &Place, file: &str, page: &[u8; 4096]) -> Option<Self> {
        let block = &page[IDENTITY_AT..IDENTITY_AT + IDENTITY_LEN];
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let json = block.get(8..8usize.checked_add(word(0) as usize)?)?;
        if crc32c::crc32c(json) != word(4) {
            return None;
        }
        let name = serde_json::from_slice::<Self>(json).ok()?.name;
        let meta = Self::parse(place, &name, json).ok()?;
        (place.meta_path(&name).is_ok() && meta.file == file).then_some(meta)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// What is left of a `.meta` to be read.
struct Written<'a>(&'a str);

impl<'a> Written<'a> {
    fn skip(&mut self, expected: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// Up to the quotation mark, and past it.
    fn string(&mut self) -> Option<&'a str> {
        let (string, rest) = self.0.split_once('"')?;
        self.0 = rest;
        // None that JSON would write, or read, as anything but itself.
        let plain = |b: u8| b.is_ascii_graphic() && b != b'\\';
        string.bytes().all(plain).then_some(string)
    }

    /// In decimal, without a sign or a zero before it.
    fn number(&mut self) -> Option<u64> {
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        (number == "0" || !number.starts_with('0')).then(|| number.parse().ok())?
    }
}

/// A random incarnation id.
pub(crate) fn new_incarnation() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| ShmError::Io {
        name: None,
        operation: "getrandom",
        source: io::Error::other(e),
    })?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn place() -> Place {
        Place::new(Path::new("/dev/shm"), "ns").unwrap()
    }

    fn meta() -> Meta {
        Meta {
            format: 1,
            name: "n".into(),
            namespace: "ns".into(),
            module: "m".into(),
            file: "ns_m_n_7".into(),
            size: 4096,
            slots: 4,
            schema_id: u64::MAX,
            creator_pid: 7,
            created_ns: 1,
            incarnation: "0123456789abcdef0123456789abcdef".into(),
        }
    }

    #[test]
    fn survives_json() {
        let json = meta().to_json();
        assert_eq!(Meta::as_written(&place(), "n", &json).unwrap(), meta());
        assert_eq!(Meta::parse(&place(), "n", &json).unwrap(), meta());
        // Written by another program, or by hand.
        let compact = serde_json::to_vec(&meta()).unwrap();
        assert_eq!(Meta::as_written(&place(), "n", &compact), None);
        assert_eq!(Meta::parse(&place(), "n", &compact).unwrap(), meta());
    }

    #[test]
    fn survives_the_header_page() {
        let mut page = [0u8; 4096];
        page[IDENTITY_AT..IDENTITY_AT + IDENTITY_LEN].copy_from_slice(&meta().identity());
        assert_eq!(
            Meta::from_identity(&place(), "ns_m_n_7", &page),
            Some(meta())
        );
        assert_eq!(Meta::from_identity(&place(), "ns_m_n_8", &page), None);
        page[IDENTITY_AT + 20] ^= 1;
        assert_eq!(Meta::from_identity(&place(), "ns_m_n_7", &page), None);
        let longest = Meta {
            name: "n".repeat(128),
            module: "m".repeat(32),
            ..meta()
        };
        assert_ne!(longest.identity()[..4], [0; 4]);
        // It comes in one piece.
        assert!(longest.to_json().len() < 1024);
    }

    proptest! {
        #[test]
        fn no_header_page_makes_it_panic(len: u32, sum: u32, fill: u8) {
            let mut page = [fill; 4096];
            page[IDENTITY_AT..IDENTITY_AT + 4].copy_from_slice(&len.to_le_bytes());
            page[IDENTITY_AT + 4..IDENTITY_AT + 8].copy_from_slice(&sum.to_le_bytes());
            prop_assert_eq!(Meta::from_identity(&place(), "ns_m_n_7", &page), None);
        }
    }

    #[test]
    fn what_names_another_file_is_refused() {
        let refused = |m: Meta| Meta::parse(&place(), "n", &m.to_json()).unwrap_err().code();
        for bad in [
            Meta {
                file: "../etc/passwd".into(),
                ..meta()
            },
            Meta {
                file: "ns_m_other_7".into(),
                ..meta()
            },
            Meta {
                name: "other".into(),
                ..meta()
            },
            Meta {
                namespace: "nz".into(),
                ..meta()
            },
            Meta {
                module: "../m".into(),
                ..meta()
            },
            Meta {
                format: 2,
                ..meta()
            },
            Meta {
                incarnation: "zz".into(),
                ..meta()
            },
        ] {
            assert_eq!(refused(bad), "corrupted");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Meta::parse(&place(), "n", &bytes).is_err());
        }

        /// One byte changed, left out or put in: what is read as our own writing any reader of JSON reads so.
        #[test]
        fn our_writing_is_json(at in 0usize..300, value: u8, kind in 0usize..3) {
            let mut json = meta().to_json();
            let at = at % json.len();
            match kind {
                0 => json[at] = value,
                1 => json.insert(at, value),
                _ => { json.remove(at); }
            }
            if let Some(m) = Meta::as_written(&place(), "n", &json) {
                prop_assert_eq!(serde_json::from_slice::<Meta>(&json).unwrap(), m);
            }
        }

        /// One byte changed: refused, or still a file that this name can have.
        #[test]
        fn mutated_metadata_stays_with_its_name(at in 0usize..300, value: u8) {
            let mut json = meta().to_json();
            let at = at % json.len();
            json[at] = value;
            if let Ok(m) = Meta::parse(&place(), "n", &json) {
                prop_assert!(m.file.starts_with("ns_") && m.file.contains("_n_"));
                prop_assert!(!m.file.contains('/'));
            }
        }
    }
}

//! How the memory under a segment is backed.

use crate::error::{Result, ShmError};
use crate::layout::flags;
use crate::mapping::{Access, Mapping};
use crate::meta::Meta;
use crate::options::SegmentOptions;
use crate::pages::no_pages;
use crate::platform;
use crate::reader::SegmentReader;
use crate::segment::read_geometry;
use crate::writer::SegmentWriter;
use serde::Serialize;
use std::io;

/// The memory under a segment, as far as one process has mapped it; see [`SegmentWriter::pages`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pages {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of these that are mapped to pages.
    pub resident: u64,
    /// Bytes of these in huge pages.
    pub huge: u64,
    /// Bytes of the whole huge pages that the file has room for.
    pub huge_possible: u64,
    /// Whether the segment was created with huge pages asked for.
    pub huge_asked: bool,
    /// Bytes locked in memory.
    pub locked: u64,
    /// Where new pages come from, in the words of numa(7) (`bind:0`); `None` on a kernel without NUMA.
    pub numa_policy: Option<String>,
    /// Bytes by NUMA node.
    pub nodes: Vec<NodeBytes>,
}

/// How much lies on a NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NodeBytes {
    /// The node.
    pub node: u32,
    /// Bytes.
    pub bytes: u64,
}

impl Pages {
    fn of(name: &str, mapping: &Mapping) -> Result<Self> {
        if mapping.lost() {
            return Err(mapping.loss(name));
        }
        let failed = |e| ShmError::from_io(name, "look at the pages of", e);
        let backing = mapping.backing().map_err(failed)?;
        let (numa_policy, nodes) = mapping.nodes().map_err(failed)?.unzip();
        Ok(Self {
            bytes: mapping.file_len() as u64,
            resident: backing.resident,
            huge: backing.huge,
            huge_possible: mapping.huge_possible(),
            huge_asked: mapping.geometry().has(flags::HUGE),
            locked: backing.locked,
            numa_policy,
            nodes: nodes
                .unwrap_or_default()
                .into_iter()
                .map(|(node, bytes)| NodeBytes { node, bytes })
                .collect(),
        })
    }
}

impl SegmentWriter {
    /// How the memory under the segment is backed in this process: what it has mapped counts. Slow, for the
    /// kernel walks all mappings of the process; not for the path of values.
    ///
    /// # Errors
    ///
    /// [`ShmError::Truncated`], [`ShmError::NotInherited`], [`ShmError::Io`] without `/proc`.
    pub fn pages(&self) -> Result<Pages> {
        Pages::of(self.name(), &self.segment.mapping)
    }
}

impl SegmentReader {
    /// How the memory under the segment is backed in this process, as [`SegmentWriter::pages`].
    ///
    /// # Errors
    ///
    /// As [`SegmentWriter::pages`].
    pub fn pages(&self) -> Result<Pages> {
        Pages::of(self.name(), self.mapping())
    }
}

impl SegmentOptions {
    /// How the memory under a segment is backed, whoever uses it: maps all that is there for a moment. Slow.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    /// let options = snakepit_shm::SegmentOptions::new("x").dir(dir.path());
    /// let writer = options.create().unwrap();
    /// let pages = options.inspect_pages().unwrap();
    /// assert!(!pages.huge_asked && pages.resident > 4 * 4096);
    /// # writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Self::inspect`], and [`ShmError::ResourceExhausted`] without address space for the mapping.
    pub fn inspect_pages(&self) -> Result<Pages> {
        let place = self.place()?;
        let meta = Meta::load(&place, &self.name)?;
        let name = meta.name.as_str();
        let file =
            platform::open_existing(&meta.path(&place), false).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => ShmError::NotFound { name: name.into() },
                _ => ShmError::from_io(name, "inspect", e),
            })?;
        let geometry = read_geometry(name, &file)?;
        let mapping = Mapping::new(name, &file, geometry, Access::Observer)?;
        mapping
            .populate_all_that_is_there(&file)
            .map_err(|e| no_pages(name, &mapping, &file, e))?;
        Pages::of(name, &mapping)
    }
}

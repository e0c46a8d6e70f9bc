//! Options about the memory under a segment.

use super::SegmentOptions;

/// Whether the pages of a new segment are huge ones (2 MiB on x86-64).
///
/// They come from the mount where it has a `huge=` option, and else from the kernel on request (Linux 6.1),
/// each at once: a page that is huge is in memory and mapped when the segment is there. Only whole ones are
/// made; the rest of the file, and of a segment smaller than one, has small pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// As the mount gives them.
    #[default]
    No,
    /// As many as are to be had; [`pages`](crate::SegmentWriter::pages) says how many.
    Prefer,
    /// Wherever a whole one fits, or the segment is not created.
    Require,
}

impl From<bool> for HugePages {
    /// `true` is [`Require`](Self::Require).
    fn from(huge: bool) -> Self {
        if huge { Self::Require } else { Self::No }
    }
}

/// Which nodes of a NUMA machine the pages of a new segment come from, whoever touches them first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Numa {
    /// These nodes alone, the nearest first. When they have no memory left, the system ends processes rather
    /// than take some elsewhere.
    Bind(Vec<u32>),
    /// These in turns, page by page; empty: all that this process may use.
    Interleave(Vec<u32>),
}

impl SegmentOptions {
    /// Locks the mapping in memory (mlock), in the process that creates or attaches. Refused beyond
    /// RLIMIT_MEMLOCK with `ResourceExhausted`.
    pub fn lock_memory(mut self, lock: bool) -> Self {
        self.lock_memory = lock;
        self
    }

    /// Huge pages at creation; `true` requires them. Required ones are refused with `InvalidOption` where there
    /// can be none (a lazily reserved segment, one without room for one, a machine without them), and with
    /// `ResourceExhausted` where free memory lies in pieces too small.
    ///
    /// ```
    /// # let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    /// use snakepit_shm::{HugePages, SegmentOptions};
    ///
    /// let options = SegmentOptions::new("frames").dir(dir.path()).size(8 << 20);
    /// let writer = options.huge_pages(HugePages::Prefer).create().unwrap();
    /// let pages = writer.pages().unwrap();
    /// println!("{} of {} bytes in huge pages", pages.huge, pages.huge_possible);
    /// assert!(pages.huge_asked && pages.huge <= pages.huge_possible);
    /// writer.close().unwrap();
    /// ```
    pub fn huge_pages(mut self, huge: impl Into<HugePages>) -> Self {
        self.huge_pages = huge.into();
        self
    }

    /// Maps the slots' pages at creation or attach, rather than by one fault a page at the first use. Pays when
    /// all of a large segment is used soon. Of a lazily reserved segment an attach maps the pages that are
    /// there; its creation is refused with `InvalidOption`.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Has the pages come from some NUMA nodes, from creation on. Refused with `InvalidOption` when this process
    /// may not use one of them, or the system does not do as it was told.
    pub fn numa(mut self, numa: Option<Numa>) -> Self {
        self.numa = numa;
        self
    }

    /// [`Self::numa`] bound to one node.
    pub fn numa_node(self, node: Option<u32>) -> Self {
        self.numa(node.map(|node| Numa::Bind(vec![node])))
    }

    /// Children that this process forks do not inherit the mapping (MADV_DONTFORK): they keep no page of it
    /// alive and can change none. What they do with an object that they inherit answers
    /// [`ShmError::NotInherited`](crate::ShmError::NotInherited), what does not answer with a result finds a
    /// segment without a value, and views read zeros. In the process that creates or attaches.
    pub fn dont_fork(mut self, dont_fork: bool) -> Self {
        self.dont_fork = dont_fork;
        self
    }
}

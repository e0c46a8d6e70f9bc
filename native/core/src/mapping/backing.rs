//! What lies under a mapping: huge pages, nodes, locks; and mapping pages before they are needed.

use super::Mapping;
use crate::layout::flags;
use crate::platform::numa::{self, Nodes, Spread};
use crate::platform::pages::{self, Range};
use crate::platform::populate;
use crate::platform::smaps::{self, Backing, NodesOf};
use std::fs::File;
use std::io;

impl Mapping {
    /// Where it lies: one range, or more where the system had no room for all of it together.
    fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::with_capacity(3);
        for part in [
            self.header.range(),
            self.control.range(),
            self.slots.range(),
        ] {
            match ranges.last_mut() {
                Some(last) if last.end() == part.start => last.len += part.len,
                _ => ranges.push(part),
            }
        }
        ranges
    }

    fn each(&self, call: impl Fn(Range) -> io::Result<()>) -> io::Result<()> {
        self.ranges().into_iter().try_for_each(call)
    }

    /// Locks all pages in memory (mlock(2)).
    pub(crate) fn lock(&self) -> io::Result<()> {
        self.each(pages::lock)
    }

    /// Has pages that are not there yet come in huge ones; the last refusal of the kernel's, if there was one.
    pub(crate) fn make_huge(&self) -> Option<io::Error> {
        self.ranges()
            .into_iter()
            .filter_map(populate::make_huge)
            .next_back()
    }

    /// Bytes of the whole huge pages that the file has room for.
    pub(crate) fn huge_possible(&self) -> u64 {
        let len = self.header.len() + self.control.len() + self.slots.len();
        match pages::huge_page_size() {
            0 => 0,
            huge => (len / huge * huge) as u64,
        }
    }

    /// Bytes that this process has mapped by huge pages.
    pub(crate) fn huge(&self) -> io::Result<u64> {
        self.ranges().into_iter().map(smaps::huge).sum()
    }

    /// Has pages come from some nodes, for everybody who maps the file; checked with the kernel.
    pub(crate) fn spread(&self, spread: Spread, nodes: &Nodes) -> io::Result<()> {
        self.each(|range| numa::spread(range, spread, nodes))
    }

    /// Maps the slots' pages, which are reserved.
    pub(crate) fn populate(&self) -> io::Result<()> {
        populate::populate(self.slots.range(), self.access == super::Access::Writer)
    }

    /// Maps the slots' pages; of lazily reserved ones those that `file` has: what is a hole stays one.
    pub(crate) fn populate_what_is_there(&self, file: &File) -> io::Result<()> {
        if !self.geometry.has(flags::LAZY) {
            return self.populate();
        }
        let slots_at = self.header.len() + self.control.len();
        self.populate_extents(file, self.slots.range(), slots_at)
    }

    /// The same with the header and control pages.
    pub(crate) fn populate_all_that_is_there(&self, file: &File) -> io::Result<()> {
        let control_at = self.header.len();
        self.populate_extents(file, self.header.range(), 0)?;
        self.populate_extents(file, self.control.range(), control_at)?;
        self.populate_what_is_there(file)
    }

    fn populate_extents(&self, file: &File, range: Range, offset: usize) -> io::Result<()> {
        for (at, len) in populate::data_extents(file, offset, offset + range.len)? {
            let part = Range {
                start: range.start + (at - offset),
                len,
            };
            populate::populate(part, self.access == super::Access::Writer)?;
        }
        Ok(())
    }

    /// Forked children do not inherit it; where it was they find zeros, and are told.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        // Noted first: a child that is forked in between finds zeros rather than nothing.
        if !self.guard.keep_from_children() {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.each(pages::keep_from_children)
    }

    /// How it is backed in this process. Slow.
    pub(crate) fn backing(&self) -> io::Result<Backing> {
        let mut all = Backing::default();
        for range in self.ranges() {
            let one = smaps::look(range)?;
            all.resident += one.resident;
            all.huge += one.huge;
            all.locked += one.locked;
        }
        Ok(all)
    }

    /// The policy of the slots' pages, and all of the mapping's bytes by node. Slow.
    pub(crate) fn nodes(&self) -> io::Result<Option<NodesOf>> {
        let mut all: Option<NodesOf> = None;
        // The slots are in the last one.
        for range in self.ranges() {
            let Some((policy, mut nodes)) = smaps::nodes(range)? else {
                continue;
            };
            if let Some((_, before)) = &all {
                for (node, bytes) in before {
                    match nodes.iter_mut().find(|(known, _)| known == node) {
                        Some((_, sum)) => *sum += bytes,
                        None => nodes.push((*node, *bytes)),
                    }
                }
                nodes.sort_unstable();
            }
            all = Some((policy, nodes));
        }
        Ok(all)
    }

    /// Length of the file, as mapped.
    pub(crate) fn file_len(&self) -> usize {
        self.header.len() + self.control.len() + self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use crate::SegmentOptions;
    use std::time::Duration;

    /// What `work` asserts in a forked child.
    fn in_child(work: impl FnOnce()) {
        // SAFETY: the child uses what is made for forked children (the allocator and this library), and ends
        // without unwinding into the test harness.
        let child = unsafe { libc::fork() };
        assert_ne!(child, -1);
        if child == 0 {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for a child of ours, and writes one status.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0, "the child failed");
    }

    /// Large enough that it would have huge pages, and is unmapped in the background.
    fn options(dir: &tempfile::TempDir) -> SegmentOptions {
        SegmentOptions::new("x")
            .dir(dir.path())
            .size(4 << 20)
            .slots(4)
    }

    #[test]
    fn a_forked_child_has_no_page_of_what_is_its_parents_and_is_told_so() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let own = options(&dir).dont_fork(true);
        let mut writer = own.create().unwrap();
        writer.write(b"value").unwrap();
        let reader = own.attach_reader().unwrap();
        let pinned = reader.pin().unwrap();
        assert!(pinned.in_place());

        // Twice: a child's child inherits what its parent did.
        in_child(|| {
            in_child(|| {
                assert_eq!(reader.info().unwrap_err().code(), "not_inherited");
            });
            let mut buffer = [0; 8];
            let waited = reader.wait_changed(2, Some(Duration::from_secs(60)));
            for error in [
                reader.read_into(&mut buffer).unwrap_err(),
                reader.read_range_into(0, &mut buffer).unwrap_err(),
                reader.read_next_into(&mut buffer).unwrap_err(),
                reader.info().unwrap_err(),
                reader.age().unwrap_err(),
                reader.state().unwrap_err(),
                reader.sealed().unwrap_err(),
                reader.pin().unwrap_err(),
                reader.pages().unwrap_err(),
                waited.unwrap_err(),
                writer.write(b"child").unwrap_err(),
                writer.write_at(1, b"c").unwrap_err(),
                writer
                    .write_vectored(&[b"c"], &crate::Descriptor::RAW)
                    .unwrap_err(),
                writer.loan().unwrap_err(),
                writer.seal().unwrap_err(),
                writer.sealed().unwrap_err(),
                writer.pages().unwrap_err(),
            ] {
                assert_eq!(error.code(), "not_inherited", "{error}");
                assert!(error.remedy().contains("dont_fork"));
            }
            assert_eq!((reader.version(), reader.len()), (0, 0));
            assert!(!pinned.is_intact());
            assert_eq!(&pinned[..], [0; 5]);
            // What it attaches itself is its own, and its parent's claim is its parent's.
            let mine = options(&dir).attach_reader().unwrap();
            assert_eq!(mine.info().unwrap().len, 5);
            assert_eq!(
                options(&dir).attach_writer().unwrap_err().code(),
                "segment_busy"
            );
            mine.close().unwrap();
            assert_eq!(writer.flush().unwrap_err().code(), "not_inherited");
            drop(pinned);
            reader.close().unwrap();
            writer.close().unwrap();
        });
        assert_eq!(options(&dir).inspect().unwrap().len, 5);
    }

    #[test]
    fn the_parent_goes_on_with_what_its_children_do_not_have() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let own = options(&dir).dont_fork(true);
        let mut writer = own.create().unwrap();
        let mut reader = own.attach_reader().unwrap();
        writer.write(b"one").unwrap();
        in_child(|| drop((own, writer.write(b"child"))));
        writer.write(b"two").unwrap();
        assert_eq!(reader.read().unwrap(), b"two");
        reader.close().unwrap();
        writer.close().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_the_option_a_child_reads_on() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut writer = options(&dir).create().unwrap();
        writer.write(b"value").unwrap();
        let reader = options(&dir).attach_reader().unwrap();
        in_child(|| {
            let mut buffer = [0; 8];
            assert_eq!(reader.read_into(&mut buffer).unwrap().len, 5);
            assert_eq!(writer.write(b"child").unwrap_err().code(), "segment_busy");
        });
        reader.close().unwrap();
        writer.close().unwrap();
    }
}

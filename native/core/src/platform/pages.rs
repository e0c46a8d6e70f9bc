//! Pages: where a file is mapped so that huge pages fit, and how pages come before they are needed.
//!
//! A huge page (2 MiB on x86-64) is mapped by one entry only where address and file offset agree modulo
//! its size and one mapping covers it. The kernel sees to that on mounts that give huge pages, and
//! nowhere else, so addresses are chosen here.

use super::page_size;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// A thread that maps pages has at least so many of them to map.
const POPULATED_BY_ONE: usize = 32 << 20;
/// Threads that map pages together.
const POPULATED_BY_MOST: usize = 8;
/// Mapped by one call: a signal ends the call, which then begins anew.
const POPULATED_AT_ONCE: usize = 16 << 20;

/// A part of a file to be mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// In bytes, on a page.
    pub offset: usize,
    /// In bytes.
    pub len: usize,
    pub writable: bool,
}

/// Mapped bytes of a file, unmapped when this is dropped.
#[derive(Debug)]
pub(crate) struct Area {
    start: *mut u8,
    len: usize,
}

// SAFETY: an address and a length. What may be done with the bytes is the business of `mapping`.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Writable only if it was mapped so.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// First address, and how many bytes.
    pub(crate) fn range(&self) -> Range {
        Range {
            start: self.start as usize,
            len: self.len,
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped by us, unmapped once. Whoever made it lets no pointer into it outlive it.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Addresses of mapped bytes of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: usize,
    pub len: usize,
}

impl Range {
    pub(crate) fn end(self) -> usize {
        self.start + self.len
    }

    /// The whole huge pages in it.
    pub(crate) fn whole(self, huge: usize) -> Self {
        let start = self.start.next_multiple_of(huge);
        let end = self.end() / huge * huge;
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }
}

/// Bytes of a huge page; 0 where the kernel has none.
pub(crate) fn huge_page_size() -> usize {
    static HUGE: OnceLock<usize> = OnceLock::new();
    *HUGE.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
            .ok()
            .and_then(|n| n.trim().parse().ok())
            .filter(|n: &usize| n.is_power_of_two() && *n > page_size())
            .unwrap_or(0)
    })
}

/// What the kernel is set to for all memory file systems (`shmem_enabled`); `None` when it has no huge pages.
pub(crate) fn shmem_enabled() -> Option<String> {
    let all = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok()?;
    let (_, rest) = all.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Maps parts that follow one another in a file, also in memory where that is possible: neighbours of equal
/// rights are then one mapping of the kernel's, of which a process may have so many (`vm.max_map_count`).
pub(crate) fn map<const N: usize>(file: &File, parts: [Part; N]) -> io::Result<[Area; N]> {
    let total: usize = parts.iter().map(|part| part.len).sum();
    let huge = huge_page_size();
    if huge != 0
        && total >= huge
        && let Some(base) = reserve_addresses(total, huge)
    {
        let base_offset = parts[0].offset;
        let at = |part: Part| Some(base + (part.offset - base_offset));
        match map_each(file, parts, at) {
            Ok(areas) => return Ok(areas),
            // The kernel's own choice needs a mapping or two less.
            Err(_) => unmap(base, total),
        }
    }
    map_each(file, parts, |_| None)
}

/// From the last to the first: Linux puts each mapping right below the one before.
fn map_each<const N: usize>(
    file: &File,
    parts: [Part; N],
    at: impl Fn(Part) -> Option<usize>,
) -> io::Result<[Area; N]> {
    let mut areas = Vec::with_capacity(N);
    for part in parts.into_iter().rev() {
        let fixed = at(part);
        match map_one(file, part, fixed) {
            Ok(area) => areas.push(area),
            Err(error) => {
                // Among addresses of ours they go with those, at once: in between another thread might get them.
                if fixed.is_some() {
                    areas.into_iter().for_each(std::mem::forget);
                }
                return Err(error);
            }
        }
    }
    areas.reverse();
    areas
        .try_into()
        .map_err(|_| io::Error::other("as many areas as parts"))
}

fn map_one(file: &File, part: Part, at: Option<usize>) -> io::Result<Area> {
    let rights = if part.writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
    // SAFETY: with an address, it lies in a range that `reserve_addresses` has for us and that nothing
    // uses; without, the kernel chooses.
    let start = unsafe {
        libc::mmap(
            at.unwrap_or(0) as *mut libc::c_void,
            part.len,
            rights,
            libc::MAP_SHARED | fixed,
            file.as_raw_fd(),
            part.offset as libc::off_t,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Area {
        start: start.cast(),
        len: part.len,
    })
}

/// So many free addresses from a multiple of `huge` on; `None` when the system has none.
fn reserve_addresses(total: usize, huge: usize) -> Option<usize> {
    let slack = huge - page_size();
    let room = total.checked_add(slack)?;
    // SAFETY: a new mapping without rights, where the kernel chooses.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            room,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start as usize;
    let base = start.next_multiple_of(huge);
    unmap(start, base - start);
    unmap(base + total, start + room - (base + total));
    Some(base)
}

/// Ends what `reserve_addresses` has reserved, or a part of it.
fn unmap(start: usize, len: usize) {
    if len != 0 {
        // SAFETY: of a reservation of ours, in which nothing lies any more or yet.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}

fn advise(range: Range, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: of a mapping of ours. The advices given here change no byte of it: they say how it is backed,
    // or that children do not inherit it.
    match unsafe { libc::madvise(range.start as *mut libc::c_void, range.len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forked children do not get it (MADV_DONTFORK).
pub(crate) fn keep_from_children(range: Range) -> io::Result<()> {
    advise(range, libc::MADV_DONTFORK)
}

/// Locks it in memory (mlock(2)).
pub(crate) fn lock(range: Range) -> io::Result<()> {
    // SAFETY: of a mapping of ours; changes no byte.
    match unsafe { libc::mlock(range.start as *const libc::c_void, range.len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps every page of a range, by several threads when it is large.
///
/// EFAULT: there is no page for some of it. Where the kernel cannot do it in one call (before Linux 5.14),
/// each page is touched instead, and a page that is missing is found by the guard.
pub(crate) fn populate(range: Range, writable: bool) -> io::Result<()> {
    // Measured on two virtual CPUs: two threads are a twentieth slower than one.
    let cores = std::thread::available_parallelism().map_or(1, usize::from) / 2;
    let most = cores.clamp(1, POPULATED_BY_MOST);
    populate_by(
        (range.len / POPULATED_BY_ONE).clamp(1, most),
        range,
        writable,
    )
}

fn populate_by(threads: usize, range: Range, writable: bool) -> io::Result<()> {
    let unit = huge_page_size().max(page_size());
    let share = (range.len / threads.max(1)).next_multiple_of(unit);
    let shares: Vec<Range> = (range.start..range.end())
        .step_by(share.max(unit))
        .map(|start| Range {
            start,
            len: share.min(range.end() - start),
        })
        .collect();
    let Some((own, others)) = shares.split_first() else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = others
            .iter()
            .map(|share| {
                let work = move || populate_share(*share, writable);
                let thread = std::thread::Builder::new().name("shm-populate".into());
                // Where there is no thread to be had, this one does it.
                thread.spawn_scoped(scope, work).map_err(|_| *share)
            })
            .collect();
        let mut outcome = populate_share(*own, writable);
        for thread in started {
            let one = match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread that maps pages"))),
                Err(share) => populate_share(share, writable),
            };
            outcome = outcome.and(one);
        }
        outcome
    })
}

fn populate_share(range: Range, writable: bool) -> io::Result<()> {
    let advice = if writable {
        libc::MADV_POPULATE_WRITE
    } else {
        libc::MADV_POPULATE_READ
    };
    let mut at = range.start;
    while at < range.end() {
        let piece = Range {
            start: at,
            len: POPULATED_AT_ONCE.min(range.end() - at),
        };
        match advise(piece, advice) {
            Ok(()) => at += piece.len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                touch(piece, writable);
                at += piece.len;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Touches every page, and changes nothing.
fn touch(range: Range, writable: bool) {
    for at in range_pages(range) {
        // SAFETY: a byte of a mapping of ours, which others may read and write: as an atomic. The guard
        // has an answer for a page that is not there.
        let byte = unsafe { AtomicU8::from_ptr(at as *mut u8) };
        if writable {
            byte.fetch_or(0, Ordering::Relaxed);
        } else {
            std::hint::black_box(byte.load(Ordering::Relaxed));
        }
    }
}

fn range_pages(range: Range) -> impl Iterator<Item = usize> {
    (range.start..range.end()).step_by(page_size())
}

/// Has new memory come in huge pages, as far as whole ones fit into the range and are to be had: by the mount,
/// or by the kernel on request (MADV_COLLAPSE, Linux 6.1), which does it on every mount. What it cannot give is
/// left as it is. The range must be of pages that nobody has touched, for a page that is there stays small.
///
/// The kernel's last refusal, where there was one.
pub(crate) fn make_huge(range: Range) -> Option<io::Error> {
    let huge = huge_page_size();
    if huge == 0 {
        return Some(io::ErrorKind::Unsupported.into());
    }
    // Of the whole range: one part with another advice would be another mapping.
    if let Err(error) = advise(range, libc::MADV_HUGEPAGE) {
        return Some(error);
    }
    let whole = range.whole(huge);
    if whole.len == 0 {
        return None;
    }
    // One page each. Where the mount gives huge pages it is one; elsewhere it is what a collapse begins with.
    for start in (whole.start..whole.end()).step_by(huge) {
        let first = Range {
            start,
            len: page_size(),
        };
        if let Err(error) = populate_share(first, true) {
            return Some(error);
        }
    }
    if super::smaps::scan(whole).is_some_and(|seen| seen.huge == whole.len as u64) {
        return None;
    }
    advise(whole, libc::MADV_COLLAPSE).err()
}

/// Whether a file of this file system can have a huge page, tried with one. The file is empty again
/// afterwards.
pub(crate) fn can_be_huge(file: &File) -> bool {
    let huge = huge_page_size();
    let tried = || -> io::Result<bool> {
        file.set_len(huge as u64)?;
        let part = Part {
            offset: 0,
            len: huge,
            writable: true,
        };
        let [area] = map(file, [part])?;
        make_huge(area.range());
        Ok(super::smaps::look(area.range())?.huge == huge as u64)
    };
    let found = huge != 0 && tried().unwrap_or(false);
    let _ = file.set_len(0);
    found
}

/// Offsets and lengths of what a file has pages for.
pub(crate) fn data_extents(file: &File, from: usize, to: usize) -> io::Result<Vec<(usize, usize)>> {
    let seek = |at: usize, whence| {
        // SAFETY: takes no pointers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
        usize::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let mut extents = Vec::new();
    let mut at = from;
    while at < to {
        let start = match seek(at, libc::SEEK_DATA) {
            Ok(start) if start < to => start,
            Ok(_) => break,
            // Nothing but a hole, or the end of the file.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
            Err(e) => return Err(e),
        };
        let end = seek(start, libc::SEEK_HOLE)?.min(to);
        extents.push((start, end - start));
        at = end.max(start + 1);
    }
    Ok(extents)
}

/// Bytes that this process may still lock, when there is a limit that counts for it.
pub(crate) fn lockable() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0
        || limit.rlim_cur == libc::RLIM_INFINITY
    {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let locked: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(limit.rlim_cur.saturating_sub(locked * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Unnamed, read_at, smaps, write_at};
    use std::os::fd::AsFd;

    fn file(len: usize) -> File {
        let unnamed = Unnamed::create(std::path::Path::new("/dev/shm"), 0o600).unwrap();
        unnamed.file.set_len(len as u64).unwrap();
        unnamed.file.try_clone().unwrap()
    }

    fn parts(lens: [usize; 3], writable: [bool; 3]) -> [Part; 3] {
        let mut offset = 0;
        std::array::from_fn(|i| {
            let part = Part {
                offset,
                len: lens[i],
                writable: writable[i],
            };
            offset += lens[i];
            part
        })
    }

    /// How many mappings of this process's are of a file.
    fn mappings_of(file: &File) -> usize {
        let metadata = file.metadata().unwrap();
        let inode = format!(" {} ", std::os::unix::fs::MetadataExt::ino(&metadata));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(&inode)).count()
    }

    #[test]
    fn large_files_lie_where_huge_pages_fit_and_in_one_piece() {
        let (page, huge) = (page_size(), huge_page_size());
        if huge == 0 {
            println!("NOT RUN: this kernel has no huge pages");
            return;
        }
        let lens = [page, 5 * page, 3 * huge];
        let file = file(lens.iter().sum());
        for (writable, mappings) in [([true; 3], 1), ([false, true, false], 3), ([false; 3], 1)] {
            let areas = map(&file, parts(lens, writable)).unwrap();
            assert_eq!(areas[0].range().start % huge, 0);
            assert_eq!(areas[0].range().end(), areas[1].range().start);
            assert_eq!(areas[1].range().end(), areas[2].range().start);
            assert_eq!(mappings_of(&file), mappings);
        }
    }

    #[test]
    fn a_file_that_cannot_be_mapped_leaves_no_address_taken() {
        let len = 3 * huge_page_size().max(1 << 20);
        let file = file(2 * len);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let read_only = File::open(path).unwrap();
        // The last part is mapped first, and has to go again.
        let parts = parts([len, len, page_size()], [true, true, false]);
        let error = map(&read_only, parts).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        assert_eq!(mappings_of(&file), 0);
    }

    #[test]
    fn every_page_of_a_range_is_mapped_by_any_number_of_threads() {
        let len = 3 * huge_page_size().max(1 << 20) + 5 * page_size();
        for (threads, writable) in [(1, true), (2, true), (7, true), (3, false)] {
            let file = file(len);
            let part = Part {
                offset: 0,
                len,
                writable,
            };
            let [area] = map(&file, [part]).unwrap();
            populate_by(threads, area.range(), writable).unwrap();
            let seen = smaps::look(area.range()).unwrap();
            assert_eq!(seen.resident, len as u64, "{threads}");
        }
    }

    #[test]
    fn a_kernel_that_maps_no_range_at_once_has_each_page_touched() {
        let len = 70 * page_size();
        let file = file(len);
        let part = Part {
            offset: 0,
            len,
            writable: true,
        };
        let [area] = map(&file, [part]).unwrap();
        write_at(file.as_fd(), &[7; 3], 0).unwrap();
        touch(area.range(), true);
        let seen = smaps::look(area.range()).unwrap();
        assert_eq!(seen.resident, len as u64);
        let mut kept = [0; 3];
        read_at(file.as_fd(), &mut kept, 0).unwrap();
        assert_eq!(kept, [7; 3]);
    }

    #[test]
    fn what_a_file_has_pages_for_is_found() {
        let page = page_size();
        let file = file(10 * page);
        for at in [2, 3, 7] {
            write_at(file.as_fd(), &[1], (at * page) as u64).unwrap();
        }
        let found = data_extents(&file, 0, 10 * page).unwrap();
        assert_eq!(found, [(2 * page, 2 * page), (7 * page, page)]);
        let part = data_extents(&file, 3 * page, 7 * page).unwrap();
        assert_eq!(part, [(3 * page, page)]);
    }
}

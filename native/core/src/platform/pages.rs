//! Pages: where a file is mapped so that huge pages fit, and what the kernel is told of them.
//!
//! A huge page (2 MiB on x86-64) is mapped by one entry only where address and file offset agree modulo
//! its size and one mapping covers it. The kernel sees to that on mounts that give huge pages, and
//! nowhere else, so for files that may get them on request addresses are chosen here.

use super::page_size;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// One that ends where the next begins, with that one: unmapped together, by one call.
    pub(crate) fn join(self, next: Self) -> (Self, Option<Self>) {
        if self.range().end() != next.start as usize {
            return (self, Some(next));
        }
        let (one, next) = (ManuallyDrop::new(self), ManuallyDrop::new(next));
        let both = Self {
            start: one.start,
            len: one.len + next.len,
        };
        (both, None)
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
        // Here the next one has room.
        let huge = huge_page_size();
        if huge != 0 && self.len >= huge && (self.start as usize).is_multiple_of(huge) {
            BELOW.fetch_max(self.range().end().next_multiple_of(huge), Ordering::Relaxed);
        }
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

/// Maps parts that follow one another in a file, in memory as well: neighbours of equal rights are then one
/// mapping of the kernel's, of which a process may have so many (`vm.max_map_count`). With `huge_on_request`
/// at an address where huge pages fit also where the mount gives none.
pub(crate) fn map<const N: usize>(
    file: &File,
    parts: [Part; N],
    huge_on_request: bool,
) -> io::Result<[Area; N]> {
    let total: usize = parts.iter().map(|part| part.len).sum();
    let huge = huge_page_size();
    let whole = if huge_on_request && huge != 0 && total >= huge {
        map_on_huge(file, &parts, total, huge)?
    } else {
        map_range(file, parts[0], total, At::Anywhere)?
    };
    set_rights(&whole, &parts)?;
    Ok(split(whole, parts))
}

/// Where the last mapping on a huge page's boundary began, or one ended that has gone since: below it there
/// is room, most likely. 0 = not known. Only ever a wish, which the kernel grants or not.
static BELOW: AtomicUsize = AtomicUsize::new(0);
/// No wish is lower: there the program itself may lie.
const LOWEST: usize = 1 << 32;

/// Maps `total` bytes from a multiple of `huge` on. To reserve addresses and give back what is too much is two
/// calls more, which in cold caches are a quarter of an attach; so a likely place is tried first, then one
/// near to where the kernel itself would go.
fn map_on_huge(file: &File, parts: &[Part], total: usize, huge: usize) -> io::Result<Area> {
    let fits = |area: &Area| (area.start as usize).is_multiple_of(huge);
    let room = total.next_multiple_of(huge);
    let below = BELOW.load(Ordering::Relaxed);
    let mut wish = below.checked_sub(room).filter(|wish| *wish >= LOWEST);
    for _ in 0..2 {
        let at = wish.map_or(At::Anywhere, At::Near);
        let area = map_range(file, parts[0], total, at)?;
        if fits(&area) {
            BELOW.store(area.start as usize, Ordering::Relaxed);
            return Ok(area);
        }
        wish = Some(area.start as usize / huge * huge).filter(|wish| *wish >= LOWEST);
    }
    if let Some(base) = reserve_addresses(total, huge) {
        match map_range(file, parts[0], total, At::Fixed(base)) {
            Ok(area) => return Ok(area),
            Err(_) => unmap(base, total),
        }
    }
    map_range(file, parts[0], total, At::Anywhere)
}

/// The parts of what was mapped in one piece.
fn split<const N: usize>(whole: Area, parts: [Part; N]) -> [Area; N] {
    let whole = ManuallyDrop::new(whole);
    let before = parts[0].offset;
    parts.map(|part| Area {
        start: whole.start.wrapping_add(part.offset - before),
        len: part.len,
    })
}

fn rights(writable: bool) -> libc::c_int {
    if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    }
}

/// Where a mapping is to begin.
#[derive(Debug, Clone, Copy)]
enum At {
    Anywhere,
    /// There, if that is free.
    Near(usize),
    /// In a range of `reserve_addresses`.
    Fixed(usize),
}

/// Maps `len` bytes from where the first part begins, with its rights.
fn map_range(file: &File, first: Part, len: usize, at: At) -> io::Result<Area> {
    let (address, fixed) = match at {
        At::Anywhere => (0, 0),
        At::Near(address) => (address, 0),
        At::Fixed(address) => (address, libc::MAP_FIXED),
    };
    // SAFETY: with MAP_FIXED, the address lies in a range that `reserve_addresses` has for us and that
    // nothing uses; without, the kernel chooses what is free.
    let start = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            len,
            rights(first.writable),
            libc::MAP_SHARED | fixed,
            file.as_raw_fd(),
            first.offset as libc::off_t,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Area {
        start: start.cast(),
        len,
    })
}

/// Gives each part that has other rights than the first its own: one call, cheaper than a mapping of its own.
fn set_rights(whole: &Area, parts: &[Part]) -> io::Result<()> {
    let first = parts[0];
    for part in parts.iter().filter(|part| part.writable != first.writable) {
        let start = whole.start.wrapping_add(part.offset - first.offset);
        // SAFETY: a part of what was just mapped, which nobody uses yet.
        if unsafe { libc::mprotect(start.cast(), part.len, rights(part.writable)) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
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

pub(super) fn advise(range: Range, advice: libc::c_int) -> io::Result<()> {
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
pub(super) mod tests {
    use super::*;
    use crate::platform::Unnamed;

    pub(in crate::platform) fn file(len: usize) -> File {
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
            let areas = map(&file, parts(lens, writable), true).unwrap();
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
        for writable in [[true, true, false], [false, true, false]] {
            for huge in [true, false] {
                // In the second case all is mapped first, and has to go again.
                let parts = parts([len, len, page_size()], writable);
                let error = map(&read_only, parts, huge).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
                assert_eq!(mappings_of(&file), 0);
            }
        }
    }

    #[test]
    fn where_one_has_gone_the_next_begins_and_several_lie_side_by_side() {
        let (page, huge) = (page_size(), huge_page_size());
        if huge == 0 {
            println!("NOT RUN: this kernel has no huge pages");
            return;
        }
        let lens = [page, 5 * page, huge];
        let file = file(lens.iter().sum());
        // More than there is room for in any gap, so that wishes are refused, too.
        let mut held = Vec::new();
        for round in 0..200 {
            let areas = map(&file, parts(lens, [false, true, false]), true).unwrap();
            assert!(areas[0].range().start.is_multiple_of(huge));
            if round % 3 != 0 {
                held.push(areas);
            }
        }
        let mut starts: Vec<_> = held.iter().map(|areas| areas[0].range().start).collect();
        starts.sort_unstable();
        let distinct = starts.windows(2).all(|two| two[1] - two[0] >= 2 * huge);
        assert!(distinct, "{starts:x?}");
        assert_eq!(mappings_of(&file), 3 * held.len());
    }

    #[test]
    fn parts_of_a_mapping_are_unmapped_together_or_apart() {
        let page = page_size();
        let lens = [page, 5 * page, 3 * page];
        let file = file(lens.iter().sum());
        for huge in [true, false] {
            let [header, control, slots] =
                map(&file, parts(lens, [false, true, false]), huge).unwrap();
            assert_eq!(mappings_of(&file), 3);
            let (both, None) = control.join(slots) else {
                panic!("they are neighbours");
            };
            let (both, Some(header)) = both.join(header) else {
                panic!("they are in the wrong order");
            };
            assert_eq!(both.len(), 8 * page);
            drop(both);
            assert_eq!(mappings_of(&file), 1);
            drop(header);
            assert_eq!(mappings_of(&file), 0);
        }
    }
}

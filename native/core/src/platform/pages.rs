//! Pages: where a file is mapped so that huge pages fit, and what the kernel is told of them.
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
}

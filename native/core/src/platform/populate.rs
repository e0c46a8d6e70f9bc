//! Pages that come before they are needed: mapped, and huge where they can be.

use super::page_size;
use super::pages::{Part, Range, advise, huge_page_size, map};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// A thread that maps pages has at least so many of them to map.
const POPULATED_BY_ONE: usize = 32 << 20;
/// Threads that map pages together.
const POPULATED_BY_MOST: usize = 8;
/// Mapped by one call: a signal ends the call, which then begins anew.
const POPULATED_AT_ONCE: usize = 16 << 20;

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
        let [area] = map(file, [part], true)?;
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

#[cfg(test)]
mod tests {
    use super::super::pages::tests::file;
    use super::*;
    use crate::platform::{read_at, smaps, write_at};
    use std::os::fd::AsFd;

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
            let [area] = map(&file, [part], true).unwrap();
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
        let [area] = map(&file, [part], true).unwrap();
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

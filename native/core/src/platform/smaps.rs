//! How memory of ours is backed: what the kernel tells of it.

use super::pages::{Range, huge_page_size};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;

/// How a range is backed, as far as this process has mapped it. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Mapped to pages.
    pub resident: u64,
    /// Of these, by huge pages.
    pub huge: u64,
    /// Locked in memory.
    pub locked: u64,
}

/// Reads /proc/self/smaps (proc_pid_smaps(5)) for a range. Slow: the kernel walks the pages of every mapping
/// of the process up to this one.
pub(crate) fn look(range: Range) -> io::Result<Backing> {
    let file = BufReader::new(File::open("/proc/self/smaps")?);
    let mut found = Backing::default();
    let mut ours = false;
    for line in file.lines() {
        let line = line?;
        if let Some((start, end)) = addresses(&line) {
            if start >= range.end() {
                break;
            }
            ours = start >= range.start && end <= range.end();
        } else if ours && let Some((field, amount)) = amount(&line) {
            match field {
                "Rss" => found.resident += amount,
                "ShmemPmdMapped" | "FilePmdMapped" => found.huge += amount,
                "Locked" => found.locked += amount,
                _ => {}
            }
        }
    }
    Ok(found)
}

/// First and last address of a mapping, when the line begins one.
fn addresses(line: &str) -> Option<(usize, usize)> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let number = |hex| usize::from_str_radix(hex, 16).ok();
    Some((number(start)?, number(end)?))
}

/// `Rss:   102400 kB`, in bytes.
fn amount(line: &str) -> Option<(&str, u64)> {
    let (field, rest) = line.split_once(':')?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some((field, kib * 1024))
}

/// What an ioctl of /proc/self/pagemap takes (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<Scan>() as u64) << 16 | (b'f' as u64) << 8 | 16;

/// What is resident and huge of a range, in one call however many mappings the process has; `None` on a
/// kernel before Linux 6.7.
pub(crate) fn scan(range: Range) -> Option<Backing> {
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let mut found = [Found::default(); 64];
    let mut seen = Backing::default();
    let mut at = range.start as u64;
    let end = range.end() as u64;
    while at < end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: at,
            end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
            ..Scan::default()
        };
        // SAFETY: the kernel writes at most `vec_len` entries of `found`, and `walk_end`.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut scan) };
        let count = usize::try_from(count).ok()?;
        for part in &found[..count.min(found.len())] {
            let len = part.end - part.start;
            seen.resident += len;
            if part.categories & PAGE_IS_HUGE != 0 {
                seen.huge += len;
            }
        }
        if scan.walk_end <= at {
            return None;
        }
        at = scan.walk_end;
    }
    Some(seen)
}

/// What is huge of a range, the quick way where there is one.
pub(crate) fn huge(range: Range) -> io::Result<u64> {
    if huge_page_size() == 0 {
        return Ok(0);
    }
    match scan(range) {
        Some(seen) => Ok(seen.huge),
        None => Ok(look(range)?.huge),
    }
}

/// A policy in the words of numa(7), and bytes by node.
pub(crate) type NodesOf = (String, Vec<(u32, u64)>);

/// The policy of a range, and its bytes by node, from /proc/self/numa_maps (numa(7)). `None` on a kernel
/// without NUMA.
pub(crate) fn nodes(range: Range) -> io::Result<Option<NodesOf>> {
    let file = match File::open("/proc/self/numa_maps") {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut policy = None;
    let mut nodes = Vec::<(u32, u64)>::new();
    for line in file.lines() {
        let line = line?;
        let mut words = line.split(' ');
        let start = words
            .next()
            .and_then(|at| usize::from_str_radix(at, 16).ok());
        match start {
            Some(start) if start >= range.end() => break,
            Some(start) if start >= range.start => {}
            _ => continue,
        }
        let own = words.next().unwrap_or_default();
        // The last part is that of the slots.
        policy = Some(own.to_owned());
        let unit = words
            .clone()
            .find_map(|word| word.strip_prefix("kernelpagesize_kB=")?.parse::<u64>().ok())
            .unwrap_or(4)
            * 1024;
        for word in words {
            let Some((node, pages)) = word.strip_prefix('N').and_then(|w| w.split_once('=')) else {
                continue;
            };
            if let (Ok(node), Ok(pages)) = (node.parse::<u32>(), pages.parse::<u64>()) {
                match nodes.iter_mut().find(|(known, _)| *known == node) {
                    Some((_, bytes)) => *bytes += pages * unit,
                    None => nodes.push((node, pages * unit)),
                }
            }
        }
    }
    nodes.sort_unstable();
    Ok(policy.map(|policy| (policy, nodes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_looking_see_the_same() {
        let huge = huge_page_size().max(1 << 20);
        let unnamed = crate::platform::Unnamed::create(std::path::Path::new("/dev/shm"), 0o600);
        let file = unnamed.unwrap().file.try_clone().unwrap();
        file.set_len(4 * huge as u64).unwrap();
        let part = crate::platform::pages::Part {
            offset: 0,
            len: 4 * huge,
            writable: true,
        };
        let [area] = crate::platform::pages::map(&file, [part], true).unwrap();
        let whole = area.range();
        let (first, last) = (
            Range { len: huge, ..whole },
            Range {
                start: whole.end() - 3 * crate::platform::page_size(),
                len: 3 * crate::platform::page_size(),
            },
        );
        crate::platform::populate::make_huge(first);
        crate::platform::populate::populate(last, true).unwrap();
        let seen = look(whole).unwrap();
        assert!(seen.resident > last.len as u64 && seen.huge <= huge as u64);
        match scan(whole) {
            Some(quick) => assert_eq!((quick.resident, quick.huge), (seen.resident, seen.huge)),
            None => println!("NOT RUN: the quick way: this kernel is older than Linux 6.7"),
        }
    }

    #[test]
    fn lines_are_read_for_what_they_are() {
        let mapping = "7fd5f4600000-7fd5faa00000 rw-s 00000000 00:27 6    /a - b: 4 kB";
        assert_eq!(
            addresses(mapping),
            Some((0x7fd5_f460_0000, 0x7fd5_faa0_0000))
        );
        assert_eq!(addresses("ShmemPmdMapped:   102400 kB"), None);
        assert_eq!(
            amount("ShmemPmdMapped:   102400 kB"),
            Some(("ShmemPmdMapped", 102_400 << 10))
        );
        assert_eq!(amount("VmFlags: rd wr sh mr mw me ms sd"), None);
    }
}

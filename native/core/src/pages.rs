//! What a segment's memory is to be like: asked for, and checked.

use crate::error::{Resource, Result, ShmError};
use crate::layout::flags;
use crate::mapping::Mapping;
use crate::name::Place;
use crate::options::{HugePages, Numa, Reserve, SegmentOptions};
use crate::platform::numa::{self, Nodes, Spread};
use crate::platform::{self, pages};
use std::fs::File;
use std::io;

impl SegmentOptions {
    /// Checks what is asked of memory against the rest.
    pub(crate) fn check_memory(&self) -> Result<()> {
        let invalid = |option, reason: &str| {
            Err(ShmError::InvalidOption {
                option,
                reason: reason.to_owned(),
            })
        };
        let lazily = self.reserve == Reserve::Lazy;
        if lazily && self.prefault {
            return invalid(
                "prefault",
                "there are no pages to map, for they are reserved lazily",
            );
        }
        if lazily && self.huge_pages == HugePages::Require {
            return invalid(
                "huge_pages",
                "pages that are reserved lazily cannot be required to be huge",
            );
        }
        match &self.numa {
            Some(Numa::Bind(nodes)) if nodes.is_empty() => invalid("numa", "expected a node"),
            _ => Ok(()),
        }
    }
}

/// Before a new segment's first page is there: where pages come from.
pub(crate) fn before_reserve(
    options: &SegmentOptions,
    place: &Place,
    mapping: &Mapping,
) -> Result<()> {
    let name = options.name.as_str();
    keep_from_children(options, mapping)?;
    if let Some(numa) = &options.numa {
        spread(name, numa, mapping)?;
    }
    let needed = mapping.huge_possible();
    if options.huge_pages == HugePages::Require && needed == 0 {
        let reason = match pages::huge_page_size() {
            0 => "this kernel has no huge pages".to_owned(),
            huge => format!(
                "a segment of {} bytes has no room for a huge page of {huge}; prefer them, where some have",
                mapping.file_len()
            ),
        };
        return Err(ShmError::InvalidOption {
            option: "huge_pages",
            reason,
        });
    }
    // Before `fallocate`, whose pages are small on a mount that only gives huge ones when advised.
    if options.huge_pages == HugePages::No || options.reserve == Reserve::Lazy || needed == 0 {
        return Ok(());
    }
    let refusal = mapping.make_huge();
    if options.huge_pages == HugePages::Prefer {
        if let Some(error) = refusal {
            tracing::debug!(name, %error, "not all pages are huge");
        }
        return Ok(());
    }
    let huge = mapping
        .huge()
        .map_err(|e| ShmError::from_io(name, "look at the pages of", e))?;
    if huge >= needed {
        return Ok(());
    }
    Err(not_huge(name, place, (huge, needed), refusal))
}

/// Why huge pages that were required are not there.
fn not_huge(
    name: &str,
    place: &Place,
    (huge, needed): (u64, u64),
    refusal: Option<io::Error>,
) -> ShmError {
    let errno = refusal.as_ref().and_then(io::Error::raw_os_error);
    let available = platform::available_space(&place.dir);
    // A page could not be had at all (EFAULT), or not that many.
    if available.is_some_and(|room| room < needed - huge) {
        return ShmError::ResourceExhausted {
            name: Some(name.to_owned()),
            resource: Resource::Space,
            needed,
            available,
        };
    }
    if huge == 0 && errno == Some(libc::EINVAL) {
        return ShmError::InvalidOption {
            option: "huge_pages",
            reason: format!(
                "the mount of {} gives none (mount -o remount,huge=advise), and neither does the kernel on \
                 request (Linux 6.1, with shmem_enabled other than deny)",
                place.dir.display()
            ),
        };
    }
    ShmError::ResourceExhausted {
        name: Some(name.to_owned()),
        resource: Resource::HugePages,
        needed,
        available: Some(huge),
    }
}

/// When a new segment's pages are reserved: maps and locks them.
pub(crate) fn after_reserve(options: &SegmentOptions, mapping: &Mapping) -> Result<()> {
    let name = options.name.as_str();
    if options.prefault {
        mapping
            .populate()
            .map_err(|e| ShmError::from_io(name, "prefault", e))?;
    }
    if options.lock_memory {
        lock(name, mapping)?;
    }
    Ok(())
}

/// What whoever attaches asks of its mapping.
pub(crate) fn attached(
    options: &SegmentOptions,
    name: &str,
    mapping: &Mapping,
    file: &File,
) -> Result<()> {
    keep_from_children(options, mapping)?;
    if options.prefault {
        mapping
            .populate_what_is_there(file)
            .map_err(|e| no_pages(name, mapping, file, e))?;
        if mapping.lost() {
            return Err(mapping.loss(name));
        }
    }
    if options.lock_memory {
        lock(name, mapping)?;
    }
    Ok(())
}

/// Why pages that a segment should have could not be mapped.
pub(crate) fn no_pages(name: &str, mapping: &Mapping, file: &File, error: io::Error) -> ShmError {
    let cut = file
        .metadata()
        .is_ok_and(|meta| meta.len() < mapping.file_len() as u64);
    match error.raw_os_error() {
        Some(libc::EFAULT) if cut => ShmError::Truncated {
            name: name.to_owned(),
        },
        // A hole, and no memory for it; or none for the tables that map.
        Some(libc::EFAULT | libc::ENOMEM) => ShmError::ResourceExhausted {
            name: Some(name.to_owned()),
            resource: Resource::Space,
            needed: mapping.file_len() as u64,
            available: None,
        },
        _ => ShmError::from_io(name, "prefault", error),
    }
}

fn keep_from_children(options: &SegmentOptions, mapping: &Mapping) -> Result<()> {
    if !options.dont_fork {
        return Ok(());
    }
    mapping
        .keep_from_children()
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM) => ShmError::ResourceExhausted {
                name: Some(options.name.clone()),
                resource: Resource::AddressSpace,
                needed: mapping.file_len() as u64,
                available: None,
            },
            _ => ShmError::from_io(&options.name, "keep from forked children", source),
        })
}

fn spread(name: &str, numa: &Numa, mapping: &Mapping) -> Result<()> {
    let (how, asked) = match numa {
        Numa::Bind(nodes) => (Spread::Bind, nodes),
        Numa::Interleave(nodes) => (Spread::Interleave, nodes),
    };
    let option = match numa {
        Numa::Bind(nodes) if nodes.len() == 1 => "numa_node",
        _ => "numa",
    };
    let invalid = |reason| ShmError::InvalidOption { option, reason };
    let refused = |e: io::Error| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ShmError::from_io(name, "place on a node", e),
        Some(libc::ENOSYS) => invalid("this kernel has no NUMA".to_owned()),
        _ => invalid(format!("the system refuses nodes {asked:?}: {e}")),
    };
    let allowed = numa::allowed_nodes().map_err(refused)?;
    // The kernel leaves out in silence what is not there of a set.
    let missing = asked.iter().find(|node| !allowed.has(**node));
    if let Some(node) = missing {
        return Err(invalid(format!(
            "there is no node {node} for this process, but {:?}",
            allowed.numbers()
        )));
    }
    let nodes = match Nodes::of(asked) {
        Ok(_) if asked.is_empty() => allowed,
        Ok(nodes) => nodes,
        Err(node) => return Err(invalid(format!("no node has number {node}"))),
    };
    mapping.spread(how, &nodes).map_err(refused)
}

fn lock(name: &str, mapping: &Mapping) -> Result<()> {
    let needed = mapping.file_len() as u64;
    let exhausted = |resource, available| ShmError::ResourceExhausted {
        name: Some(name.to_owned()),
        resource,
        needed,
        available,
    };
    mapping
        .lock()
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => exhausted(Resource::LockedMemory, Some(0)),
            Some(libc::ENOMEM | libc::EAGAIN) => match pages::lockable() {
                // It was not the limit: a hole has no memory.
                room if mapping.geometry().has(flags::LAZY)
                    && room.is_none_or(|room| room >= needed) =>
                {
                    exhausted(Resource::Space, None)
                }
                room => exhausted(Resource::LockedMemory, room),
            },
            _ => ShmError::from_io(name, "lock", source),
        })
}

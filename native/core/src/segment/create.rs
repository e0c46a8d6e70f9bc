//! How a segment is built and published: whole, or not at all.

use super::{Segment, is_plain, read_geometry};
use crate::error::{Resource, Result, ShmError};
use crate::layout::{Geometry, READER_ENTRY, READER_TABLE, flags, header};
use crate::mapping::kept::Keepable;
use crate::mapping::{Access, Mapping};
use crate::meta::{self, Meta};
use crate::name::{Place, module_part};
use crate::options::{Reserve, SegmentOptions};
use crate::pages;
use crate::participant::{self, Participant};
use crate::platform::{self, Unnamed};
use crate::reclaim::{self, Swept};
use crate::retired::{PoolFile, Retired};
use crate::tenure;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Where the memory of a new segment comes from.
#[derive(Debug)]
pub(crate) enum Memory {
    /// A file of its own, as long as it needs and gone with it.
    Own,
    /// A new file of so many bytes, for a pool to keep afterwards.
    Room(usize),
    /// A file that a pool has kept. The segment fits.
    Recycled(Retired),
}

impl Memory {
    fn room(&self) -> usize {
        match self {
            Self::Room(len) => *len,
            Self::Own | Self::Recycled(_) => 0,
        }
    }
}

/// How a finished file gets its name.
enum Source {
    Unnamed(Unnamed),
    Pool(PoolFile),
}

impl Source {
    fn name(&mut self, path: &Path) -> io::Result<()> {
        match self {
            Self::Unnamed(unnamed) => unnamed.link(path),
            Self::Pool(file) => file.rename(path),
        }
    }
}

impl Segment {
    /// Builds a segment and publishes it whole, or leaves nothing behind.
    pub(crate) fn create(options: &SegmentOptions) -> Result<Self> {
        Self::create_in(options, Memory::Own)
    }

    /// [`Self::create`] in memory that may have been another's.
    pub(crate) fn create_in(options: &SegmentOptions, memory: Memory) -> Result<Self> {
        let place = options.place()?;
        let meta_path = place.meta_path(&options.name)?;
        let module = module_part(&options.module)?;
        let slots = options.check_create()?;
        let exists = || ShmError::AlreadyExists {
            name: options.name.clone(),
        };
        let participant = participant::join(&place)?;
        reclaim::on_occasion(&place, &participant);
        if meta_path.symlink_metadata().is_ok() {
            // Spares building it; the link below decides. What the dead left is no owner.
            let swept = reclaim::sweep_in_passing(&place, &options.name, &participant);
            if !matches!(
                swept,
                Ok(Swept { removed: true, .. }) | Err(ShmError::NotFound { .. })
            ) {
                return Err(exists());
            }
        }
        let page = platform::page_size();
        let pooled = match memory {
            Memory::Own => 0,
            Memory::Room(_) | Memory::Recycled(_) => flags::POOLED,
        };
        let geometry = Geometry {
            flags: options.flags() | pooled,
            schema_id: options.schema_id.unwrap_or(0),
            created_ns: platform::realtime_ns(),
            ..Geometry::new(slots, options.size, options.max_readers, page)
        };
        let (mapping, mut source) = match memory {
            Memory::Recycled(retired) => {
                let (mapping, file) = retired.revive(geometry);
                (mapping, Source::Pool(file))
            }
            Memory::Own | Memory::Room(_) => {
                let unnamed = Unnamed::create(&place.dir, options.permissions)
                    .map_err(|e| ShmError::from_io(&options.name, "create", e))?;
                let mapping = build(options, &place, &unnamed.file, geometry, memory.room())?;
                mapping.generation().store(1, Ordering::Relaxed);
                (mapping, Source::Unnamed(unnamed))
            }
        };
        let geometry = *mapping.geometry();
        mapping.write_header();
        mapping
            .writer_key()
            .store(participant.key(), Ordering::Relaxed);

        let pid = std::process::id();
        let meta = Meta {
            format: 1,
            name: options.name.clone(),
            namespace: place.namespace.clone(),
            file: place.segment_file(&module, &options.name, pid),
            module,
            size: options.size as u64,
            slots: slots as u32,
            schema_id: geometry.schema_id,
            creator_pid: pid,
            created_ns: geometry.created_ns,
            incarnation: meta::new_incarnation()?,
        };
        mapping.write_identity(&meta.identity());
        publish(options, &place, &mut source, &mapping, &meta, &participant)?;
        Ok(Self {
            name: options.name.clone(),
            place,
            file: meta.file,
            incarnation: meta.incarnation,
            mapping: Keepable::never(mapping),
            participant: Some(participant),
            epoch: platform::fork::epoch(),
            forks: platform::fork::forks(),
            plain: is_plain(options),
        })
    }
}

/// Sizes, maps, places and reserves a new segment's file.
fn build(
    options: &SegmentOptions,
    place: &Place,
    file: &File,
    geometry: Geometry,
    room: usize,
) -> Result<Mapping> {
    let name = options.name.as_str();
    let page = platform::page_size();
    let len = geometry.file_len(page).max(room);
    file.set_len(len as u64)
        .map_err(|e| ShmError::from_io(name, "size", e))?;
    let mapping = Mapping::with_room(name, file, geometry, Access::Writer, len)?;
    pages::before_reserve(options, place, &mapping)?;
    let reserve = |offset: usize, len: usize| {
        platform::reserve(file, offset, len).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM) => ShmError::ResourceExhausted {
                name: Some(name.to_owned()),
                resource: Resource::Space,
                needed: len as u64,
                available: platform::available_space(&place.dir),
            },
            _ => ShmError::from_io(name, "reserve", source),
        })
    };
    // The header and the first control page always; further control pages by the attach that needs
    // them.
    reserve(0, geometry.control + page)?;
    if options.reserve == Reserve::Eager {
        let slots_at = geometry.control + geometry.control_len(page);
        reserve(slots_at, len - slots_at)?;
    }
    pages::after_reserve(options, &mapping)?;
    Ok(mapping)
}

/// Links the finished file in, then its metadata: the name exists from that moment on.
fn publish(
    options: &SegmentOptions,
    place: &Place,
    source: &mut Source,
    mapping: &Mapping,
    meta: &Meta,
    participant: &Participant,
) -> Result<()> {
    let name = options.name.as_str();
    let failed = |e| ShmError::from_io(name, "publish", e);
    let described = Unnamed::create(&place.dir, 0o600).map_err(failed)?;
    platform::write_at(described.file.as_fd(), &meta.to_json(), 0).map_err(failed)?;
    if options.permissions & 0o044 != 0 {
        // Who may read the data may find it.
        use std::os::unix::fs::PermissionsExt;
        let mode = 0o600 | options.permissions & 0o044;
        described
            .file
            .set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(failed)?;
    }

    let _lock = participant.lock_namespace()?;
    let meta_path = place.meta_path(name)?;
    let exists = || ShmError::AlreadyExists {
        name: name.to_owned(),
    };
    if meta_path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let path = meta.path(place);
    match source.name(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_leftover(&path, participant) => {
            // Ours by name and magic, with no metadata, and nobody uses it: what a dead process of
            // this pid left.
            std::fs::remove_file(&path).map_err(failed)?;
            source.name(&path).map_err(failed)?;
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
        Err(e) => return Err(failed(e)),
    }
    // Recycled memory carries the mark of its last segment.
    tenure::admit(mapping);
    described.link(&meta_path).map_err(|e| {
        let _ = std::fs::remove_file(&path);
        match e.kind() {
            io::ErrorKind::AlreadyExists => exists(),
            _ => failed(e),
        }
    })
}

/// Whether a file carries our magic and neither its writer nor a reader lives. Under the lock.
fn is_leftover(path: &Path, participant: &Participant) -> bool {
    let Ok(file) = platform::open_existing(path, false) else {
        return false;
    };
    let alive = |at: usize| {
        let mut key = [0u8; 8];
        let have = platform::read_at(file.as_fd(), &mut key, at as u64);
        let key = u64::from_le_bytes(key);
        have.is_ok_and(|n| n == 8) && key != 0 && participant.is_alive(key)
    };
    let mut head = [0u8; 8];
    let ours = platform::read_at(file.as_fd(), &mut head, 0)
        .is_ok_and(|n| n == 8 && u64::from_le_bytes(head) == crate::layout::MAGIC);
    if !ours || alive(header::WRITER) {
        return false;
    }
    // A header that does not decode is nobody's: nobody could have attached to it.
    read_geometry("", &file).map_or(true, |geometry| {
        let entry = |i| geometry.control + READER_TABLE + i * READER_ENTRY;
        !(0..geometry.max_readers).any(|i| alive(entry(i)))
    })
}

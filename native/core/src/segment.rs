//! A segment as this process sees it: how it is found, checked, joined and removed.

mod create;

pub(crate) use create::Memory;

use crate::error::{Result, ShmError};
use crate::layout::{Geometry, HEADER_LEN, HeaderFault, SegmentState, flags};
use crate::mapping::kept::{self, Keepable};
use crate::mapping::{Access, Mapping};
use crate::meta::Meta;
use crate::name::Place;
use crate::options::SegmentOptions;
use crate::pages;
use crate::participant::{self, Participant, linger};
use crate::platform;
use crate::reclaim;
use crate::seqlock::{self, Words};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A mapped segment, shared by the writer or reader and its views.
#[derive(Debug)]
pub(crate) struct Segment {
    pub name: String,
    pub place: Place,
    /// The segment's file name.
    pub file: String,
    pub incarnation: String,
    pub mapping: Keepable,
    /// `None`: not allowed into the participants table (an observer).
    pub participant: Option<Arc<Participant>>,
    /// Fork epoch of the process that attached.
    pub epoch: u32,
    /// Its forks until then.
    pub forks: u32,
    /// Mapped like any other: not locked, bound, or kept from children, as another segment here would be too.
    pub plain: bool,
}

impl Segment {
    /// Finds a segment by name, checks it and maps it.
    pub(crate) fn open(options: &SegmentOptions, writer: bool) -> Result<(Self, File)> {
        let place = options.place()?;
        let mut meta = Meta::load(&place, &options.name)?;
        loop {
            let opened = Self::open_described(options, &place, &meta, writer);
            if !matches!(
                opened,
                Err(ShmError::Corrupted { .. } | ShmError::Truncated { .. })
            ) {
                return opened;
            }
            // Removed and created anew since we read the metadata? Then they are others now, and
            // somebody else has made progress.
            let again = Meta::load(&place, &options.name)?;
            if again == meta {
                return opened;
            }
            meta = again;
        }
    }

    fn open_described(
        options: &SegmentOptions,
        place: &Place,
        meta: &Meta,
        writer: bool,
    ) -> Result<(Self, File)> {
        let name = options.name.as_str();
        let participant = match participant::join(place) {
            Ok(participant) => Some(participant),
            // A group member who may read the data but not write the table.
            Err(ShmError::PermissionDenied { .. }) if !writer => None,
            Err(other) => return Err(other),
        };
        if let Some(participant) = &participant {
            reclaim::on_occasion(place, participant);
        }
        let (file, found, access) = open_file(place, meta, writer, participant.is_some())?;
        let geometry = read_head(name, &file, found.len())?;
        if geometry.created_ns != meta.created_ns {
            return Err(corrupted(
                name,
                "metadata and segment do not belong together",
            ));
        }
        if let Some(expected) = options.schema_id
            && expected != geometry.schema_id
        {
            return Err(ShmError::SchemaMismatch {
                name: name.to_owned(),
                expected,
                found: geometry.schema_id,
            });
        }
        // Before it is mapped: a child of a fork in between has the mapping.
        let forks = platform::fork::forks();
        let mapping = map(options, &file, &found, geometry, access)?;
        if let Some(participant) = participant.as_ref().filter(|_| geometry.has(flags::POOLED)) {
            linger::used(participant);
        }
        let segment = Self {
            name: name.to_owned(),
            place: place.clone(),
            file: meta.file.clone(),
            incarnation: meta.incarnation.clone(),
            mapping,
            participant,
            epoch: platform::fork::epoch(),
            forks,
            plain: is_plain(options),
        };
        Ok((segment, file))
    }

    /// Whether the immutable header is what it was when it was checked. Everything that is used for
    /// addresses is kept in private memory; this finds scribbling early.
    pub(crate) fn check_header(&self) -> Result<()> {
        let same = self.mapping.header_line() == self.mapping.geometry().encode();
        if self.mapping.lost() {
            Err(self.mapping.loss(&self.name))
        } else if same {
            Ok(())
        } else {
            Err(corrupted(&self.name, "its header was overwritten"))
        }
    }

    /// The state word, or `Corrupted`.
    pub(crate) fn state(&self) -> Result<SegmentState> {
        let state = self.mapping.state();
        if self.mapping.lost() {
            return Err(self.mapping.loss(&self.name));
        }
        state.ok_or_else(|| corrupted(&self.name, "its state is none"))
    }

    /// Wakes all waiting readers, whether or not something was published.
    pub(crate) fn wake_all(&self) {
        if self.mapping.geometry().has(flags::NOTIFY) {
            seqlock::bump_notify(&*self.mapping);
            platform::futex_wake(self.mapping.notify());
        }
    }

    /// Says so where a forked child may have the mapping: it is in no table, so whoever keeps the memory of a
    /// pool would not know of it. To be told before the entry or the claim is given back.
    pub(crate) fn tell_inherited(&self) {
        if self.mapping.geometry().has(flags::POOLED) && self.forks != platform::fork::forks() {
            // Relaxed: the Release of the entry or claim publishes it.
            self.mapping.inherited().store(1, Ordering::Relaxed);
        }
    }

    /// Gives the writer claim back, which this process has, and ends the segment if it is to be closed.
    pub(crate) fn give_claim_back(&self, close: bool) {
        self.tell_inherited();
        let mapping = &*self.mapping;
        // Released: the grace for the next writer begins. Closed: there is none.
        let since = if close {
            0
        } else {
            platform::monotonic_ns().max(1)
        };
        mapping.orphaned().store(since, Ordering::Relaxed);
        if close {
            // A sealed segment stays sealed; its end shows in the claim that nobody holds.
            let _ = mapping.state_word().compare_exchange(
                SegmentState::Active.to_word(),
                SegmentState::Closed.to_word(),
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        if let Some(participant) = &self.participant {
            // Release: the next writer sees all that this one wrote. Only if it still is ours.
            let _ = mapping.writer_key().compare_exchange(
                participant.key(),
                0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        self.wake_all();
    }

    /// Whether the process that holds the writer claim lives; `None` when that cannot be known.
    pub(crate) fn writer_alive(&self) -> Option<bool> {
        let key = self.mapping.writer_key().load(Ordering::Acquire);
        let participant = self.participant.as_ref()?;
        Some(key != 0 && participant.is_alive(key))
    }

    /// Process id of the writer, for people; 0 = none or unknown.
    pub(crate) fn writer_pid(&self) -> u32 {
        let key = self.mapping.writer_key().load(Ordering::Acquire);
        self.participant
            .as_ref()
            .and_then(|p| p.describe(key))
            .map_or(0, |info| info.pid)
    }

    /// Occupied entries of the reader table.
    pub(crate) fn reader_count(&self) -> usize {
        let high = self.reader_high();
        (0..high)
            .filter(|i| self.mapping.reader_key(*i).load(Ordering::Relaxed) != 0)
            .count()
    }

    /// Entries that were ever used lie below this.
    pub(crate) fn reader_high(&self) -> usize {
        let high = self.mapping.reader_high().load(Ordering::Acquire) as usize;
        high.min(self.mapping.geometry().max_readers)
    }
}

fn is_plain(options: &SegmentOptions) -> bool {
    !options.lock_memory && !options.dont_fork && options.numa.is_none()
}

/// Maps a segment that exists: in the memory that an earlier reader or writer has left mapped, if there is such.
fn map(
    options: &SegmentOptions,
    file: &File,
    found: &Metadata,
    geometry: Geometry,
    access: Access,
) -> Result<Keepable> {
    let name = options.name.as_str();
    // What was locked, or kept from children, would be so for the next as well.
    let keep = geometry.has(flags::POOLED) && access != Access::Observer && is_plain(options);
    if !keep {
        let mapping = Mapping::new(name, file, geometry, access)?;
        pages::attached(options, name, &mapping, file)?;
        return Ok(Keepable::never(mapping));
    }
    if let Some(mapping) = kept::take(found, geometry, access) {
        pages::attached(options, name, &mapping, file)?;
        return Ok(Keepable::of_file(mapping, found));
    }
    // All of the file, within reason, so that a later segment in it finds itself mapped.
    let needed = geometry.file_len(platform::page_size());
    let whole = usize::try_from(found.len()).unwrap_or(needed);
    let room = if whole / 2 <= needed { whole } else { needed };
    let room = room / platform::page_size() * platform::page_size();
    let map = || Mapping::with_room(name, file, geometry, access, room);
    let mapping = match map() {
        Err(ShmError::ResourceExhausted { .. }) if kept::held().0 > 0 => {
            kept::forget();
            map()?
        }
        mapped => mapped?,
    };
    pages::attached(options, name, &mapping, file)?;
    Ok(Keepable::of_file(mapping, found))
}

pub(crate) fn corrupted(name: &str, reason: &str) -> ShmError {
    ShmError::Corrupted {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

fn open_file(
    place: &Place,
    meta: &Meta,
    writer: bool,
    joined: bool,
) -> Result<(File, Metadata, Access)> {
    let path = meta.path(place);
    let access = match (writer, joined) {
        (true, _) => Access::Writer,
        (false, true) => Access::Reader,
        (false, false) => Access::Observer,
    };
    let open = |access| {
        platform::open_known(platform::NO_DIRECTORY, &path, access != Access::Observer)
            .map(|(file, found)| (file, found, access))
    };
    let opened = match open(access) {
        // A reader who may not write the file reads without being counted.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && access == Access::Reader => {
            open(Access::Observer)
        }
        other => other,
    };
    opened.map_err(|source| match source.kind() {
        // Removed since we read the metadata, or only its file.
        io::ErrorKind::NotFound => match Meta::load(place, &meta.name) {
            Ok(again) if again == *meta => corrupted(&meta.name, "its file is missing"),
            _ => ShmError::NotFound {
                name: meta.name.clone(),
            },
        },
        io::ErrorKind::InvalidInput => corrupted(&meta.name, "its file is not a regular file"),
        _ if source.raw_os_error() == Some(libc::ELOOP) => {
            corrupted(&meta.name, "its file is a symbolic link")
        }
        _ => ShmError::from_io(&meta.name, "open", source),
    })
}

/// Reads and checks the immutable header by `pread`: no mapping, no SIGBUS.
pub(crate) fn read_geometry(name: &str, file: &File) -> Result<Geometry> {
    let found = file.metadata();
    let found = found.map_err(|e| ShmError::from_io(name, "read", e))?;
    read_head(name, file, found.len())
}

/// [`read_geometry`] of a file of so many bytes.
fn read_head(name: &str, file: &File, len: u64) -> Result<Geometry> {
    let mut line = [0u8; HEADER_LEN];
    let have = platform::read_at(file.as_fd(), &mut line, 0)
        .map_err(|e| ShmError::from_io(name, "read", e))?;
    decode_geometry(name, &line[..have], len)
}

/// The geometry of a file of `len` bytes that begins with `head`, checked.
pub(crate) fn decode_geometry(name: &str, head: &[u8], len: u64) -> Result<Geometry> {
    let Some(line) = head.first_chunk::<HEADER_LEN>() else {
        return Err(ShmError::Truncated {
            name: name.to_owned(),
        });
    };
    Geometry::decode(line, len, platform::page_size()).map_err(|fault| match fault {
        HeaderFault::Truncated { .. } => ShmError::Truncated {
            name: name.to_owned(),
        },
        other => corrupted(name, &other.to_string()),
    })
}

/// Unlinks a segment's files, metadata first. The caller holds the namespace lock.
pub(crate) fn unlink_files(place: &Place, name: &str, meta: &Meta) -> Result<()> {
    for path in [place.meta_path(name)?, meta.path(place)] {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ShmError::from_io(name, "remove", e)),
        }
    }
    Ok(())
}

impl SegmentOptions {
    /// Removes a segment by name, whoever wrote it. Attached readers keep what they have mapped and
    /// are told that it is closed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::SegmentOptions;
    ///
    /// let options = SegmentOptions::new("gone").dir(dir.path());
    /// let writer = options.create().unwrap();
    /// options.remove().unwrap();
    /// assert_eq!(options.attach_reader().unwrap_err().code(), "not_found");
    /// drop(writer);
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`] when there is none, [`ShmError::PermissionDenied`] when the system
    /// refuses.
    pub fn remove(&self) -> Result<()> {
        let place = self.place()?;
        let meta = Meta::load(&place, &self.name)?;
        self.remove_if(&place, &meta.incarnation)
    }

    /// Removes the segment if it still is the one of that incarnation.
    pub(crate) fn remove_if(&self, place: &Place, incarnation: &str) -> Result<()> {
        let participant = participant::join(place)?;
        let _lock = participant.lock_namespace()?;
        let meta = Meta::load(place, &self.name)?;
        if meta.incarnation != incarnation {
            return Err(ShmError::NotFound {
                name: self.name.clone(),
            });
        }
        unlink_files_and_tell(self, place, &meta)
    }
}

fn unlink_files_and_tell(options: &SegmentOptions, place: &Place, meta: &Meta) -> Result<()> {
    // Those who have it mapped hear of it; a segment too broken to open is removed all the same.
    let mapped = open_file(place, meta, true, true)
        .and_then(|(file, ..)| {
            let geometry = read_geometry(&meta.name, &file)?;
            Mapping::new(&meta.name, &file, geometry, Access::Writer)
        })
        .ok();
    unlink_files(place, &options.name, meta)?;
    if let Some(mapping) = mapped {
        reclaim::tell_closed(&mapping);
    }
    Ok(())
}

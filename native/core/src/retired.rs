//! A segment's memory after the segment: taken out of its name, to be given to another.
//!
//! The file keeps its pages and gets a name of a pool (`{ns}.pool.…`), under which nobody finds a segment.
//! The header's writer claim stays with the process that keeps it, so that everybody can tell when that
//! one has died and the file is to be removed.
//! Whether somebody who was late may still be in it is decided by `tenure`.

use crate::error::{Result, ShmError};
use crate::home;
use crate::layout::Geometry;
use crate::mapping::Mapping;
use crate::mapping::kept::{self, FileId};
use crate::name::Place;
use crate::participant::Participant;
use crate::platform::{self, fork};
use crate::reclaim;
use crate::segment::{Segment, unlink_files};
use crate::tenure;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A file under a name of this process's.
#[derive(Debug)]
struct Named {
    path: PathBuf,
    id: FileId,
    /// Its length, as far as it is mapped.
    room: usize,
}

#[derive(Debug)]
enum Renamed {
    Ours(Named),
    Home,
    Removed,
}

/// Where memory that comes home is to be found: its maker knows no more of it than the segment that it was.
pub(crate) fn home_path(segment: &Segment) -> Option<PathBuf> {
    let id = segment.incarnation.get(..16)?;
    Some(segment.place.pool_path(u64::from_str_radix(id, 16).ok()?))
}

/// Memory that no segment has any more. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Retired {
    mapping: Mapping,
    file: PoolFile,
    /// Keeps this process registered, for the claim is its own.
    participant: Arc<Participant>,
    /// Length of the file, as far as it is mapped.
    room: usize,
}

/// What became of a segment's memory.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It is this process's.
    Kept(Box<Retired>),
    /// It went to whoever gave the segment away, and waits there.
    Home,
    /// It is removed.
    Removed,
}

/// A file under its pool's name, unlinked when this is dropped.
#[derive(Debug)]
pub(crate) struct PoolFile {
    /// `None` when it has another name again.
    path: Option<PathBuf>,
    id: FileId,
    epoch: u32,
}

impl PoolFile {
    /// Gives the file the name of a segment, unless that is taken.
    pub(crate) fn rename(&mut self, to: &Path) -> std::io::Result<()> {
        let Some(path) = &self.path else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        platform::rename_to_new(path, to)?;
        self.path = None;
        Ok(())
    }
}

impl Drop for PoolFile {
    fn drop(&mut self) {
        // A forked child's copy names its parent's file.
        if let Some(path) = self.path.take().filter(|_| self.epoch == fork::epoch()) {
            // Removed by another: then it is gone, which is all that was wanted.
            let _ = std::fs::remove_file(path);
            kept::forget_file(self.id);
        }
    }
}

impl Retired {
    /// Takes a segment out of its name. The caller is its writer, in the process that created it or took it
    /// over, and gives it up in any case. Memory that nobody expects back is kept only if it is `wanted` here.
    pub(crate) fn of(segment: Segment, wanted: bool) -> Result<Ended> {
        match Self::rename(&segment, wanted) {
            Ok(Renamed::Ours(named)) => Ok(Self::named(segment, named)),
            // The claim is another's already.
            Ok(Renamed::Home) => Ok(Ended::Home),
            Ok(Renamed::Removed) => {
                segment.give_claim_back(true);
                Ok(Ended::Removed)
            }
            Err(error) => {
                segment.give_claim_back(true);
                Err(error)
            }
        }
    }

    /// [`Self::of`] a segment that others in this process hold as well: it goes home, or is removed.
    pub(crate) fn send(segment: &Segment) -> Result<Ended> {
        match Self::rename(segment, false) {
            Ok(Renamed::Home) => Ok(Ended::Home),
            // Of what is not wanted nothing is kept.
            Ok(Renamed::Removed | Renamed::Ours(_)) => {
                segment.give_claim_back(true);
                Ok(Ended::Removed)
            }
            Err(error) => {
                segment.give_claim_back(true);
                Err(error)
            }
        }
    }

    fn named(segment: Segment, named: Named) -> Ended {
        let Some(participant) = segment.participant.clone() else {
            return Ended::Removed; // it had one a moment ago
        };
        Ended::Kept(Box::new(Self {
            mapping: segment.mapping.into_inner(),
            file: PoolFile {
                path: Some(named.path),
                id: named.id,
                epoch: fork::epoch(),
            },
            participant,
            room: named.room,
        }))
    }

    /// The memory of a segment that was given away in the file `id`, if it is there under the name by which it
    /// comes home. The caller has found that it [has](home::has_come).
    pub(crate) fn of_home(segment: Segment, id: FileId) -> Result<Option<Self>> {
        // What a forked child may look at is spoilt, whoever was its writer meanwhile.
        segment.tell_inherited();
        let Some(came_as) = home_path(&segment) else {
            return Ok(None);
        };
        let is_it = |found: &std::fs::Metadata| FileId::of(found) == id;
        let Some(found) = came_as.symlink_metadata().ok().filter(is_it) else {
            return Ok(None); // whatever the words say, it did not come
        };
        // Under a name that nothing else of this process takes for one that is still to come.
        let renamed = random().and_then(|id| {
            let path = segment.place.pool_path(id);
            platform::rename_to_new(&came_as, &path)
                .map_err(|e| ShmError::from_io(&segment.name, "rename", e))?;
            Ok(path)
        });
        let path = match renamed {
            Ok(path) => path,
            Err(error) => {
                // It is this process's, and nobody will look for it.
                let _ = std::fs::remove_file(&came_as);
                return Err(error);
            }
        };
        let len = usize::try_from(found.len()).unwrap_or(0);
        let room = len.min(segment.mapping.len());
        Ok(match Self::named(segment, Named { path, id, room }) {
            Ended::Kept(retired) => Some(*retired),
            Ended::Home | Ended::Removed => None,
        })
    }

    fn rename(segment: &Segment, wanted: bool) -> Result<Renamed> {
        let Some(participant) = &segment.participant else {
            return Ok(Renamed::Removed);
        };
        let (place, mapping) = (&segment.place, &*segment.mapping);
        let ours = place.pool_path(random()?);
        let _lock = participant.lock_namespace()?;
        let Some(meta) = reclaim::still_named(segment)? else {
            // Removed by another, or its metadata lost: whoever finds it again removes it.
            return Ok(Renamed::Removed);
        };
        let home = home::of(mapping);
        // Its own maker's pool takes it by itself.
        let expected = home != 0 && home != participant.key() && participant.is_alive(home);
        let home_path = home_path(segment).filter(|_| expected);
        let wanted = wanted || home_path.is_some();
        let pool_path = home_path.as_ref().unwrap_or(&ours);
        tenure::mark(mapping);
        segment.tell_inherited();
        reclaim::clear_dead_readers(mapping, participant);
        let path = meta.path(place);
        let found = std::fs::symlink_metadata(&path).ok();
        let len = found.as_ref().map_or(0, std::fs::Metadata::len);
        let room = usize::try_from(len).unwrap_or(0).min(mapping.len());
        let needed = mapping.geometry().file_len(platform::page_size());
        let page = platform::page_size();
        let room = room / page * page;
        // An heir has mapped its need of a file that may be longer. What nobody would count is cut off.
        let cut = || platform::open_existing(&path, true)?.set_len(room as u64);
        let counted = len == room as u64 || cut().is_ok();
        // Beyond any clock, so that no later segment of the file could have another.
        let lasting = mapping.geometry().created_ns < u64::MAX / 2;
        let kept = wanted && room >= needed && counted && lasting && !is_spoilt(mapping) && {
            // In this order: a file whose metadata is missing is found again by its identity, metadata whose
            // file is missing is corrupt.
            let meta_path = place.meta_path(&meta.name)?;
            std::fs::remove_file(meta_path)
                .and_then(|()| platform::rename_to_new(&path, pool_path))
                .is_ok()
        };
        if !kept {
            unlink_files(place, &meta.name, &meta)?;
        }
        reclaim::tell_closed(mapping);
        tracing::debug!(name = %meta.name, kept, "retired");
        let Some(id) = found.as_ref().map(FileId::of).filter(|_| kept) else {
            return Ok(Renamed::Removed);
        };
        if home_path.is_some() {
            // Not, where the claim is not ours: scribbled. Then nobody knows of the file, and it goes with
            // whoever the claim names.
            home::send(mapping, participant.key(), home);
            return Ok(Renamed::Home);
        }
        let path = ours;
        Ok(Renamed::Ours(Named { path, id, room }))
    }

    /// Bytes of the file.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Whether a segment of this geometry could lie in it.
    pub(crate) fn fits(&self, geometry: &Geometry) -> bool {
        geometry.file_len(platform::page_size()) <= self.room && self.mapping.fits(geometry)
    }

    /// Whether it is there and nobody reads what was in it any more. What dead readers left is cleared.
    pub(crate) fn is_free(&self) -> Result<bool> {
        if !tenure::is_left(&self.mapping) {
            let _lock = self.participant.lock_namespace()?;
            reclaim::clear_dead_readers(&self.mapping, &self.participant);
            if !tenure::is_left(&self.mapping) {
                return Ok(false);
            }
        }
        Ok(!is_spoilt(&self.mapping))
    }

    /// Whether readers of its last segment still use it.
    pub(crate) fn is_read(&self) -> bool {
        !tenure::is_left(&self.mapping)
    }

    /// Whether no segment can ever have it: its pages were lost, or a forked child may look at it.
    pub(crate) fn is_lost(&self) -> bool {
        is_spoilt(&self.mapping)
    }

    /// Zeroes all that segments have written to it.
    pub(crate) fn wipe(&self) {
        self.mapping.wipe(self.room);
    }

    /// The memory of a new segment, marked as removed until it is published, and its file. The geometry must
    /// fit.
    pub(crate) fn revive(self, mut geometry: Geometry) -> (Mapping, PoolFile) {
        let before = self.mapping.geometry().created_ns;
        // Two segments of one file never have the same header line, even when the clock was set back.
        geometry.created_ns = geometry.created_ns.max(before.saturating_add(1));
        let mapping = self.mapping.recast(geometry);
        mapping.reset();
        mapping.generation().fetch_add(1, Ordering::Relaxed);
        (mapping, self.file)
    }
}

fn is_spoilt(mapping: &Mapping) -> bool {
    // Relaxed: told before the entry is given back, whose Acquire comes first where it matters.
    mapping.lost() || mapping.inherited().load(Ordering::Relaxed) != 0
}

fn random() -> Result<u64> {
    getrandom::u64().map_err(|e| ShmError::Io {
        name: None,
        operation: "getrandom",
        source: std::io::Error::other(e),
    })
}

/// A pool's file that no living process keeps.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub file: String,
    pub bytes: u64,
    pub removed: bool,
}

/// Removes the files of pools whose processes have died. With `dry_run` only looks.
pub(crate) fn remove_leftovers(
    place: &Place,
    participant: &Participant,
    dry_run: bool,
) -> Result<Vec<Leftover>> {
    let files = reclaim::files(place)?;
    remove_leftovers_of(&files, place, participant, dry_run)
}

/// [`remove_leftovers`] of the files that the directory was found to have.
pub(crate) fn remove_leftovers_of(
    files: &[String],
    place: &Place,
    participant: &Participant,
    dry_run: bool,
) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for file in files {
        if !place.is_pool_file(file) || keeper_lives(place, file, participant) {
            continue;
        }
        // Again under the lock: somebody may be on the way from one name to another.
        let _lock = participant.lock_namespace()?;
        if keeper_lives(place, file, participant) {
            continue;
        }
        let path = place.dir.join(file);
        let Ok(bytes) = path.symlink_metadata().map(|found| found.len()) else {
            continue; // gone
        };
        let removed = !dry_run && std::fs::remove_file(&path).is_ok();
        found.push(Leftover {
            file: file.clone(),
            bytes,
            removed,
        });
    }
    Ok(found)
}

/// Whether a living process keeps the file; also when that cannot be told.
fn keeper_lives(place: &Place, file: &str, participant: &Participant) -> bool {
    match reclaim::writer_of(&place.dir.join(file)) {
        Ok(Some(key)) => participant.is_alive(key),
        // Too short, or no segment: nobody can ever use it.
        Ok(None) => false,
        Err(error) => error.kind() != std::io::ErrorKind::InvalidInput,
    }
}

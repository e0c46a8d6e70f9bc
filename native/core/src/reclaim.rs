//! Taking back what the dead left, and removing what nobody uses (DESIGN 6).
//!
//! Everything here is decided under the namespace lock, by the participants' locks and nothing else: a
//! segment that a living process uses is never touched. Attaching does not take the lock, so a remover
//! first marks the segment, then looks for readers once more; a reader first takes its table entry, then
//! looks at the mark. One of the two sees the other.

use crate::error::{Result, ShmError};
use crate::hazard::Hazards;
use crate::layout::{
    MAGIC, READER_ENTRY, READER_TABLE, SegmentState, control, header,
    reader_entry::{self, CLEARING},
};
use crate::mapping::{Access, Mapping};
use crate::meta::Meta;
use crate::name::Place;
use crate::participant::Participant;
use crate::platform::{self, background, fork};
use crate::retired;
use crate::segment::{Segment, corrupted, read_geometry, unlink_files};
use crate::seqlock::{self, Words};
use crate::tenure::{self, Tenure};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a crashed writer's segment waits for another to take over, unless configured otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// The longest that a segment which was given away waits for somebody to take it.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What this process was told about that, by namespace.
static GRACES: fork::PerProcess<Mutex<HashMap<Place, Duration>>> = fork::PerProcess::new();
/// A process without a reaper looks at its namespace no more often than this.
const OCCASION: Duration = Duration::from_secs(5);

/// Sets the grace of what this process cleans up in passing: when it joins a namespace, creates, attaches
/// or detaches.
pub(crate) fn set_grace(place: &Place, grace: Duration) {
    graces().insert(place.clone(), grace);
}

fn grace(place: &Place) -> Duration {
    graces().get(place).copied().unwrap_or(GRACE)
}

fn graces() -> MutexGuard<'static, HashMap<Place, Duration>> {
    GRACES.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a segment waits for another writer: its own has died, or has given it up. `writer` is whose claim
/// it is, `lender` who has lent it, `since` the time since when nobody has it, as far as anybody has noticed.
pub(crate) fn is_orphan(
    state: SegmentState,
    writer: u64,
    lender: u64,
    since: u64,
    mut is_alive: impl FnMut(u64) -> bool,
) -> bool {
    match (state, writer) {
        (SegmentState::Closed, _) => false,
        // It has an owner, who waits for what others fill in.
        _ if lender != 0 && is_alive(lender) => false,
        // Closed after the seal rather than released.
        (SegmentState::Sealed, 0) => since != 0,
        (SegmentState::Active, 0) => true,
        (_, writer) => !is_alive(writer),
    }
}

/// Whether what was given away may still be taken, for all that its header says.
pub(crate) fn waits(mapping: &Mapping) -> bool {
    let ttl = Duration::from_nanos(mapping.ttl_now()).min(MAX_TTL);
    let since = mapping.orphaned_since();
    let waited = platform::monotonic_ns().checked_sub(since);
    since != 0 && waited.is_some_and(|waited| Duration::from_nanos(waited) < ttl)
}

/// Whether somebody who lives has lent the segment, and owns it.
pub(crate) fn is_lent(mapping: &Mapping, participant: &Participant) -> bool {
    let lender = mapping.lender_now();
    lender != 0 && participant.is_alive(lender)
}

/// What a segment is, to those who clean up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A living process may write it.
    Written(u32),
    /// Living readers are attached.
    Read(usize),
    /// Its writer has gone and may come back within this time.
    Grace(Duration),
    /// Its writer has given it away, and somebody may take it within this time.
    Given(Duration),
    /// Nobody uses it, because:
    Free(&'static str),
}

/// What a sweep did with a segment.
#[derive(Debug)]
pub(crate) struct Swept {
    pub verdict: Verdict,
    pub removed: bool,
    /// Entries of dead readers that were cleared.
    pub cleared: usize,
    pub bytes: u64,
    pub meta: Meta,
}

/// Clears the table entries of dead readers: pins, waits, then the entry. Under the namespace lock.
pub(crate) fn clear_dead_readers(mapping: &Mapping, participant: &Participant) -> usize {
    let high = mapping.used();
    let mut cleared = 0;
    for index in 0..high {
        let key = mapping.reader_key(index).load(Ordering::Acquire);
        if key == 0 || participant.is_alive(key) {
            continue;
        }
        // Marked first: whoever else clears must not clear what a new reader of this entry sets. A
        // mark that is there already is of somebody who died with the lock, which is ours now.
        let marked = mapping.reader_key(index).compare_exchange(
            key,
            CLEARING,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if marked.is_err() {
            continue; // its process detached in this moment
        }
        mapping.reader_pin(index).store(0, Ordering::Relaxed);
        let waiting = mapping.reader_waiting(index).swap(0, Ordering::Relaxed);
        let _ = mapping
            .waiters()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                Some(n.saturating_sub(waiting))
            });
        // Release pairs with the Acquire of the reader that takes the entry next.
        mapping.reader_key(index).store(0, Ordering::Release);
        cleared += 1;
    }
    cleared
}

/// Living readers, by the table.
pub(crate) fn readers(mapping: &Mapping) -> usize {
    (0..mapping.used())
        .filter(|index| mapping.reader_key(*index).load(Ordering::SeqCst) != 0)
        .count()
}

/// Whether a segment is in use. Notes when it was first seen without its writer. Under the lock.
pub(crate) fn verdict(
    mapping: &Mapping,
    participant: &Participant,
    grace: Duration,
    dry_run: bool,
) -> Verdict {
    let writer = mapping.writer_key().load(Ordering::Acquire);
    if writer != 0 && participant.is_alive(writer) {
        let pid = participant.describe(writer).map_or(0, |p| p.pid);
        return Verdict::Written(pid);
    }
    // Not the entries of the dead, which a dry run leaves where they are.
    let readers = (0..mapping.used())
        .map(|index| mapping.reader_key(index).load(Ordering::SeqCst))
        .filter(|key| *key != 0 && participant.is_alive(*key))
        .count();
    if readers > 0 {
        return Verdict::Read(readers);
    }
    let orphaned = mapping.orphaned().load(Ordering::Relaxed);
    let ended = match mapping.state() {
        Some(SegmentState::Closed) => true,
        // Closed after the seal rather than released.
        Some(SegmentState::Sealed) => orphaned == 0,
        _ => false,
    };
    if writer == 0 && ended {
        return Verdict::Free("closed by its writer");
    }
    let now = platform::monotonic_ns().max(1);
    let since = match orphaned {
        // Later than now: scribbled, or from before a restart of the machine.
        at if at == 0 || at > now => {
            if !dry_run {
                mapping.orphaned().store(now, Ordering::Relaxed);
            }
            now
        }
        at => at,
    };
    // Only what nobody has is given away; what is written there is as hostile as all else.
    let given = mapping.ttl().load(Ordering::Relaxed);
    let given = (given != 0 && writer == 0).then(|| Duration::from_nanos(given).min(MAX_TTL));
    let waited = Duration::from_nanos(now - since);
    match given.unwrap_or(grace).checked_sub(waited) {
        Some(left) if !left.is_zero() && given.is_some() => Verdict::Given(left),
        Some(left) if !left.is_zero() => Verdict::Grace(left),
        _ if given.is_some() => Verdict::Free("given away, and nobody took it in its time"),
        _ if writer == 0 => Verdict::Free("released, and nobody took over"),
        _ => Verdict::Free("its writer died"),
    }
}

/// Removes the files unless somebody attached in this moment. Under the lock.
fn remove(
    place: &Place,
    meta: &Meta,
    mapping: &Mapping,
    participant: &Participant,
) -> Result<bool> {
    tenure::mark(mapping);
    clear_dead_readers(mapping, participant);
    if !tenure::is_left(mapping) {
        tenure::admit(mapping);
        return Ok(false);
    }
    unlink_files(place, &meta.name, meta)?;
    tell_closed(mapping);
    tracing::debug!(name = %meta.name, "removed");
    Ok(true)
}

/// Tells those who still have the segment mapped that it has ended.
pub(crate) fn tell_closed(mapping: &Mapping) {
    // A sealed segment stays sealed: its views remain valid.
    let _ = mapping.state_word().compare_exchange(
        SegmentState::Active.to_word(),
        SegmentState::Closed.to_word(),
        Ordering::Release,
        Ordering::Relaxed,
    );
    seqlock::bump_notify(mapping);
    platform::futex_wake(mapping.notify());
}

/// What a sweep would find of a segment that a living process writes and of whose readers all live, which is
/// most of them most of the time: nothing to do. Looked at without the lock and without a mapping, so that
/// a sweep over ten thousand holds up nobody who creates or removes one. Anything else is `None`.
pub(crate) fn at_work(place: &Place, meta: &Meta, participant: &Participant) -> Option<Swept> {
    let file = platform::open_existing(&meta.path(place), false).ok()?;
    let geometry = read_geometry(&meta.name, &file).ok()?;
    let read = |bytes: &mut [u8], at: usize| {
        let have = platform::read_at(file.as_fd(), bytes, at as u64).ok()?;
        (have == bytes.len()).then_some(())
    };
    let u32_at = |at| {
        let mut word = [0u8; 4];
        read(&mut word, at)?;
        Some(u32::from_le_bytes(word))
    };
    let mut writer = [0u8; 8];
    read(&mut writer, header::WRITER)?;
    let writer = u64::from_le_bytes(writer);
    let high = u32_at(geometry.control + control::HIGH)? as usize;
    let mut table = vec![0u8; high.min(geometry.max_readers) * READER_ENTRY];
    read(&mut table, geometry.control + READER_TABLE)?;
    let readers_live = table.chunks_exact(READER_ENTRY).all(|entry| {
        let key = entry[reader_entry::KEY..].first_chunk();
        let key = key.map_or(CLEARING, |key| u64::from_le_bytes(*key));
        key == 0 || participant.is_alive(key)
    });
    let settled = geometry.created_ns == meta.created_ns
        && u32_at(header::REMOVED)? == 0
        && readers_live
        && participant.is_alive(writer);
    settled.then(|| Swept {
        verdict: Verdict::Written(participant.describe(writer).map_or(0, |p| p.pid)),
        removed: false,
        cleared: 0,
        bytes: geometry.file_len(platform::page_size()) as u64,
        meta: meta.clone(),
    })
}

/// Looks at one segment and does what is due. With `dry_run` only looks.
pub(crate) fn sweep_segment(
    place: &Place,
    name: &str,
    participant: &Participant,
    grace: Duration,
    dry_run: bool,
) -> Result<Swept> {
    let _lock = participant.lock_namespace()?;
    let meta = Meta::load(place, name)?;
    let path = meta.path(place);
    let file = match platform::open_existing(&path, true) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(corrupted(name, "its file is missing"));
        }
        Err(e) => return Err(ShmError::from_io(name, "open", e)),
    };
    let geometry = read_geometry(name, &file)?;
    if geometry.created_ns != meta.created_ns {
        return Err(corrupted(
            name,
            "metadata and segment do not belong together",
        ));
    }
    let mapping = Mapping::new(name, &file, geometry, Access::Writer)?;
    let cleared = if dry_run {
        0
    } else {
        clear_dead_readers(&mapping, participant)
    };
    let verdict = verdict(&mapping, participant, grace, dry_run);
    if mapping.lost() {
        return Err(ShmError::Truncated { name: name.into() });
    }
    let free = matches!(verdict, Verdict::Free(_));
    if !free && !dry_run && mapping.removed().load(Ordering::Relaxed) != 0 {
        tenure::admit(&mapping);
    }
    let removed = free && !dry_run && remove(place, &meta, &mapping, participant)?;
    Ok(Swept {
        verdict,
        removed,
        cleared,
        bytes: geometry.file_len(platform::page_size()) as u64,
        meta,
    })
}

/// Looks at one segment on the way to something else, and does what is due.
pub(crate) fn sweep_in_passing(
    place: &Place,
    name: &str,
    participant: &Participant,
) -> Result<Swept> {
    sweep_segment(place, name, participant, grace(place), false)
}

/// Files with our magic and no metadata: their creator or remover died between two steps, or somebody
/// deleted the `.meta`. The segment's own identity block brings it back, and the usual rules decide.
pub(crate) fn recover_lost(place: &Place, participant: &Participant) -> Vec<String> {
    segment_files(place)
        .filter_map(|file| recover(place, participant, &file).ok().flatten())
        .collect()
}

/// Whether there are more or fewer files than names. A lost file and a name without its file make up for
/// each other here; but then the name is found to be corrupted.
pub(crate) fn files_unlike(place: &Place, names: &[String]) -> bool {
    segment_files(place).count() != names.len()
}

/// Files that may be segments, by their names.
fn segment_files(place: &Place) -> impl Iterator<Item = String> {
    let files = files(place).unwrap_or_default();
    files.into_iter().filter(|file| may_be_segment(place, file))
}

fn may_be_segment(place: &Place, file: &str) -> bool {
    file.strip_prefix(&place.namespace)
        .is_some_and(|rest| rest.starts_with('_') && !rest.ends_with(".meta"))
}

fn recover(place: &Place, participant: &Participant, file: &str) -> Result<Option<String>> {
    let failed = |e| ShmError::from_io(file, "recover", e);
    let path = place.dir.join(file);
    // For reading: it may be somebody else's file.
    let opened = platform::open_existing(&path, false).map_err(failed)?;
    let mut page = [0u8; 4096];
    let have = platform::read_at(opened.as_fd(), &mut page, 0).map_err(failed)?;
    if have < page.len() || page[..8] != MAGIC.to_le_bytes() {
        return Ok(None); // somebody else's file
    }
    let Some(meta) = Meta::from_identity(place, file, &page) else {
        return Ok(None);
    };
    let meta_path = place.meta_path(&meta.name)?;
    if meta_path.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let _lock = participant.lock_namespace()?;
    // Under the lock nobody is in the middle of creating or removing it.
    if meta_path.symlink_metadata().is_ok() || !platform::names(&path, opened.as_fd()) {
        return Ok(None);
    }
    let unnamed = platform::Unnamed::create(&place.dir, 0o600).map_err(failed)?;
    // Whoever may read the segment may find it, as at its creation.
    let readable = opened.metadata().map_err(failed)?.mode() & 0o044;
    let mode = std::fs::Permissions::from_mode(0o600 | readable);
    unnamed.file.set_permissions(mode).map_err(failed)?;
    platform::write_at(unnamed.file.as_fd(), &meta.to_json(), 0).map_err(failed)?;
    unnamed.link(&meta_path).map_err(failed)?;
    tracing::warn!(name = %meta.name, "metadata found again");
    Ok(Some(meta.name))
}

/// Removes a segment that cannot be opened. What can be said of its files is: they are its own.
pub(crate) fn remove_broken(place: &Place, participant: &Participant, name: &str) -> Result<()> {
    let _lock = participant.lock_namespace()?;
    match Meta::load(place, name) {
        Ok(meta) => unlink_files(place, name, &meta),
        // Metadata that names no file of its own: only it can be removed.
        Err(ShmError::Corrupted { .. }) => std::fs::remove_file(place.meta_path(name)?)
            .map_err(|e| ShmError::from_io(name, "remove", e)),
        Err(other) => Err(other),
    }
}

/// Names of a namespace, by its `.meta` files, sorted.
pub(crate) fn names(place: &Place) -> Result<Vec<String>> {
    let mut names = names_unsorted(place)?;
    names.sort_unstable();
    Ok(names)
}

/// [`names`] in the order of the directory.
pub(crate) fn names_unsorted(place: &Place) -> Result<Vec<String>> {
    let names = files(place)?.into_iter();
    Ok(names
        .filter_map(|file| place.name_of_meta(&file).map(str::to_owned))
        .collect())
}

/// The files of a namespace, by their names, in the order of the directory.
pub(crate) fn files(place: &Place) -> Result<Vec<String>> {
    let failed = |e| ShmError::from_io(&place.dir.display().to_string(), "list", e);
    let mut files = Vec::new();
    for file in std::fs::read_dir(&place.dir).map_err(failed)? {
        let file = file.map_err(failed)?.file_name();
        let ours = |file: &&str| {
            file.strip_prefix(&place.namespace)
                .is_some_and(|rest| rest.starts_with(['_', '.']))
        };
        files.extend(file.to_str().filter(ours).map(str::to_owned));
    }
    Ok(files)
}

/// Sweeps a namespace when a process has just joined it, and now and then afterwards in the
/// background, so that nobody needs a daemon.
pub(crate) fn on_occasion(place: &Place, participant: &Arc<Participant>) {
    match participant.sweep_due(OCCASION) {
        None => {}
        Some(true) => sweep_leftovers(place, participant),
        Some(false) => {
            let (place, weak) = (place.clone(), Arc::downgrade(participant));
            background::run(move || {
                for name in names(&place).unwrap_or_default() {
                    // Held only for one segment at a time: the process may be about to leave.
                    let Some(participant) = weak.upgrade() else {
                        return;
                    };
                    let _ = sweep_in_passing(&place, &name, &participant);
                }
                if let Some(participant) = weak.upgrade() {
                    let _ = retired::remove_leftovers(&place, &participant, false);
                }
            });
        }
    }
}

/// What a process does when it joins a namespace: removes leftovers. Segments with a living writer are
/// passed over without the lock, so that a thousand processes that start at once do not queue for it.
fn sweep_leftovers(place: &Place, participant: &Participant) {
    // Looked at once: it may be the directory of others as well.
    let files = files(place).unwrap_or_default();
    let mut names: Vec<_> = files.iter().filter_map(|f| place.name_of_meta(f)).collect();
    names.sort_unstable();
    let segments = files.iter().filter(|f| may_be_segment(place, f)).count();
    if segments != names.len() {
        recover_lost(place, participant);
    }
    let swept = retired::remove_leftovers_of(&files, place, participant, false);
    if let Err(error) = swept {
        tracing::debug!(%error, "pools of the dead not swept");
    }
    for name in names {
        if writer_lives(place, name, participant).unwrap_or(false) {
            continue;
        }
        if let Err(error) = sweep_in_passing(place, name, participant) {
            tracing::debug!(%name, %error, "not swept");
        }
    }
}

/// Looks at the writer's claim by `pread`.
fn writer_lives(place: &Place, name: &str, participant: &Participant) -> Option<bool> {
    let meta = Meta::load(place, name).ok()?;
    let key = writer_of(&meta.path(place)).ok()??;
    Some(participant.is_alive(key))
}

/// Whose a segment's file is: the participant key of the claim; `None` when it is nobody's.
pub(crate) fn writer_of(path: &Path) -> std::io::Result<Option<u64>> {
    let file = platform::open_existing(path, false)?;
    let mut key = [0u8; 8];
    let have = platform::read_at(file.as_fd(), &mut key, header::WRITER as u64)?;
    let key = u64::from_le_bytes(key);
    Ok((have == 8 && key != 0).then_some(key))
}

/// Removes a segment whose writer has closed it, once nobody reads it any more.
pub(crate) fn settle(segment: &Segment) -> Result<()> {
    // What a forked child inherited is its parent's to remove.
    if segment.epoch != platform::fork::epoch() {
        return Ok(());
    }
    let mapping = &*segment.mapping;
    // Without the lock: most often there is nothing to do.
    if mapping.writer_key().load(Ordering::Acquire) != 0 || readers(mapping) > 0 {
        return Ok(());
    }
    sweep_own(segment)
}

/// Waits for a remover that has marked the segment. One that died in the middle has left the mark, and
/// a scribbler may have set it: the decision is made again.
pub(crate) fn await_removal(segment: &Segment) -> Result<()> {
    sweep_own(segment)
}

/// Sweeps the segment that this process has mapped, unless another has its name by now. Its own
/// mapping may be a reader's, so it is mapped anew.
fn sweep_own(segment: &Segment) -> Result<()> {
    let Some(participant) = &segment.participant else {
        return Ok(());
    };
    if still_named(segment)?.is_none() {
        return Ok(());
    }
    match sweep_in_passing(&segment.place, &segment.name, participant) {
        Ok(_) | Err(ShmError::NotFound { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

/// The metadata, when the name still stands for this very segment.
pub(crate) fn still_named(segment: &Segment) -> Result<Option<Meta>> {
    match Meta::load(&segment.place, &segment.name) {
        Ok(meta) => Ok((meta.incarnation == segment.incarnation).then_some(meta)),
        Err(ShmError::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Does [`settle`] where it disturbs nobody; for destructors.
pub(crate) fn settle_later(segment: Arc<Segment>) {
    background::run(move || {
        if let Err(error) = settle(&segment) {
            tracing::warn!(name = %segment.name, %error, "not removed");
        }
    });
}

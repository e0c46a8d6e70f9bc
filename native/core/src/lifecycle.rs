//! Cleaning up: once on request, or all the time by a reaper (DESIGN 6; T014, T015, T042-T045).

use crate::error::{Result, ShmError};
use crate::meta::Meta;
use crate::name::{DEFAULT_DIR, DEFAULT_NAMESPACE, Place, module_part};
use crate::participant::{self, Participant};
use crate::platform;
use crate::reclaim::{self, GRACE, Verdict};
use crate::retired;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// A sweep over thousands makes way for others after so many segments, for so long: on a machine whose
/// processors are all busy, whoever wakes up meanwhile would wait for milliseconds.
const BATCH: usize = 32;
const BREATH: Duration = Duration::from_micros(50);

/// What to clean up, and how.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{CleanupOptions, SegmentOptions};
///
/// let writer = SegmentOptions::new("in-use").dir(dir.path()).create().unwrap();
/// let report = CleanupOptions::new("snakepit", dir.path()).run().unwrap();
/// assert!(report.removed.is_empty());
/// assert_eq!(report.kept[0].name, "in-use");
/// writer.close().unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct CleanupOptions {
    pub(crate) namespace: String,
    pub(crate) dir: PathBuf,
    pub(crate) grace: Duration,
    min_age: Duration,
    module: Option<String>,
    pattern: Option<String>,
    dry_run: bool,
    corrupted: bool,
}

/// What a cleanup did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CleanupReport {
    /// Segments removed (with a dry run: that would have been).
    pub removed: Vec<CleanupItem>,
    /// Segments left, and why.
    pub kept: Vec<CleanupItem>,
    /// Segments that nobody can attach to, and what is wrong with them.
    pub corrupted: Vec<CleanupItem>,
    /// Segments whose lost metadata was found again.
    pub recovered: Vec<String>,
    /// Entries of dead readers that were cleared.
    pub cleared_readers: usize,
    /// When the next of the kept ones is due.
    pub next_due: Option<Duration>,
}

/// A segment in a [`CleanupReport`].
#[derive(Debug, Clone, Serialize)]
pub struct CleanupItem {
    /// The segment.
    pub name: String,
    /// Why it was removed or left.
    pub reason: String,
    /// Length of its file, in bytes; 0 when it cannot be told.
    pub bytes: u64,
}

impl CleanupOptions {
    /// All of a namespace, with a grace of 10 s for crashed writers' segments.
    pub fn new(namespace: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            namespace: namespace.into(),
            dir: dir.into(),
            grace: GRACE,
            min_age: Duration::ZERO,
            module: None,
            pattern: None,
            dry_run: false,
            corrupted: false,
        }
    }

    /// How long a crashed writer's segment waits for a takeover, from when its end was first seen.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Only segments created at least this long ago.
    pub fn min_age(mut self, age: Duration) -> Self {
        self.min_age = age;
        self
    }

    /// Only segments of this module.
    pub fn module(mut self, module: impl Into<String>) -> Self {
        self.module = Some(module.into());
        self
    }

    /// Only segments whose whole name matches: `*` stands for any characters, `?` for one.
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.pattern = Some(pattern.into());
        self
    }

    /// Only looks.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Also removes what is corrupted or truncated, whose users cannot be told.
    pub fn corrupted(mut self, remove: bool) -> Self {
        self.corrupted = remove;
        self
    }

    /// Cleans up. A segment that a living process uses is never touched.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`], [`ShmError::PermissionDenied`] or [`ShmError::Io`] when the
    /// directory cannot be read.
    pub fn run(&self) -> Result<CleanupReport> {
        let place = Place::new(&self.dir, &self.namespace)?;
        self.module.as_deref().map(module_part).transpose()?;
        let mut report = CleanupReport::default();
        let prefix = format!("{}_", self.namespace);
        let any = std::fs::read_dir(&place.dir)
            .map_err(|e| ShmError::from_io(&self.namespace, "list", e))?
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .any(|file| file.starts_with(&prefix) || file.starts_with(&self.namespace));
        if !any {
            return Ok(report);
        }
        let participant = participant::join(&place)?;
        self.sweep(&place, &participant, &mut report)?;
        Ok(report)
    }

    pub(crate) fn sweep(
        &self,
        place: &Place,
        participant: &Participant,
        report: &mut CleanupReport,
    ) -> Result<()> {
        let module = self.module.as_deref().map(module_part).transpose()?;
        let mut names = reclaim::names(place)?;
        if !self.dry_run && reclaim::files_unlike(place, &names) {
            report.recovered = reclaim::recover_lost(place, participant);
            names = reclaim::names(place)?;
        }
        for (at, name) in names.into_iter().enumerate() {
            if at % BATCH == BATCH - 1 {
                std::thread::sleep(BREATH);
            }
            match self.look(place, participant, &name, module.as_deref(), report) {
                // Removed by another in this moment.
                Ok(()) | Err(ShmError::NotFound { .. }) => {}
                Err(error @ (ShmError::Corrupted { .. } | ShmError::Truncated { .. })) => {
                    self.broken(place, participant, &name, &error, report);
                }
                Err(error) => report.kept.push(CleanupItem {
                    name,
                    reason: error.to_string(),
                    bytes: 0,
                }),
            }
        }
        // Their files belong to no module, and no name matches them.
        if module.is_none() && self.pattern.is_none() {
            for left in retired::remove_leftovers(place, participant, self.dry_run)? {
                let item = CleanupItem {
                    name: left.file,
                    reason: "kept by a process that died".into(),
                    bytes: left.bytes,
                };
                if left.removed || self.dry_run {
                    report.removed.push(item);
                } else {
                    report.kept.push(item);
                }
            }
        }
        if !self.dry_run && !report.corrupted.is_empty() {
            let found = reclaim::recover_lost(place, participant);
            report.recovered.extend(found);
        }
        Ok(())
    }

    fn look(
        &self,
        place: &Place,
        participant: &Participant,
        name: &str,
        module: Option<&str>,
        report: &mut CleanupReport,
    ) -> Result<()> {
        let meta = Meta::load(place, name)?;
        let age = Duration::from_nanos(platform::realtime_ns().saturating_sub(meta.created_ns));
        let wanted = module.is_none_or(|m| m == meta.module)
            && self.pattern.as_deref().is_none_or(|p| matches(p, name))
            && age >= self.min_age;
        if !wanted {
            report.kept.push(CleanupItem {
                name: name.to_owned(),
                reason: "not asked for".into(),
                bytes: 0,
            });
            return Ok(());
        }
        let swept = match reclaim::at_work(place, &meta, participant) {
            Some(swept) => swept,
            None => reclaim::sweep_segment(place, name, participant, self.grace, self.dry_run)?,
        };
        report.cleared_readers += swept.cleared;
        let reason = match &swept.verdict {
            Verdict::Written(pid) => format!("written by process {pid}"),
            Verdict::Read(readers) => format!("read by {readers}"),
            Verdict::Grace(left) => {
                let due = report.next_due.map_or(*left, |d| d.min(*left));
                report.next_due = Some(due);
                format!("its writer may come back within {left:?}")
            }
            Verdict::Given(left) => {
                let due = report.next_due.map_or(*left, |d| d.min(*left));
                report.next_due = Some(due);
                format!("given away, may be taken within {left:?}")
            }
            Verdict::Free(why) => (*why).to_owned(),
        };
        let due = swept.removed || (self.dry_run && matches!(swept.verdict, Verdict::Free(_)));
        let item = CleanupItem {
            name: swept.meta.name,
            reason,
            bytes: swept.bytes,
        };
        if due {
            report.removed.push(item);
        } else {
            report.kept.push(item);
        }
        Ok(())
    }

    /// A segment that nobody can attach to.
    fn broken(
        &self,
        place: &Place,
        participant: &Participant,
        name: &str,
        error: &ShmError,
        report: &mut CleanupReport,
    ) {
        let item = CleanupItem {
            name: name.to_owned(),
            reason: error.to_string(),
            bytes: 0,
        };
        if self.corrupted && !self.dry_run {
            match reclaim::remove_broken(place, participant, name) {
                Ok(()) => report.removed.push(item.clone()),
                // Not ours to remove, or no file: the others are cleaned all the same.
                Err(error) => report.kept.push(CleanupItem {
                    reason: error.to_string(),
                    ..item.clone()
                }),
            }
        }
        report.corrupted.push(item);
    }
}

/// Whether a name matches a pattern of `*` and `?`. Time is bounded by the product of their lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Cleans up the default namespace in `/dev/shm`; returns how many segments it removed (plan, "API
/// Contracts").
///
/// # Errors
///
/// As [`CleanupOptions::run`].
pub fn cleanup_orphaned_segments() -> Result<usize> {
    let report = CleanupOptions::new(DEFAULT_NAMESPACE, DEFAULT_DIR).run()?;
    Ok(report.removed.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("sensor", "sensor", true),
            ("sensor", "sensor_data", false),
            ("sensor*", "sensor_data", true),
            ("*data", "sensor_data", true),
            ("s?nsor*", "sensor", true),
            ("?", "", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_a_star(name in "[a-z._-]{0,20}", cut in 0usize..20) {
            prop_assert!(matches(&name, &name));
            let cut = cut.min(name.len());
            let (front, back) = name.split_at(cut);
            let (front_star, star_back) = (format!("{front}*"), format!("*{back}"));
            prop_assert!(matches(&front_star, &name));
            prop_assert!(matches(&star_back, &name));
        }
    }
}

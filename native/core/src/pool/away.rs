//! Memory that was given away with its value (`home`).

use super::store::Past;
use crate::home;
use crate::mapping::kept::{self, FileId};
use crate::platform::fork;
use crate::retired::{self, Retired};
use crate::segment::Segment;
use crate::tenure::Tenure;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Memory whose segment is somebody else's now, and which is expected back. When this is dropped, it is not.
#[derive(Debug)]
pub(super) struct Away {
    /// Taken out when it has come.
    expected: Option<Expected>,
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Expected {
    /// Keeps the pages mapped, and this process registered, for the key that is waited for is its own.
    segment: Arc<Segment>,
    file: FileId,
    past: Past,
    /// In the header of the segment until it has come.
    key: u64,
}

impl Expected {
    /// Whether the words in the header are still about this segment: its memory may be another's by now.
    fn is_same(&self) -> bool {
        self.segment.mapping.is_same()
    }

    fn has_come(&self) -> bool {
        home::has_come(&*self.segment.mapping, self.key)
    }

    fn is_at(&self, path: &Path) -> bool {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| FileId::of(&found) == self.file)
    }
}

/// Whether it has come.
#[derive(Debug)]
pub(super) enum Come {
    Home(Retired, Past),
    NotYet(Away),
    /// What was said of it does not hold, or it is of no use here.
    Never,
}

impl Away {
    /// For a writer that is about to give its segment away; `None` when no other segment could have the memory.
    pub(super) fn expect(segment: Arc<Segment>, past: Past) -> Option<Self> {
        let key = segment.participant.as_ref()?.key();
        if !segment.plain || segment.epoch != fork::epoch() {
            return None;
        }
        let path = segment.place.dir.join(&segment.file);
        let file = FileId::of(&path.symlink_metadata().ok()?);
        home::expect(&*segment.mapping, key);
        let expected = Expected {
            segment,
            file,
            past,
            key,
        };
        Some(Self {
            expected: Some(expected),
            since: Instant::now(),
        })
    }

    /// Bytes that are mapped.
    pub(super) fn room(&self) -> usize {
        let expected = self.expected.as_ref();
        expected.map_or(0, |expected| expected.segment.mapping.len())
    }

    pub(super) fn is_of(&self, incarnation: &str) -> bool {
        let expected = self.expected.as_ref();
        expected.is_some_and(|expected| expected.segment.incarnation == incarnation)
    }

    /// Whether the file has been removed by others, or cut: its pages are held for nobody.
    pub(super) fn is_lost(&self) -> bool {
        let Some(expected) = &self.expected else {
            return true;
        };
        let segment = &expected.segment;
        let is_named = expected.is_at(&segment.place.dir.join(&segment.file))
            || retired::home_path(segment).is_some_and(|path| expected.is_at(&path));
        segment.mapping.lost() || !is_named
    }

    /// Takes it in, if it has come.
    pub(super) fn come_home(mut self) -> Come {
        let Some(expected) = self.expected.take() else {
            return Come::Never;
        };
        if !expected.is_same() {
            return Come::Never;
        }
        // While something in this process looks at the value it is as good as away.
        if !expected.has_come() || Arc::strong_count(&expected.segment) > 1 {
            self.expected = Some(expected);
            return Come::NotYet(self);
        }
        let Expected {
            segment,
            file,
            past,
            key,
        } = expected;
        match Arc::try_unwrap(segment).map(|segment| Retired::of_home(segment, file)) {
            Ok(Ok(Some(retired))) => Come::Home(retired, past),
            Ok(Ok(None) | Err(_)) => Come::Never,
            Err(segment) => {
                let expected = Expected {
                    segment,
                    file,
                    past,
                    key,
                };
                self.expected = Some(expected);
                Come::NotYet(self)
            }
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // A forked child's copy is its parent's to wait for.
        let is_ours = |expected: &Expected| expected.segment.epoch == fork::epoch();
        let Some(expected) = self.expected.take().filter(is_ours) else {
            return;
        };
        let Some(participant) = &expected.segment.participant else {
            return;
        };
        // Who sends it has the lock, too: it is not on its way now. Where the lock is not to be had it is forgone
        // all the same; should it be sent in this very moment, the file stays as long as this process does.
        let _lock = participant.lock_namespace();
        if !expected.is_same() {
            return;
        }
        if !expected.has_come() {
            home::forgo(&*expected.segment.mapping, expected.key);
            return;
        }
        let path = retired::home_path(&expected.segment);
        if let Some(path) = path.filter(|path| expected.is_at(path)) {
            let _ = std::fs::remove_file(path); // gone: all that was wanted
            kept::forget_file(expected.file);
        }
    }
}

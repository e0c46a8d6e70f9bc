//! What appears and vanishes, told as it happens.

use super::watch_directory;
use crate::error::{Result, ShmError};
use crate::name::Place;
use crate::platform;
use crate::platform::watch::{Change, Poller, Watch};
use crate::reclaim;
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A change of what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SegmentChange {
    /// A segment was created, or appeared anew under a name that was there.
    Appeared(String),
    /// A segment was removed.
    Vanished(String),
}

/// Changes of a namespace, as they happen.
pub struct SegmentWatch {
    place: Place,
    watch: Watch,
    poller: Poller,
    /// Fork epoch of the process that watches.
    epoch: u32,
    known: BTreeSet<String>,
}

impl SegmentWatch {
    pub(super) fn new(place: Place) -> Result<Self> {
        let failed = |e| ShmError::from_io(&place.namespace, "watch", e);
        let watch = watch_directory(&place)?;
        let poller = Poller::new().map_err(failed)?;
        poller.add(&watch, 0).map_err(failed)?;
        Ok(Self {
            known: reclaim::names(&place)?.into_iter().collect(),
            place,
            watch,
            poller,
            epoch: platform::fork::epoch(),
        })
    }

    /// The next changes; none when there was none within `timeout`. When the system lost events, what
    /// is there is compared with what was.
    ///
    /// # Errors
    ///
    /// [`ShmError::Io`] when the directory is gone.
    pub fn next(&mut self, timeout: Duration) -> Result<Vec<SegmentChange>> {
        let started = Instant::now();
        loop {
            let changes = self.drain()?;
            let left = timeout.saturating_sub(started.elapsed());
            if !changes.is_empty() || left.is_zero() {
                return Ok(changes);
            }
            self.poller
                .wait(left)
                .map_err(|e| ShmError::from_io(&self.place.namespace, "watch", e))?;
        }
    }

    fn drain(&mut self) -> Result<Vec<SegmentChange>> {
        if self.epoch != platform::fork::epoch() {
            // A forked child watches for itself, from now on.
            *self = Self::new(self.place.clone())?;
        }
        let mut changes = Vec::new();
        for change in self.watch.changes() {
            match change {
                Change::Appeared(file) => {
                    if let Some(name) = self.place.name_of_meta(&file) {
                        self.known.insert(name.to_owned());
                        changes.push(SegmentChange::Appeared(name.to_owned()));
                    }
                }
                Change::Vanished(file) => {
                    if let Some(name) = self.place.name_of_meta(&file) {
                        self.known.remove(name);
                        changes.push(SegmentChange::Vanished(name.to_owned()));
                    }
                }
                Change::Unknown => {
                    let there = reclaim::names(&self.place)?.into_iter().collect();
                    let gone = self.known.difference(&there).cloned();
                    changes.extend(gone.map(SegmentChange::Vanished));
                    let new = there.difference(&self.known).cloned();
                    changes.extend(new.map(SegmentChange::Appeared));
                    self.known = there;
                }
            }
        }
        Ok(changes)
    }
}

impl std::fmt::Debug for SegmentWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SegmentWatch").field(&self.place).finish()
    }
}

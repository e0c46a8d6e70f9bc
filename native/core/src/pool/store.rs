//! What a pool keeps, and how it chooses.

use super::LOOK;
use super::away::{Away, Come};
use super::options::{PoolStats, Strategy};
use crate::error::{Result, ShmError};
use crate::layout::Geometry;
use crate::options::{HugePages, SegmentOptions};
use crate::platform;
use crate::retired::Retired;
use crate::segment::{Segment, read_geometry};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A file is not given to a segment that needs less than this part of it.
const WASTE: usize = 2;

/// What of a segment's options its pages depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kind {
    huge_pages: HugePages,
}

impl Kind {
    pub(super) fn of(options: &SegmentOptions) -> Self {
        Self {
            huge_pages: options.huge_pages,
        }
    }
}

/// What is remembered of a segment for whoever gets its memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    pub(super) kind: Kind,
    /// `None`: whoever made it was not this pool, so nobody here knows.
    pub(super) tenant: Option<String>,
}

/// Memory that waits for a segment.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) retired: Retired,
    pub(super) past: Past,
    id: u64,
    since: Instant,
}

/// A segment that lives in a file of the pool.
#[derive(Debug)]
struct Live {
    segment: Weak<Segment>,
    past: Past,
    room: usize,
    needed: usize,
}

/// What a pool has no use for any more: gone when this is dropped, without the pool's lock.
#[derive(Debug)]
pub(super) struct Out {
    idle: Vec<Idle>,
    _forgone: Vec<Away>,
}

impl Out {
    /// Bytes of the files that are removed.
    pub(super) fn bytes(&self) -> usize {
        self.idle.iter().map(|idle| idle.retired.room()).sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct Store {
    /// In the order in which they became idle.
    idle: Vec<Idle>,
    /// In the order in which they were given away.
    away: Vec<Away>,
    /// By incarnation.
    live: HashMap<String, Live>,
    last_id: u64,
    reused: u64,
    fresh: u64,
    removed: u64,
}

/// Length of the file that a segment of `needed` bytes gets: eight steps to each doubling, so that segments
/// of about the same size fit in one another's files, and at most an eighth of one is too much.
pub(super) fn class_of(needed: usize) -> usize {
    let page = platform::page_size();
    let step = (needed.next_power_of_two() / 16).max(page);
    needed.next_multiple_of(step)
}

impl Store {
    /// Takes out memory in which the segment fits and that nobody reads any more.
    pub(super) fn take(
        &mut self,
        geometry: &Geometry,
        kind: &Kind,
        strategy: Strategy,
    ) -> Option<Idle> {
        self.welcome();
        let needed = geometry.file_len(platform::page_size());
        let mut fit: Vec<(usize, usize)> = self
            .idle
            .iter()
            .enumerate()
            .filter(|(_, idle)| {
                let room = idle.retired.room();
                idle.past.kind == *kind && room / WASTE <= needed && idle.retired.fits(geometry)
            })
            .map(|(at, idle)| (at, idle.retired.room()))
            .collect();
        // The one that became idle last comes first, and first among equals.
        fit.reverse();
        match strategy {
            Strategy::FirstFit => {}
            Strategy::BestFit => fit.sort_by_key(|(_, room)| *room),
            Strategy::WorstFit => fit.sort_by_key(|(_, room)| usize::MAX - room),
        }
        for (at, _) in fit {
            match self.idle[at].retired.is_free() {
                Ok(true) => return Some(self.idle.remove(at)),
                Ok(false) => {}
                // The namespace's lock is not to be had: the next file would wait as long for it, and
                // everybody else here for us.
                Err(_) => return None,
            }
        }
        None
    }

    /// Takes memory in; returns its id.
    pub(super) fn keep(&mut self, retired: Retired, past: Past) -> u64 {
        self.last_id += 1;
        self.idle.push(Idle {
            retired,
            past,
            id: self.last_id,
            since: Instant::now(),
        });
        self.last_id
    }

    /// Whether it is still there.
    pub(super) fn keeps(&self, id: u64) -> bool {
        self.idle.iter().any(|idle| idle.id == id)
    }

    /// Memory that was given away, and will come back if all goes well.
    pub(super) fn expect(&mut self, away: Away) {
        self.away.push(away);
    }

    /// Memory that was given away and is not to be waited for any more.
    pub(super) fn unexpect(&mut self, incarnation: &str) -> Option<Away> {
        let at = self.away.iter().position(|away| away.is_of(incarnation))?;
        Some(self.away.remove(at))
    }

    pub(super) fn is_expecting(&self) -> bool {
        !self.away.is_empty()
    }

    /// Takes in what has come back.
    fn welcome(&mut self) {
        for away in std::mem::take(&mut self.away) {
            match away.come_home() {
                Come::Home(retired, past) => {
                    self.keep(retired, past);
                }
                Come::NotYet(away) => self.away.push(away),
                Come::Never => {}
            }
        }
    }

    /// Takes out what is lost, too much, or has been idle, or away, for too long.
    pub(super) fn trim(&mut self, most_bytes: usize, most: usize, timeout: Duration) -> Out {
        let now = Instant::now();
        self.welcome();
        let (mut forgone, mut away): (Vec<_>, Vec<_>) = std::mem::take(&mut self.away)
            .into_iter()
            .partition(|away| {
                let waited = now.duration_since(away.since);
                waited >= timeout || waited >= LOOK && away.is_lost()
            });
        let mut bytes: usize = away.iter().map(Away::room).sum();
        while away.len() > most || bytes > most_bytes {
            let oldest = away.remove(0);
            bytes -= oldest.room();
            forgone.push(oldest);
        }
        self.away = away;
        let (mut out, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.idle)
            .into_iter()
            .partition(|idle| idle.retired.is_lost() || now.duration_since(idle.since) >= timeout);
        self.idle = kept;
        let mut bytes = self.idle_bytes();
        let mut too_many = 0;
        while self.idle.len() - too_many > most || bytes > most_bytes {
            bytes -= self.idle[too_many].retired.room();
            too_many += 1;
        }
        out.extend(self.idle.drain(..too_many));
        self.removed += out.len() as u64;
        Out {
            idle: out,
            _forgone: forgone,
        }
    }

    pub(super) fn clear(&mut self) -> Out {
        self.welcome();
        self.removed += self.idle.len() as u64;
        Out {
            idle: std::mem::take(&mut self.idle),
            _forgone: std::mem::take(&mut self.away),
        }
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.idle.first().map(|idle| idle.since)
    }

    fn idle_bytes(&self) -> usize {
        self.idle.iter().map(|idle| idle.retired.room()).sum()
    }

    /// A segment was created: in kept memory of so many bytes, or in new.
    pub(super) fn lives(
        &mut self,
        segment: &Arc<Segment>,
        past: Past,
        needed: usize,
        recycled_room: Option<usize>,
    ) {
        if recycled_room.is_some() {
            self.reused += 1;
        } else {
            self.fresh += 1;
        }
        // Those that ended without us: closed, released, removed by others. Now and then.
        if self.live.len().is_power_of_two() {
            self.live.retain(|_, live| live.segment.strong_count() > 0);
        }
        let live = Live {
            segment: Arc::downgrade(segment),
            past,
            room: recycled_room.unwrap_or(segment.mapping.len()),
            needed,
        };
        self.live.insert(segment.incarnation.clone(), live);
    }

    /// A segment ends; what there was to remember of it.
    pub(super) fn ended(&mut self, incarnation: &str) -> Past {
        self.forget(incarnation).unwrap_or_default()
    }

    /// A segment leaves this pool, if it is one of it.
    pub(super) fn forget(&mut self, incarnation: &str) -> Option<Past> {
        self.live.remove(incarnation).map(|live| live.past)
    }

    /// Cuts the files of the segments that live down to what they need; returns how many bytes that were.
    pub(super) fn shorten(&mut self) -> Result<usize> {
        let mut given = 0;
        for live in self
            .live
            .values_mut()
            .filter(|live| live.room > live.needed)
        {
            let Some(segment) = live.segment.upgrade() else {
                continue;
            };
            let name = segment.name.as_str();
            let path = segment.place.dir.join(&segment.file);
            let file = match platform::open_existing(&path, true) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue, // removed
                other => other.map_err(|e| ShmError::from_io(name, "open", e))?,
            };
            // Under the lock nobody takes the file out of this name, as whoever makes another segment in it must.
            let _lock = match &segment.participant {
                Some(participant) => participant.lock_namespace()?,
                None => continue,
            };
            if !platform::names(&path, file.as_fd()) {
                continue;
            }
            // Another segment's by now?
            if read_geometry(name, &file)? != *segment.mapping.geometry() {
                continue;
            }
            file.set_len(live.needed as u64)
                .map_err(|e| ShmError::from_io(name, "shorten", e))?;
            given += live.room - live.needed;
            live.room = live.needed;
        }
        Ok(given)
    }

    pub(super) fn stats(&mut self) -> PoolStats {
        self.live.retain(|_, live| live.segment.strong_count() > 0);
        let sum = |of: fn(&Live) -> usize| self.live.values().map(of).sum();
        PoolStats {
            idle: self.idle.len(),
            idle_bytes: self.idle_bytes(),
            draining: self
                .idle
                .iter()
                .filter(|idle| idle.retired.is_read())
                .count(),
            away: self.away.len(),
            live: self.live.len(),
            live_bytes: sum(|live| live.room),
            needed_bytes: sum(|live| live.needed),
            reused: self.reused,
            fresh: self.fresh,
            removed: self.removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_class_holds_what_it_is_for_and_little_more(needed in 4096usize..3 << 30) {
            let class = class_of(needed);
            prop_assert!(class >= needed);
            prop_assert!(class - needed <= needed / 8 + platform::page_size());
            prop_assert_eq!(class % platform::page_size(), 0);
            prop_assert_eq!(class_of(class), class);
        }
    }
}

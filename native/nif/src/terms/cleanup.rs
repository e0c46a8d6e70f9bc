//! What is to be cleaned up, and what was, as maps with atom keys. Times are milliseconds.

use std::time::Duration;

use rustler::{NifMap, NifUnitEnum};
use snakepit_shm::{
    CleanupItem, CleanupOptions, CleanupReport, ReaperOptions, ReaperStats, RunMode,
};

/// What a cleanup on request looks at.
#[derive(NifMap)]
pub struct Wanted {
    namespace: String,
    dir: String,
    grace: u64,
    min_age: u64,
    module: Option<String>,
    pattern: Option<String>,
    dry_run: bool,
    corrupted: bool,
}

impl Wanted {
    /// The core's options.
    pub fn options(self) -> CleanupOptions {
        let options = CleanupOptions::new(self.namespace, self.dir)
            .grace(Duration::from_millis(self.grace))
            .min_age(Duration::from_millis(self.min_age))
            .dry_run(self.dry_run)
            .corrupted(self.corrupted);
        let options = match self.module {
            Some(module) => options.module(module),
            None => options,
        };
        match self.pattern {
            Some(pattern) => options.pattern(pattern),
            None => options,
        }
    }
}

/// What a reaper watches, and how.
#[derive(NifMap)]
pub struct Watch {
    namespace: String,
    dir: String,
    mode: ModeTerm,
    grace: u64,
    interval: Option<u64>,
}

#[derive(NifUnitEnum, Clone, Copy)]
enum ModeTerm {
    RealTime,
    Simulation,
}

impl Watch {
    /// The core's options.
    pub fn options(self) -> ReaperOptions {
        let mode = match self.mode {
            ModeTerm::RealTime => RunMode::RealTime,
            ModeTerm::Simulation => RunMode::Simulation,
        };
        let options = ReaperOptions::new(self.namespace, self.dir)
            .mode(mode)
            .grace(Duration::from_millis(self.grace));
        match self.interval {
            Some(interval) => options.interval(Duration::from_millis(interval)),
            None => options,
        }
    }
}

/// What a cleanup did.
#[derive(NifMap)]
pub struct Report {
    removed: Vec<Item>,
    kept: Vec<Item>,
    corrupted: Vec<Item>,
    recovered: Vec<String>,
    cleared_readers: u64,
    next_due: Option<u64>,
}

#[derive(NifMap)]
struct Item {
    id: String,
    reason: String,
    bytes: u64,
}

impl Report {
    /// Of the core's report.
    pub fn of(report: &CleanupReport) -> Self {
        Self {
            removed: items(&report.removed),
            kept: items(&report.kept),
            corrupted: items(&report.corrupted),
            recovered: report.recovered.clone(),
            cleared_readers: report.cleared_readers as u64,
            next_due: report.next_due.map(millis),
        }
    }
}

fn items(items: &[CleanupItem]) -> Vec<Item> {
    let item = |item: &CleanupItem| Item {
        id: item.name.clone(),
        reason: item.reason.clone(),
        bytes: item.bytes,
    };
    items.iter().map(item).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Counters of a reaper.
#[derive(NifMap)]
pub struct Stats {
    watched: u64,
    deaths: u64,
    sweeps: u64,
    removed: u64,
}

impl Stats {
    /// Of the core's counters.
    pub fn of(stats: ReaperStats) -> Self {
        Self {
            watched: stats.watched,
            deaths: stats.deaths,
            sweeps: stats.sweeps,
            removed: stats.removed,
        }
    }
}

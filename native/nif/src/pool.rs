//! The VM's pool of a namespace: memory of regions that ended, kept for those that come.

use std::time::Duration;

use rustler::{Atom, NifMap, NifUnitEnum};
use snakepit_shm::{Pool, PoolOptions, Strategy, Zero};

use crate::error::Answer;

/// Limits and strategy; times in milliseconds.
#[derive(NifMap)]
struct Limits {
    max_idle_bytes: u64,
    idle_timeout: u64,
    strategy: StrategyTerm,
    zero: ZeroTerm,
}

/// As in the configuration.
#[derive(NifUnitEnum, Clone, Copy)]
#[allow(clippy::enum_variant_names)] // the names that the design gives
enum StrategyTerm {
    FirstFit,
    BestFit,
    WorstFit,
}

#[derive(NifUnitEnum, Clone, Copy)]
enum ZeroTerm {
    Never,
    BetweenSessions,
    Always,
}

/// What is kept and was done.
#[derive(NifMap)]
struct Kept {
    idle: u64,
    idle_bytes: u64,
    draining: u64,
    away: u64,
    live: u64,
    live_bytes: u64,
    needed_bytes: u64,
    reused: u64,
    fresh: u64,
    removed: u64,
    fragmentation: f64,
}

/// Dirty, for files may have to go.
#[rustler::nif(schedule = "DirtyIo")]
fn configure_pool(namespace: String, dir: String, limits: Limits) -> Answer<Atom> {
    let bytes = usize::try_from(limits.max_idle_bytes).unwrap_or(usize::MAX);
    let options = PoolOptions::new(&namespace, &dir)
        .enabled(bytes > 0)
        .max_idle_bytes(bytes)
        .idle_timeout(Duration::from_millis(limits.idle_timeout))
        .strategy(match limits.strategy {
            StrategyTerm::FirstFit => Strategy::FirstFit,
            StrategyTerm::BestFit => Strategy::BestFit,
            StrategyTerm::WorstFit => Strategy::WorstFit,
        })
        .zero(match limits.zero {
            ZeroTerm::Never => Zero::Never,
            ZeroTerm::BetweenSessions => Zero::BetweenTenants,
            ZeroTerm::Always => Zero::Always,
        });
    Pool::shared(&namespace, &dir)?.configure(options);
    Ok(rustler::types::atom::ok())
}

/// Removes what the VM's pools keep, of all namespaces.
#[rustler::nif(schedule = "DirtyIo")]
fn drain_pools() -> Atom {
    Pool::drain_shared();
    rustler::types::atom::ok()
}

/// Waits for whoever creates or ends a region in this moment, hence dirty.
#[rustler::nif(schedule = "DirtyIo")]
fn pool_stats(namespace: String, dir: String) -> Answer<Kept> {
    let stats = Pool::shared(&namespace, dir)?.stats();
    Ok(Kept {
        idle: stats.idle as u64,
        idle_bytes: stats.idle_bytes as u64,
        draining: stats.draining as u64,
        away: stats.away as u64,
        live: stats.live as u64,
        live_bytes: stats.live_bytes as u64,
        needed_bytes: stats.needed_bytes as u64,
        reused: stats.reused,
        fresh: stats.fresh,
        removed: stats.removed,
        fragmentation: stats.fragmentation(),
    })
}

/// Gives back what no region needs: what lives is cut to its need, and what is idle removed if asked for.
/// Answers how many bytes that were.
#[rustler::nif(schedule = "DirtyIo")]
fn defragment_pool(namespace: String, dir: String, idle_too: bool) -> Answer<u64> {
    let pool = Pool::shared(&namespace, dir)?;
    let given = if idle_too {
        pool.defragment()?
    } else {
        pool.shorten()?
    };
    Ok(given as u64)
}

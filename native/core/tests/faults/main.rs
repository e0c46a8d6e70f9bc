//! What can go wrong, and what happens: one test for each fault, with real processes and real signals
//! (DESIGN 7; the table is docs/faults.md).

mod files;
mod limits;
mod races;
mod readers;
mod removal;
#[path = "../support/mod.rs"]
mod support;
mod users;
mod writers;

use snakepit_shm::{
    CleanupOptions, Reaper, ReaperEvent, ReaperOptions, Reserve, Resource, RunMode, SegmentChange,
    SegmentDiscovery, SegmentOptions, ShmError, join,
};
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::{Peer, Shm, counter_of, eventually, hear, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const SECOND: Duration = Duration::from_secs(1);

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[
        ("writer", writer),
        ("endless-writer", writers::endless_writer),
        ("reader", readers::reader),
        ("sleeper", readers::sleeper),
        ("waiter", readers::waiter),
        ("crowd", races::crowd),
        ("brim", limits::brim),
        ("lazy", limits::lazy),
        ("descriptors", limits::descriptors),
        ("address-space", limits::address_space),
        ("lister", limits::lister),
        ("lock-limit", limits::lock_limit),
        ("dropper", removal::dropper),
        ("stranger", users::stranger),
        ("joiner", limits::joiner),
    ]);
}

/// How often, how many or how much: little in a test run, all that is promised with
/// `SNAKEPIT_SHM_FULL=1` (`make faults`).
fn full(little: usize, all: usize) -> usize {
    match std::env::var_os("SNAKEPIT_SHM_FULL") {
        Some(_) => all,
        None => little,
    }
}

fn reaper(shm: &Shm, grace: Duration) -> Reaper {
    let options = ReaperOptions::new("test", shm.path()).grace(grace);
    Reaper::start(options, |_| {}).unwrap()
}

fn within_a_second(what: &str, condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    eventually(what, condition);
    let took = started.elapsed();
    assert!(took < SECOND, "{what} took {took:?}");
    took
}

fn writer(dir: &Path) {
    let mut writer = options(dir, &hear()).create().unwrap();
    writer.write(b"published").unwrap();
    say("ready");
    hear();
    std::mem::forget(writer);
}

/// A peer that has created `name` and written to it.
fn writer_of(shm: &Shm, name: &str) -> Peer {
    let mut peer = Peer::start(ENTRY, "writer", shm);
    peer.tell(name);
    peer.expect("ready");
    peer
}

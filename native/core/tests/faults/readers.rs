//! Readers that die, sleep, or come in crowds.

use crate::*;

pub fn reader(dir: &Path) {
    let _readers: Vec<_> = (0..3)
        .map(|_| options(dir, "x").attach_reader().unwrap())
        .collect();
    say("ready");
    hear();
}

#[test]
fn dead_readers_are_not_counted() {
    let shm = Shm::new();
    let mut mine = shm.options("x").create().unwrap();
    mine.write(b"x").unwrap();
    let reaper = reaper(&shm, SECOND);
    let mut peers: Vec<_> = (0..5).map(|_| Peer::start(ENTRY, "reader", &shm)).collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    assert_eq!(mine.reader_count(), 15);
    eventually("all are watched", || reaper.stats().watched == 5);
    for peer in peers {
        peer.kill();
    }
    within_a_second("count right", || mine.reader_count() == 0);
    eventually("all deaths told", || reaper.stats().deaths == 5);
    drop(reaper);
    mine.close().unwrap();
}

/// Nanoseconds of the 99th percentile of 4 KiB writes, the median of some rounds. Clocks tick in steps
/// of 10 ns and more, so it is interpolated within the step that it falls into.
fn p99_of_writes(writer: &mut snakepit_shm::SegmentWriter) -> f64 {
    let value = [7; 4096];
    let mut rounds: Vec<f64> = (0..full(3, 11))
        .map(|_| {
            let mut took: Vec<u32> = (0..full(100_000, 2_000_000))
                .map(|_| {
                    let started = Instant::now();
                    writer.write(&value).unwrap();
                    started.elapsed().as_nanos() as u32
                })
                .collect();
            took.sort_unstable();
            let at = took.len() * 99 / 100;
            let step = took[at];
            let first = took.partition_point(|t| *t < step);
            let beyond = took.partition_point(|t| *t <= step);
            let next = took.get(beyond).copied().unwrap_or(step);
            f64::from(step) + f64::from(next - step) * (at - first) as f64 / (beyond - first) as f64
        })
        .collect();
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

#[test]
fn a_crowd_of_readers_attaches_idles_and_dies() {
    let shm = Shm::new();
    let mut mine = shm.options("x").max_readers(4096).create().unwrap();
    let alone = p99_of_writes(&mut mine);
    let reaper = reaper(&shm, SECOND);
    let count = full(60, 1000);
    let mut peers: Vec<_> = (0..count)
        .map(|_| Peer::start(ENTRY, "reader", &shm))
        .collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    assert_eq!(mine.reader_count(), 3 * count);
    let crowded = p99_of_writes(&mut mine);
    eventually("all are watched", || reaper.stats().watched == count as u64);
    let killed = peers.iter_mut().map(|peer| peer.signal("KILL")).count();
    let took = within_a_second("count right", || mine.reader_count() == 0);
    peers.into_iter().for_each(Peer::kill);
    let after = p99_of_writes(&mut mine);
    println!(
        "{killed} killed, count right {took:?} after the last; P99 of a write: alone {alone:.1} ns, with them {crowded:.1} ns, after them {after:.1} ns"
    );
    drop(reaper);
    mine.close().unwrap();
}

pub fn waiter(dir: &Path) {
    let reader = options(dir, "x").attach_reader().unwrap();
    let mut seen = reader.version();
    say("ready");
    while let Ok(version) = reader.wait_changed(seen, None) {
        seen = version;
    }
}

#[test]
fn a_crowd_of_readers_that_wait_hears_of_every_pause_and_dies() {
    let shm = Shm::new();
    let mut mine = shm.options("x").max_readers(4096).create().unwrap();
    let alone = p99_of_writes(&mut mine);
    let reaper = reaper(&shm, SECOND);
    let count = full(60, 1000) as u32;
    let mut peers: Vec<_> = (0..count)
        .map(|_| Peer::start(ENTRY, "waiter", &shm))
        .collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    let waiters = || shm.options("x").inspect().unwrap().waiters;
    eventually("they sleep", || waiters() == count);
    let crowded = p99_of_writes(&mut mine);
    let killed = peers.iter_mut().map(|peer| peer.signal("KILL")).count();
    let took = within_a_second("count right", || mine.reader_count() == 0);
    eventually("waits taken back", || waiters() == 0);
    peers.into_iter().for_each(Peer::kill);
    let after = p99_of_writes(&mut mine);
    println!(
        "{killed} killed, count right {took:?} after the last; P99 of a write: alone {alone:.1} ns, with them waiting {crowded:.1} ns, after them {after:.1} ns"
    );
    drop(reaper);
    mine.close().unwrap();
}

#[test]
fn simulation_mode_finds_the_dead_by_sweeping() {
    let shm = Shm::new();
    let mut mine = shm.options("x").create().unwrap();
    mine.write(b"x").unwrap();
    let options = ReaperOptions::new("test", shm.path())
        .mode(RunMode::Simulation)
        .interval(Duration::from_millis(50));
    let reaper = Reaper::start(options, |_| {}).unwrap();
    let mut peer = Peer::start(ENTRY, "reader", &shm);
    peer.expect("ready");
    peer.kill();
    within_a_second("count right", || mine.reader_count() == 0);
    assert_eq!((reaper.stats().watched, reaper.stats().deaths), (0, 0));
    drop(reaper);
    mine.close().unwrap();
}

pub fn sleeper(dir: &Path) {
    let reader = options(dir, "x").attach_reader().unwrap();
    say("ready");
    let _ = reader.wait_changed(reader.version(), None);
}

#[test]
fn a_reader_killed_asleep_costs_the_writer_nothing_afterwards() {
    let shm = Shm::new();
    let mut mine = shm.options("x").create().unwrap();
    mine.write(b"x").unwrap();
    let reaper = reaper(&shm, SECOND);
    let mut peers: Vec<_> = (0..3)
        .map(|_| Peer::start(ENTRY, "sleeper", &shm))
        .collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    let waiters = || shm.options("x").inspect().unwrap().waiters;
    eventually("they sleep", || waiters() == 3);
    for peer in peers {
        peer.kill();
    }
    within_a_second("waits taken back", || {
        waiters() == 0 && mine.reader_count() == 0
    });
    drop(reaper);
    mine.close().unwrap();
}

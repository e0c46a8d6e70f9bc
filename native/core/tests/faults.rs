//! What can go wrong, and what happens: one test for each fault, with real processes and real signals
//! (DESIGN 7; the table is docs/faults.md).

mod support;

use snakepit_shm::{
    CleanupOptions, Reaper, ReaperEvent, ReaperOptions, Reserve, Resource, RunMode,
    SegmentDiscovery, ShmError, join,
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
        ("endless-writer", endless_writer),
        ("reader", reader),
        ("sleeper", sleeper),
        ("waiter", waiter),
        ("crowd", crowd),
        ("brim", brim),
        ("lazy", lazy),
        ("descriptors", descriptors),
        ("address-space", address_space),
        ("lock-limit", lock_limit),
        ("dropper", dropper),
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

fn endless_writer(dir: &Path) {
    let slots: usize = hear().parse().unwrap();
    let size = full(4 << 20, 64 << 20);
    let mut writer = match options(dir, "big").size(size).slots(slots).create() {
        Ok(writer) => writer,
        Err(_) => options(dir, "big").attach_writer().unwrap(),
    };
    let mut counter = writer.current_version() / 2;
    say("ready");
    if slots == 1 {
        let mut value = vec![0; size];
        pattern(counter + 1, &mut value);
        loop {
            writer.write(&value).unwrap();
            counter += 1;
            if counter % 100 == 1 {
                say("wrote");
            }
        }
    }
    loop {
        // Made in the slot itself, so that almost all of its time is in the middle of a write.
        counter += 1;
        let mut loan = writer.loan().unwrap();
        pattern(counter, loan.as_mut_slice());
        loan.publish(size, &snakepit_shm::Descriptor::RAW).unwrap();
        say(&format!("wrote {counter}"));
    }
}

#[test]
fn writer_killed_mid_write_never_hides_the_last_value() {
    let shm = Shm::new();
    let mut attached = None;
    let mut last = 0;
    let rounds = full(25, 1000);
    let mut up = Vec::new();
    for round in 0..rounds {
        let mut peer = Peer::start(ENTRY, "endless-writer", &shm);
        let started = Instant::now();
        peer.tell("2");
        peer.expect("ready");
        up.push(started.elapsed());
        let wrote: u64 = peer.expect("wrote").parse().unwrap();
        let reader = attached.get_or_insert_with(|| shm.options("big").attach_reader().unwrap());
        // Where in the write it dies differs from round to round.
        let until = Instant::now() + Duration::from_micros(round as u64 * 137 % 3000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        peer.kill();
        let counter = counter_of(reader.read().unwrap()).expect("torn");
        assert!(
            counter >= wrote && counter > last,
            "lost what was published"
        );
        last = counter;
    }
    let reader = attached.unwrap();
    assert_eq!(reader.generation() as usize, rounds);
    up.sort();
    println!(
        "{rounds} kills; next writer up: median {:?}, worst {:?}",
        up[rounds / 2],
        up[rounds - 1]
    );
    reader.close().unwrap();
    CleanupOptions::new("test", shm.path())
        .grace(Duration::ZERO)
        .run()
        .unwrap();
}

#[test]
fn one_slot_and_a_dead_writer_is_torn_until_the_next_write() {
    let shm = Shm::new();
    let mut seen_torn = false;
    let mut peer = Peer::start(ENTRY, "endless-writer", &shm);
    peer.tell("1");
    peer.expect("wrote");
    let mut reader = shm.options("big").attach_reader().unwrap();
    for _ in 0..50 {
        peer.kill();
        match reader.read() {
            Ok(value) => assert!(counter_of(value).is_some()),
            Err(ShmError::Torn { .. }) => seen_torn = true,
            Err(other) => panic!("{other}"),
        }
        peer = Peer::start(ENTRY, "endless-writer", &shm);
        peer.tell("1");
        peer.expect("wrote");
        if seen_torn {
            break;
        }
    }
    assert!(seen_torn, "never died in the middle");
    peer.kill();
    let mut heir = shm.options("big").attach_writer().unwrap();
    heir.write(b"readable again").unwrap();
    assert_eq!(reader.read().unwrap(), b"readable again");
    heir.close().unwrap();
    reader.close().unwrap();
}

fn reader(dir: &Path) {
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

fn waiter(dir: &Path) {
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

fn sleeper(dir: &Path) {
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

#[test]
fn all_killed_at_once_leave_nothing_behind() {
    let shm = Shm::new();
    let peers: Vec<_> = (0..4).map(|i| writer_of(&shm, &format!("s{i}"))).collect();
    for peer in peers {
        peer.kill();
    }
    assert!(shm.files().len() >= 8);
    // The next start finds them; nothing is lost while a writer may come back.
    let reaper = reaper(&shm, Duration::from_millis(300));
    let mut heir = shm.options("s0").attach_writer().unwrap();
    heir.write_at(0, b"P").unwrap();
    eventually("three are removed", || reaper.stats().removed == 3);
    assert_eq!(
        shm.options("s0").attach_reader().unwrap().read().unwrap(),
        b"Published"
    );
    drop(reaper);
    heir.close().unwrap();
}

#[test]
fn a_crashed_name_is_free_after_its_grace_without_a_daemon() {
    let shm = Shm::new();
    writer_of(&shm, "x").kill();
    assert_eq!(
        shm.options("x").create().unwrap_err().code(),
        "already_exists"
    );
    let report = CleanupOptions::new("test", shm.path())
        .dry_run(true)
        .run()
        .unwrap();
    assert!(report.removed.is_empty() && report.next_due.unwrap() <= Duration::from_secs(10));
    let report = CleanupOptions::new("test", shm.path())
        .grace(Duration::ZERO)
        .run()
        .unwrap();
    assert_eq!(report.removed[0].reason, "its writer died");
    shm.options("x").create().unwrap().close().unwrap();
}

fn dropper(dir: &Path) {
    let mut writer = options(dir, "x").create().unwrap();
    writer.write(b"x").unwrap();
    say("ready");
    hear();
    drop(writer); // not closed
    say("dropped");
    hear();
}

#[test]
fn removed_within_a_second_of_the_last_consumer() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "dropper", &shm);
    peer.expect("ready");
    let first = shm.options("x").attach_reader().unwrap();
    let second = shm.options("x").attach_reader().unwrap();
    peer.tell("drop");
    peer.expect("dropped");
    assert_eq!(
        shm.options("x").inspect().unwrap().readers.len(),
        2,
        "readers keep it"
    );
    first.close().unwrap();
    assert!(shm.options("x").attach_reader().is_ok());
    drop(second); // not closed either
    within_a_second("removed", || {
        shm.options("x")
            .inspect()
            .is_err_and(|e| e.code() == "not_found")
    });
    peer.finish();
}

#[test]
fn a_stopped_process_is_not_dead() {
    let shm = Shm::new();
    let peer = writer_of(&shm, "x");
    let reaper = reaper(&shm, Duration::ZERO);
    peer.signal("STOP");
    for _ in 0..5 {
        assert_eq!(
            shm.options("x").attach_writer().unwrap_err().code(),
            "segment_busy"
        );
        let report = CleanupOptions::new("test", shm.path())
            .grace(Duration::ZERO)
            .run()
            .unwrap();
        assert!(report.removed.is_empty());
    }
    peer.signal("CONT");
    assert_eq!(reaper.stats().removed, 0);
    peer.kill();
    eventually("removed", || reaper.stats().removed == 1);
}

#[test]
fn segment_busy_is_said_within_100_us() {
    let shm = Shm::new();
    let mine = shm.options("x").create().unwrap();
    let best = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(
                shm.options("x").attach_writer().unwrap_err().code(),
                "segment_busy"
            );
            started.elapsed()
        })
        .min()
        .unwrap();
    println!("refused in {best:?}");
    // Speed is no matter of a test run; `make faults` holds it to the promise.
    assert!(full(0, 1) == 0 || best < Duration::from_micros(100));
    mine.close().unwrap();
}

#[test]
fn truncated_under_a_reader_a_writer_and_a_view() {
    let shm = Shm::new();
    let cut = |name: &str, len: u64| {
        let file = OpenOptions::new()
            .write(true)
            .open(shm.segment_file(name))
            .unwrap();
        file.set_len(len).unwrap();
    };
    let options = shm.options("x").size(1 << 20);
    let mut writer = options.create().unwrap();
    writer.write(&[7; 1 << 20]).unwrap();
    let mut reader = options.attach_reader().unwrap();
    assert_eq!(reader.read().unwrap().len(), 1 << 20);
    cut("x", 256 * 1024);
    assert_eq!(reader.read().unwrap_err().code(), "truncated");
    assert_eq!(
        reader.wait_changed(2, Some(SECOND)).unwrap_err().code(),
        "truncated"
    );
    let value = vec![8; 1 << 20];
    let error = (0..3).find_map(|_| writer.write(&value).err()).unwrap();
    assert_eq!(error.code(), "truncated");
    assert_eq!(writer.write(b"more").unwrap_err().code(), "truncated");
    drop((reader, writer));

    let options = shm.options("y").size(1 << 20).slots(1);
    let mut writer = options.create().unwrap();
    writer.write(&[9; 1 << 20]).unwrap();
    writer.seal().unwrap();
    let reader = options.attach_reader().unwrap();
    let view = reader.sealed().unwrap();
    cut("y", 0);
    assert_eq!(
        view.iter().filter(|byte| **byte == 0).count(),
        1 << 20,
        "zeros from the cut on"
    );
    assert!(!view.is_intact());
    assert_eq!(reader.sealed().unwrap_err().code(), "truncated");
    drop((view, reader, writer));
    let report = CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
    assert_eq!(report.corrupted.len(), 2);
}

#[test]
fn a_sleeper_on_a_cut_file_wakes() {
    let shm = Shm::new();
    let writer = shm.options("x").create().unwrap();
    let reader = shm.options("x").attach_reader().unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| reader.wait_changed(0, None));
        eventually("it sleeps", || {
            shm.options("x").inspect().unwrap().waiters == 1
        });
        let file = OpenOptions::new()
            .write(true)
            .open(shm.segment_file("x"))
            .unwrap();
        file.set_len(0).unwrap();
        let woken = sleeper.join().unwrap();
        assert_eq!(woken.unwrap_err().code(), "truncated");
    });
    drop((reader, writer));
    CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
}

#[test]
fn one_truncated_file_harms_nobody_who_lists() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let good = shm.options("good").create().unwrap();
    let bad = shm.options("bad").create().unwrap();
    assert_eq!(discovery.list().unwrap().len(), 2);
    let file = OpenOptions::new()
        .write(true)
        .open(shm.segment_file("bad"))
        .unwrap();
    file.set_len(0).unwrap();
    for discovery in [
        &discovery,
        &SegmentDiscovery::new("test", shm.path()).unwrap(),
    ] {
        let names: Vec<_> = discovery
            .list()
            .unwrap()
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["good"]);
        assert_eq!(discovery.corrupted().unwrap()[0].0, "bad");
    }
    drop(bad);
    let report = CleanupOptions::new("test", shm.path()).run().unwrap();
    assert_eq!(
        report.corrupted.len(),
        1,
        "isolated, and not removed unless asked"
    );
    let report = CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
    assert_eq!(report.removed[0].name, "bad");
    good.close().unwrap();
}

#[test]
fn cleaning_sensor_leaves_sensor_data() {
    let shm = Shm::new();
    for name in ["sensor", "sensor_data", "sensor.1"] {
        writer_of(&shm, name).kill();
    }
    let clean = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    let report = clean.clone().pattern("sensor").run().unwrap();
    assert_eq!(report.removed.len(), 1);
    assert_eq!(report.removed[0].name, "sensor");
    assert!(shm.options("sensor_data").inspect().is_ok());
    let report = clean.clone().module("other").run().unwrap();
    assert!(report.removed.is_empty());
    let report = clean
        .clone()
        .min_age(Duration::from_secs(3600))
        .run()
        .unwrap();
    assert!(report.removed.is_empty());
    assert_eq!(clean.run().unwrap().removed.len(), 2);
}

#[test]
fn a_lost_meta_is_found_again() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    writer.write(b"kept").unwrap();
    std::fs::remove_file(shm.path().join("test_x.meta")).unwrap();
    assert_eq!(
        shm.options("x").attach_reader().unwrap_err().code(),
        "not_found"
    );
    let report = CleanupOptions::new("test", shm.path()).run().unwrap();
    assert_eq!(report.recovered, ["x"]);
    assert_eq!(
        shm.options("x").attach_reader().unwrap().read().unwrap(),
        b"kept"
    );
    writer.close().unwrap();
}

#[test]
fn what_a_creator_killed_between_two_links_left_is_removed() {
    let shm = Shm::new();
    let peer = writer_of(&shm, "x");
    // The state between the two links: a segment without metadata, of a dead process.
    std::fs::remove_file(shm.path().join("test_x.meta")).unwrap();
    peer.kill();
    assert_eq!(shm.files().len(), 2);
    let clean = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    assert_eq!(clean.run().unwrap().removed.len(), 1);
}

/// One of many that create, attach and clean up one name at once.
fn crowd(dir: &Path) {
    say("ready");
    let rounds: u32 = hear().parse().unwrap();
    let _member = join("test", dir).unwrap();
    let clean = CleanupOptions::new("test", dir).grace(Duration::ZERO);
    for round in 0..rounds {
        match options(dir, "one").create() {
            Ok(mut writer) => {
                writer.write(b"whole").unwrap();
                match round % 3 {
                    0 => writer.close().unwrap(),
                    1 => writer.release().unwrap(),
                    _ => drop(writer),
                }
            }
            Err(ShmError::AlreadyExists { .. }) => {}
            Err(other) => panic!("create: {other}"),
        }
        match options(dir, "one").attach_reader() {
            Ok(mut reader) => {
                match reader.read() {
                    Ok(value) => assert_eq!(value, b"whole"),
                    Err(ShmError::Empty { .. }) => {}
                    Err(other) => panic!("read: {other}"),
                }
                reader.close().unwrap();
            }
            Err(ShmError::NotFound { .. }) => {}
            Err(other) => panic!("attach: {other}"),
        }
        match options(dir, "one").attach_writer() {
            Ok(mut writer) => {
                writer.write(b"whole").unwrap();
                writer.close().unwrap();
            }
            Err(
                ShmError::NotFound { .. } | ShmError::SegmentBusy { .. } | ShmError::Closed { .. },
            ) => {}
            Err(other) => panic!("take over: {other}"),
        }
        let report = clean.run().unwrap();
        assert!(report.corrupted.is_empty(), "{report:?}");
    }
    say("done");
    hear();
}

#[test]
fn twenty_processes_create_attach_and_clean_one_name() {
    let shm = Shm::new();
    let mut peers: Vec<_> = (0..20).map(|_| Peer::start(ENTRY, "crowd", &shm)).collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    let rounds = full(50, 1000).to_string();
    peers.iter_mut().for_each(|peer| peer.tell(&rounds));
    peers.iter_mut().for_each(|peer| drop(peer.expect("done")));
    peers.into_iter().for_each(Peer::finish);
    let report = CleanupOptions::new("test", shm.path())
        .grace(Duration::ZERO)
        .run()
        .unwrap();
    assert!(report.kept.is_empty(), "{report:?}");
}

/// In a mount namespace of its own, with a small tmpfs over its directory.
fn small_tmpfs(dir: &Path) {
    let status = std::process::Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={}m", full(8, 64)),
            "tmpfs",
        ])
        .arg(dir)
        .status()
        .unwrap();
    assert!(status.success(), "mount");
}

const UNSHARE: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];

fn brim(dir: &Path) {
    small_tmpfs(dir);
    let filler = vec![1u8; full(8, 64) << 20];
    let used = |dir: &Path| -> u64 {
        let files = std::fs::read_dir(dir).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
    };
    let _member = join("test", dir).unwrap();
    let _ = std::fs::write(dir.join("filler"), &filler); // to the brim
    let (before, count) = (used(dir), std::fs::read_dir(dir).unwrap().count());
    for i in 0..full(500, 10_000) {
        match options(dir, &format!("s{i}")).size(1 << 20).create() {
            Err(
                error @ ShmError::ResourceExhausted {
                    resource: Resource::Space,
                    ..
                },
            ) => {
                assert!(error.remedy().contains("remount"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (used(dir), std::fs::read_dir(dir).unwrap().count()),
        (before, count)
    );
    std::fs::remove_file(dir.join("filler")).unwrap();
    options(dir, "fits")
        .size(1 << 20)
        .create()
        .unwrap()
        .close()
        .unwrap();
    say("done");
    hear();
}

#[test]
fn a_full_file_system_refuses_and_keeps_not_a_byte() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(UNSHARE, ENTRY, "brim", &shm);
    peer.expect("done");
    peer.finish();
}

fn lazy(dir: &Path) {
    small_tmpfs(dir);
    let space = full(8, 64) << 20;
    let lazily = options(dir, "giant")
        .size(space * 8)
        .slots(1)
        .reserve(Reserve::Lazy);
    let mut writer = lazily.create().unwrap();
    writer.write(b"fits").unwrap();
    let error = writer.write(&vec![1; space * 4]).unwrap_err();
    assert_eq!(error.code(), "truncated");
    assert_eq!(writer.write(b"lost").unwrap_err().code(), "truncated");
    writer.close().unwrap();
    say("done");
    hear();
}

#[test]
fn a_hole_without_memory_is_survived() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(UNSHARE, ENTRY, "lazy", &shm);
    peer.expect("done");
    peer.finish();
}

fn descriptors(dir: &Path) {
    let mut writer = options(dir, "x").create().unwrap();
    writer.write(b"x").unwrap();
    // Every descriptor that the limit allows, and one segment is no descriptor.
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    for error in [
        options(dir, "y").create().unwrap_err(),
        options(dir, "x").attach_reader().unwrap_err(),
        options(dir, "x").attach_writer().unwrap_err(),
    ] {
        match error {
            ShmError::ResourceExhausted {
                resource: Resource::Descriptors,
                ..
            } => {}
            other => panic!("{other}"),
        }
    }
    writer.write(b"still").unwrap();
    drop(taken);
    assert_eq!(
        options(dir, "x").attach_reader().unwrap().read().unwrap(),
        b"still"
    );
    writer.close().unwrap();
    say("done");
    hear();
}

#[test]
fn out_of_descriptors_is_named() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(&["prlimit", "--nofile=64"], ENTRY, "descriptors", &shm);
    peer.expect("done");
    peer.finish();
}

fn address_space(dir: &Path) {
    let huge = options(dir, "huge")
        .size(1 << 30)
        .slots(2)
        .reserve(Reserve::Lazy);
    match huge.create().unwrap_err() {
        ShmError::ResourceExhausted {
            resource: Resource::AddressSpace,
            ..
        } => {}
        other => panic!("{other}"),
    }
    options(dir, "small").create().unwrap().close().unwrap();
    say("done");
    hear();
}

#[test]
fn out_of_address_space_is_named() {
    let shm = Shm::new();
    let limit = format!("--as={}", 1u64 << 30);
    let mut peer = Peer::start_by(&["prlimit", &limit], ENTRY, "address-space", &shm);
    peer.expect("done");
    peer.finish();
}

/// In a user namespace of its own, where being root lifts no limit.
fn lock_limit(dir: &Path) {
    let large = options(dir, "x").size(1 << 20).slots(1).lock_memory(true);
    match large.create().unwrap_err() {
        ShmError::ResourceExhausted {
            resource: Resource::LockedMemory,
            ..
        } => {}
        other => panic!("{other}"),
    }
    assert_eq!(options(dir, "x").inspect().unwrap_err().code(), "not_found");
    say("done");
    hear();
}

#[test]
fn a_named_error_when_the_lock_limit_is_reached() {
    let shm = Shm::new();
    let by = [
        "unshare",
        "--user",
        "--map-root-user",
        "prlimit",
        "--memlock=65536",
    ];
    let mut peer = Peer::start_by(&by, ENTRY, "lock-limit", &shm);
    peer.expect("done");
    peer.finish();
}

#[test]
fn the_reaper_tells_what_it_did() {
    let shm = Shm::new();
    let (events, heard) = mpsc::channel();
    let options = ReaperOptions::new("test", shm.path()).grace(Duration::from_millis(50));
    let reaper = Reaper::start(options, move |event| drop(events.send(event.clone()))).unwrap();
    let peer = writer_of(&shm, "x");
    eventually("it is watched", || reaper.stats().watched == 1);
    let pid = peer.pid();
    peer.kill();
    match heard.recv_timeout(Duration::from_secs(20)).unwrap() {
        ReaperEvent::ProcessEnded { pid: ended, .. } => assert_eq!(ended, pid),
        other => panic!("{other:?}"),
    }
    match heard.recv_timeout(Duration::from_secs(20)).unwrap() {
        ReaperEvent::Swept(report) => assert_eq!(report.removed[0].name, "x"),
        other => panic!("{other:?}"),
    }
    drop(reaper);
}

#[test]
fn a_hundred_segments_and_two_lists_agree() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let mut watch = discovery.watch().unwrap();
    let mut writers: Vec<_> = (0..100)
        .map(|i| shm.options(&format!("s{i:03}")).create().unwrap())
        .collect();
    writers[7].write(b"seven").unwrap();
    let listed = discovery.list().unwrap();
    assert_eq!(listed.len(), 100);
    assert_eq!(
        (listed[7].name.as_str(), listed[7].len, listed[7].version),
        ("s007", 5, 2)
    );
    let mut appeared = 0;
    while appeared < 100 {
        let changes = watch.next(Duration::from_secs(10)).unwrap();
        assert!(!changes.is_empty(), "told of {appeared}");
        appeared += changes.len();
    }
    let reader = shm.options("s007").attach_reader().unwrap();
    writers.remove(7).close().unwrap();
    writers.remove(7).close().unwrap();
    let again = discovery.list().unwrap();
    let fresh = SegmentDiscovery::new("test", shm.path())
        .unwrap()
        .list()
        .unwrap();
    let brief = |list: &[snakepit_shm::SegmentInfo]| -> Vec<_> {
        list.iter()
            .map(|s| (s.name.clone(), s.version, s.reader_count, s.writer_pid))
            .collect()
    };
    assert_eq!(brief(&again), brief(&fresh));
    assert_eq!(again.len(), 99, "one was closed unread, one is read still");
    assert_eq!(again[7].reader_count, 1);
    reader.close().unwrap();
    writers.into_iter().for_each(|w| w.close().unwrap());
    assert!(discovery.list().unwrap().is_empty());
}

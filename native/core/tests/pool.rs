//! Memory that is kept for the next segment: between threads and processes, and when one dies.

mod support;

use nix::sys::resource::{UsageWho, getrusage};
use snakepit_shm::{CleanupOptions, Pool, PoolOptions, Reserve, ShmError, Strategy, Zero};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, counter_of, eventually, fill, hear, once, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const LARGE: usize = 16 << 20;

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[
        ("reader", reader),
        ("keeper", keeper),
        ("churner", churner),
        ("looker", looker),
        ("brim", brim),
        ("heir", heir),
    ]);
}

fn pool(shm: &Shm) -> Pool {
    pool_options(shm.path()).open().unwrap()
}

fn pool_options(dir: &Path) -> PoolOptions {
    PoolOptions::new("test", dir)
}

fn faults() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    usage.minor_page_faults()
}

#[test]
fn the_next_segment_finds_its_pages_there() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let first = fill(&pool, &once(shm.path(), "first", LARGE), 1);
    let inode = std::fs::metadata(shm.segment_file("first")).unwrap().ino();
    let (generation, old) = (first.generation(), first.incarnation().to_owned());
    assert!(pool.retire(first).unwrap());
    assert_eq!(pool.stats().idle, 1);
    assert_eq!(shm.pool_files().len(), 1);

    let value = vec![2; LARGE];
    let before = faults();
    let second = once(shm.path(), "second", LARGE);
    let mut writer = pool.create(&second).unwrap();
    writer.write(&value).unwrap();
    let faulted = faults() - before;
    assert!(faulted < 64, "{faulted} page faults for 4096 pages");
    assert_eq!(
        std::fs::metadata(shm.segment_file("second")).unwrap().ino(),
        inode
    );
    assert_eq!(writer.generation(), generation + 1);
    assert_ne!(writer.incarnation(), old);
    let mut reader = second.attach_reader().unwrap();
    assert!(reader.read().unwrap() == value);
    let stats = pool.stats();
    assert_eq!(
        (stats.idle, stats.live, stats.reused, stats.fresh),
        (0, 1, 1, 1)
    );
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_readers_first_touch_of_a_recycled_segment_faults_nothing() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let mut buffer = vec![0; LARGE];
    let mut faulted = 0;
    for round in 0..3 {
        let options = once(shm.path(), &format!("round-{round}"), LARGE);
        let mut writer = fill(&pool, &options, round);
        writer.seal().unwrap();
        let before = faults();
        let reader = options.attach_reader().unwrap();
        let view = reader.sealed().unwrap();
        buffer.copy_from_slice(&view);
        faulted = faults() - before;
        assert!(buffer.iter().all(|byte| *byte == round));
        drop(view);
        reader.close().unwrap();
        assert!(pool.retire(writer).unwrap());
    }
    assert!(faulted < 64, "{faulted} page faults for 4096 pages");
    // For a while; and not when memory is short.
    assert!(snakepit_shm::kept_mappings().1 >= LARGE);
    eventually("what is left mapped is unmapped", || {
        snakepit_shm::settle();
        snakepit_shm::kept_mappings().1 < LARGE
    });
}

#[test]
fn a_late_handle_is_refused() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let options = once(shm.path(), "same-name", 4096);
    let mut first = fill(&pool, &options, 1);
    first.seal().unwrap();
    let late = first.handle().unwrap();
    assert!(pool.retire(first).unwrap());
    assert_eq!(late.open(shm.path()).unwrap_err().code(), "not_found");
    let mut second = fill(&pool, &options, 2);
    second.seal().unwrap();
    assert_eq!(pool.stats().reused, 1);
    assert_eq!(late.open(shm.path()).unwrap_err().code(), "not_found");
    assert!(second.handle().unwrap().open(shm.path()).unwrap()[..] == [2; 4096]);
    second.close().unwrap();
}

#[test]
fn who_reads_keeps_what_it_reads_and_the_memory_waits() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let first = once(shm.path(), "first", 1 << 20);
    let mut writer = fill(&pool, &first, 1);
    writer.seal().unwrap();
    let mut peer = Peer::start(ENTRY, "reader", &shm);
    peer.expect("attached");
    let reader = first.attach_reader().unwrap();
    let view = reader.sealed().unwrap();
    assert!(pool.retire(writer).unwrap());
    assert_eq!(first.attach_reader().unwrap_err().code(), "not_found");

    let second = fill(&pool, &once(shm.path(), "second", 1 << 20), 2);
    assert_eq!((pool.stats().draining, pool.stats().reused), (1, 0));
    assert!(view.iter().all(|byte| *byte == 1));
    drop(view);
    reader.close().unwrap();
    peer.tell("look");
    assert_eq!(peer.expect("saw"), "1");
    let third = fill(&pool, &once(shm.path(), "third", 1 << 20), 3);
    assert_eq!(pool.stats().reused, 0, "the peer still reads it");

    // Dead, it waits for nobody.
    peer.kill();
    third.close().unwrap();
    let fourth = fill(&pool, &once(shm.path(), "fourth", 1 << 20), 4);
    let fifth = fill(&pool, &once(shm.path(), "fifth", 1 << 20), 5);
    assert_eq!((pool.stats().draining, pool.stats().reused), (0, 1));
    for writer in [second, fourth, fifth] {
        writer.close().unwrap();
    }
}

fn reader(dir: &Path) {
    let mut reader = options(dir, "first").attach_reader().unwrap();
    say("attached");
    hear();
    say(&format!("saw {}", reader.read().unwrap()[0]));
    hear();
}

#[test]
fn who_views_its_own_segment_keeps_it() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let mut writer = fill(&pool, &once(shm.path(), "first", 1 << 20), 1);
    writer.seal().unwrap();
    let view = writer.sealed().unwrap();
    assert!(!pool.retire(writer).unwrap());
    let second = fill(&pool, &once(shm.path(), "second", 1 << 20), 2);
    assert!(view.iter().all(|byte| *byte == 1));
    drop(view);
    second.close().unwrap();
}

#[test]
fn limits_are_kept_and_what_is_too_old_goes() {
    let shm = Shm::new();
    let three = pool_options(shm.path()).max_idle_bytes(3 << 20);
    let pool = three.clone().open().unwrap();
    let segments: Vec<_> = (0..4)
        .map(|n| fill(&pool, &once(shm.path(), &format!("s{n}"), 512 << 10), 1))
        .collect();
    for segment in segments {
        pool.retire(segment).unwrap();
    }
    assert_eq!(pool.stats().idle, 4);
    let big = fill(&pool, &once(shm.path(), "big", 2 << 20), 1);
    assert!(pool.retire(big).unwrap());
    let stats = pool.stats();
    assert!(
        stats.idle_bytes <= 3 << 20 && stats.idle == 2 && stats.removed == 3,
        "{stats:?}"
    );
    let bigger = fill(&pool, &once(shm.path(), "bigger", 4 << 20), 1);
    assert!(
        !pool.retire(bigger).unwrap(),
        "larger than all that may be kept"
    );

    pool.configure(three.max_idle(1));
    let small = fill(&pool, &once(shm.path(), "small", 4096), 1);
    assert!(pool.retire(small).unwrap());
    assert_eq!((pool.stats().idle, shm.pool_files().len()), (1, 1));

    pool.configure(pool_options(shm.path()).idle_timeout(Duration::from_millis(50)));
    let last = fill(&pool, &once(shm.path(), "last", 4096), 1);
    pool.retire(last).unwrap();
    eventually("idle memory is removed by itself", || {
        shm.pool_files().is_empty()
    });
    assert_eq!(pool.stats().idle, 0);

    pool.configure(pool_options(shm.path()).idle_timeout(Duration::MAX));
    let kept = fill(&pool, &once(shm.path(), "kept", 4096), 1);
    assert!(pool.retire(kept).unwrap());

    pool.configure(pool_options(shm.path()).enabled(false));
    assert_eq!(pool.stats().idle, 0);
    let plain = fill(&pool, &once(shm.path(), "plain", 4096), 1);
    assert!(!pool.retire(plain).unwrap());
}

#[test]
fn the_last_clone_removes_what_is_kept() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let writer = fill(&pool, &once(shm.path(), "x", 4096), 1);
    pool.clone().retire(writer).unwrap();
    assert_eq!(shm.pool_files().len(), 1);
    drop(pool);
    assert_eq!(shm.files(), Vec::<String>::new());
}

#[test]
fn each_strategy_takes_the_file_that_it_names() {
    for (strategy, expected) in [
        (Strategy::FirstFit, 6),
        (Strategy::BestFit, 5),
        (Strategy::WorstFit, 7),
    ] {
        let shm = Shm::new();
        let pool = pool_options(shm.path()).strategy(strategy).open().unwrap();
        let sizes = [7usize, 5, 6, 20, 3];
        let made: Vec<_> = sizes
            .iter()
            .map(|n| fill(&pool, &once(shm.path(), &format!("s{n}"), n << 20), 1))
            .collect();
        let inode_of = |name: &str| std::fs::metadata(shm.segment_file(name)).unwrap().ino();
        let inodes: Vec<_> = sizes.iter().map(|n| inode_of(&format!("s{n}"))).collect();
        for writer in made {
            pool.retire(writer).unwrap();
        }
        let taken = fill(&pool, &once(shm.path(), "taken", (4 << 20) + 4096), 2);
        let at = sizes.iter().position(|n| *n == expected).unwrap();
        assert_eq!(inode_of("taken"), inodes[at], "{strategy:?}");
        let stats = pool.stats();
        assert!(stats.fragmentation() > 0.5, "{stats:?}");

        // What is idle goes, and the rest of the file that is too long.
        let given = pool.defragment().unwrap();
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.live_bytes), (0, stats.needed_bytes));
        assert_eq!(given, stats_bytes(&sizes, &shm));
        assert!(stats.fragmentation() == 0.0);
        let mut reader = options(shm.path(), "taken").attach_reader().unwrap();
        assert!(reader.read().unwrap().iter().all(|byte| *byte == 2));
        reader.close().unwrap();
        // Shorter now, it serves again.
        assert!(pool.retire(taken).unwrap());
        let again = fill(&pool, &once(shm.path(), "again", 3 << 20), 3);
        assert_eq!(inode_of("again"), inodes[at]);
        again.close().unwrap();
    }
}

/// What `defragment` has to give back: all files but what the one that is left needs.
fn stats_bytes(sizes: &[usize], shm: &Shm) -> usize {
    let class = |n: usize| {
        let needed = (n << 20) + 6 * 4096 + 4096;
        needed.next_multiple_of(needed.next_power_of_two() / 16)
    };
    let all: usize = sizes.iter().map(|n| class(*n)).sum();
    all - std::fs::metadata(shm.segment_file("taken")).unwrap().len() as usize
}

#[test]
fn memory_is_zeroed_for_another_tenant() {
    for (zero, tenant, stale) in [
        (Zero::BetweenTenants, "a", true),
        (Zero::BetweenTenants, "b", false),
        (Zero::Never, "b", true),
        (Zero::Always, "a", false),
    ] {
        let shm = Shm::new();
        let pool = pool_options(shm.path()).zero(zero).open().unwrap();
        let first = fill(&pool, &once(shm.path(), "first", 1 << 20).tenant("a"), 0x5A);
        pool.retire(first).unwrap();
        let next = once(shm.path(), "next", 1 << 20).tenant(tenant);
        let mut writer = pool.create(&next).unwrap();
        writer.write(b"short").unwrap();
        let bytes = std::fs::read(shm.segment_file("next")).unwrap();
        // More than one, which may be of a header.
        let found = bytes
            .windows(64)
            .any(|run| run.iter().all(|byte| *byte == 0x5A));
        assert_eq!(found, stale, "{zero:?} {tenant}");
        // However that is, readers see nothing of it.
        let mut reader = next.attach_reader().unwrap();
        assert_eq!(reader.read().unwrap(), b"short");
        writer.write_at(100, b"!").unwrap();
        assert!(reader.read().unwrap()[5..100].iter().all(|byte| *byte == 0));
        reader.close().unwrap();
        writer.close().unwrap();
    }
}

#[test]
fn what_cannot_be_kept_is_made_and_removed_as_ever() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let base = || once(shm.path(), "own", 1 << 20);
    for options in [base().permissions(0o640), base().reserve(Reserve::Lazy)] {
        let writer = fill(&pool, &options, 1);
        assert!(!pool.retire(writer).unwrap());
    }
    let own = base().create().unwrap();
    assert!(!pool.retire(own).unwrap());
    let elsewhere = base().namespace("other");
    assert_eq!(
        pool.create(&elsewhere).unwrap_err().code(),
        "invalid_option"
    );
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.fresh, stats.reused), (0, 0, 0));
}

#[test]
fn files_that_were_cut_scribbled_or_removed_meanwhile() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let size = 1 << 20;
    let retired = |n: u8| {
        let writer = fill(&pool, &once(shm.path(), "x", size), n);
        assert!(pool.retire(writer).unwrap());
        shm.path().join(shm.pool_files().remove(0))
    };
    // Removed: the next one gets new memory.
    std::fs::remove_file(retired(1)).unwrap();
    let next = fill(&pool, &once(shm.path(), "x", size), 2);
    pool.retire(next).unwrap();
    // Cut: found at the latest by whoever touches it, who gets new memory from then on.
    let file = OpenOptions::new().write(true).open(retired(3)).unwrap();
    file.set_len(4096).unwrap();
    let mut cut = pool.create(&once(shm.path(), "x", size)).unwrap();
    let written = cut.write(&vec![4; size]);
    assert!(
        matches!(written, Err(ShmError::Truncated { .. }) | Ok(_)),
        "{written:?}"
    );
    pool.retire(cut).unwrap();
    let whole = fill(&pool, &once(shm.path(), "x", size), 5);
    assert!(pool.retire(whole).unwrap());
    // Scribbled all over: it is made anew from its writer's own knowledge, but for the reader table, which
    // then belongs to nobody who lives.
    let path = shm.path().join(shm.pool_files().remove(0));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xEE; 3 * 4096], 0).unwrap();
    let options = once(shm.path(), "x", size);
    let first = fill(&pool, &options, 6);
    let second = fill(&pool, &once(shm.path(), "y", size), 7);
    let mut reader = options.attach_reader().unwrap();
    assert!(reader.read().unwrap().iter().all(|byte| *byte == 6));
    reader.close().unwrap();
    first.close().unwrap();
    second.close().unwrap();
}

#[test]
fn the_pool_of_a_dead_process_is_removed() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "keeper", &shm);
    peer.expect("kept");
    assert_eq!(shm.pool_files().len(), 2);
    let report = CleanupOptions::new("test", shm.path()).run().unwrap();
    assert!(report.removed.is_empty(), "it lives: {report:?}");
    peer.kill();

    let dry = CleanupOptions::new("test", shm.path())
        .dry_run(true)
        .run()
        .unwrap();
    let dead = |item: &snakepit_shm::CleanupItem| item.reason == "kept by a process that died";
    assert_eq!(
        dry.removed.iter().filter(|item| dead(item)).count(),
        2,
        "{dry:?}"
    );
    assert_eq!(shm.pool_files().len(), 2);
    // Whoever comes next cleans up, without being asked.
    let next = options(shm.path(), "next").create().unwrap();
    assert_eq!(shm.pool_files(), Vec::<String>::new());
    next.close().unwrap();
    shm.options("live").remove().unwrap();
}

fn keeper(dir: &Path) {
    let pool = pool_options(dir).open().unwrap();
    let live = fill(&pool, &once(dir, "live", 1 << 20), 9);
    let two = [1, 2].map(|n| fill(&pool, &once(dir, &format!("s{n}"), 1 << 20), n));
    for writer in two {
        pool.retire(writer).unwrap();
    }
    say("kept");
    hear();
    drop((live, pool));
}

#[test]
fn a_dead_writers_segment_goes_on_in_the_memory_and_into_the_heirs_pool() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "heir", &shm);
    peer.expect("wrote");
    let mut reader = options(shm.path(), "left").attach_reader().unwrap();
    peer.kill();
    assert!(reader.read().unwrap().iter().all(|byte| *byte == 8));
    let pool = pool(&shm);
    let heir = options(shm.path(), "left").attach_writer().unwrap();
    assert!(reader.read().unwrap().iter().all(|byte| *byte == 8));
    reader.close().unwrap();
    assert!(pool.retire(heir).unwrap());
    let next = fill(&pool, &once(shm.path(), "next", 1 << 20), 1);
    assert_eq!(pool.stats().reused, 1);
    next.close().unwrap();
}

fn heir(dir: &Path) {
    let pool = pool_options(dir).open().unwrap();
    let writer = fill(&pool, &once(dir, "left", 1 << 20), 8);
    say("wrote");
    hear();
    drop(writer);
}

#[test]
fn idle_memory_makes_room_on_a_full_file_system() {
    let shm = Shm::new();
    let unshare = &["unshare", "--user", "--map-root-user", "--mount"];
    let mut peer = Peer::start_by(unshare, ENTRY, "brim", &shm);
    peer.expect("done");
    peer.finish();
}

fn brim(dir: &Path) {
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(dir)
        .status();
    assert!(mount.unwrap().success());
    let pool = pool_options(dir).open().unwrap();
    let small = fill(&pool, &once(dir, "small", 3 << 20), 1);
    assert!(pool.retire(small).unwrap());
    let large = fill(&pool, &once(dir, "large", 7 << 20), 2);
    assert_eq!(pool.stats().idle, 0);
    let error = pool.create(&once(dir, "more", 7 << 20)).unwrap_err();
    assert_eq!(error.code(), "resource_exhausted");
    large.close().unwrap();
    drop(pool);
    say("done");
    hear();
}

/// Readers that come late, to a name whose memory goes round and round through segments of other shapes:
/// whole values or a named refusal, never bytes of another.
#[test]
fn late_readers_never_see_another_segment() {
    let shm = Shm::new();
    let mut churner = Peer::start(ENTRY, "churner", &shm);
    churner.expect("ready");
    let mut lookers: Vec<_> = (0..3).map(|_| Peer::start(ENTRY, "looker", &shm)).collect();
    let mut seen = 0;
    for looker in &mut lookers {
        seen += looker.expect("saw").parse::<u64>().unwrap();
    }
    churner.tell("stop");
    let reused: u64 = churner.expect("reused").parse().unwrap();
    assert!(seen > 0 && reused > 0, "{seen} values, {reused} reused");
    for looker in lookers {
        looker.finish();
    }
    churner.finish();
}

const SHAPES: [(usize, usize); 3] = [(64 << 10, 1), (4096, 4), (16 << 10, 2)];

fn churner(dir: &Path) {
    let pool = pool_options(dir).open().unwrap();
    let stop = std::thread::spawn(hear);
    say("ready");
    let mut round = 0;
    while !stop.is_finished() {
        round += 1;
        let (size, slots) = SHAPES[round as usize % SHAPES.len()];
        let name = ["a", "b"][round as usize % 2];
        let mut writer = pool
            .create(&options(dir, name).size(size).slots(slots))
            .unwrap();
        let mut value = vec![0; size];
        for _ in 0..4 {
            pattern(round, &mut value);
            writer.write(&value).unwrap();
        }
        if round % 3 == 0 {
            writer.seal().unwrap();
        }
        pool.retire(writer).unwrap();
    }
    say(&format!("reused {}", pool.stats().reused));
    hear();
}

fn looker(dir: &Path) {
    let mut seen = 0;
    for round in 0..4_000 {
        let name = ["a", "b"][round % 2];
        let mut reader = match options(dir, name).attach_reader() {
            Ok(reader) => reader,
            Err(ShmError::NotFound { .. }) => continue,
            Err(error) => panic!("attach: {error}"),
        };
        match reader.read() {
            Ok(value) => {
                assert!(
                    counter_of(value).is_some(),
                    "not whole: {} bytes",
                    value.len()
                );
                assert!(SHAPES.iter().any(|(size, _)| *size == value.len()));
                seen += 1;
            }
            Err(
                ShmError::Empty { .. } | ShmError::Closed { .. } | ShmError::VersionConflict { .. },
            ) => {}
            Err(error) => panic!("read: {error}"),
        }
        reader.close().unwrap();
    }
    say(&format!("saw {seen}"));
    hear();
}

/// Somebody deletes the `.meta` of a segment that is retired then: it is found again, as one that its writer
/// has closed, and removed.
#[test]
fn a_segment_whose_metadata_is_lost_is_not_kept_and_not_left() {
    let shm = Shm::new();
    let pool = pool(&shm);
    let writer = fill(&pool, &once(shm.path(), "x", 4096), 1);
    std::fs::remove_file(shm.path().join("test_x.meta")).unwrap();
    assert!(!pool.retire(writer).unwrap());
    let run = || CleanupOptions::new("test", shm.path()).run().unwrap();
    assert_eq!(run().recovered, ["x"]);
    eventually("it is removed", || run().kept.is_empty());
}

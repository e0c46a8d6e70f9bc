//! Ways in which kept memory could reach those whom it does not concern.

mod support;

use snakepit_shm::{Pool, PoolOptions};
use std::path::Path;
use support::{Peer, Shm, eventually, fill, hear, once, options, play, say};

const ENTRY: &str = "peer_process";

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("keeper", keeper)]);
}

fn pool(dir: &Path) -> Pool {
    PoolOptions::new("test", dir).open().unwrap()
}

/// A writer that views its own sealed value hands the segment over; the heir keeps the memory.
#[test]
fn a_view_of_who_handed_over_stays_as_it_is() {
    let shm = Shm::new();
    let pool = pool(shm.path());
    let mut writer = fill(&pool, &once(shm.path(), "given", 1 << 20), 1);
    writer.seal().unwrap();
    let view = writer.sealed().unwrap();
    let handle = writer.handle().unwrap();
    writer.release().unwrap();

    pool.remove(&handle).unwrap();
    let next = fill(&pool, &once(shm.path(), "next", 1 << 20), 2);
    assert!(
        view.iter().all(|byte| *byte == 1),
        "another's bytes: {}",
        view[0]
    );
    next.close().unwrap();
}

/// One process lives on; another of the namespace is killed. The next occasion finds what it kept.
#[test]
fn an_occasion_finds_the_pool_of_the_dead() {
    let shm = Shm::new();
    let mine = options(shm.path(), "mine").create().unwrap();
    let mut peer = Peer::start(ENTRY, "keeper", &shm);
    peer.expect("kept");
    assert_eq!(shm.pool_files().len(), 2);
    peer.kill();
    eventually("it is removed", || {
        options(shm.path(), "next")
            .create()
            .unwrap()
            .close()
            .unwrap();
        shm.pool_files().is_empty()
    });
    mine.close().unwrap();
}

fn keeper(dir: &Path) {
    let pool = pool(dir);
    let two = [1, 2].map(|n| fill(&pool, &once(dir, &format!("s{n}"), 1 << 20), n));
    for writer in two {
        pool.retire(writer).unwrap();
    }
    say("kept");
    hear();
    drop(pool);
}

/// What another tenant's process left, or what another pool made, is zeroed for the next.
#[test]
fn memory_of_an_unknown_tenant_is_zeroed() {
    let shm = Shm::new();
    let theirs = pool(shm.path());
    let ours = pool(shm.path());
    let secret = once(shm.path(), "secret", 1 << 20).tenant("them");
    let writer = fill(&theirs, &secret, 0x5A);
    assert!(ours.retire(writer).unwrap());
    let mut next = ours.create(&once(shm.path(), "next", 1 << 20)).unwrap();
    assert_eq!(ours.stats().reused, 1);
    next.write(b"short").unwrap();
    let file = std::fs::read(shm.segment_file("next")).unwrap();
    let left = file.iter().filter(|byte| **byte == 0x5A).count();
    next.close().unwrap();
    assert!(left < 100, "{left} bytes of another tenant");
}

/// What was cut is cut: the next segment in it is no longer than the file.
#[test]
fn what_was_shortened_counts_as_long_as_it_is() {
    let shm = Shm::new();
    let pool = pool(shm.path());
    let long = fill(&pool, &once(shm.path(), "long", 2 << 20), 1);
    assert!(pool.retire(long).unwrap());
    let short = fill(&pool, &once(shm.path(), "short", 1300 << 10), 2);
    assert!(pool.shorten().unwrap() > 0);
    assert!(pool.retire(short).unwrap());
    let next = fill(&pool, &once(shm.path(), "next", 1300 << 10), 3);
    assert_eq!(pool.stats().reused, 2);
    let len = std::fs::metadata(shm.segment_file("next")).unwrap().len();
    let stats = pool.stats();
    let again = pool.shorten().unwrap();
    next.close().unwrap();
    assert_eq!(stats.live_bytes as u64, len);
    assert_eq!(again, 0);
}

/// A name that is taken costs the pool nothing.
#[test]
fn a_name_that_is_taken_costs_no_memory() {
    let shm = Shm::new();
    let pool = pool(shm.path());
    let idle = fill(&pool, &once(shm.path(), "idle", 1 << 20), 1);
    let other = fill(&pool, &once(shm.path(), "taken", 1 << 20), 1);
    assert!(pool.retire(idle).unwrap());
    let error = pool
        .create(&once(shm.path(), "taken", 1 << 20))
        .unwrap_err();
    assert_eq!(error.code(), "already_exists");
    let kept = pool.stats().idle;
    other.close().unwrap();
    drop(pool);
    assert_eq!(kept, 1);
}

/// An heir that keeps its mapping from children does not pass that on.
#[test]
fn an_heir_of_other_options_passes_them_to_nobody() {
    let shm = Shm::new();
    let pool = pool(shm.path());
    let first = fill(&pool, &once(shm.path(), "first", 1 << 20), 1);
    first.release().unwrap();
    let heir = once(shm.path(), "first", 1 << 20)
        .dont_fork(true)
        .attach_writer()
        .unwrap();
    let kept = pool.retire(heir).unwrap();
    assert!(!kept, "its mapping is not like others");
}

/// What is left of a long file when an heir maps only its need counts, too.
#[test]
fn the_heirs_file_is_as_long_as_it_counts() {
    let shm = Shm::new();
    let pool = pool(shm.path());
    let long = fill(&pool, &once(shm.path(), "long", 2 << 20), 1);
    assert!(pool.retire(long).unwrap());
    let short = fill(&pool, &once(shm.path(), "short", 1300 << 10), 2);
    assert_eq!(pool.stats().reused, 1);
    short.release().unwrap();
    let heir = once(shm.path(), "short", 1300 << 10)
        .attach_writer()
        .unwrap();
    assert!(pool.retire(heir).unwrap());
    let file = shm.path().join(shm.pool_files().remove(0));
    let len = std::fs::metadata(file).unwrap().len();
    let counted = pool.stats().idle_bytes;
    drop(pool);
    assert_eq!(counted as u64, len);
}

/// One pool looks at what it has made while another ends it: the claim is nobody's afterwards.
#[test]
fn who_looks_while_a_segment_ends_leaves_no_claim() {
    let shm = Shm::new();
    let (maker, heir) = (pool(shm.path()), pool(shm.path()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = maker.shorten();
            }
        });
        let failed = (0..3_000).find_map(|_| {
            let writer = maker.create(&once(shm.path(), "x", 256 << 10)).ok()?;
            heir.retire(writer).err()
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
    maker
        .create(&once(shm.path(), "x", 256 << 10))
        .unwrap()
        .close()
        .unwrap();
}

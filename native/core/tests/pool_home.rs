//! Memory that was given away with its value, and comes home when whoever took that has ended it.

mod support;

use nix::sys::resource::{UsageWho, getrusage};
use snakepit_shm::{CleanupOptions, Handle, Pool, PoolOptions, SegmentOptions};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, counter_of, eventually, hear, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const LONG: Duration = Duration::from_secs(3600);
const LARGE: usize = 16 << 20;
const SMALL: usize = 1 << 20;

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("taker", taker), ("maker", maker), ("looker", looker)]);
}

fn pool_options(dir: &Path) -> PoolOptions {
    PoolOptions::new("test", dir)
}

fn once(dir: &Path, name: &str, size: usize) -> SegmentOptions {
    options(dir, name).size(size).slots(1)
}

/// Makes a value that shows `counter` everywhere, and gives it away.
fn give(pool: &Pool, dir: &Path, counter: u64, size: usize) -> Handle {
    let mut value = vec![0; size];
    pattern(counter, &mut value);
    let options = once(dir, &format!("v{counter}"), size);
    let mut writer = pool.create(&options).unwrap();
    writer.write(&value).unwrap();
    writer.seal().unwrap();
    let handle = writer.handle().unwrap();
    pool.give_away(&mut writer, LONG).unwrap();
    writer.release().unwrap();
    handle
}

fn heard_handle() -> Option<Handle> {
    let line = hear();
    let value = serde_json::from_str(&line).ok()?;
    Some(Handle::from_value(&value).unwrap())
}

fn tell_handle(peer: &mut Peer, handle: &Handle) {
    peer.tell(&handle.to_value().to_string());
}

/// Looks at each value and ends it.
fn taker(dir: &Path) {
    let pool = Pool::shared("test", dir).unwrap();
    while let Some(handle) = heard_handle() {
        let seen = counter_of(&handle.open(dir).unwrap()).unwrap();
        pool.remove(&handle).unwrap();
        let stats = pool.stats();
        say(&format!("took {seen} {}", stats.idle));
    }
    Pool::drain_shared();
}

/// Takes values and dies with them, or goes on looking at them when they have ended.
fn looker(dir: &Path) {
    let handle = heard_handle().unwrap();
    let view = handle.open(dir).unwrap();
    let writer = handle.options(dir).adopt().unwrap();
    say("adopted");
    hear();
    Pool::of_writer(&writer).retire(writer).unwrap();
    say("ended");
    hear();
    assert!(counter_of(&view).is_some(), "another's bytes under a view");
    drop(view);
    say("left");
    hear();
}

fn maker(dir: &Path) {
    let pool = Pool::shared("test", dir).unwrap();
    let handle = give(&pool, dir, 1, SMALL);
    say(&format!("gave {}", handle.to_value()));
    hear();
}

fn pool_files(shm: &Shm) -> Vec<String> {
    let files = shm.files().into_iter();
    files.filter(|f| f.starts_with("test.pool.")).collect()
}

fn faults() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    usage.minor_page_faults()
}

#[test]
fn memory_comes_home_with_its_pages() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "taker", &shm);
    let mut value = vec![0; LARGE];
    for counter in 1..=8 {
        pattern(counter, &mut value);
        let options = once(shm.path(), &format!("v{counter}"), LARGE);
        let before = faults();
        let mut writer = pool.create(&options).unwrap();
        writer.write(&value).unwrap();
        let faulted = faults() - before;
        assert!(
            counter == 1 || faulted < 64,
            "{faulted} page faults for 4096 pages, value {counter}"
        );
        writer.seal().unwrap();
        let handle = writer.handle().unwrap();
        pool.give_away(&mut writer, LONG).unwrap();
        writer.release().unwrap();
        assert_eq!(pool.stats().away, 1);
        tell_handle(&mut peer, &handle);
        // Nothing is kept there.
        assert_eq!(peer.expect("took"), format!("{counter} 0"));
        // One file, all the time.
        assert_eq!(pool_files(&shm).len(), 1);
    }
    let stats = pool.stats();
    assert_eq!((stats.fresh, stats.reused), (1, 7));
    peer.finish();
    assert!(pool.drain() >= LARGE);
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

#[test]
fn who_looks_on_keeps_what_it_sees() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "looker", &shm);
    let first = give(&pool, shm.path(), 1, SMALL);
    tell_handle(&mut peer, &first);
    peer.expect("adopted");
    peer.tell("end it");
    peer.expect("ended");
    // At home, and of no use yet.
    give(&pool, shm.path(), 2, SMALL);
    let stats = pool.stats();
    assert_eq!((stats.draining, stats.reused, stats.fresh), (1, 0, 2));
    peer.tell("look once more");
    peer.expect("left");
    give(&pool, shm.path(), 3, SMALL);
    assert_eq!(pool.stats().reused, 1);
    peer.finish();
    drop(pool);
    for name in ["v2", "v3"] {
        shm.options(name).adopt().unwrap().close().unwrap();
    }
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

/// Its taker dies with the value: nobody waits for the memory for ever, and it is not lost either.
#[test]
fn a_taker_that_dies_takes_the_memory_with_it() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "looker", &shm);
    let handle = give(&pool, shm.path(), 1, SMALL);
    tell_handle(&mut peer, &handle);
    peer.expect("adopted");
    peer.kill();
    let cleanup = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    eventually("its segment is removed", || {
        cleanup.run().unwrap();
        shm.segment_files().is_empty()
    });
    assert_eq!(pool.stats().away, 1);
    // Looked for every few seconds.
    eventually("its maker notices", || pool.stats().away == 0);
    assert!(pool_files(&shm).is_empty());
}

#[test]
fn without_its_maker_the_memory_is_the_takers() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "maker", &shm);
    let handle = serde_json::from_str(&peer.expect("gave")).unwrap();
    let handle = Handle::from_value(&handle).unwrap();
    peer.kill();
    assert!(pool.remove(&handle).unwrap());
    assert_eq!(pool.stats().idle, 1);
    drop(pool);
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

/// On its way home, and its maker dies: the next to clean up removes it.
#[test]
fn what_has_come_home_goes_with_its_maker() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "maker", &shm);
    let handle = serde_json::from_str(&peer.expect("gave")).unwrap();
    assert!(pool.remove(&Handle::from_value(&handle).unwrap()).unwrap());
    assert_eq!(pool.stats().idle, 0);
    let cleanup = CleanupOptions::new("test", shm.path());
    cleanup.run().unwrap();
    assert_eq!(pool_files(&shm).len(), 1, "its maker lives");
    peer.kill();
    let removed = cleanup.run().unwrap().removed;
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

#[test]
fn who_has_forgone_it_gets_nothing() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peer = Peer::start(ENTRY, "taker", &shm);
    // Before it is sent: the taker keeps it.
    let handle = give(&pool, shm.path(), 1, SMALL);
    pool.drain();
    assert_eq!(pool.stats().away, 0);
    tell_handle(&mut peer, &handle);
    assert_eq!(peer.expect("took"), "1 1");
    // After it was sent: it is removed.
    let handle = give(&pool, shm.path(), 2, SMALL);
    tell_handle(&mut peer, &handle);
    assert_eq!(peer.expect("took"), "2 1");
    assert_eq!(pool_files(&shm).len(), 2);
    assert!(pool.drain() >= SMALL);
    assert_eq!(pool_files(&shm).len(), 1);
    // Limits count what is away as well.
    pool.configure(pool_options(shm.path()).max_idle(1));
    let handles = [3, 4].map(|counter| give(&pool, shm.path(), counter, SMALL));
    assert_eq!(pool.stats().away, 1);
    for (handle, took) in handles.iter().zip(["3 2", "4 2"]) {
        tell_handle(&mut peer, handle);
        assert_eq!(peer.expect("took"), took);
    }
    peer.finish();
    drop(pool);
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

/// Who takes back what it gave away itself has the memory once, not twice.
#[test]
fn what_its_maker_ends_comes_home_once() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    for counter in 1..=4 {
        let handle = give(&pool, shm.path(), counter, SMALL);
        assert!(pool.remove(&handle).unwrap());
        let stats = pool.stats();
        assert_eq!((stats.away, stats.idle, stats.fresh), (0, 1, 1));
    }
    // By another pool of the process: each file is in one of them.
    let other = pool_options(shm.path()).open().unwrap();
    for counter in 5..=8 {
        let handle = give(&pool, shm.path(), counter, SMALL);
        assert!(other.remove(&handle).unwrap());
        let next = give(&other, shm.path(), counter + 10, SMALL);
        let kept = give(&pool, shm.path(), counter + 20, SMALL);
        assert_eq!(
            counter_of(&next.open(shm.path()).unwrap()),
            Some(counter + 10)
        );
        assert_eq!(
            counter_of(&kept.open(shm.path()).unwrap()),
            Some(counter + 20)
        );
        assert!(other.remove(&next).unwrap());
        assert!(pool.remove(&kept).unwrap());
    }
    drop((pool, other));
    assert!(shm.segment_files().is_empty() && pool_files(&shm).is_empty());
}

/// Whatever the header says: memory that did not come is not taken for home, and nothing of others is removed.
#[test]
fn forged_words_bring_nothing_home() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let handle = give(&pool, shm.path(), 1, SMALL);
    let file = shm.segment_file("v1");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut home = [0; 8];
    file.read_exact_at(&mut home, 176).unwrap();
    file.write_all_at(&home, 136).unwrap(); // the claim
    file.write_all_at(&[0; 8], 176).unwrap(); // as if it were sent
    let next = give(&pool, shm.path(), 2, SMALL);
    assert_eq!(pool.stats().reused, 0);
    assert_eq!(counter_of(&handle.open(shm.path()).unwrap()), Some(1));
    assert_eq!(counter_of(&next.open(shm.path()).unwrap()), Some(2));
    // A home that is nobody's: the memory is the taker's.
    let file = shm.segment_file("v2");
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&[0xEE; 8], 176).unwrap();
    let other = pool_options(shm.path()).open().unwrap();
    assert!(other.remove(&next).unwrap());
    assert_eq!(other.stats().idle, 1);
    drop((pool, other));
    shm.clear();
}

/// Memory that somebody here still looks at, in ways that the crate does not know of.
#[test]
fn memory_waits_for_its_onlooker() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut writer = pool.create(&once(shm.path(), "x", SMALL)).unwrap();
    writer.write(b"looked at").unwrap();
    writer.seal().unwrap();
    let handle = writer.handle().unwrap();
    let onlooker = writer.onlooker();
    pool.give_away(&mut writer, LONG).unwrap();
    writer.release().unwrap();
    let mut peer = Peer::start(ENTRY, "looker", &shm);
    tell_handle(&mut peer, &handle);
    peer.expect("adopted");
    peer.tell("end it");
    peer.expect("ended");
    peer.kill();
    give(&pool, shm.path(), 2, SMALL);
    assert_eq!((pool.stats().reused, pool.stats().fresh), (0, 2));
    drop(onlooker);
    eventually("it is home", || {
        pool.configure(pool_options(shm.path()));
        pool.stats().idle == 1
    });
    give(&pool, shm.path(), 3, SMALL);
    assert_eq!(pool.stats().reused, 1);
    drop(pool);
    shm.clear();
}

/// Two takers, of which one is killed now and then; every value is what its maker gave, and in the end nothing
/// is left.
#[test]
fn values_stay_their_own_while_takers_come_and_go() {
    let shm = Shm::new();
    let pool = pool_options(shm.path()).open().unwrap();
    let mut peers = [0, 1].map(|_| Peer::start(ENTRY, "taker", &shm));
    for counter in 1..=200u64 {
        let handles = [0, 1].map(|n| give(&pool, shm.path(), 2 * counter + n, SMALL));
        for (peer, handle) in peers.iter_mut().zip(&handles) {
            tell_handle(peer, handle);
        }
        if counter % 20 == 0 {
            // In the middle of it.
            let next = Peer::start(ENTRY, "taker", &shm);
            std::mem::replace(&mut peers[1], next).kill();
        }
        for (n, peer) in peers.iter_mut().enumerate() {
            if n == 1 && counter % 20 == 0 {
                continue;
            }
            let took = peer.expect("took");
            let seen = took.split(' ').next().unwrap();
            assert_eq!(seen, (2 * counter + n as u64).to_string());
        }
    }
    let stats = pool.stats();
    assert!(stats.fresh < 40, "{stats:?}");
    peers.into_iter().for_each(Peer::finish);
    drop(pool);
    let cleanup = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    eventually("nothing is left", || {
        // What a killed taker had not opened yet waits for another to take it.
        for name in 1..=401 {
            if let Ok(writer) = shm.options(&format!("v{name}")).adopt() {
                writer.close().unwrap();
            }
        }
        cleanup.run().unwrap();
        shm.segment_files().is_empty() && pool_files(&shm).is_empty()
    });
}

//! Faults that were once there, each by what it looked like.

mod support;

use snakepit_shm::{
    CleanupOptions, Descriptor, LifecycleManager, PoolOptions, Reaper, ReaperOptions,
    SegmentDiscovery, ShmError, ShmLifecycleManager, join,
};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use support::{Peer, Shm, eventually, hear, play, say};

const ENTRY: &str = "peer_process";

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("reader", reader), ("relative", relative)]);
}

fn reader(dir: &Path) {
    let _reader = support::options(dir, "x").attach_reader().unwrap();
    say("ready");
    hear();
}

/// Works in one directory, then in another, both under the name ".".
fn relative(dir: &Path) {
    for sub in ["first", "second"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
        std::env::set_current_dir(dir.join(sub)).unwrap();
        let mut writer = support::options(Path::new("."), "x").create().unwrap();
        writer.write(b"mine").unwrap();
        std::mem::forget(writer);
    }
    say("ready");
    hear();
}

/// Another path to the directory, by which this process is another participant of it.
fn alias(dir: &Path) -> PathBuf {
    let path = dir.join("..").join(dir.file_name().unwrap());
    // Absolute paths keep "..": the place is the same, its name is not.
    assert_ne!(path, dir);
    path
}

fn clean(shm: &Shm) -> CleanupOptions {
    CleanupOptions::new("test", shm.path()).grace(Duration::ZERO)
}

#[test]
fn a_relative_directory_is_not_where_it_was_after_chdir() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "relative", &shm);
    peer.expect("ready");
    for sub in ["first", "second"] {
        match support::options(&shm.path().join(sub), "x").attach_writer() {
            Err(ShmError::SegmentBusy { pid, .. }) => assert_eq!(pid, peer.pid()),
            other => panic!("{sub}: {other:?}"),
        }
    }
    peer.kill();
    for sub in ["first", "second"] {
        std::fs::remove_dir_all(shm.path().join(sub)).unwrap();
    }
}

#[test]
fn a_directory_made_anew_has_participants_anew() {
    let shm = Shm::new();
    let dir = shm.path().join("sub");
    std::fs::create_dir(&dir).unwrap();
    let member = join("test", &dir).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let writer = support::options(&dir, "x").create().unwrap();
    let refused = support::options(&alias(&dir), "x").attach_writer();
    assert_eq!(refused.unwrap_err().code(), "segment_busy");
    writer.close().unwrap();
    drop(member);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_cut_participants_file_condemns_nobody_who_holds_a_lock() {
    let shm = Shm::new();
    let other = alias(shm.path());
    let member = join("test", &other).unwrap();
    let writer = shm.options("x").create().unwrap();
    let table = shm.path().join("test.participants");
    let file = OpenOptions::new().write(true).open(table).unwrap();
    file.set_len(4096 + 20).unwrap(); // in the middle of the first entry
    let refused = support::options(&other, "x").attach_writer();
    assert_eq!(refused.unwrap_err().code(), "segment_busy");
    writer.close().unwrap();
    drop(member);
}

#[test]
fn a_scribbled_participants_file_blocks_nobody() {
    let shm = Shm::new();
    let writer = shm.options("x").create().unwrap();
    let table = shm.path().join("test.participants");
    for length in [16, 4096] {
        let file = OpenOptions::new().write(true).open(&table).unwrap();
        file.write_all_at(&vec![0xA5; length], 0).unwrap();
        // Another process, by another path to the directory: it registers anew.
        let refused = support::options(&alias(shm.path()), "x").attach_writer();
        assert_eq!(refused.unwrap_err().code(), "segment_busy");
    }
    writer.close().unwrap();
}

#[test]
fn a_refused_takeover_destroys_nothing() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    writer.write(b"precious").unwrap();
    writer.release().unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(shm.segment_file("x"))
        .unwrap();
    let mut word = [0u8; 8];
    file.read_exact_at(&mut word, 64).unwrap();
    file.write_all_at(&[0xFF; 8], 64).unwrap();
    assert_eq!(
        shm.options("x").attach_writer().unwrap_err().code(),
        "corrupted"
    );
    file.write_all_at(&word, 64).unwrap();
    let heir = shm.options("x").attach_writer().unwrap();
    let mut reader = shm.options("x").attach_reader().unwrap();
    assert_eq!(reader.read().unwrap(), b"precious");
    reader.close().unwrap();
    heir.close().unwrap();
}

#[test]
fn a_loan_is_not_published_after_the_end() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    let loan = writer.loan().unwrap();
    shm.options("x").remove().unwrap();
    assert_eq!(
        loan.publish(5, &Descriptor::RAW).unwrap_err().code(),
        "closed"
    );
}

#[test]
fn a_lost_meta_and_the_same_pid_take_no_live_segment() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    writer.write(b"live").unwrap();
    std::fs::remove_file(shm.path().join("test_x.meta")).unwrap();
    assert_eq!(
        shm.options("x").create().unwrap_err().code(),
        "already_exists"
    );
    assert_eq!(clean(&shm).run().unwrap().recovered, ["x"]);
    assert_eq!(
        shm.options("x").attach_reader().unwrap().read().unwrap(),
        b"live"
    );
    writer.close().unwrap();
}

#[test]
fn a_dry_run_sees_what_the_real_run_does_and_changes_nothing() {
    let shm = Shm::new();
    let writer = shm.options("x").create().unwrap();
    let mut peer = Peer::start(ENTRY, "reader", &shm);
    peer.expect("ready");
    let member = join("test", shm.path()).unwrap();
    writer.close().unwrap();
    peer.kill();
    let dry = clean(&shm).dry_run(true).run().unwrap();
    let again = clean(&shm).dry_run(true).run().unwrap();
    let real = clean(&shm).run().unwrap();
    assert_eq!(
        (dry.removed.len(), again.removed.len(), real.removed.len()),
        (1, 1, 1)
    );
    drop(member);
}

#[test]
fn one_file_that_cannot_be_removed_stops_no_cleanup() {
    let shm = Shm::new();
    let directory = shm.path().join("test_a.meta");
    std::fs::create_dir(&directory).unwrap();
    shm.options("z").create().unwrap().release().unwrap();
    let report = clean(&shm).corrupted(true).run().unwrap();
    assert_eq!(report.removed.len(), 1);
    assert_eq!(
        (report.removed[0].name.as_str(), report.corrupted.len()),
        ("z", 1)
    );
    std::fs::remove_dir(directory).unwrap();
    drop(join("test", shm.path()).unwrap());
}

#[test]
fn watching_for_ever_is_possible() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let mut watch = discovery.watch().unwrap();
    let writer = shm.options("x").create().unwrap();
    assert_eq!(watch.next(Duration::MAX).unwrap().len(), 1);
    writer.close().unwrap();
}

#[test]
fn a_listener_that_panics_does_not_end_the_reaper() {
    let shm = Shm::new();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let options = ReaperOptions::new("test", shm.path())
        .grace(Duration::ZERO)
        .interval(Duration::from_millis(5));
    let reaper = Reaper::start(options, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::panic::resume_unwind(Box::new("listener")); // no message, no backtrace
    })
    .unwrap();
    for _ in 0..3 {
        let before = calls.load(Ordering::SeqCst);
        shm.options("x").create().unwrap().release().unwrap();
        eventually("told", || calls.load(Ordering::SeqCst) > before);
    }
    drop(reaper);
}

/// A view that goes has the background look whether the segment can go, too: it found one that was being removed, and the
/// remover found nothing.
#[test]
fn what_the_background_looks_at_can_be_removed() {
    let shm = Shm::new();
    let pool = PoolOptions::new("test", shm.path()).open().unwrap();
    for _ in 0..2000 {
        let mut writer = shm.options("x").slots(1).create().unwrap();
        writer.write(b"given").unwrap();
        writer.seal().unwrap();
        let handle = writer.handle().unwrap();
        writer.give_away(Duration::from_secs(60)).unwrap();
        drop(handle.open(shm.path()).unwrap());
        pool.remove(&handle).unwrap();
    }
}

/// Several times the segment was claimed by one who had seen it free, and unsealed, before another filled, sealed and gave it away.
#[test]
fn what_was_filled_and_given_away_is_nobody_elses_to_fill() {
    let shm = Shm::new();
    for _ in 0..300 {
        shm.options("x").create().unwrap().release().unwrap();
        let start = Barrier::new(4);
        let fill = || {
            start.wait();
            let mut writer = match shm.options("x").attach_writer() {
                Ok(writer) => writer,
                Err(ShmError::SegmentBusy { .. } | ShmError::Sealed { .. }) => return 0,
                Err(other) => panic!("{other}"),
            };
            writer.write(b"filled").unwrap();
            writer.seal().unwrap();
            writer.give_away(Duration::from_secs(60)).unwrap();
            1
        };
        let filled: u32 = std::thread::scope(|threads| {
            let threads: Vec<_> = (0..4).map(|_| threads.spawn(fill)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(filled, 1);
        shm.options("x").adopt().unwrap().remove().unwrap();
    }
}

#[test]
fn a_cleanup_handler_may_register_another() {
    let shm = Shm::new();
    let options = ReaperOptions::new("test", shm.path()).grace(Duration::ZERO);
    let manager = Arc::new(LifecycleManager::new(options));
    let weak = Arc::downgrade(&manager);
    manager.register_cleanup_handler(Box::new(move || {
        if let Some(manager) = weak.upgrade() {
            manager.register_cleanup_handler(Box::new(|| {}));
        }
    }));
    shm.options("x").create().unwrap().release().unwrap();
    assert_eq!(manager.periodic_cleanup().unwrap(), 1);
}

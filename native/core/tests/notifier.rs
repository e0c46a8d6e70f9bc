//! Waits of event loops: begun, ended and told through one descriptor.

mod support;

use snakepit_shm::{Notice, Notifier, ShmError, Watched};
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, eventually, options, play, say};

const ENTRY: &str = "peer_process";

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("sleeper", sleeper)]);
}

fn later(watched: Watched) -> u64 {
    match watched {
        Watched::Later(token) => token,
        Watched::Now(version) => panic!("version {version} was there"),
    }
}

fn notices(notifier: &Notifier, count: usize) -> Vec<Notice> {
    let mut all = Vec::new();
    eventually("notices", || {
        all.extend(notifier.take());
        all.len() >= count
    });
    all
}

/// Sleepers that the writer of a segment knows of.
fn waiters(shm: &Shm, name: &str) -> u32 {
    shm.options(name).inspect().unwrap().waiters
}

#[test]
fn what_is_there_is_not_waited_for() {
    let shm = Shm::new();
    let mut writer = shm.options("it").create().unwrap();
    let reader = shm.options("it").attach_reader().unwrap();
    let notifier = Notifier::new().unwrap();
    writer.write(b"1").unwrap();
    assert_eq!(notifier.watch(&reader, 0).unwrap(), Watched::Now(2));
    assert!(notifier.take().is_empty());
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn to_the_writer_all_waits_for_a_segment_are_one_sleeper() {
    let shm = Shm::new();
    let mut writer = shm.options("it").create().unwrap();
    let readers: Vec<_> = (0..10)
        .map(|_| shm.options("it").attach_reader().unwrap())
        .collect();
    let notifiers: Vec<_> = (0..10).map(|_| Notifier::new().unwrap()).collect();
    let tokens: Vec<_> = readers
        .iter()
        .zip(&notifiers)
        .map(|(reader, notifier)| later(notifier.watch(reader, 0).unwrap()))
        .collect();
    assert_eq!(waiters(&shm, "it"), 1);
    // The first was the one that was announced.
    assert!(notifiers[0].cancel(tokens[0]));
    assert!(!notifiers[0].cancel(tokens[0]));
    assert_eq!(waiters(&shm, "it"), 1);
    drop(notifiers.into_iter().skip(1).step_by(2).collect::<Vec<_>>());
    writer.write(b"1").unwrap();
    eventually("nobody to wait", || waiters(&shm, "it") == 0);
    for reader in readers {
        assert!(!reader.has_views());
        reader.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn each_wait_has_one_notice_and_the_reader_is_free_when_it_is_told() {
    let shm = Shm::new();
    let mut writer = shm.options("it").create().unwrap();
    let reader = shm.options("it").attach_reader().unwrap();
    let notifier = Notifier::new().unwrap();
    for round in 1..=200 {
        let token = later(notifier.watch(&reader, 2 * (round - 1)).unwrap());
        writer.write(b"x").unwrap();
        let told = notices(&notifier, 1);
        assert!(!reader.has_views());
        assert_eq!((told.len(), told[0].token), (1, token));
        assert_eq!(*told[0].outcome.as_ref().unwrap(), 2 * round);
    }
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn ends_are_told_by_name() {
    let shm = Shm::new();
    let notifier = Notifier::new().unwrap();
    let mut begun = Vec::new();
    for name in ["sealed", "closed", "own"] {
        let mut writer = shm.options(name).create().unwrap();
        writer.write(b"1").unwrap();
        let reader = shm.options(name).attach_reader().unwrap();
        let token = later(notifier.watch(&reader, 2).unwrap());
        begun.push((reader, Some(writer)));
        assert_eq!(token, begun.len() as u64);
    }
    begun[0].1.as_mut().unwrap().seal().unwrap();
    begun[1].1.take().unwrap().close().unwrap();
    begun[2].0.end_watches();
    let mut told = notices(&notifier, 3);
    told.sort_unstable_by_key(|notice| notice.token);
    let codes: Vec<_> = told
        .into_iter()
        .map(|notice| notice.outcome.unwrap_err().code())
        .collect();
    assert_eq!(codes, ["sealed", "closed", "closed"]);
    for (reader, writer) in begun {
        reader.close().unwrap();
        if let Some(writer) = writer {
            writer.close().unwrap();
        }
    }
}

#[test]
fn a_file_that_is_cut_ends_its_waits_alone() {
    let shm = Shm::new();
    let cut = shm.options("cut").create().unwrap();
    let mut whole = shm.options("whole").create().unwrap();
    let notifier = Notifier::new().unwrap();
    let readers = ["cut", "whole"].map(|name| shm.options(name).attach_reader().unwrap());
    let tokens = [&readers[0], &readers[1]].map(|r| later(notifier.watch(r, 0).unwrap()));
    let file = std::fs::File::options()
        .write(true)
        .open(shm.segment_file("cut"));
    file.unwrap().set_len(0).unwrap();
    let told = notices(&notifier, 1);
    assert_eq!(told[0].token, tokens[0]);
    assert!(matches!(told[0].outcome, Err(ShmError::Truncated { .. })));
    whole.write(b"1").unwrap();
    assert_eq!(notices(&notifier, 1)[0].token, tokens[1]);
    drop((readers, cut, whole));
    snakepit_shm::settle();
    shm.clear();
}

#[test]
fn a_thread_that_waits_for_notices_is_told_of_all() {
    let shm = Shm::new();
    let mut writer = shm.options("it").create().unwrap();
    let silent = shm.options("silent").notify(false).create().unwrap();
    let reader = shm.options("it").attach_reader().unwrap();
    let deaf = shm.options("silent").attach_reader().unwrap();
    let notifier = std::sync::Arc::new(Notifier::new().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    let waiting = notifier.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..3 {
            for notice in waiting.wait() {
                tell.send((notice.token, notice.outcome.map_err(|e| e.code())))
                    .unwrap();
            }
        }
    });
    let begun = notifier.watch_and_tell(&reader, 0);
    writer.write(b"1").unwrap();
    assert_eq!(told.recv().unwrap(), (begun, Ok(2)));
    let there = notifier.watch_and_tell(&reader, 0);
    assert_eq!(told.recv().unwrap(), (there, Ok(2)));
    let refused = notifier.watch_and_tell(&deaf, 0);
    assert_eq!(told.recv().unwrap(), (refused, Err("unsupported")));
    thread.join().unwrap();
    for reader in [reader, deaf] {
        reader.close().unwrap();
    }
    for writer in [writer, silent] {
        writer.close().unwrap();
    }
}

#[test]
fn a_segment_without_notify_is_refused() {
    let shm = Shm::new();
    let writer = shm.options("it").notify(false).create().unwrap();
    let reader = shm.options("it").attach_reader().unwrap();
    let refused = Notifier::new().unwrap().watch(&reader, 0).unwrap_err();
    assert_eq!(refused.code(), "unsupported");
    reader.close().unwrap();
    writer.close().unwrap();
}

/// Waits by a notifier until it is killed.
fn sleeper(dir: &Path) {
    let reader = options(dir, "it").attach_reader().unwrap();
    let notifier = Notifier::new().unwrap();
    later(notifier.watch(&reader, 0).unwrap());
    say("waiting");
    std::thread::sleep(Duration::from_secs(3600));
}

#[test]
fn what_a_killed_process_had_announced_is_taken_back() {
    let shm = Shm::new();
    let writer = shm.options("it").create().unwrap();
    let reader = shm.options("it").attach_reader().unwrap();
    let mut peer = Peer::start(ENTRY, "sleeper", &shm);
    peer.expect("waiting");
    assert_eq!(waiters(&shm, "it"), 1);
    peer.kill();
    eventually("a sweep", || {
        snakepit_shm::CleanupOptions::new("test", shm.path())
            .run()
            .unwrap();
        waiters(&shm, "it") == 0
    });
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn hundreds_of_segments_take_more_than_one_thread() {
    let shm = Shm::new();
    let mut writers: Vec<_> = (0..200)
        .map(|n| shm.options(&format!("s{n}")).create().unwrap())
        .collect();
    let readers: Vec<_> = (0..200)
        .map(|n| shm.options(&format!("s{n}")).attach_reader().unwrap())
        .collect();
    let notifier = Notifier::new().unwrap();
    for reader in &readers {
        later(notifier.watch(reader, 0).unwrap());
    }
    assert!((0..200).all(|n| waiters(&shm, &format!("s{n}")) == 1));
    for writer in &mut writers {
        writer.write(b"1").unwrap();
    }
    assert_eq!(notices(&notifier, 200).len(), 200);
    for reader in readers {
        reader.close().unwrap();
    }
    for writer in writers {
        writer.close().unwrap();
    }
}

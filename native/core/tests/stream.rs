//! The values of a segment as a stream, between processes.

mod support;

use snakepit_shm::ShmError;
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, counter_of, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const VALUES: u64 = 3_000;

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("follower", follower), ("flat-out-writer", flat_out_writer)]);
}

/// Reads every value, and says by a segment of its own how far it has come.
fn follower(dir: &Path) {
    let mut reader = options(dir, "stream").attach_reader().unwrap();
    let mut progress = options(dir, "progress").create().unwrap();
    let (mut had, mut missed) = (0u64, 0);
    say("ready");
    while had + missed < VALUES {
        match reader.read_next().unwrap() {
            Some(next) => {
                assert_eq!(counter_of(next.data), Some(had + missed + next.missed));
                missed += next.missed;
                had += 1;
                progress.write(&(had + missed).to_le_bytes()).unwrap();
            }
            None => {
                reader.wait_changed(reader.last_version(), None).unwrap();
            }
        }
    }
    say(&format!("had {had} missed {missed}"));
    reader.close().unwrap();
    progress.close().unwrap();
}

#[test]
fn a_reader_that_keeps_up_misses_nothing() {
    let shm = Shm::new();
    let mut writer = shm.options("stream").slots(4).create().unwrap();
    let mut peer = Peer::start(ENTRY, "follower", &shm);
    peer.expect("ready");
    let mut progress = shm.options("progress").attach_reader().unwrap();
    let mut value = [0; 200];
    for counter in 0..VALUES {
        pattern(counter, &mut value);
        writer.write(&value).unwrap();
        // Never more than three behind.
        let behind = |progress: &mut snakepit_shm::SegmentReader| {
            let done = match progress.read() {
                Ok(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
                Err(ShmError::Empty { .. }) => 0,
                // It may be done with the last one.
                Err(other) => panic!("{other}"),
            };
            counter + 1 - done
        };
        while behind(&mut progress) > 3 {
            let seen = progress.last_version();
            progress
                .wait_changed(seen, Some(Duration::from_secs(30)))
                .unwrap();
        }
    }
    assert_eq!(peer.expect("had"), format!("{VALUES} missed 0"));
    peer.finish();
    progress.close().unwrap();
    writer.close().unwrap();
}

fn flat_out_writer(dir: &Path) {
    let mut writer = options(dir, "stream").slots(4).create().unwrap();
    let stop = std::thread::spawn(support::hear);
    let mut value = [0; 3000];
    let mut counter = 0;
    say("ready");
    while !stop.is_finished() {
        pattern(counter, &mut value);
        writer.write(&value).unwrap();
        counter += 1;
    }
    say(&format!("wrote {counter}"));
    writer.release().unwrap();
}

#[test]
fn a_reader_that_falls_behind_is_told_how_many_it_missed() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "flat-out-writer", &shm);
    peer.expect("ready");
    let mut reader = shm.options("stream").attach_reader().unwrap();
    let (mut had, mut missed) = (0u64, 0);
    let mut step = |reader: &mut snakepit_shm::SegmentReader| match reader.read_next() {
        Ok(Some(next)) => {
            missed += next.missed;
            assert_eq!(next.info.version, 2 * (had + missed + 1));
            assert_eq!(counter_of(next.data), Some(had + missed), "torn");
            had += 1;
            true
        }
        Ok(None) => false,
        Err(ShmError::VersionConflict { .. }) => true,
        Err(other) => panic!("{other}"),
    };
    let mut values = 0;
    while values < 1000 {
        values += u32::from(step(&mut reader));
    }
    peer.tell("stop");
    let wrote: u64 = peer.expect("wrote").parse().unwrap();
    while step(&mut reader) {}
    assert_eq!(had + missed, wrote);
    peer.finish();
    reader.close().unwrap();
    shm.options("stream").remove().unwrap();
}

/// Threads that draw on one reader: each value comes to one of them, and none is counted as missed that another has.
#[test]
fn threads_that_draw_on_one_reader_share_the_values_out() {
    const MANY: u64 = 20_000;
    let shm = Shm::new();
    let mut writer = shm.options("stream").slots(64).create().unwrap();
    let reader = shm.options("stream").attach_reader().unwrap();
    let draw = || {
        let (mut drawn, mut missed) = (Vec::new(), 0);
        let mut buffer = vec![0; 4096];
        while drawn.last() != Some(&(MANY - 1)) {
            match reader.read_next_into(&mut buffer) {
                Ok(Some((info, skipped))) => {
                    drawn.push(counter_of(&buffer[..info.len]).expect("torn"));
                    missed += skipped;
                }
                Ok(None) if reader.last_version() == 2 * MANY => break,
                Ok(None) | Err(ShmError::VersionConflict { .. }) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        }
        (drawn, missed)
    };
    let (mut drawn, mut missed) = (Vec::new(), 0);
    std::thread::scope(|threads| {
        let drawing: Vec<_> = (0..3).map(|_| threads.spawn(draw)).collect();
        let mut value = vec![0; 256];
        for counter in 0..MANY {
            pattern(counter, &mut value);
            writer.write(&value).unwrap();
        }
        for thread in drawing {
            let (its, skipped) = thread.join().unwrap();
            drawn.extend(its);
            missed += skipped;
        }
    });
    drawn.sort_unstable();
    assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]), "twice");
    assert_eq!(drawn.len() as u64 + missed, MANY);
    reader.close().unwrap();
    writer.close().unwrap();
}

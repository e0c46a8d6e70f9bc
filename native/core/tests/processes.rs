//! Writer and readers in different operating-system processes.

mod support;

use snakepit_shm::{Integrity, SegmentDiscovery, SegmentState, ShmError, Timestamps};
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, counter_of, eventually, hear, options, pattern, play, say};

const ENTRY: &str = "peer_process";

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[
        ("flat-out-writer", flat_out_writer),
        ("echo-reader", echo_reader),
        ("waiter", waiter),
        ("holder", holder),
        ("racer", racer),
        ("sealer", sealer),
        ("stuck-writer", stuck_writer),
    ]);
}

/// Writes patterned values as fast as it can until told to stop.
fn flat_out_writer(dir: &Path) {
    let line = hear();
    let mut parts = line.split(' ');
    let mut number = || parts.next().unwrap().parse::<usize>().unwrap();
    let (size, slots, crc) = (number(), number(), number());
    let integrity = if crc == 1 {
        Integrity::Crc32c
    } else {
        Integrity::None
    };
    let mut writer = options(dir, "hot")
        .size(snakepit_shm::round_up_capacity(size).unwrap())
        .slots(slots)
        .integrity(integrity)
        .create()
        .unwrap();
    let mut value = vec![0; size];
    let stop = std::thread::spawn(hear);
    pattern(0, &mut value);
    writer.write(&value).unwrap();
    say("ready");
    let mut counter = 0;
    while !stop.is_finished() {
        counter += 1;
        pattern(counter, &mut value);
        // The length changes too: it belongs to the value.
        let len = size - counter as usize % 8;
        writer.write(&value[..len]).unwrap();
    }
    writer.close().unwrap();
}

fn every_value_is_whole(size: usize, slots: usize, crc: bool, reads: usize) {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "flat-out-writer", &shm);
    peer.tell(&format!("{size} {slots} {}", u8::from(crc)));
    peer.expect("ready");
    let mut reader = shm.options("hot").attach_reader().unwrap();
    let (mut whole, mut conflicts, mut last) = (0, 0, 0);
    while whole < reads {
        match reader.read() {
            Ok(value) => {
                let counter = counter_of(value).expect("torn value");
                assert_eq!(value.len(), size - counter as usize % 8);
                assert!(counter >= last, "older than the one before");
                last = counter;
                whole += 1;
            }
            Err(ShmError::VersionConflict { .. }) => {
                conflicts += 1;
                assert!(conflicts < 1_000_000, "starved");
                std::thread::yield_now();
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(last > 0, "the writer never wrote");
    peer.tell("stop");
    peer.finish();
    reader.close().unwrap();
}

#[test]
fn whole_values_small() {
    for slots in [1, 2, 4] {
        every_value_is_whole(64, slots, false, 30_000);
    }
}

#[test]
fn whole_values_page() {
    for slots in [1, 2, 4] {
        every_value_is_whole(4096, slots, false, 3_000);
    }
}

#[test]
fn whole_values_large() {
    for slots in [2, 4] {
        every_value_is_whole(300_000, slots, false, 50);
    }
}

#[test]
fn whole_values_with_checksum() {
    every_value_is_whole(4096, 4, true, 3_000);
}

/// Attaches, says what it reads, and detaches.
fn echo_reader(dir: &Path) {
    let mut reader = options(dir, "x").attach_reader().unwrap();
    say(&format!(
        "value {}",
        String::from_utf8_lossy(reader.read().unwrap())
    ));
    hear();
    reader.close().unwrap();
}

#[test]
fn a_reader_is_counted_while_it_is_attached() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    writer.write(b"hello").unwrap();
    let mut peer = Peer::start(ENTRY, "echo-reader", &shm);
    assert_eq!(peer.expect("value"), "hello");
    assert_eq!(writer.reader_count(), 1);
    let report = shm.options("x").inspect().unwrap();
    assert_eq!(report.readers.len(), 1);
    let process = report.readers[0].process.clone().unwrap();
    assert_eq!(
        (process.pid, report.readers[0].alive),
        (peer.pid(), Some(true))
    );
    peer.tell("go");
    peer.finish();
    assert_eq!(writer.reader_count(), 0);
    writer.close().unwrap();
}

/// Waits for each next version and acknowledges it.
fn waiter(dir: &Path) {
    let mut reader = options(dir, "x").attach_reader().unwrap();
    say("ready");
    let mut version = 0;
    loop {
        match reader.wait_changed(version, None) {
            Ok(new) => {
                assert!(new > version);
                let value = reader.read().unwrap().to_vec();
                version = reader.last_version();
                say(&format!("saw {}", String::from_utf8_lossy(&value)));
            }
            Err(ShmError::Closed { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    reader.close().unwrap();
}

#[test]
fn a_sleeping_reader_is_woken_by_every_write_and_by_the_end() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    let mut peer = Peer::start(ENTRY, "waiter", &shm);
    peer.expect("ready");
    for i in 0..300 {
        writer.write(format!("{i}").as_bytes()).unwrap();
        assert_eq!(peer.expect("saw"), format!("{i}"));
    }
    eventually("it sleeps", || {
        shm.options("x").inspect().unwrap().waiters == 1
    });
    writer.close().unwrap();
    peer.finish();
}

/// Holds the writer claim until told to give it back in some way.
fn holder(dir: &Path) {
    let mut writer = options(dir, "x").create().unwrap();
    writer.write(b"of the holder").unwrap();
    say("ready");
    match hear().as_str() {
        "release" => writer.release().unwrap(),
        "close" => writer.close().unwrap(),
        "seal" => {
            writer.seal().unwrap();
            std::mem::forget(writer);
        }
        _ => std::mem::forget(writer), // dies with it
    }
    say("done");
    hear();
}

#[test]
fn one_writer_at_a_time() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "holder", &shm);
    peer.expect("ready");
    match shm.options("x").attach_writer() {
        Err(ShmError::SegmentBusy { pid, .. }) => assert_eq!(pid, peer.pid()),
        other => panic!("{other:?}"),
    }
    peer.tell("release");
    peer.expect("done");
    let mut mine = shm.options("x").attach_writer().unwrap();
    assert_eq!((mine.generation(), mine.current_version()), (2, 2));
    assert_eq!(mine.write_at(0, b"OF").unwrap(), 4);
    let mut reader = shm.options("x").attach_reader().unwrap();
    assert_eq!(reader.read().unwrap(), b"OF the holder");
    reader.close().unwrap();
    peer.finish();
    mine.close().unwrap();
}

#[test]
fn a_dead_writer_is_followed() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "holder", &shm);
    peer.expect("ready");
    let mut reader = shm.options("x").attach_reader().unwrap();
    peer.kill();
    assert_eq!(reader.read().unwrap(), b"of the holder");
    let mut mine = shm.options("x").attach_writer().unwrap();
    mine.write(b"of the heir").unwrap();
    // Attached readers notice without attaching again.
    assert_eq!(reader.read().unwrap(), b"of the heir");
    assert_eq!((reader.generation(), reader.version()), (2, 4));
    let report = shm.options("x").inspect().unwrap();
    assert_eq!(
        (report.takeovers, report.writer.unwrap().pid),
        (1, std::process::id())
    );
    reader.close().unwrap();
    mine.close().unwrap();
}

#[test]
fn what_a_dead_writer_had_sealed_can_be_adopted() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "holder", &shm);
    peer.expect("ready");
    peer.tell("seal");
    peer.expect("done");
    assert_eq!(shm.options("x").adopt().unwrap_err().code(), "segment_busy");
    let reader = shm.options("x").attach_reader().unwrap();
    let handle = reader.handle().unwrap();
    peer.kill();
    assert!(shm.options("x").inspect().unwrap().orphaned);
    let listed = SegmentDiscovery::new("test", shm.path()).unwrap().list();
    assert!(listed.unwrap()[0].orphaned);
    assert_eq!(
        shm.options("x").attach_writer().unwrap_err().code(),
        "sealed"
    );
    let mine = shm.options("x").adopt().unwrap();
    assert!(!shm.options("x").inspect().unwrap().orphaned);
    reader.close().unwrap();
    // The handle that was made before still names it.
    assert_eq!(&handle.open(shm.path()).unwrap()[..], b"of the holder");
    mine.close().unwrap();
    assert_eq!(shm.options("x").adopt().unwrap_err().code(), "not_found");
}

#[test]
fn a_grace_that_was_set_holds_for_what_is_removed_in_passing() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "holder", &shm);
    peer.expect("ready");
    peer.kill();
    // Long ago somebody noticed that its writer has gone: `orphaned`, of `docs/format.md`.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(shm.segment_file("x"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &1u64.to_le_bytes(), 152).unwrap();
    let pass = || shm.options("passing").create().unwrap().close().unwrap();
    let grace = |grace| snakepit_shm::set_grace("test", shm.path(), grace).unwrap();
    grace(Duration::from_secs(1 << 32));
    pass();
    assert!(shm.options("x").inspect().unwrap().orphaned);
    grace(Duration::from_secs(10));
    pass();
    assert_eq!(shm.options("x").inspect().unwrap_err().code(), "not_found");
}

#[test]
fn removing_takes_no_later_segment_of_the_name() {
    let shm = Shm::new();
    let first = shm.options("x").create().unwrap();
    let reader = shm.options("x").attach_reader().unwrap();
    assert_eq!(reader.incarnation(), first.incarnation());
    shm.options("x").remove().unwrap();
    let second = shm.options("x").create().unwrap();
    assert_ne!(second.incarnation(), reader.incarnation());
    assert_eq!(first.remove().unwrap_err().code(), "not_found");
    assert_eq!(reader.state().unwrap(), SegmentState::Closed);
    assert!(shm.options("x").inspect().is_ok());
    second.remove().unwrap();
    reader.close().unwrap();
}

/// Stays in the middle of a write for ever.
fn stuck_writer(dir: &Path) {
    let slots = hear().parse().unwrap();
    let mut writer = options(dir, "x").slots(slots).create().unwrap();
    if slots > 1 {
        writer.write(b"complete").unwrap();
    }
    let mut loan = writer.loan().unwrap();
    loan.as_mut_slice().fill(0xEE);
    say("stuck");
    hear();
}

#[test]
fn a_writer_killed_in_the_middle_hides_nothing() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "stuck-writer", &shm);
    peer.tell("2");
    peer.expect("stuck");
    let mut reader = shm.options("x").attach_reader().unwrap();
    peer.kill();
    assert_eq!(reader.read().unwrap(), b"complete");
    let mut mine = shm.options("x").attach_writer().unwrap();
    assert_eq!(reader.read().unwrap(), b"complete");
    mine.write_at(0, b"C").unwrap();
    assert_eq!(reader.read().unwrap(), b"Complete");
    assert_eq!(shm.options("x").inspect().unwrap().discarded, 1);
    reader.close().unwrap();
    mine.close().unwrap();
}

/// Creates one name again and again, against others who do the same.
fn racer(dir: &Path) {
    let (mut won, mut lost) = (0, 0);
    say("ready");
    hear();
    for _ in 0..200 {
        match options(dir, "prize").create() {
            Ok(mut writer) => {
                writer.write(b"won").unwrap();
                assert_eq!(
                    options(dir, "prize").create().unwrap_err().code(),
                    "already_exists"
                );
                writer.close().unwrap();
                won += 1;
            }
            Err(ShmError::AlreadyExists { .. }) => lost += 1,
            Err(other) => panic!("{other}"),
        }
        match options(dir, "prize").attach_reader() {
            Ok(mut reader) => match reader.read() {
                Ok(value) => assert_eq!(value, b"won"),
                Err(ShmError::Empty { .. }) => {}
                Err(other) => panic!("{other}"),
            },
            Err(ShmError::NotFound { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    say(&format!("score {won} {lost}"));
}

#[test]
fn exactly_one_creator_wins() {
    let shm = Shm::new();
    let mut peers: Vec<_> = (0..6).map(|_| Peer::start(ENTRY, "racer", &shm)).collect();
    for peer in &mut peers {
        peer.expect("ready");
    }
    for peer in &mut peers {
        peer.tell("go");
    }
    let mut won = 0;
    for mut peer in peers {
        let score = peer.expect("score");
        won += score.split(' ').next().unwrap().parse::<u32>().unwrap();
        peer.finish();
    }
    assert!(won > 0);
    // A reader dropped without close may have been the last: the name is free all the same.
    if let Ok(writer) = shm.options("prize").attach_writer() {
        writer.close().unwrap();
    }
    let _ = shm.options("prize").remove();
    eventually("nothing is left", || shm.files().is_empty());
}

/// Seals a region and ends without a word to anybody.
fn sealer(dir: &Path) {
    let mut writer = options(dir, "x")
        .slots(1)
        .size(8 << 20)
        .timestamps(Timestamps::Precise)
        .create()
        .unwrap();
    let mut loan = writer.loan().unwrap();
    pattern(42, loan.as_mut_slice());
    loan.publish(
        8 << 20,
        &snakepit_shm::Descriptor::numpy("<u8", &[1 << 20]).unwrap(),
    )
    .unwrap();
    writer.seal().unwrap();
    say(&format!("handle {}", writer.handle().unwrap().to_value()));
    hear();
    std::mem::forget(writer);
}

#[test]
fn a_sealed_value_outlives_its_writer_without_a_copy() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "sealer", &shm);
    let handle = serde_json::from_str(&peer.expect("handle")).unwrap();
    let handle = snakepit_shm::Handle::from_value(&handle).unwrap();
    let view = handle.open(shm.path()).unwrap();
    peer.kill();
    assert_eq!(counter_of(&view), Some(42));
    assert_eq!(view.descriptor().shape(), [1 << 20]);
    assert_eq!(
        shm.options("x").inspect().unwrap().state,
        SegmentState::Sealed
    );
    assert_eq!(
        shm.options("x").attach_writer().unwrap_err().code(),
        "sealed"
    );
    handle.remove(shm.path()).unwrap();
    assert_eq!(
        counter_of(&view),
        Some(42),
        "the bytes stay while somebody views them"
    );
    drop(view);
}

#[test]
fn waits_end_in_time_by_the_bell_and_by_the_seal() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    let reader = shm.options("x").attach_reader().unwrap();
    let short = Some(Duration::from_millis(5));
    assert_eq!(reader.wait_changed(0, short).unwrap_err().code(), "timeout");
    assert_eq!(
        reader
            .wait_changed(0, Some(Duration::ZERO))
            .unwrap_err()
            .code(),
        "timeout"
    );
    let waker = reader.waker();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| reader.wait_changed(0, None));
        eventually("it sleeps", || {
            shm.options("x").inspect().unwrap().waiters == 1
        });
        waker.wake();
        assert_eq!(sleeper.join().unwrap().unwrap_err().code(), "timeout");
    });
    writer.write(b"last").unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| reader.wait_changed(2, None));
        eventually("it sleeps", || {
            shm.options("x").inspect().unwrap().waiters == 1
        });
        writer.seal().unwrap();
        assert_eq!(sleeper.join().unwrap().unwrap_err().code(), "sealed");
    });
    assert_eq!(shm.options("x").inspect().unwrap().waiters, 0);
    let quiet = shm.options("quiet").notify(false).create().unwrap();
    let deaf = shm.options("quiet").attach_reader().unwrap();
    assert_eq!(
        deaf.wait_changed(0, short).unwrap_err().code(),
        "unsupported"
    );
    deaf.close().unwrap();
    quiet.close().unwrap();
    drop(waker);
    reader.close().unwrap();
    writer.close().unwrap();
}

//! Pinned reads: values in place while the writer goes on, between threads and processes.

mod support;

use snakepit_shm::{Integrity, Pinned, SegmentReader, ShmError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Peer, Shm, counter_of, eventually, hear, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const LARGE: usize = 64 * 1024;

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[
        ("flat-out-writer", flat_out_writer),
        ("pinner", pinner),
        ("pinner-of-three", pinner_of_three),
    ]);
}

fn flat_out_writer(dir: &Path) {
    let mut writer = options(dir, "live").size(LARGE).create().unwrap();
    let stop = std::thread::spawn(hear);
    let mut value = vec![0; LARGE];
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

fn pinner(dir: &Path) {
    let reader = options(dir, "live").attach_reader().unwrap();
    let pinned = reader.pin().unwrap();
    say(&format!("pinned {}", pinned.in_place()));
    hear();
    let intact = pinned.is_intact();
    say(&format!("kept {intact} {:?}", counter_of(&pinned)));
    drop(pinned);
    reader.close().unwrap();
}

fn pinner_of_three(dir: &Path) {
    let readers = [(); 3].map(|()| options(dir, "live").attach_reader().unwrap());
    let mut pins = Vec::new();
    for reader in &readers {
        say("next");
        hear();
        pins.push(reader.pin().unwrap());
    }
    let in_place: Vec<_> = pins.iter().map(Pinned::in_place).collect();
    say(&format!("pinned {in_place:?}"));
    hear();
}

fn put(writer: &mut snakepit_shm::SegmentWriter, counter: u64) {
    let mut value = [0; 4096];
    pattern(counter, &mut value);
    writer.write(&value).unwrap();
}

fn holds(pinned: &Pinned, counter: u64) -> bool {
    counter_of(pinned) == Some(counter) && pinned.is_intact()
}

#[test]
fn pinned_slots_are_passed_over_and_come_back() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(4).create().unwrap();
    let readers = [(); 3].map(|()| shm.options("live").attach_reader().unwrap());
    put(&mut writer, 0);
    let first = readers[0].pin().unwrap();
    let again = readers[0].pin().unwrap();
    let others = readers[1].pin().unwrap();
    put(&mut writer, 1);
    let second = readers[1].pin();
    // Its reader has another slot pinned.
    assert!(!second.unwrap().in_place());
    let second = readers[2].pin().unwrap();
    assert!(first.in_place() && again.in_place() && others.in_place() && second.in_place());
    put(&mut writer, 2);
    let fourth = shm.options("live").attach_reader().unwrap();
    // Two of four slots are pinned: the writer needs the others.
    let third = fourth.pin().unwrap();
    assert!(!third.in_place() && holds(&third, 2));
    for counter in 3..5000 {
        put(&mut writer, counter);
    }
    assert!(holds(&first, 0) && holds(&again, 0) && holds(&others, 0) && holds(&second, 1));
    assert!(third.is_intact() && counter_of(&third) == Some(2));
    first.release().unwrap();
    drop(others);
    for counter in 5000..5100 {
        put(&mut writer, counter);
    }
    assert!(holds(&again, 0), "held once more");
    again.release().unwrap();
    let newest = fourth.pin().unwrap();
    assert!(newest.in_place() && holds(&newest, 5099));
    drop((newest, second));
    for reader in readers.into_iter().chain([fourth]) {
        reader.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn with_two_slots_or_as_an_observer_it_is_a_copy() {
    let shm = Shm::new();
    for slots in [1, 2] {
        let name = format!("few{slots}");
        let mut writer = shm.options(&name).slots(slots).create().unwrap();
        let reader = shm.options(&name).attach_reader().unwrap();
        assert_eq!(reader.pin().unwrap_err().code(), "empty");
        put(&mut writer, 7);
        let pinned = reader.pin().unwrap();
        put(&mut writer, 8);
        assert!(!pinned.in_place() && counter_of(&pinned) == Some(7));
        pinned.release().unwrap();
        writer.seal().unwrap();
        let pinned = reader.pin().unwrap();
        assert!(pinned.in_place() && holds(&pinned, 8), "sealed");
        drop(pinned);
        reader.close().unwrap();
        writer.close().unwrap();
    }
}

/// Writes so long without a pin that the writer stops looking for any; then nothing is written for
/// the pin to be acknowledged by.
#[test]
fn a_writer_that_has_become_calm_is_asked_in_vain_for_nothing() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(3).create().unwrap();
    for counter in 0..10_000 {
        put(&mut writer, counter);
    }
    let reader = shm.options("live").attach_reader().unwrap();
    let pinned = reader.pin().unwrap();
    assert!(pinned.in_place());
    for counter in 0..10_000 {
        put(&mut writer, counter);
    }
    assert!(holds(&pinned, 9_999));
    drop(pinned);
    for counter in 0..10_000 {
        put(&mut writer, counter);
        if counter % 1000 == 0 {
            assert!(holds(&reader.pin().unwrap(), counter));
        }
    }
    reader.close().unwrap();
    writer.close().unwrap();
}

/// Between two writes nothing is pinned; but somebody pins now and then, and must not wait each time.
#[test]
fn a_writer_stays_awake_while_somebody_pins_between_its_writes() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(3).create().unwrap();
    put(&mut writer, 0);
    let reader = shm.options("live").attach_reader().unwrap();
    let file = std::fs::File::open(shm.segment_file("live")).unwrap();
    let looks = || {
        let mut word = [0u8; 4];
        file.read_exact_at(&mut word, 148).unwrap(); // `pinnable` (docs/format.md)
        u32::from_le_bytes(word) == 1
    };
    for counter in 1..5_000 {
        put(&mut writer, counter);
        assert!(looks(), "after {counter} writes");
        assert!(reader.pin().unwrap().in_place());
    }
    for counter in 0..5_000 {
        put(&mut writer, counter);
    }
    assert!(!looks(), "nobody pins any more");
    reader.close().unwrap();
    writer.close().unwrap();
}

/// Readers that pin as fast as they can beside a writer that writes as fast as it can.
#[test]
fn pins_never_starve_and_never_tear() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "flat-out-writer", &shm);
    peer.expect("ready");
    let values = 3_000;
    let in_place: usize = std::thread::scope(|scope| {
        let pinners: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let reader = shm.options("live").attach_reader().unwrap();
                    let (mut last, mut in_place, mut had) = (0, 0, 0);
                    while had < values {
                        match reader.pin() {
                            Ok(pinned) => {
                                let counter = counter_of(&pinned).expect("torn");
                                assert_eq!(pinned.version(), 2 * (counter + 1));
                                assert!(counter >= last, "older than before");
                                last = counter;
                                in_place += usize::from(pinned.in_place());
                                // Still there.
                                assert_eq!(counter_of(&pinned), Some(counter));
                                pinned.release().unwrap();
                                had += 1;
                            }
                            // Too many were pinned, and the copy was lapped.
                            Err(ShmError::VersionConflict { .. } | ShmError::Empty { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    reader.close().unwrap();
                    in_place
                })
            })
            .collect();
        pinners.into_iter().map(|p| p.join().unwrap()).sum()
    });
    assert!(in_place > values, "{in_place} of {} in place", 3 * values);
    peer.tell("stop");
    peer.expect("wrote");
    peer.finish();
    shm.options("live").remove().unwrap();
}

#[test]
fn a_pin_of_another_process_holds_and_dies_with_it() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(3).create().unwrap();
    put(&mut writer, 0);
    let mut peer = Peer::start(ENTRY, "pinner", &shm);
    assert_eq!(peer.expect("pinned"), "true");
    for counter in 1..3000 {
        put(&mut writer, counter);
    }
    let mine = shm.options("live").attach_reader().unwrap();
    assert!(!mine.pin().unwrap().in_place(), "one of three is pinned");
    peer.tell("look");
    assert_eq!(peer.expect("kept"), "true Some(0)");
    peer.finish();

    let mut peer = Peer::start(ENTRY, "pinner", &shm);
    assert_eq!(peer.expect("pinned"), "true");
    put(&mut writer, 3000);
    assert!(!mine.pin().unwrap().in_place());
    peer.kill();
    eventually("the dead one's pin is void", || {
        snakepit_shm::CleanupOptions::new("test", shm.path())
            .run()
            .unwrap();
        mine.pin().unwrap().in_place()
    });
    mine.close().unwrap();
    writer.close().unwrap();
}

/// The next writer may follow one that died in the middle of anything: it respects all pins there are.
#[test]
fn the_next_writer_passes_over_the_pins_it_finds() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(4).create().unwrap();
    put(&mut writer, 0);
    let mut peer = Peer::start(ENTRY, "pinner-of-three", &shm);
    for _ in 0..3 {
        peer.expect("next");
        peer.tell("pin");
    }
    let pinned = peer.expect("pinned");
    assert_eq!(pinned, "[true, true, true]", "all of the same value");
    let mine = shm.options("live").attach_reader().unwrap();
    let pinned = mine.pin().unwrap();
    for round in 0..3 {
        writer.release().unwrap();
        writer = shm.options("live").attach_writer().unwrap();
        for counter in 1..10 {
            put(&mut writer, 10 * round + counter);
        }
        assert!(holds(&pinned, 0));
    }
    peer.tell("done");
    peer.finish();
    drop(pinned);
    mine.close().unwrap();
    writer.close().unwrap();
}

/// Every slot named in the table, by entries of nobody and of somebody: writes go on, none panics, and
/// whoever had an honest pin is told that it is gone.
#[test]
fn a_table_full_of_pins_stops_no_writer() {
    let shm = Shm::new();
    let options = shm.options("live").slots(3).max_readers(8);
    let mut writer = options.create().unwrap();
    put(&mut writer, 0);
    let reader = options.attach_reader().unwrap();
    let pinned = reader.pin().unwrap();
    assert!(pinned.in_place());

    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(shm.segment_file("live"))
        .unwrap();
    let control = 4096;
    let mut key = [0; 8];
    file.seek(SeekFrom::Start(control + 64)).unwrap();
    file.read_exact(&mut key).unwrap();
    for (entry, pin) in [(1, 1u32), (2, 2), (3, 3), (4, 0), (5, 4), (6, u32::MAX)] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&key);
        bytes[8..12].copy_from_slice(&pin.to_le_bytes());
        file.seek(SeekFrom::Start(control + 64 + 16 * entry))
            .unwrap();
        file.write_all(&bytes).unwrap();
    }
    // `high` and `pins` as well.
    file.seek(SeekFrom::Start(control + 4)).unwrap();
    file.write_all(&u32::MAX.to_le_bytes()).unwrap();
    file.write_all(&u64::MAX.to_le_bytes()).unwrap();

    for counter in 1..100 {
        put(&mut writer, counter);
        let mut plain = options.attach_reader();
        if let Ok(plain) = &mut plain {
            assert_eq!(counter_of(plain.read().unwrap()), Some(counter));
        }
    }
    assert!(!pinned.is_intact());
    assert_eq!(pinned.release().unwrap_err().code(), "version_conflict");
    // Another is copied, for there is no room.
    assert!(!reader.pin().unwrap().in_place());
    // What was forged would keep the segment.
    file.seek(SeekFrom::Start(control + 64 + 16)).unwrap();
    file.write_all(&[0; 7 * 16]).unwrap();
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn checked_values_are_checked_when_they_are_pinned() {
    let shm = Shm::new();
    let options = shm.options("live").integrity(Integrity::Crc32c);
    let mut writer = options.create().unwrap();
    writer.write(b"precious").unwrap();
    let reader = options.attach_reader().unwrap();
    assert_eq!(&reader.pin().unwrap()[..], b"precious");
    let path = shm.segment_file("live");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"precious").unwrap();
    bytes[at] ^= 1;
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&bytes[at..=at]).unwrap();
    assert_eq!(reader.pin().unwrap_err().code(), "corrupted");
    // The failed pin was given back.
    for n in 0..8u8 {
        writer.write(&[n]).unwrap();
    }
    assert_eq!(&reader.pin().unwrap()[..], &[7]);
    reader.close().unwrap();
    writer.close().unwrap();
}

/// Threads that share a reader share its pin, and give it back once.
#[test]
fn threads_share_a_pin() {
    let shm = Shm::new();
    let mut writer = shm.options("live").slots(3).create().unwrap();
    put(&mut writer, 0);
    let reader = shm.options("live").attach_reader().unwrap();
    let stop = AtomicBool::new(false);
    let pinning = |reader: &SegmentReader| {
        let mut had = 0;
        while !stop.load(Ordering::Relaxed) || had == 0 {
            let pinned = reader.pin().unwrap();
            let counter = counter_of(&pinned).expect("torn");
            assert_eq!(counter_of(&pinned), Some(counter));
            pinned.release().unwrap();
            had += 1;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| pinning(&reader))).collect();
        for counter in 0..50_000 {
            put(&mut writer, counter);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    assert!(!reader.has_views());
    reader.close().unwrap();
    writer.close().unwrap();
}

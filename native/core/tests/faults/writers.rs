//! Writers that die, stop, or find another.

use crate::*;

pub fn endless_writer(dir: &Path) {
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

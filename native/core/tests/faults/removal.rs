//! What is removed, when, and what is not.

use crate::*;
use std::os::unix::fs::FileExt;

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

pub fn dropper(dir: &Path) {
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

/// From now on the table says of a participant that it has the pid of this process.
fn give_our_pid_to(shm: &Shm, pid: u32) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(shm.path().join("test.participants"))
        .unwrap();
    let mut given = 0;
    for index in 0..64 {
        let mut entry = [0; 64];
        file.read_exact_at(&mut entry, 4096 + index * 64).unwrap();
        if entry[4..8] == pid.to_le_bytes() {
            entry[4..8].copy_from_slice(&std::process::id().to_le_bytes());
            let sum = crc32c::crc32c(&entry[..56]);
            entry[56..60].copy_from_slice(&sum.to_le_bytes());
            file.write_all_at(&entry, 4096 + index * 64).unwrap();
            given += 1;
        }
    }
    assert_eq!(given, 1);
}

/// As in two containers, where the first process has the same pid in each.
#[test]
fn another_process_of_our_pid_is_not_taken_for_us() {
    let shm = Shm::new();
    let peer = writer_of(&shm, "theirs");
    let _mine = shm.options("mine").create().unwrap();
    let reader = shm.options("theirs").attach_reader().unwrap();
    give_our_pid_to(&shm, peer.pid());
    let report = shm.options("theirs").inspect().unwrap();
    assert_eq!(report.writer.unwrap().pid, std::process::id());
    assert!(!report.writer_is_own && report.readers[0].own);
    assert!(shm.options("mine").inspect().unwrap().writer_is_own);
    drop(reader);
    peer.kill();
    let cleanup = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    assert_eq!(cleanup.run().unwrap().removed[0].name, "theirs");
}

/// As if the dead one's pid had been given to a process that lives, at the same clock tick.
#[test]
fn a_reused_pid_keeps_no_orphan_alive() {
    let shm = Shm::new();
    let member = join("test", shm.path()).unwrap();
    let peer = writer_of(&shm, "orphan");
    let dead = peer.pid();
    peer.kill();
    give_our_pid_to(&shm, dead);
    let cleanup = CleanupOptions::new("test", shm.path()).grace(Duration::ZERO);
    let report = cleanup.run().unwrap();
    assert_eq!(report.removed[0].reason, "its writer died");
    assert!(!shm.files().iter().any(|file| file.contains("orphan")));
    drop(member);
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

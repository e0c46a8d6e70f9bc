//! Files that others cut, and lists of many.

use crate::*;

#[test]
fn truncated_under_a_reader_a_writer_and_a_view() {
    let shm = Shm::new();
    let cut = |name: &str, len: u64| {
        let file = OpenOptions::new()
            .write(true)
            .open(shm.segment_file(name))
            .unwrap();
        file.set_len(len).unwrap();
    };
    let options = shm.options("x").size(1 << 20);
    let mut writer = options.create().unwrap();
    writer.write(&[7; 1 << 20]).unwrap();
    let mut reader = options.attach_reader().unwrap();
    assert_eq!(reader.read().unwrap().len(), 1 << 20);
    cut("x", 256 * 1024);
    assert_eq!(reader.read().unwrap_err().code(), "truncated");
    assert_eq!(
        reader.wait_changed(2, Some(SECOND)).unwrap_err().code(),
        "truncated"
    );
    let value = vec![8; 1 << 20];
    let error = (0..3).find_map(|_| writer.write(&value).err()).unwrap();
    assert_eq!(error.code(), "truncated");
    assert_eq!(writer.write(b"more").unwrap_err().code(), "truncated");
    drop((reader, writer));

    let options = shm.options("y").size(1 << 20).slots(1);
    let mut writer = options.create().unwrap();
    writer.write(&[9; 1 << 20]).unwrap();
    writer.seal().unwrap();
    let reader = options.attach_reader().unwrap();
    let view = reader.sealed().unwrap();
    cut("y", 0);
    assert_eq!(
        view.iter().filter(|byte| **byte == 0).count(),
        1 << 20,
        "zeros from the cut on"
    );
    assert!(!view.is_intact());
    assert_eq!(reader.sealed().unwrap_err().code(), "truncated");
    drop((view, reader, writer));
    let report = CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
    assert_eq!(report.corrupted.len(), 2);
}

#[test]
fn a_sleeper_on_a_cut_file_wakes() {
    let shm = Shm::new();
    let writer = shm.options("x").create().unwrap();
    let reader = shm.options("x").attach_reader().unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| reader.wait_changed(0, None));
        eventually("it sleeps", || {
            shm.options("x").inspect().unwrap().waiters == 1
        });
        let file = OpenOptions::new()
            .write(true)
            .open(shm.segment_file("x"))
            .unwrap();
        file.set_len(0).unwrap();
        let woken = sleeper.join().unwrap();
        assert_eq!(woken.unwrap_err().code(), "truncated");
    });
    drop((reader, writer));
    CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
}

#[test]
fn one_truncated_file_harms_nobody_who_lists() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let good = shm.options("good").create().unwrap();
    let bad = shm.options("bad").create().unwrap();
    assert_eq!(discovery.list().unwrap().len(), 2);
    let file = OpenOptions::new()
        .write(true)
        .open(shm.segment_file("bad"))
        .unwrap();
    file.set_len(0).unwrap();
    for discovery in [
        &discovery,
        &SegmentDiscovery::new("test", shm.path()).unwrap(),
    ] {
        let names: Vec<_> = discovery
            .list()
            .unwrap()
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["good"]);
        assert_eq!(discovery.corrupted().unwrap()[0].0, "bad");
    }
    drop(bad);
    let report = CleanupOptions::new("test", shm.path()).run().unwrap();
    assert_eq!(
        report.corrupted.len(),
        1,
        "isolated, and not removed unless asked"
    );
    let report = CleanupOptions::new("test", shm.path())
        .corrupted(true)
        .run()
        .unwrap();
    assert_eq!(report.removed[0].name, "bad");
    good.close().unwrap();
}

#[test]
fn a_hundred_segments_and_two_lists_agree() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let mut watch = discovery.watch().unwrap();
    let mut writers: Vec<_> = (0..100)
        .map(|i| shm.options(&format!("s{i:03}")).create().unwrap())
        .collect();
    writers[7].write(b"seven").unwrap();
    let listed = discovery.list().unwrap();
    assert_eq!(listed.len(), 100);
    assert_eq!(
        (listed[7].name.as_str(), listed[7].len, listed[7].version),
        ("s007", 5, 2)
    );
    let mut appeared = 0;
    while appeared < 100 {
        let changes = watch.next(Duration::from_secs(10)).unwrap();
        assert!(!changes.is_empty(), "told of {appeared}");
        appeared += changes.len();
    }
    let reader = shm.options("s007").attach_reader().unwrap();
    writers.remove(7).close().unwrap();
    writers.remove(7).close().unwrap();
    let again = discovery.list().unwrap();
    let fresh = SegmentDiscovery::new("test", shm.path())
        .unwrap()
        .list()
        .unwrap();
    let brief = |list: &[snakepit_shm::SegmentInfo]| -> Vec<_> {
        list.iter()
            .map(|s| (s.name.clone(), s.version, s.reader_count, s.writer_pid))
            .collect()
    };
    assert_eq!(brief(&again), brief(&fresh));
    assert_eq!(again.len(), 99, "one was closed unread, one is read still");
    assert_eq!(again[7].reader_count, 1);
    // More readers than a list reads together with the header.
    let mut others = Vec::new();
    for count in 0..9 {
        let fresh = SegmentDiscovery::new("test", shm.path()).unwrap();
        let fresh = fresh.list().unwrap();
        assert!(fresh.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(
            (fresh[8].name.as_str(), fresh[8].reader_count),
            ("s009", count)
        );
        let looked = shm.options("s009").inspect().unwrap();
        assert_eq!(looked.readers.len() as u32, count);
        others.push(shm.options("s009").attach_reader().unwrap());
    }
    others.into_iter().for_each(|r| r.close().unwrap());
    reader.close().unwrap();
    writers.into_iter().for_each(|w| w.close().unwrap());
    assert!(discovery.list().unwrap().is_empty());
}

#[test]
fn events_that_the_system_lost_are_made_up_for() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    // The second list watches.
    discovery.list().unwrap();
    discovery.list().unwrap();
    let mut watch = discovery.watch().unwrap();
    let first = shm.options("first").create().unwrap();
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let (one, other) = (shm.path().join("one"), shm.path().join("other"));
    std::fs::write(&one, "").unwrap();
    for _ in 0..limit / 4 + 100 {
        // Two events each time.
        std::fs::rename(&one, &other).unwrap();
        std::fs::rename(&other, &one).unwrap();
    }
    // Nobody is told of these one by one any more.
    let second = shm.options("second").create().unwrap();
    first.close().unwrap();
    let mut known = std::collections::BTreeSet::new();
    while !known.contains("second") {
        for change in watch.next(Duration::from_secs(30)).unwrap() {
            match change {
                SegmentChange::Appeared(name) => known.insert(name),
                SegmentChange::Vanished(name) => known.remove(&name),
            };
        }
    }
    let names: Vec<_> = discovery.list().unwrap();
    let names: Vec<_> = names.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["second"]);
    assert_eq!(known.into_iter().collect::<Vec<_>>(), ["second"]);
    std::fs::remove_file(one).unwrap();
    second.close().unwrap();
}

#[test]
fn a_kept_list_gives_the_memory_of_removed_segments_back_when_asked_to() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let here = shm.path().to_str().unwrap();
        maps.lines().filter(|line| line.contains(here)).count()
    };
    let listed = || discovery.list().unwrap().len();
    let stays = shm.options("stays").create().unwrap();
    let goes = shm.options("goes").create().unwrap();
    let nothing_kept = mapped();
    assert_eq!(listed(), 2);
    assert_eq!(mapped(), nothing_kept, "whoever asks once pays once");
    assert_eq!(listed(), 2);
    let both_kept = mapped();
    assert!(both_kept > nothing_kept);

    goes.close().unwrap();
    let goes_kept = mapped();
    discovery.tidy(Duration::from_secs(3600));
    assert!(mapped() < goes_kept);
    let stays_kept = mapped();
    discovery.tidy(Duration::from_secs(3600));
    assert_eq!(mapped(), stays_kept, "what is there stays kept");
    assert_eq!(listed(), 1);

    // What came between two lists is found, though it was tidied up meanwhile.
    let came = shm.options("came").create().unwrap();
    discovery.tidy(Duration::from_secs(3600));
    assert_eq!(listed(), 2);
    came.close().unwrap();
    let again = shm.options("came").size(8192).create().unwrap();
    discovery.tidy(Duration::from_secs(3600));
    assert_eq!(discovery.list().unwrap()[0].size, 8192);
    again.close().unwrap();

    discovery.tidy(Duration::ZERO);
    let nothing_kept = mapped();
    assert_eq!(listed(), 1);
    assert!(mapped() > nothing_kept);
    discovery.forget();
    assert_eq!(mapped(), nothing_kept);
    assert_eq!(listed(), 1);
    stays.close().unwrap();
    assert_eq!(listed(), 0);
}

#[test]
fn a_kept_list_of_a_directory_that_comes_and_goes_is_never_old() {
    let shm = Shm::new();
    let dir = shm.path().join("place");
    let options = |name: &str| {
        std::fs::create_dir_all(&dir).unwrap();
        SegmentOptions::new(name).namespace("test").dir(&dir)
    };
    let discovery = SegmentDiscovery::new("test", &dir).unwrap();
    let names = || -> Vec<String> {
        let found = discovery.list().unwrap();
        found.into_iter().map(|info| info.name).collect()
    };
    let writer = options("first").create().unwrap();
    for _ in 0..3 {
        assert_eq!(names(), ["first"]);
    }
    // Moved away: what lies there is not here any more.
    let away = shm.path().join("away");
    std::fs::rename(&dir, &away).unwrap();
    for _ in 0..3 {
        assert!(discovery.list().is_err());
    }
    let other = options("second").create().unwrap();
    for _ in 0..3 {
        assert_eq!(names(), ["second"]);
    }
    other.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    for _ in 0..3 {
        assert!(discovery.list().is_err());
    }
    std::fs::rename(&away, &dir).unwrap();
    for _ in 0..3 {
        assert_eq!(names(), ["first"]);
    }
    writer.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_segment_that_is_mended_is_listed_again() {
    let shm = Shm::new();
    let discovery = SegmentDiscovery::new("test", shm.path()).unwrap();
    let writer = shm.options("x").create().unwrap();
    let meta = shm.path().join("test_x.meta");
    let text = std::fs::read(&meta).unwrap();
    let other = shm.path().join("other");
    for keeps in [false, true, true] {
        // Renamed into place, of which events tell; written in place, of which none does.
        std::fs::write(&other, "no json").unwrap();
        std::fs::rename(&other, &meta).unwrap();
        let found = discovery.survey().unwrap();
        let counts = (found.segments.len(), found.corrupted.len());
        assert_eq!(counts, (0, 1), "{keeps}");
        std::fs::write(&meta, &text).unwrap();
        assert_eq!(discovery.list().unwrap().len(), 1, "{keeps}");
    }
    writer.close().unwrap();
}

//! Memory under segments: huge pages, pages mapped beforehand, locks, nodes. What a machine cannot show is
//! said: `NOT RUN`, with the reason.

mod support;

use snakepit_shm::{
    HugePages, Numa, Reserve, Resource, SegmentOptions, SegmentReader, ShmError, capabilities,
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use support::{Peer, Shm, counter_of, options, pattern, play, say};

const ENTRY: &str = "peer_process";
const UNSHARE: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];
const SIZE: usize = 16 << 20;

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[
        ("always", |dir| on_mount(dir, "always")),
        ("within_size", |dir| on_mount(dir, "within_size")),
        ("advise", |dir| on_mount(dir, "advise")),
        ("never", |dir| on_mount(dir, "never")),
        ("full", full),
        ("holes", holes),
        ("unlockable", unlockable),
    ]);
}

/// In a mount namespace of its own: a memory file system over the peer's directory.
fn mount(dir: &Path, options: &str) -> bool {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(dir)
        .status();
    mounted.is_ok_and(|status| status.success())
}

/// Plays `role` where it may mount; otherwise says why the test did not run.
fn with_mounts(test: &str, role: &str) {
    let allowed = Command::new("unshare")
        .args(&UNSHARE[1..])
        .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .output();
    if !allowed.as_ref().is_ok_and(|out| out.status.success()) {
        let why = allowed.map_or_else(
            |e| e.to_string(),
            |out| String::from_utf8_lossy(&out.stderr).into_owned(),
        );
        println!(
            "NOT RUN: {test}: this user may mount nothing: {}",
            why.trim()
        );
        return;
    }
    let shm = Shm::new();
    let mut peer = Peer::start_by(UNSHARE, ENTRY, role, &shm);
    let outcome = peer.expect("done");
    if !outcome.is_empty() {
        println!("{test} {outcome}");
    }
    peer.finish();
}

/// Those of a reader: the first huge page of a file is shared by parts of different rights.
fn huge_for_reader(reader: &SegmentReader) -> u64 {
    let pages = reader.pages().unwrap();
    assert!(pages.huge <= pages.huge_possible, "{pages:?}");
    pages.huge
}

fn on_mount(dir: &Path, huge: &str) {
    if !mount(dir, &format!("size=256m,huge={huge}")) {
        return say(&format!(
            "done: NOT RUN with huge={huge}: the kernel has no such mount"
        ));
    }
    let machine = capabilities(dir).unwrap();
    let told = (huge != "never").then_some(huge);
    assert_eq!(machine.huge_pages.as_deref(), told);
    let unit = machine.huge_page_size as u64;
    if !machine.huge_pages_possible {
        // Refused by name, and nothing stays. Preferred, it is there with small pages, and says so.
        let error = options(dir, "x").size(SIZE).huge_pages(true).create();
        let code = error.unwrap_err().code();
        assert!(
            ["invalid_option", "resource_exhausted"].contains(&code),
            "{code}"
        );
        let preferred = options(dir, "x").size(SIZE).huge_pages(HugePages::Prefer);
        let writer = preferred.create().unwrap();
        assert_eq!(writer.pages().unwrap().huge, 0);
        writer.close().unwrap();
        return say(&format!(
            "done: partly NOT RUN with huge={huge}: there are none on this machine now"
        ));
    }
    let asked = options(dir, "x").size(SIZE).slots(1).huge_pages(true);
    let mut writer = asked.create().unwrap();
    let pages = writer.pages().unwrap();
    assert_eq!((pages.huge, pages.huge_asked), (pages.huge_possible, true));
    assert!(pages.huge >= SIZE as u64, "{pages:?}");
    let mut value = vec![0; SIZE];
    pattern(7, &mut value);
    writer.write(&value).unwrap();

    // A reader that touches one byte of each, or has all mapped.
    let reader = options(dir, "x").attach_reader().unwrap();
    let mut copy = vec![0; SIZE];
    reader.read_into(&mut copy).unwrap();
    assert_eq!(counter_of(&copy), Some(7));
    assert!(huge_for_reader(&reader) >= SIZE as u64 - unit);
    let before = options(dir, "x").prefault(true).attach_reader().unwrap();
    assert!(huge_for_reader(&before) >= SIZE as u64 - unit);
    let seen = options(dir, "x").inspect_pages().unwrap();
    assert_eq!((seen.huge, seen.huge_asked), (pages.huge_possible, true));
    for reader in [reader, before] {
        reader.close().unwrap();
    }
    writer.close().unwrap();

    // Not asked for: only where the mount gives them by itself.
    let plain = options(dir, "y").size(SIZE).slots(1).prefault(true);
    let writer = plain.create().unwrap();
    let pages = writer.pages().unwrap();
    assert!(!pages.huge_asked);
    match huge {
        "always" | "within_size" => assert!(pages.huge > 0, "{pages:?}"),
        _ => assert_eq!(pages.huge, 0, "{pages:?}"),
    }
    writer.close().unwrap();
    say("done");
}

#[test]
fn huge_pages_on_a_mount_that_always_gives_them() {
    with_mounts("huge pages", "always");
}

#[test]
fn huge_pages_on_a_mount_that_gives_them_within_a_file() {
    with_mounts("huge pages", "within_size");
}

#[test]
fn huge_pages_on_a_mount_that_gives_them_when_advised() {
    with_mounts("huge pages", "advise");
}

#[test]
fn huge_pages_on_a_mount_that_gives_none() {
    with_mounts("huge pages", "never");
}

fn full(dir: &Path) {
    assert!(mount(dir, "size=8m"));
    for huge in [HugePages::No, HugePages::Prefer, HugePages::Require] {
        let large = options(dir, "x").size(SIZE).slots(1).huge_pages(huge);
        match large.prefault(true).create().unwrap_err() {
            ShmError::ResourceExhausted {
                resource: Resource::Space,
                ..
            } => {}
            other => panic!("{huge:?}: {other}"),
        }
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    options(dir, "fits").create().unwrap().close().unwrap();
    say("done");
}

#[test]
fn huge_pages_on_a_full_file_system_are_refused_as_small_ones_are() {
    with_mounts("a full file system", "full");
}

fn holes(dir: &Path) {
    assert!(mount(dir, "size=8m"));
    let lazily = options(dir, "x").size(SIZE).slots(1).reserve(Reserve::Lazy);
    let mut writer = lazily.create().unwrap();
    writer.write(&[5; 3 << 20]).unwrap();
    let blocks = || -> u64 {
        let files = std::fs::read_dir(dir).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().blocks()).sum()
    };
    let before = blocks();
    let mut reader = options(dir, "x").prefault(true).attach_reader().unwrap();
    assert_eq!(blocks(), before);
    assert!(reader.pages().unwrap().resident >= 3 << 20);
    assert_eq!(reader.read().unwrap(), [5; 3 << 20]);
    // All of it: there is no memory for the rest, and no limit in the way.
    let locked = options(dir, "x").lock_memory(true).attach_reader();
    match locked.unwrap_err() {
        ShmError::ResourceExhausted {
            resource: Resource::Space | Resource::LockedMemory,
            ..
        } => {}
        other => panic!("{other}"),
    }
    assert_eq!(reader.read().unwrap(), [5; 3 << 20]);
    reader.close().unwrap();
    writer.close().unwrap();
    say("done");
}

#[test]
fn what_is_a_hole_stays_one_when_a_reader_has_pages_mapped() {
    with_mounts("holes", "holes");
}

#[test]
fn huge_pages_are_refused_where_there_can_be_none() {
    let shm = Shm::new();
    let small = shm.options("x").huge_pages(true);
    let lazily = small.clone().size(SIZE).reserve(Reserve::Lazy);
    for options in [small, lazily] {
        match options.create().unwrap_err() {
            ShmError::InvalidOption { option, reason } => {
                assert_eq!(option, "huge_pages", "{reason}");
            }
            other => panic!("{other}"),
        }
    }
    // Preferred, that is no mistake.
    let preferred = shm.options("x").huge_pages(HugePages::Prefer);
    let writer = preferred.create().unwrap();
    let pages = writer.pages().unwrap();
    assert!(pages.huge_asked && pages.huge == 0 && pages.huge_possible == 0);
    assert!(preferred.inspect().unwrap().huge_pages_asked);
    writer.close().unwrap();
}

#[test]
fn pages_are_there_before_they_are_used() {
    let shm = Shm::new();
    let resident = |options: SegmentOptions| {
        let writer = options.create().unwrap();
        let pages = writer.pages().unwrap();
        writer.close().unwrap();
        (pages.resident, pages.bytes)
    };
    // Small, and large enough for several threads.
    for size in [64 << 10, 72 << 20] {
        let segment = shm.options("x").size(size).slots(1);
        let (touched, _) = resident(segment.clone());
        assert!(touched < 64 << 10, "{touched}");
        let (mapped, bytes) = resident(segment.prefault(true));
        assert!(mapped >= size as u64 && mapped <= bytes, "{mapped}");
    }
    let lazily = shm.options("x").reserve(Reserve::Lazy).prefault(true);
    match lazily.create().unwrap_err() {
        ShmError::InvalidOption { option, .. } => assert_eq!(option, "prefault"),
        other => panic!("{other}"),
    }
}

#[test]
fn readers_and_next_writers_have_pages_mapped_too() {
    let shm = Shm::new();
    let size = 1 << 20;
    let mut writer = shm.options("x").size(size).slots(2).create().unwrap();
    writer.write(b"value").unwrap();
    let plain = shm.options("x").attach_reader().unwrap();
    assert!(plain.pages().unwrap().resident < 64 << 10);
    let mapped = shm.options("x").prefault(true).attach_reader().unwrap();
    assert!(mapped.pages().unwrap().resident >= 2 * size as u64);
    writer.release().unwrap();
    let next = shm.options("x").prefault(true).attach_writer().unwrap();
    assert!(next.pages().unwrap().resident >= 2 * size as u64);
    assert_eq!(next.current_version(), 2);
    for reader in [plain, mapped] {
        reader.close().unwrap();
    }
    next.close().unwrap();
}

/// In a user namespace of its own, where being root lifts no limit.
fn unlockable(dir: &Path) {
    let refused = |error: ShmError| match error {
        ShmError::ResourceExhausted {
            resource: Resource::LockedMemory,
            needed,
            available,
            ..
        } => {
            assert!(needed > 1 << 20 && available.is_some_and(|room| room <= 65536));
        }
        other => panic!("{other}"),
    };
    let segment = options(dir, "x").size(1 << 20).slots(1);
    let mut writer = segment.clone().create().unwrap();
    writer.write(b"kept").unwrap();
    let locked = segment.lock_memory(true);
    refused(locked.attach_reader().unwrap_err());
    writer.release().unwrap();
    refused(locked.attach_writer().unwrap_err());
    // The refused takeover has left the claim to others.
    let mut reader = options(dir, "x").attach_reader().unwrap();
    assert_eq!(reader.reader_count(), 1);
    assert_eq!(reader.read().unwrap(), b"kept");
    let writer = options(dir, "x").attach_writer().unwrap();
    reader.close().unwrap();
    writer.close().unwrap();
    // What fits is locked, and counted.
    let small = options(dir, "small").slots(1).max_readers(100);
    let writer = small.lock_memory(true).create().unwrap();
    let pages = writer.pages().unwrap();
    assert_eq!(pages.locked, pages.bytes);
    writer.close().unwrap();
    say("done");
}

#[test]
fn whoever_attaches_beyond_the_lock_limit_is_told() {
    let shm = Shm::new();
    let by = [
        "unshare",
        "--user",
        "--map-root-user",
        "prlimit",
        "--memlock=65536",
    ];
    let mut peer = Peer::start_by(&by, ENTRY, "unlockable", &shm);
    peer.expect("done");
    peer.finish();
}

#[test]
fn nodes_that_are_there_are_used_and_others_named() {
    let shm = Shm::new();
    let machine = capabilities(shm.path()).unwrap();
    let Some(first) = machine.numa_nodes.first().copied() else {
        println!("NOT RUN: nodes: this kernel has no NUMA, or does not tell");
        return;
    };
    let segment = || shm.options("x").size(SIZE).slots(1).prefault(true);
    for (numa, policy) in [
        (Numa::Bind(vec![first]), format!("bind:{first}")),
        (Numa::Interleave(vec![first]), format!("interleave:{first}")),
    ] {
        let writer = segment().numa(Some(numa)).create().unwrap();
        let pages = writer.pages().unwrap();
        assert_eq!(pages.numa_policy, Some(policy.clone()));
        let [there] = pages.nodes[..] else {
            panic!("{pages:?}")
        };
        assert_eq!((there.node, there.bytes), (first, pages.resident));
        // For whoever maps it.
        let reader = shm.options("x").attach_reader().unwrap();
        assert_eq!(reader.pages().unwrap().numa_policy, Some(policy));
        reader.close().unwrap();
        writer.close().unwrap();
    }
    let all = segment().numa(Some(Numa::Interleave(Vec::new())));
    let writer = all.create().unwrap();
    let policy = writer.pages().unwrap().numa_policy.unwrap();
    assert!(policy.starts_with("interleave:"), "{policy}");
    writer.close().unwrap();

    let missing = (0..1024).find(|n| !machine.numa_nodes.contains(n)).unwrap();
    for (numa, named) in [
        (Numa::Bind(vec![missing]), "numa_node"),
        (Numa::Bind(vec![first, missing]), "numa"),
        (Numa::Bind(vec![5000]), "numa_node"),
        (Numa::Bind(Vec::new()), "numa"),
        (Numa::Interleave(vec![first, missing]), "numa"),
    ] {
        match segment().numa(Some(numa.clone())).create().unwrap_err() {
            ShmError::InvalidOption { option, reason } => {
                assert_eq!(option, named, "{numa:?}: {reason}");
            }
            other => panic!("{numa:?}: {other}"),
        }
    }
    assert!(shm.files().is_empty());
    if machine.numa_nodes.len() < 2 {
        println!("NOT RUN: pages spread over several nodes: this machine has one");
        return;
    }
    let spread = segment().numa(Some(Numa::Interleave(Vec::new())));
    let writer = spread.create().unwrap();
    assert_eq!(
        writer.pages().unwrap().nodes.len(),
        machine.numa_nodes.len()
    );
    writer.close().unwrap();
}

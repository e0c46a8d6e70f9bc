//! What the machine refuses.

use crate::*;

/// In a mount namespace of its own, with a small tmpfs over its directory.
fn small_tmpfs(dir: &Path) {
    let status = std::process::Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={}m", full(8, 64)),
            "tmpfs",
        ])
        .arg(dir)
        .status()
        .unwrap();
    assert!(status.success(), "mount");
}

const UNSHARE: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];

pub fn brim(dir: &Path) {
    small_tmpfs(dir);
    let filler = vec![1u8; full(8, 64) << 20];
    let used = |dir: &Path| -> u64 {
        let files = std::fs::read_dir(dir).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
    };
    let _member = join("test", dir).unwrap();
    let _ = std::fs::write(dir.join("filler"), &filler); // to the brim
    let (before, count) = (used(dir), std::fs::read_dir(dir).unwrap().count());
    for i in 0..full(500, 10_000) {
        match options(dir, &format!("s{i}")).size(1 << 20).create() {
            Err(
                error @ ShmError::ResourceExhausted {
                    resource: Resource::Space,
                    ..
                },
            ) => {
                assert!(error.remedy().contains("remount"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (used(dir), std::fs::read_dir(dir).unwrap().count()),
        (before, count)
    );
    std::fs::remove_file(dir.join("filler")).unwrap();
    options(dir, "fits")
        .size(1 << 20)
        .create()
        .unwrap()
        .close()
        .unwrap();
    say("done");
    hear();
}

#[test]
fn a_full_file_system_refuses_and_keeps_not_a_byte() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(UNSHARE, ENTRY, "brim", &shm);
    peer.expect("done");
    peer.finish();
}

pub fn lazy(dir: &Path) {
    small_tmpfs(dir);
    let space = full(8, 64) << 20;
    let lazily = options(dir, "giant")
        .size(space * 8)
        .slots(1)
        .reserve(Reserve::Lazy);
    let mut writer = lazily.create().unwrap();
    writer.write(b"fits").unwrap();
    let error = writer.write(&vec![1; space * 4]).unwrap_err();
    assert_eq!(error.code(), "truncated");
    assert_eq!(writer.write(b"lost").unwrap_err().code(), "truncated");
    writer.close().unwrap();
    say("done");
    hear();
}

#[test]
fn a_hole_without_memory_is_survived() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(UNSHARE, ENTRY, "lazy", &shm);
    peer.expect("done");
    peer.finish();
}

pub fn descriptors(dir: &Path) {
    let mut writer = options(dir, "x").create().unwrap();
    writer.write(b"x").unwrap();
    // Every descriptor that the limit allows, and one segment is no descriptor.
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    for error in [
        options(dir, "y").create().unwrap_err(),
        options(dir, "x").attach_reader().unwrap_err(),
        options(dir, "x").attach_writer().unwrap_err(),
    ] {
        match error {
            ShmError::ResourceExhausted {
                resource: Resource::Descriptors,
                ..
            } => {}
            other => panic!("{other}"),
        }
    }
    writer.write(b"still").unwrap();
    drop(taken);
    assert_eq!(
        options(dir, "x").attach_reader().unwrap().read().unwrap(),
        b"still"
    );
    writer.close().unwrap();
    say("done");
    hear();
}

#[test]
fn out_of_descriptors_is_named() {
    let shm = Shm::new();
    let mut peer = Peer::start_by(&["prlimit", "--nofile=64"], ENTRY, "descriptors", &shm);
    peer.expect("done");
    peer.finish();
}

pub fn address_space(dir: &Path) {
    let huge = options(dir, "huge")
        .size(1 << 30)
        .slots(2)
        .reserve(Reserve::Lazy);
    match huge.create().unwrap_err() {
        ShmError::ResourceExhausted {
            resource: Resource::AddressSpace,
            ..
        } => {}
        other => panic!("{other}"),
    }
    options(dir, "small").create().unwrap().close().unwrap();
    say("done");
    hear();
}

#[test]
fn out_of_address_space_is_named() {
    let shm = Shm::new();
    let limit = format!("--as={}", 1u64 << 30);
    let mut peer = Peer::start_by(&["prlimit", &limit], ENTRY, "address-space", &shm);
    peer.expect("done");
    peer.finish();
}

/// Has less address space than the segment is large that it lists.
pub fn lister(dir: &Path) {
    let found = SegmentDiscovery::new("test", dir).unwrap().list().unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|s| (s.name.as_str(), s.size, s.len))
        .collect();
    assert_eq!(seen, [("huge", 1 << 30, 5)]);
    assert_eq!(found[0].reader_count, 1);
    say("done");
    hear();
}

#[test]
fn a_list_needs_no_address_space_for_what_it_lists() {
    let shm = Shm::new();
    let huge = shm.options("huge").size(1 << 30).slots(2);
    let mut writer = huge.reserve(Reserve::Lazy).create().unwrap();
    writer.write(b"value").unwrap();
    let reader = shm.options("huge").attach_reader().unwrap();
    let limit = format!("--as={}", 1u64 << 30);
    let mut peer = Peer::start_by(&["prlimit", &limit], ENTRY, "lister", &shm);
    peer.expect("done");
    peer.finish();
    drop(reader);
    writer.close().unwrap();
}

/// In a user namespace of its own, where being root lifts no limit.
pub fn lock_limit(dir: &Path) {
    let large = options(dir, "x").size(1 << 20).slots(1).lock_memory(true);
    match large.create().unwrap_err() {
        ShmError::ResourceExhausted {
            resource: Resource::LockedMemory,
            ..
        } => {}
        other => panic!("{other}"),
    }
    assert_eq!(options(dir, "x").inspect().unwrap_err().code(), "not_found");
    say("done");
    hear();
}

#[test]
fn a_named_error_when_the_lock_limit_is_reached() {
    let shm = Shm::new();
    let by = [
        "unshare",
        "--user",
        "--map-root-user",
        "prlimit",
        "--memlock=65536",
    ];
    let mut peer = Peer::start_by(&by, ENTRY, "lock-limit", &shm);
    peer.expect("done");
    peer.finish();
}

pub fn joiner(dir: &Path) {
    match options(dir, "x").attach_writer() {
        Err(ShmError::ResourceExhausted {
            resource: Resource::Participants,
            ..
        }) => say("out of participants"),
        Err(other) => say(&format!("out of nothing: {other}")),
        Ok(_) => say("out of nothing"),
    }
}

/// As if 16,384 processes had joined: all entries but the first are held by somebody.
#[test]
fn a_namespace_without_room_for_another_process_says_so() {
    let shm = Shm::new();
    let mut mine = shm.options("x").create().unwrap();
    let table = OpenOptions::new()
        .read(true)
        .write(true)
        .open(shm.path().join("test.participants"))
        .unwrap();
    let entries = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: (1 << 32) + 1,
        l_len: 16_383,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&table, nix::fcntl::FcntlArg::F_OFD_SETLK(&entries)).unwrap();
    let mut peer = Peer::start(ENTRY, "joiner", &shm);
    assert_eq!(peer.expect("out"), "of participants");
    peer.finish();
    // Whoever is in goes on.
    mine.write(b"still").unwrap();
    drop(table);
    let mut peer = Peer::start(ENTRY, "joiner", &shm);
    assert_eq!(
        peer.expect("out").split(':').next(),
        Some("of nothing"),
        "room again"
    );
    peer.finish();
    mine.close().unwrap();
}

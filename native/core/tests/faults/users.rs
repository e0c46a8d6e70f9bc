//! Other users: the group that may read, and everybody else.

use crate::*;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

const NOBODY: u32 = 65_534;

fn root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Tries everything, and says what came of it.
pub fn stranger(dir: &Path) {
    let answer = |result: Result<(), ShmError>| result.map_or_else(|e| e.code(), |()| "ok");
    let options = options(dir, "shared");
    say(&format!(
        "writer {}",
        answer(options.attach_writer().map(drop))
    ));
    let removed = options.remove();
    say(&format!("remove {}", answer(removed)));
    let mut reader = match options.attach_reader() {
        Ok(reader) => reader,
        Err(error) => {
            say(&format!("reader {}", error.code()));
            return;
        }
    };
    say("reader ok");
    say(&format!(
        "value {}",
        String::from_utf8_lossy(reader.read().unwrap())
    ));
    let seen = reader.last_version();
    hear();
    let newer = reader.wait_changed(seen, Some(Duration::from_secs(30)));
    say(&format!("newer {}", answer(newer.map(drop))));
    hear();
    // The segment has been removed: what is mapped stays.
    say(&format!(
        "kept {}",
        String::from_utf8_lossy(reader.read().unwrap())
    ));
    answer(reader.close());
}

/// This program where every user can run it: a copy, if it lies in somebody's home.
fn program(shm: &Shm) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let open = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o001 != 0;
    if this.ancestors().all(open) {
        return this;
    }
    let copy = std::env::temp_dir().join(shm.path().file_name().unwrap());
    std::fs::copy(&this, &copy).unwrap();
    std::fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy
}

/// Removes that copy, and gives the files back to their owner.
fn tidy(shm: &Shm) {
    std::fs::set_permissions(shm.path(), Permissions::from_mode(0o755)).unwrap();
    for file in shm.files() {
        let path = shm.path().join(file);
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    let _ = std::fs::remove_file(std::env::temp_dir().join(shm.path().file_name().unwrap()));
}

/// A peer of another user; `group` says whether it is of our group. Whoever is not root cannot have
/// one: then the files are what is foreign, by their modes.
fn peer_of(shm: &Shm, group: bool) -> Peer {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    mode(shm.path(), 0o755);
    if root() {
        let gid = std::fs::metadata(shm.path()).unwrap().gid();
        let gid = if group { gid } else { NOBODY };
        let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={gid}"));
        let by = ["setpriv", user.as_str(), group.as_str(), "--clear-groups"];
        return Peer::start_program(&program(shm), &by, ENTRY, "stranger", shm);
    }
    let allowed = if group { 0o440 } else { 0 };
    for file in shm.files() {
        let participants = file.ends_with(".participants");
        mode(
            &shm.path().join(file),
            if participants { 0 } else { allowed },
        );
    }
    mode(shm.path(), 0o555);
    Peer::start(ENTRY, "stranger", shm)
}

#[test]
fn a_reader_of_the_group_reads_and_changes_nothing() {
    let shm = Shm::new();
    let mut mine = shm.options("shared").permissions(0o640).create().unwrap();
    mine.write(b"first").unwrap();
    let mut peer = peer_of(&shm, true);
    assert_eq!(peer.expect("writer"), "permission_denied");
    assert_eq!(peer.expect("remove"), "permission_denied");
    assert_eq!(peer.expect("reader"), "ok");
    assert_eq!(peer.expect("value"), "first");
    // It may not write to the reader table either: the kernel lets it be seen by nobody.
    assert_eq!(mine.reader_count(), 0);
    peer.tell("go on");
    mine.write(b"second").unwrap();
    assert_eq!(peer.expect("newer"), "ok");
    tidy(&shm);
    mine.remove().unwrap();
    peer.tell("go on");
    assert_eq!(peer.expect("kept"), "second");
    peer.finish();
}

#[test]
fn everybody_else_is_refused() {
    let shm = Shm::new();
    let mut mine = shm.options("shared").create().unwrap();
    mine.write(b"secret").unwrap();
    let mut peer = peer_of(&shm, false);
    assert_eq!(peer.expect("writer"), "permission_denied");
    assert_eq!(peer.expect("remove"), "permission_denied");
    assert_eq!(peer.expect("reader"), "permission_denied");
    peer.finish();
    tidy(&shm);
    mine.remove().unwrap();
}

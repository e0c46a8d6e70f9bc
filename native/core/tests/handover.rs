//! Segments that change hands: given away for so long, or lent to be filled by another process.

mod support;

use snakepit_shm::{
    CleanupOptions, Handle, MAX_TTL, PoolOptions, Reaper, ReaperOptions, SegmentWriter, ShmError,
};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::Duration;
use support::{Peer, Shm, eventually, hear, play, say};

const ENTRY: &str = "peer_process";
const LONG: Duration = Duration::from_secs(3600);

/// Not a test but what peers run; does nothing in the test run itself.
#[test]
fn peer_process() {
    play(&[("giver", giver), ("filler", filler), ("lender", lender)]);
}

fn sealed(dir: &Path, name: &str) -> SegmentWriter {
    let mut writer = support::options(dir, name).slots(1).create().unwrap();
    writer.write(b"result").unwrap();
    writer.seal().unwrap();
    writer
}

fn giver(dir: &Path) {
    sealed(dir, "x").give_away(LONG).unwrap();
    say("given");
    hear();
}

/// Half fills what is lent, and says so; then fills and seals it, as it is told.
fn filler(dir: &Path) {
    let mut writer = support::options(dir, "x").attach_writer().unwrap();
    let mut loan = writer.loan().unwrap();
    loan.as_mut_slice()[..4].copy_from_slice(b"half");
    say("half");
    hear();
    loan.publish(4, &snakepit_shm::Descriptor::RAW).unwrap();
    say("published");
    hear();
    writer.seal().unwrap();
    say("sealed");
    hear();
    writer.give_away(LONG).unwrap();
    say("given");
    hear();
}

fn lender(dir: &Path) {
    let options = support::options(dir, "x").slots(1);
    let _lent = options.create().unwrap().lend().unwrap();
    say("lent");
    hear();
}

fn clean(shm: &Shm, grace: Duration) -> CleanupOptions {
    CleanupOptions::new("test", shm.path()).grace(grace)
}

#[test]
fn what_nobody_takes_goes_after_its_time_whatever_the_grace() {
    let shm = Shm::new();
    let mut short = sealed(shm.path(), "short");
    short.give_away(Duration::from_millis(1)).unwrap();
    let mut long = sealed(shm.path(), "long");
    long.give_away(LONG).unwrap();
    drop((short, long));

    // A long grace keeps what was given away no longer, a short one no shorter.
    eventually("only the long one is left", || {
        let report = clean(&shm, LONG).run().unwrap();
        report.kept.iter().all(|item| item.name == "long")
    });
    let report = clean(&shm, Duration::ZERO).run().unwrap();
    assert!(report.removed.is_empty());
    assert!(report.kept[0].reason.contains("given away"), "{report:?}");
    assert!(report.next_due.unwrap() > Duration::from_secs(3000));
    shm.options("long").adopt().unwrap().close().unwrap();
    assert!(shm.segment_files().is_empty());
}

#[test]
fn whoever_takes_it_has_it() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "giver", &shm);
    peer.expect("given");
    peer.kill();
    let taken = shm.options("x").adopt().unwrap();
    let handle: Handle = taken.handle().unwrap();
    assert!(!handle.open(shm.path()).unwrap().is_given_away());
    // Left by its taker, it waits no longer than any other.
    taken.release().unwrap();
    let report = clean(&shm, Duration::ZERO).run().unwrap();
    assert_eq!(report.removed[0].name, "x");
    assert!(shm.segment_files().is_empty());
}

#[test]
fn a_handle_takes_no_other_segment_of_its_name() {
    let shm = Shm::new();
    let first = sealed(shm.path(), "x");
    let handle = first.handle().unwrap();
    assert_eq!(handle.adopt(shm.path()).unwrap_err().code(), "segment_busy");
    first.remove().unwrap();
    assert_eq!(handle.adopt(shm.path()).unwrap_err().code(), "not_found");

    let mut second = sealed(shm.path(), "x");
    second.give_away(LONG).unwrap();
    let view = second.sealed().unwrap();
    for answer in [
        handle.adopt(shm.path()).map(drop),
        shm.options("x").adopt_incarnation(&handle.token).map(drop),
        // Nor does a pool, whoever it was given by.
        PoolOptions::new("test", shm.path())
            .open()
            .unwrap()
            .remove(&handle)
            .map(drop),
    ] {
        assert_eq!(answer.unwrap_err().code(), "not_found");
    }
    // It waits as long as it did.
    assert!(view.is_given_away());
    drop((view, second));
    let report = clean(&shm, Duration::ZERO).run().unwrap();
    assert!(report.kept[0].reason.contains("given away"), "{report:?}");
    shm.options("x").adopt().unwrap().remove().unwrap();
    assert!(shm.segment_files().is_empty());
}

#[test]
fn who_gave_it_away_may_go_on_looking() {
    let shm = Shm::new();
    let mut writer = sealed(shm.path(), "x");
    writer.give_away(LONG).unwrap();
    writer.give_away(LONG).unwrap(); // does nothing
    let view = writer.sealed().unwrap();
    assert!(view.is_given_away());
    assert_eq!(writer.write(b"more").unwrap_err().code(), "sealed");
    drop(writer);
    let taken = shm.options("x").adopt().unwrap();
    assert!(!view.is_given_away());
    taken.remove().unwrap();
    assert_eq!(&view[..], b"result");
}

#[test]
fn only_what_is_sealed_and_only_for_a_while() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    let code = |answer: snakepit_shm::Result<()>| answer.unwrap_err().code();
    assert_eq!(code(writer.give_away(LONG)), "not_sealed");
    writer.write(b"x").unwrap();
    writer.seal().unwrap();
    for ttl in [Duration::ZERO, MAX_TTL + Duration::from_nanos(1)] {
        assert_eq!(code(writer.give_away(ttl)), "invalid_option");
    }
    writer.close().unwrap();
    assert!(shm.segment_files().is_empty());
}

/// Times that nobody can have written by way of this crate.
#[test]
fn a_scribbled_time_keeps_nothing_for_ever() {
    let shm = Shm::new();
    let mut writer = sealed(shm.path(), "x");
    writer.give_away(LONG).unwrap();
    drop(writer);
    let path = shm.path().join(&shm.segment_files()[0]);
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(std::io::SeekFrom::Start(160)).unwrap();
    file.write_all(&u64::MAX.to_le_bytes()).unwrap();
    let report = clean(&shm, LONG).run().unwrap();
    assert!(report.next_due.unwrap() <= MAX_TTL);
    shm.options("x").remove().unwrap();
}

#[test]
fn a_reaper_removes_it_in_its_time() {
    let shm = Shm::new();
    let options = ReaperOptions::new("test", shm.path()).grace(LONG);
    let reaper = Reaper::start(options, |_| {}).unwrap();
    let mut writer = sealed(shm.path(), "x");
    writer.give_away(Duration::from_millis(50)).unwrap();
    drop(writer);
    eventually("it is removed", || shm.segment_files().is_empty());
    drop(reaper);
}

#[test]
fn what_is_lent_stays_however_the_borrower_dies() {
    for last in ["half", "published", "sealed", "given"] {
        let shm = Shm::new();
        let lent = shm.options("x").slots(1).create().unwrap().lend().unwrap();
        let mut peer = Peer::start(ENTRY, "filler", &shm);
        for step in ["half", "published", "sealed", "given"] {
            peer.expect(step);
            if step == last {
                break;
            }
            peer.tell("on");
        }
        let lent = if last == "given" {
            lent
        } else {
            // It lives and writes.
            let (lent, error) = *lent.take_back().unwrap_err();
            assert_eq!(error.code(), "segment_busy");
            lent
        };
        peer.kill();
        let report = clean(&shm, Duration::ZERO).run().unwrap();
        assert!(report.removed.is_empty(), "{last}: {report:?}");

        let mut back = lent.take_back().unwrap();
        match last {
            "half" => {
                assert_eq!(back.current_version(), 0);
                assert_eq!(back.write(b"again").unwrap(), 2);
            }
            "published" => back.seal().unwrap(),
            _ => assert_eq!(&back.sealed().unwrap()[..], b"half"),
        }
        back.close().unwrap();
        assert!(shm.segment_files().is_empty(), "{last}");
    }
}

#[test]
fn nobody_takes_what_is_lent_while_its_lender_lives() {
    let shm = Shm::new();
    let mut lender = Peer::start(ENTRY, "lender", &shm);
    lender.expect("lent");
    let orphaned = || shm.options("x").inspect().unwrap().orphaned;
    assert!(!orphaned());
    let busy = shm.options("x").adopt().unwrap_err();
    assert!(matches!(busy, ShmError::SegmentBusy { pid, .. } if pid == lender.pid()));

    let mut worker = shm.options("x").attach_writer().unwrap();
    worker.write(b"filled").unwrap();
    worker.seal().unwrap();
    worker.give_away(LONG).unwrap();
    let view = worker.sealed().unwrap();
    assert!(!view.is_given_away() && !orphaned());
    assert_eq!(shm.options("x").adopt().unwrap_err().code(), "segment_busy");

    // Then it is whoever's comes first.
    lender.kill();
    assert!(view.is_given_away() && orphaned());
    let taken = shm.options("x").adopt().unwrap();
    assert!(!view.is_given_away());
    taken.close().unwrap();
    drop((view, worker));
    // The dead lender's entry in the reader table is cleared by whoever cleans up.
    clean(&shm, Duration::ZERO).run().unwrap();
    assert!(shm.segment_files().is_empty());
}

#[test]
fn what_is_lent_by_a_dead_one_goes_after_the_grace() {
    let shm = Shm::new();
    let mut peer = Peer::start(ENTRY, "lender", &shm);
    peer.expect("lent");
    assert!(
        clean(&shm, Duration::ZERO)
            .run()
            .unwrap()
            .removed
            .is_empty()
    );
    peer.kill();
    assert_eq!(clean(&shm, Duration::ZERO).run().unwrap().removed.len(), 1);
    assert!(shm.segment_files().is_empty());
}

#[test]
fn what_is_lent_can_be_removed_under_its_borrower() {
    let shm = Shm::new();
    let lent = shm.options("x").create().unwrap().lend().unwrap();
    let mut worker = shm.options("x").attach_writer().unwrap();
    lent.remove().unwrap();
    assert!(shm.segment_files().is_empty());
    assert_eq!(worker.write(b"late").unwrap_err().code(), "closed");

    let lent = shm.options("y").create().unwrap().lend().unwrap();
    shm.options("y").remove().unwrap();
    let (lent, error) = *lent.take_back().unwrap_err();
    assert_eq!(error.code(), "not_found");
    assert_eq!(lent.remove().unwrap_err().code(), "not_found");
}

#[test]
fn an_only_slot_is_filled_piece_by_piece() {
    let shm = Shm::new();
    let mut writer = shm.options("x").slots(1).create().unwrap();
    for (at, piece) in [(0, b"one"), (3, b"two"), (6, b"six")] {
        let mut loan = writer.loan().unwrap();
        loan.as_mut_slice()[at..at + 3].copy_from_slice(piece);
    }
    let raw = snakepit_shm::Descriptor::RAW;
    assert_eq!(writer.loan().unwrap().publish(9, &raw).unwrap(), 2);
    writer.seal().unwrap();
    assert_eq!(&writer.sealed().unwrap()[..], b"onetwosix");
    writer.close().unwrap();
}

#[test]
fn what_is_sealed_cannot_be_lent() {
    let shm = Shm::new();
    let (writer, error) = *sealed(shm.path(), "x").lend().unwrap_err();
    assert_eq!(error.code(), "sealed");
    writer.close().unwrap();
    assert!(shm.segment_files().is_empty());
}

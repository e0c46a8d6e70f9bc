//! Loom models of memory that comes home: `make test-loom`.

use super::*;
use loom::sync::{Arc, Mutex};
use loom::thread;

const MAKER: u64 = 1;
const TAKER: u64 = 2;

/// A file in miniature: what lies in it, and under whose pool's name.
struct File {
    home: AtomicU64,
    writer: AtomicU64,
    bytes: AtomicU64,
    /// What has been done to it for its end: the last value that was ended.
    ended: AtomicU64,
    /// The namespace's.
    lock: Mutex<()>,
}

impl Home for File {
    fn home(&self) -> &AtomicU64 {
        &self.home
    }
    fn writer(&self) -> &AtomicU64 {
        &self.writer
    }
}

fn file() -> Arc<File> {
    Arc::new(File {
        home: AtomicU64::new(0),
        writer: AtomicU64::new(MAKER),
        bytes: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        lock: Mutex::new(()),
    })
}

/// A value with the maker's claim on its memory.
fn give(file: &File, value: u64) {
    file.bytes.store(value, Ordering::Relaxed);
    expect(file, MAKER);
    file.writer
        .compare_exchange(MAKER, 0, Ordering::Release, Ordering::Relaxed)
        .unwrap();
}

/// Takes what was given away, reads it, and ends it; says whether there was something.
fn take(file: &File, value: u64) -> bool {
    let claimed = file
        .writer
        .compare_exchange(0, TAKER, Ordering::AcqRel, Ordering::Relaxed);
    if claimed.is_err() {
        return false;
    }
    assert_eq!(file.bytes.load(Ordering::Relaxed), value, "another's value");
    let _lock = file.lock.lock().unwrap();
    file.ended.store(value, Ordering::Relaxed);
    match of(file) {
        MAKER => assert!(send(file, TAKER, MAKER)),
        _ => file.bytes.store(99, Ordering::Relaxed), // it is the taker's
    }
    true
}

/// What comes home is the maker's alone, and what is said of one value is never said of the next.
#[test]
fn loom_memory_comes_home_once_each_time() {
    loom::model(|| {
        let file = file();
        give(&file, 1);
        let taker = thread::spawn({
            let file = file.clone();
            move || {
                let first = take(&file, 1);
                // The next value, should there be one by now.
                if first && of(&*file) == MAKER {
                    take(&file, 2);
                }
            }
        });
        if has_come(&*file, MAKER) {
            assert_eq!(file.ended.load(Ordering::Relaxed), 1, "not ended yet");
            give(&file, 2);
            if has_come(&*file, MAKER) {
                assert_eq!(
                    file.ended.load(Ordering::Relaxed),
                    2,
                    "the first time still"
                );
            }
        }
        taker.join().unwrap();
    });
}

/// Another thread of the maker takes the claim again: that is no memory that came home.
#[test]
fn loom_a_claim_of_its_own_is_no_homecoming() {
    loom::model(|| {
        let file = file();
        give(&file, 1);
        let again = thread::spawn({
            let file = file.clone();
            move || {
                let claim =
                    file.writer
                        .compare_exchange(0, MAKER, Ordering::AcqRel, Ordering::Relaxed);
                assert!(claim.is_ok());
            }
        });
        assert!(!has_come(&*file, MAKER));
        again.join().unwrap();
        assert!(!has_come(&*file, MAKER));
    });
}

/// Who forgoes its memory in the moment in which it is sent has it, or has not: never both, and never nobody.
#[test]
fn loom_who_forgoes_it_knows_whose_it_is() {
    loom::model(|| {
        let file = file();
        give(&file, 1);
        let taker = thread::spawn({
            let file = file.clone();
            move || take(&file, 1)
        });
        let lock = file.lock.lock().unwrap();
        let mine = has_come(&*file, MAKER);
        if !mine {
            forgo(&*file, MAKER);
        }
        drop(lock);
        assert!(taker.join().unwrap());
        let kept_by_taker = file.bytes.load(Ordering::Relaxed) == 99;
        assert_ne!(mine, kept_by_taker);
        assert_eq!(mine, has_come(&*file, MAKER));
    });
}

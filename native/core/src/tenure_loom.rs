//! Loom models of late readers: `make test-loom`.

use super::*;
use crate::sync::AtomicU64;
use loom::sync::Arc;
use loom::thread;

/// A file in miniature: the table has an entry for each reader.
struct File {
    removed: AtomicU32,
    line: AtomicU64,
    bytes: AtomicU64,
    entries: Vec<AtomicU64>,
}

/// What a process that opened it takes it for.
struct Opened {
    file: Arc<File>,
    line: u64,
}

impl Tenure for Opened {
    fn removed(&self) -> &AtomicU32 {
        &self.file.removed
    }
    fn mark_word(&self) -> &AtomicU32 {
        &self.file.removed
    }
    fn is_entered(&self) -> bool {
        let taken = |entry: &AtomicU64| entry.load(Ordering::Acquire) != 0;
        self.file.entries.iter().any(taken)
    }
    fn is_same(&self) -> bool {
        self.file.line.load(Ordering::Relaxed) == self.line
    }
}

fn file(readers: usize) -> Arc<File> {
    Arc::new(File {
        removed: AtomicU32::new(0),
        line: AtomicU64::new(1),
        bytes: AtomicU64::new(1),
        entries: (0..readers).map(|_| AtomicU64::new(0)).collect(),
    })
}

/// Opened before; takes its entry now, and reads if it is admitted.
fn late_reader(file: Arc<File>, entry: usize) {
    let opened = Opened { file, line: 1 };
    let entries = &opened.file.entries;
    entries[entry]
        .compare_exchange(0, 7, Ordering::Acquire, Ordering::Relaxed)
        .unwrap();
    if is_admitted(&opened) {
        let read = opened.file.bytes.load(Ordering::Relaxed);
        assert_eq!(read, 1, "bytes of another segment");
    }
    // As `Attachment` does.
    let _ = entries[entry].compare_exchange(7, 0, Ordering::Release, Ordering::Relaxed);
}

/// Ends the segment, and makes the next in its memory if nobody is in it.
fn recycler(file: Arc<File>) {
    let opened = Opened { file, line: 1 };
    mark(&opened);
    for _ in 0..2 {
        if is_left(&opened) {
            opened.file.line.store(2, Ordering::Relaxed);
            opened.file.bytes.store(2, Ordering::Relaxed);
            admit(&opened);
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn loom_a_late_reader_never_reads_the_next_segment() {
    loom::model(|| {
        let file = file(1);
        let reader = thread::spawn({
            let file = file.clone();
            move || late_reader(file, 0)
        });
        recycler(file);
        reader.join().unwrap();
    });
}

#[test]
fn loom_nor_do_two() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let file = file(2);
        let readers = [0, 1].map(|entry| {
            let file = file.clone();
            thread::spawn(move || late_reader(file, entry))
        });
        recycler(file);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Who takes the mark away again, because somebody was in it, leaves the segment as it was.
#[test]
fn loom_a_remover_that_gives_up_loses_nobody() {
    loom::model(|| {
        let file = file(1);
        let reader = thread::spawn({
            let file = file.clone();
            move || late_reader(file, 0)
        });
        let opened = Opened { file, line: 1 };
        mark(&opened);
        if is_left(&opened) {
            opened.file.bytes.store(2, Ordering::Relaxed); // gone
        } else {
            admit(&opened);
        }
        reader.join().unwrap();
    });
}

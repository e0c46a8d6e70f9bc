//! Loom models of the protocol: `make test-loom`.

use super::*;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A segment in miniature: two payload words a slot, which every write gives the same value.
struct Model {
    publish: AtomicU64,
    notify: AtomicU32,
    waiters: AtomicU32,
    slots: Vec<Slot>,
    futex: (Mutex<()>, Condvar),
}

struct Slot {
    seq: AtomicU64,
    payload: [AtomicU64; 2],
}

impl Model {
    fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            publish: AtomicU64::new(0),
            notify: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            slots: (0..slots)
                .map(|_| Slot {
                    seq: AtomicU64::new(0),
                    payload: [AtomicU64::new(0), AtomicU64::new(0)],
                })
                .collect(),
            futex: (Mutex::new(()), Condvar::new()),
        })
    }

    fn write(&self, version: u64) {
        let slot = (version / 2) as usize % self.slots.len();
        begin(self, slot, version);
        for word in &self.slots[slot].payload {
            word.store(version, Ordering::Relaxed);
        }
        commit(self, slot, version);
    }

    fn copy(&self, started: Started) -> [u64; 2] {
        let payload = &self.slots[started.slot].payload;
        [0, 1].map(|i| payload[i].load(Ordering::Relaxed))
    }

    /// What the kernel does: compares and sleeps as one step.
    fn futex_wait(&self, expected: u32) {
        let guard = self.futex.0.lock().unwrap();
        if self.notify.load(Ordering::SeqCst) == expected {
            drop(self.futex.1.wait(guard).unwrap());
        }
    }

    fn futex_wake(&self) {
        let _guard = self.futex.0.lock().unwrap();
        self.futex.1.notify_all();
    }
}

impl Words for Model {
    fn publish(&self) -> &AtomicU64 {
        &self.publish
    }
    fn seq(&self, slot: usize) -> &AtomicU64 {
        &self.slots[slot].seq
    }
    fn slots(&self) -> usize {
        self.slots.len()
    }
    fn notify(&self) -> &AtomicU32 {
        &self.notify
    }
    fn waiters(&self) -> &AtomicU32 {
        &self.waiters
    }
}

/// A reader gets one whole value, and never an older one than it had before.
fn whole_and_in_order(slots: usize, writes: u64) {
    loom::model(move || {
        let model = Model::new(slots);
        let writer = {
            let model = model.clone();
            thread::spawn(move || (1..=writes).for_each(|n| model.write(2 * n)))
        };
        let mut last = 0;
        for _ in 0..2 {
            if let Ok((started, payload)) = read(
                &*model,
                Limits {
                    copies: 2,
                    spins: 2,
                },
                |s| model.copy(s),
            ) {
                assert_eq!(payload, [started.version; 2], "torn");
                assert!(started.version >= last, "older than before");
                last = started.version;
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn loom_one_slot_never_tears() {
    whole_and_in_order(1, 2);
}

#[test]
fn loom_two_slots_never_tear() {
    whole_and_in_order(2, 3);
}

/// The stream is whole and in order, and what is passed over is counted.
#[test]
fn loom_the_stream_is_whole_and_complete() {
    loom::model(|| {
        let model = Model::new(2);
        let writer = {
            let model = model.clone();
            thread::spawn(move || (1..=3).for_each(|n| model.write(2 * n)))
        };
        let (mut last, mut had, mut missed) = (0, 0, 0);
        let mut step = |last: &mut u64| {
            let limits = Limits {
                copies: 2,
                spins: 2,
            };
            if let Ok(Some((started, payload))) =
                read_next(&*model, *last, limits, |s| model.copy(s))
            {
                assert_eq!(payload, [started.version; 2], "torn");
                assert!(started.version > *last, "not newer");
                missed += (started.version - *last) / 2 - 1;
                had += 1;
                *last = started.version;
            }
        };
        step(&mut last);
        writer.join().unwrap();
        // What the two slots hold is had in order, then there is nothing newer.
        for _ in 0..2 {
            step(&mut last);
        }
        assert_eq!((last, had + missed), (6, 3));
    });
}

/// Once published, a value is there for whoever hears of it, without a retry while it is not lapped.
#[test]
fn loom_published_means_readable() {
    loom::model(|| {
        let model = Model::new(2);
        model.write(2);
        let writer = {
            let model = model.clone();
            thread::spawn(move || model.write(4))
        };
        let (started, payload) = read(
            &*model,
            Limits {
                copies: 1,
                spins: 1,
            },
            |s| model.copy(s),
        )
        .expect("never lapped");
        assert_eq!(payload, [started.version; 2]);
        writer.join().unwrap();
    });
}

/// Nor when a thread wakes for the writer, which may just be about to stop: whoever published is heard
/// by it, or sees that it has stopped.
#[test]
fn loom_no_wake_up_is_lost_between_writer_and_herald() {
    // Three threads: all interleavings take minutes; with four preemptions, a second.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(4);
    bounded.check(|| {
        let model = Model::new(2);
        let handoff = Arc::new(Handoff::new());
        handoff.arm();
        assert!(handoff.take());
        let call = |model: &Model| {
            if sleepers(model, None) > 0 {
                bump_notify(model);
                model.futex_wake();
            }
        };
        let writer = {
            let (model, handoff) = (model.clone(), handoff.clone());
            thread::spawn(move || {
                model.write(2);
                if sleepers(&*model, Some(&handoff)) > 0 {
                    bump_notify(&*model);
                    model.futex_wake();
                }
            })
        };
        let herald = {
            let (model, handoff) = (model.clone(), handoff.clone());
            thread::spawn(move || {
                if handoff.take() {
                    call(&model);
                }
                handoff.disarm();
                if handoff.take() {
                    call(&model);
                }
            })
        };
        loop {
            let word = announce_wait(&*model, 0);
            if let Some(word) = word {
                model.futex_wait(word);
            }
            retract_wait(&*model);
            if latest(&*model).0 != 0 {
                break;
            }
        }
        writer.join().unwrap();
        herald.join().unwrap();
        assert_eq!(latest(&*model).0, 2);
    });
}

/// Nor when one thread announces a wait and another, which sleeps for many on their words and one of its own,
/// loads the word and looks: `reader/watchers.rs`.
#[test]
fn loom_no_wake_up_is_lost_by_a_thread_that_sleeps_for_others() {
    enum Wait {
        NotBegun,
        Begun,
        Ended,
    }
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(3);
    bounded.check(|| {
        let model = Model::new(2);
        let wait = Arc::new(Mutex::new(Wait::NotBegun));
        let call = Arc::new(AtomicU32::new(0));
        let writer = {
            let model = model.clone();
            thread::spawn(move || {
                model.write(2);
                if sleepers(&*model, None) > 0 {
                    bump_notify(&*model);
                    model.futex_wake();
                }
            })
        };
        let sleeper = {
            let (model, wait, call) = (model.clone(), wait.clone(), call.clone());
            thread::spawn(move || {
                loop {
                    let called = call.load(Ordering::Acquire);
                    let word = {
                        let mut wait = wait.lock().unwrap();
                        match *wait {
                            Wait::Ended => return,
                            Wait::NotBegun => None,
                            Wait::Begun => {
                                let word = sleep_word(&*model);
                                if latest(&*model).0 != 0 {
                                    retract_wait(&*model);
                                    *wait = Wait::Ended;
                                    return;
                                }
                                Some(word)
                            }
                        }
                    };
                    // What the kernel does with several words: compares all and sleeps as one step.
                    let guard = model.futex.0.lock().unwrap();
                    let as_it_was = |word| model.notify.load(Ordering::SeqCst) == word;
                    if word.is_none_or(as_it_was) && call.load(Ordering::SeqCst) == called {
                        drop(model.futex.1.wait(guard).unwrap());
                    }
                }
            })
        };
        {
            let mut wait = wait.lock().unwrap();
            *wait = if announce_wait(&*model, 0).is_some() {
                Wait::Begun
            } else {
                retract_wait(&*model);
                Wait::Ended
            };
            call.fetch_add(1, Ordering::Release);
            model.futex_wake();
        }
        writer.join().unwrap();
        sleeper.join().unwrap();
        assert_eq!(model.waiters.load(Ordering::Relaxed), 0);
    });
}

/// No wake-up is lost: the waiter sees the write or is woken by it. A lost one would deadlock the
/// model, which loom reports.
#[test]
fn loom_no_wake_up_is_lost() {
    loom::model(|| {
        let model = Model::new(2);
        let writer = {
            let model = model.clone();
            thread::spawn(move || {
                model.write(2);
                if sleepers(&*model, None) > 0 {
                    bump_notify(&*model);
                    model.futex_wake();
                }
            })
        };
        loop {
            let word = announce_wait(&*model, 0);
            if let Some(word) = word {
                model.futex_wait(word);
            }
            retract_wait(&*model);
            if latest(&*model).0 != 0 {
                break;
            }
        }
        assert_eq!(latest(&*model).0, 2);
        writer.join().unwrap();
        assert_eq!(model.waiters.load(Ordering::Relaxed), 0);
    });
}

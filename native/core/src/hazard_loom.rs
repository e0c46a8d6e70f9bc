//! Loom models of pins: `make test-loom`.

use super::*;
use crate::sync::AtomicU64;
use loom::sync::Arc;
use loom::thread;

const SLOTS: usize = 3;

/// A segment in miniature: one payload word a slot, and as many entries as there are readers.
struct Model {
    publish: AtomicU64,
    unused: AtomicU32,
    seq: Vec<AtomicU64>,
    payload: Vec<AtomicU64>,
    pins: AtomicU64,
    pinnable: AtomicU32,
    entries: Vec<AtomicU32>,
}

impl Model {
    fn new(readers: usize, slots: usize) -> Arc<Self> {
        let words = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            publish: AtomicU64::new(0),
            unused: AtomicU32::new(0),
            seq: words(),
            payload: words(),
            pins: AtomicU64::new(0),
            pinnable: AtomicU32::new(0),
            entries: (0..readers).map(|_| AtomicU32::new(0)).collect(),
        })
    }
}

impl Words for Model {
    fn publish(&self) -> &AtomicU64 {
        &self.publish
    }
    fn seq(&self, slot: usize) -> &AtomicU64 {
        &self.seq[slot]
    }
    fn slots(&self) -> usize {
        self.seq.len()
    }
    fn notify(&self) -> &AtomicU32 {
        &self.unused
    }
    fn waiters(&self) -> &AtomicU32 {
        &self.unused
    }
}

impl Hazards for Model {
    fn pins(&self) -> &AtomicU64 {
        &self.pins
    }
    fn pinnable(&self) -> &AtomicU32 {
        &self.pinnable
    }
    fn entries(&self) -> usize {
        self.entries.len()
    }
    fn used(&self) -> usize {
        self.entries.len()
    }
    fn taken(&self, _entry: usize) -> bool {
        true
    }
    fn pinned_by(&self, entry: usize) -> &AtomicU32 {
        &self.entries[entry]
    }
    type Whole = Self;
    fn whole(&self) -> &Self {
        self
    }
}

/// A writer that was started anew, or is calm.
struct Writer {
    model: Arc<Model>,
    lookout: Lookout,
    current: Option<usize>,
    version: u64,
}

impl Writer {
    fn new(model: &Arc<Model>, calm: bool) -> Self {
        let mut lookout = Lookout::of_new(&**model, || false);
        if calm {
            lookout.looking = false;
            model.pinnable.store(0, Ordering::Relaxed);
        }
        Self {
            model: model.clone(),
            lookout,
            current: None,
            version: 0,
        }
    }

    fn write(&mut self) {
        let model = &*self.model;
        self.version += 2;
        // As a short value is written.
        let slot = begin_at_once(model, &self.lookout, self.current, self.version)
            .unwrap_or_else(|| begin(model, &mut self.lookout, self.current, self.version));
        model.payload[slot].store(self.version, Ordering::Relaxed);
        seqlock::commit(model, slot, self.version);
        self.current = Some(slot);
    }
}

/// Pins once, looks twice, gives it back. Whether it had a pin.
fn look_in_place(model: &Model, entry: usize) -> bool {
    let Ok(pinned) = pin(model, entry, 2, |_| {
        // Nothing puts barriers into threads here; the writer may look by now.
        loom::thread::yield_now();
        model.pinnable.load(Ordering::Acquire) == 1
    }) else {
        assert_eq!(model.entries[entry].load(Ordering::Relaxed), 0);
        return false;
    };
    for _ in 0..2 {
        let value = model.payload[pinned.slot].load(Ordering::Relaxed);
        assert_eq!(value, pinned.version, "overwritten under a pin");
    }
    unpin(model, entry);
    true
}

fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(preemptions);
    bounded.check(model);
}

/// What is pinned is not written, whether the writer looks from the start on or has become calm; with
/// three slots, the fourth value comes to where the first one was.
fn pinned_stays(calm: bool, writes: usize) {
    bounded(3, move || {
        let model = Model::new(1, SLOTS);
        let mut writer = Writer::new(&model, calm);
        writer.write();
        let reader = {
            let model = model.clone();
            thread::spawn(move || look_in_place(&model, 0))
        };
        for _ in 0..writes {
            writer.write();
        }
        reader.join().unwrap();
        // Given back, all slots are used again.
        let last = writer.version;
        for _ in 0..2 * SLOTS {
            writer.write();
        }
        assert!(model.seq.iter().all(|s| s.load(Ordering::Relaxed) > last));
    });
}

#[test]
fn loom_what_is_pinned_is_not_written() {
    pinned_stays(false, 4);
}

#[test]
fn loom_what_is_pinned_while_the_writer_is_calm_is_not_written() {
    pinned_stays(true, 4);
}

/// A pin that is held is put back when the writer clears the bits, and it never gets calm with it.
#[test]
fn loom_a_pin_that_stays_is_kept() {
    bounded(3, || {
        let model = Model::new(1, SLOTS);
        let mut writer = Writer::new(&model, false);
        writer.write();
        let reader = {
            let model = model.clone();
            thread::spawn(move || pin(&*model, 0, 3, |_| false).ok())
        };
        for _ in 0..4 {
            writer.write();
        }
        let pinned = reader.join().unwrap();
        for _ in 0..4 {
            writer.write();
        }
        if let Some(pinned) = pinned {
            assert!(is_kept(&*model, pinned));
            let value = model.payload[pinned.slot].load(Ordering::Relaxed);
            assert_eq!(value, pinned.version, "overwritten under a pin");
        }
    });
}

/// The writer clears the bits of groups without a pin also while others have pins: a reader whose bit
/// was set long ago does not rely on it.
#[test]
fn loom_an_old_bit_may_be_cleared() {
    bounded(2, || {
        let model = Model::new(2, SLOTS + 1);
        let mut writer = Writer::new(&model, false);
        writer.write();
        // No other thread yet that would need a barrier.
        let held = pin(&*model, 0, 1, |_| true).unwrap();
        writer.write();
        model.pins.store(0b11, Ordering::Relaxed);
        let reader = {
            let model = model.clone();
            thread::spawn(move || look_in_place(&model, 1))
        };
        for _ in 0..4 {
            writer.write();
        }
        reader.join().unwrap();
        assert!(is_kept(&*model, held));
    });
}

/// Two readers, one slot to pin: one of them at most has another slot than the other's, and the writer
/// always finds one.
#[test]
fn loom_two_readers_leave_the_writer_its_slots() {
    bounded(2, || {
        let model = Model::new(2, SLOTS);
        let mut writer = Writer::new(&model, false);
        writer.write();
        let readers = [0, 1].map(|entry| {
            let model = model.clone();
            thread::spawn(move || pin(&*model, entry, 2, |_| false).ok())
        });
        for _ in 0..2 {
            writer.write();
        }
        let pinned: Vec<_> = readers
            .into_iter()
            .filter_map(|r| r.join().unwrap())
            .collect();
        for _ in 0..4 {
            writer.write();
        }
        for pin in &pinned {
            assert_eq!(pin.slot, pinned[0].slot, "more slots pinned than allowed");
            assert!(is_kept(&*model, *pin));
        }
    });
}

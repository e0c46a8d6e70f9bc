//! Waking many sleepers without making their writer wait for it.
//!
//! Waking one process takes the kernel about a microsecond, so a write that woke a thousand would take
//! a millisecond. A writer therefore wakes a [`FEW`] itself, and leaves a crowd to one thread of its
//! process. The thread wakes them at once, and while the writes go on it stays up and wakes whoever
//! sleeps again after a pause in proportion to what waking took: meanwhile a write does nothing but set
//! a flag in this process, and the crowd takes no more than a small part of the machine. Whoever
//! sleeps misses nothing, for what counts to it is the newest value; after the last write it is woken
//! within one pause.

use crate::platform;
use crate::platform::fork::PerProcess;
use crate::segment::Segment;
use crate::seqlock::{self, Handoff, Words};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// So many sleepers are woken by the write itself: that is the shortest way.
pub(super) const FEW: u32 = 4;
/// A pause is this many times as long as waking took: the machine is left to others for 95 % of the time.
const REST: u32 = 20;
const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(50);
/// Rounds with nothing to do before the thread sleeps.
const IDLE_ROUNDS: u32 = 4;

/// A writer that a crowd waits for.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) handoff: Handoff,
    /// `None` when the writer has gone.
    segment: Mutex<Option<Arc<Segment>>>,
}

/// The thread, one a process, and those for whom it wakes.
struct Herald {
    crowds: Arc<Mutex<Vec<Arc<Crowd>>>>,
    /// `None` when no thread was to be had.
    thread: Option<Thread>,
}

static HERALD: PerProcess<Herald> = PerProcess::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Herald {
    fn default() -> Self {
        platform::keep_loaded();
        let crowds: Arc<Mutex<Vec<Arc<Crowd>>>> = Arc::default();
        let shared = crowds.clone();
        let thread = std::thread::Builder::new()
            .name("shm-herald".into())
            .stack_size(256 * 1024)
            .spawn(move || herald(&shared));
        Self {
            crowds,
            thread: thread.ok().map(|handle| handle.thread().clone()),
        }
    }
}

impl Crowd {
    /// Has the thread wake for this writer from now on; `None` when there is no thread.
    pub(super) fn join(segment: &Arc<Segment>) -> Option<Arc<Self>> {
        let herald = HERALD.get();
        herald.thread.as_ref()?;
        let crowd = Arc::new(Self {
            handoff: Handoff::new(),
            segment: Mutex::new(Some(segment.clone())),
        });
        lock(&herald.crowds).push(crowd.clone());
        Some(crowd)
    }

    /// Hands what was just published over to the thread.
    pub(super) fn hand_over(&self) {
        self.handoff.arm();
        if let Some(thread) = &HERALD.get().thread {
            thread.unpark();
        }
    }

    /// The writer goes: afterwards the thread does not touch the segment any more. Waits for a round
    /// that is under way.
    pub(super) fn leave(self: &Arc<Self>) {
        lock(&self.segment).take();
        lock(&HERALD.get().crowds).retain(|other| !Arc::ptr_eq(other, self));
    }
}

/// Wakes everybody who sleeps.
pub(super) fn wake(segment: &Segment) {
    seqlock::bump_notify(&*segment.mapping);
    platform::futex_wake(segment.mapping.notify());
}

/// What a write does without us: wakes whoever sleeps. Returns how many they were.
fn call(segment: &Segment) -> u32 {
    let sleepers = seqlock::sleepers(&*segment.mapping, None);
    if sleepers > 0 {
        wake(segment);
    }
    sleepers
}

fn herald(crowds: &Mutex<Vec<Arc<Crowd>>>) {
    let mut rounds: Vec<Round> = Vec::new();
    loop {
        {
            let crowds = lock(crowds);
            rounds.retain(|round| crowds.iter().any(|c| Arc::ptr_eq(c, &round.crowd)));
            let known = |crowd: &Arc<Crowd>| rounds.iter().any(|r| Arc::ptr_eq(&r.crowd, crowd));
            let new: Vec<_> = crowds.iter().filter(|c| !known(c)).cloned().collect();
            rounds.extend(new.into_iter().map(Round::new));
        }
        let now = Instant::now();
        for round in &mut rounds {
            if round.next().is_some_and(|due| due <= now) {
                round.go();
            }
        }
        match rounds.iter().filter_map(Round::next).min() {
            Some(due) => std::thread::park_timeout(due.saturating_duration_since(Instant::now())),
            // Whoever arms wakes us afterwards: `unpark` is not lost.
            None => std::thread::park(),
        }
    }
}

/// A crowd, as the thread knows it.
struct Round {
    crowd: Arc<Crowd>,
    due: Instant,
    idle: u32,
}

impl Round {
    fn new(crowd: Arc<Crowd>) -> Self {
        Self {
            crowd,
            due: Instant::now(),
            idle: 0,
        }
    }

    /// When the next round is due; `None` when the writer looks after its sleepers itself again.
    fn next(&self) -> Option<Instant> {
        self.crowd.handoff.armed().then_some(self.due)
    }

    fn go(&mut self) {
        let began = Instant::now();
        let segment = lock(&self.crowd.segment);
        let Some(segment) = &*segment else {
            self.crowd.handoff.disarm();
            return;
        };
        let handoff = &self.crowd.handoff;
        let sleepers = if handoff.take() { call(segment) } else { 0 };
        self.idle = if sleepers > FEW { 0 } else { self.idle + 1 };
        if self.idle >= IDLE_ROUNDS {
            self.idle = 0;
            handoff.disarm();
            // A write that still saw us at it is ours.
            if handoff.take() {
                call(segment);
            }
        }
        let now = Instant::now();
        self.due = now + ((now - began) * REST).clamp(SHORTEST, LONGEST);
    }
}

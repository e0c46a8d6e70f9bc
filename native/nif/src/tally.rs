//! How often regions are read and written, counted where it happens.
//!
//! A read of a few bytes takes some 100 ns. A counter of the BEAM is a call of its own and would be a tenth of that, so
//! the counts are kept here, and none of them is ever touched by two threads: each thread has its lane, and a stripe in
//! the tally of each region, that it alone writes, by a load and a store without a locked instruction. Whoever asks adds
//! them up. Threads of the BEAM's schedulers live as long as the virtual machine, so a lane is never given back.
//!
//! Two looks at the clock cost as much as the rest together: one call in [`TIMED`] is timed.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustler::{Atom, NifMap};

use crate::error::{Answer, Failure};
use crate::resources::{ReaderResource, WriterResource};

/// One in so many calls of a thread is timed, the first one among them.
const TIMED: u64 = 128;
/// Exact to 16 ns, then sixteen steps an octave, up to 2^40 ns. `Histogram` in Elixir has the same.
const BUCKETS: usize = 592;
/// So many threads at most have a stripe of their own in a tally; the others share one.
const MOST_STRIPES: usize = 32;

static ON: AtomicBool = AtomicBool::new(false);
/// Whether each call is to be told to others, which Elixir does.
static TRACED: AtomicBool = AtomicBool::new(false);
/// Unix time as of the last `tick`: what a last access is dated with.
static SECONDS: AtomicU64 = AtomicU64::new(0);
static LANES: Mutex<Vec<&'static Lane>> = Mutex::new(Vec::new());

/// A number that one thread writes and all may read.
#[derive(Default)]
struct Own(AtomicU64);

impl Own {
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// For the numbers that many threads write after all.
    fn add_shared(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }
}

/// Calls of one kind on one thread.
struct Flow {
    calls: Own,
    bytes: Own,
    times: [Own; BUCKETS],
}

impl Flow {
    fn new() -> Self {
        Self {
            calls: Own::default(),
            bytes: Own::default(),
            times: std::array::from_fn(|_| Own::default()),
        }
    }
}

/// What one thread has counted. On cache lines of its own.
#[repr(align(64))]
struct Lane {
    index: usize,
    reads: Flow,
    writes: Flow,
}

thread_local! {
    static LANE: Cell<Option<&'static Lane>> = const { Cell::new(None) };
}

impl Lane {
    /// The lane of this thread.
    fn own() -> &'static Self {
        LANE.with(|lane| {
            lane.get().unwrap_or_else(|| {
                let new = Self::register();
                lane.set(Some(new));
                new
            })
        })
    }

    #[cold]
    fn register() -> &'static Self {
        let mut lanes = LANES.lock().unwrap_or_else(PoisonError::into_inner);
        let lane: &'static Self = Box::leak(Box::new(Self {
            index: lanes.len(),
            reads: Flow::new(),
            writes: Flow::new(),
        }));
        lanes.push(lane);
        lane
    }
}

/// A call under way that will count if it succeeds.
pub struct Meter {
    lane: &'static Lane,
    flow: &'static Flow,
    started: Option<Instant>,
}

impl Meter {
    /// Of a read; nothing when nobody wants to know.
    pub fn read() -> Option<Self> {
        Self::start(|lane| &lane.reads)
    }

    /// Of a write; nothing when nobody wants to know.
    pub fn write() -> Option<Self> {
        Self::start(|lane| &lane.writes)
    }

    /// Of a read among others, whose time alone is not known.
    pub fn untimed_read() -> Option<Self> {
        let on = ON.load(Relaxed);
        on.then(|| {
            let lane = Lane::own();
            let flow = &lane.reads;
            let started = None;
            Self {
                lane,
                flow,
                started,
            }
        })
    }

    fn start(flow: impl FnOnce(&'static Lane) -> &'static Flow) -> Option<Self> {
        if !ON.load(Relaxed) {
            return None;
        }
        let lane = Lane::own();
        let flow = flow(lane);
        let started = (flow.calls.get() % TIMED == 0).then(Instant::now);
        Some(Self {
            lane,
            flow,
            started,
        })
    }

    /// It has read so many bytes of the region that `tally` is of.
    #[inline]
    pub fn has_read(self, tally: &Tally, bytes: usize) {
        tally.add(self.lane.index, bytes as u64);
        self.done(bytes as u64);
    }

    /// It has written so many bytes of the region that `stripe` is of, whose lock is held.
    #[inline]
    pub fn has_written(self, stripe: &Stripe, bytes: usize) {
        stripe.add(bytes as u64);
        self.done(bytes as u64);
    }

    #[inline]
    fn done(self, bytes: u64) {
        self.flow.calls.add(1);
        self.flow.bytes.add(bytes);
        if let Some(started) = self.started {
            let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            if let Some(bucket) = self.flow.times.get(bucket(ns)) {
                bucket.add(1);
            }
        }
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << 40) - 1);
    if ns < 16 {
        return ns as usize;
    }
    let octave = 63 - ns.leading_zeros();
    let step = (ns >> (octave - 4)) & 15;
    (octave as usize - 3) * 16 + step as usize
}

/// Accesses to one region, by one thread at a time.
#[repr(align(64))]
#[derive(Default)]
pub struct Stripe {
    calls: Own,
    bytes: Own,
    last: Own,
}

impl Stripe {
    #[inline]
    fn add(&self, bytes: u64) {
        self.calls.add(1);
        self.bytes.add(bytes);
        self.last.set(SECONDS.load(Relaxed));
    }

    /// The same by any number of threads at once, at the price of a locked instruction.
    fn add_shared(&self, bytes: u64) {
        self.calls.add_shared(1);
        self.bytes.add_shared(bytes);
        self.last.set(SECONDS.load(Relaxed));
    }

    fn accesses(&self) -> Accesses {
        Accesses {
            calls: self.calls.get(),
            bytes: self.bytes.get(),
            last: self.last.get(),
        }
    }
}

/// Accesses to one region, by many threads at once.
pub struct Tally {
    stripes: Box<[Stripe]>,
    shared: Stripe,
}

impl Default for Tally {
    fn default() -> Self {
        static STRIPES: OnceLock<usize> = OnceLock::new();
        // The normal schedulers, and as many dirty ones.
        let stripes = STRIPES.get_or_init(|| {
            let threads = available_parallelism().map_or(1, |threads| threads.get());
            (2 * threads).min(MOST_STRIPES)
        });
        Self {
            stripes: (0..*stripes).map(|_| Stripe::default()).collect(),
            shared: Stripe::default(),
        }
    }
}

impl Tally {
    #[inline]
    fn add(&self, lane: usize, bytes: u64) {
        match self.stripes.get(lane) {
            Some(stripe) => stripe.add(bytes),
            None => self.shared.add_shared(bytes),
        }
    }

    fn accesses(&self) -> Accesses {
        let stripes = self.stripes.iter().map(Stripe::accesses);
        stripes.fold(self.shared.accesses(), |sum, stripe| Accesses {
            calls: sum.calls.wrapping_add(stripe.calls),
            bytes: sum.bytes.wrapping_add(stripe.bytes),
            last: sum.last.max(stripe.last),
        })
    }
}

/// What the readers of one mapping have read: the first of them, and, once there are such, those that share it.
#[derive(Default)]
pub struct Tallies {
    first: Arc<Tally>,
    shared: OnceLock<Arc<Tally>>,
}

impl Tallies {
    /// Where the first reader counts.
    pub fn first(&self) -> Arc<Tally> {
        Arc::clone(&self.first)
    }

    /// Where those count that share its mapping.
    pub fn shared(&self) -> Arc<Tally> {
        Arc::clone(self.shared.get_or_init(Arc::default))
    }
}

/// `last` is Unix time in seconds, 0 for never.
#[derive(NifMap, Default)]
struct Accesses {
    calls: u64,
    bytes: u64,
    last: u64,
}

/// Through the first reader of a mapping, and through those that share it.
#[derive(NifMap)]
struct Reads {
    first: Accesses,
    shared: Accesses,
}

impl Reads {
    fn of(tallies: &Tallies) -> Self {
        let shared = tallies.shared.get();
        Self {
            first: tallies.first.accesses(),
            shared: shared.map_or_else(Accesses::default, |tally| tally.accesses()),
        }
    }
}

/// `reads` are those of readers that count with the writer, `views` zero-copy binaries, `value_bytes` is the length of
/// the value written last.
#[derive(NifMap)]
struct Region {
    reads: Reads,
    writes: Accesses,
    views: Accesses,
    value_bytes: u64,
}

/// All calls of one kind, whatever became of their regions; `times` are counts by bucket.
#[derive(NifMap)]
struct Calls {
    calls: u64,
    bytes: u64,
    times: Vec<u64>,
}

#[derive(NifMap)]
struct Totals {
    read: Calls,
    write: Calls,
}

/// Switches counting on or off; what has been counted stays.
#[rustler::nif]
fn monitor(on: bool) -> Atom {
    ON.store(on, Relaxed);
    tick();
    rustler::types::atom::ok()
}

/// Says whether reads and writes are told to others: `read_quick` and `write_quick` are refused then.
#[rustler::nif]
fn trace(on: bool) -> Atom {
    TRACED.store(on, Relaxed);
    rustler::types::atom::ok()
}

/// Refuses while calls are told to others.
pub fn check_untraced() -> Answer<()> {
    if TRACED.load(Relaxed) {
        return Err(Failure::Traced);
    }
    Ok(())
}

/// Notes the time, for accesses to be dated with.
#[rustler::nif(name = "tick")]
fn tick_nif() -> Atom {
    tick();
    rustler::types::atom::ok()
}

fn tick() {
    if let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) {
        SECONDS.store(since.as_secs(), Relaxed);
    }
}

/// Accesses through a reader and those that share its mapping; also when it is closed.
#[rustler::nif]
fn reads(reader: &ReaderResource) -> Answer<Reads> {
    Ok(Reads::of(reader.tallies()))
}

/// Accesses to the region of a writer; also when it is closed.
#[rustler::nif]
fn accesses(writer: &WriterResource) -> Answer<Region> {
    Ok(Region {
        reads: Reads::of(writer.tallies()),
        writes: writer.written().accesses(),
        views: writer.viewed().accesses(),
        value_bytes: writer.value_bytes(),
    })
}

/// Notes that somebody got a zero-copy binary of so many bytes of the segment that this is the writer of.
#[rustler::nif]
fn viewed(writer: &WriterResource, bytes: u64) -> Atom {
    if ON.load(Relaxed) {
        writer.viewed().add_shared(bytes);
    }
    rustler::types::atom::ok()
}

/// The bucket that a duration counts in, so that Elixir can be checked against it.
#[rustler::nif]
fn time_bucket(ns: u64) -> u64 {
    bucket(ns) as u64
}

/// What all threads have counted since the library was loaded.
#[rustler::nif]
fn totals() -> Totals {
    let lanes = LANES.lock().unwrap_or_else(PoisonError::into_inner);
    let all = |flow: fn(&Lane) -> &Flow| Calls {
        calls: lanes.iter().map(|lane| flow(lane).calls.get()).sum(),
        bytes: lanes.iter().map(|lane| flow(lane).bytes.get()).sum(),
        times: (0..BUCKETS)
            .map(|at| lanes.iter().map(|lane| flow(lane).times[at].get()).sum())
            .collect(),
    };
    Totals {
        read: all(|lane| &lane.reads),
        write: all(|lane| &lane.writes),
    }
}

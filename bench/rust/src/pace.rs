//! Latency percentiles of two processes that meet 10,000 times a second, and
//! of two threads that hand the same bytes over with a bare `memcpy`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::buffer::Buffer;
use crate::figure::{Figure, Figures};
use crate::peer::{Peer, Task, Work};
use crate::segment::{Scratch, Spec, Tuning, human};
use crate::{Result, hop, pin};

/// Values a second.
const HZ: u32 = 10_000;
/// Bytes of a value.
const SIZE: usize = 4096;
/// Ours and the yardstick take turns this often.
const ROUNDS: u32 = 5;
/// Destinations the yardstick's writer rotates through, as ours does slots.
const BUFFERS: usize = 4;

/// Times of single operations, each including one look at the clock.
pub struct Recorder(Histogram<u64>);

impl Recorder {
    /// An empty one, for times from 1 ns to a minute, to three digits.
    ///
    /// # Errors
    /// Never: the bounds are valid.
    pub fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 60_000_000_000, 3)?))
    }

    /// Adds one time.
    pub fn record(&mut self, took: Duration) {
        self.0
            .saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds those of another one.
    pub fn extend(&mut self, other: &Self) {
        // Of the same bounds, so that all of them fit.
        self.0 += &other.0;
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A distribution of times, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Percentiles {
    /// The middle.
    pub p50: u64,
    /// 95 of 100 are no longer.
    pub p95: u64,
    /// 99 of 100 are no longer.
    pub p99: u64,
    /// 999 of 1,000 are no longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Percentiles {
    /// Of what was recorded.
    #[must_use]
    pub fn of(recorder: &Recorder) -> Self {
        let at = |quantile| recorder.0.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: recorder.0.max(),
        }
    }

    fn named(&self) -> [(&'static str, u64); 4] {
        [
            ("p50", self.p50),
            ("p95", self.p95),
            ("p99", self.p99),
            ("p99.9", self.p999),
        ]
    }
}

/// Waits for equally spaced moments without sleeping: a timer's wake-up would
/// cost more than what is measured. When a moment was missed by a whole
/// period (the machine was busy), it starts afresh from now.
pub struct Ticker {
    period: Duration,
    next: Instant,
}

impl Ticker {
    /// A moment every `period`, the first one in a period from now.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            next: Instant::now() + period,
        }
    }

    /// Spins until the next moment. False, at once, when `going` turns false.
    pub fn wait(&mut self, going: impl Fn() -> bool) -> bool {
        loop {
            if !going() {
                return false;
            }
            let now = Instant::now();
            if now >= self.next {
                self.next = if now < self.next + self.period {
                    self.next
                } else {
                    now
                } + self.period;
                return true;
            }
            std::hint::spin_loop();
        }
    }
}

/// Runs ours and the yardstick in turns for about `seconds` each and adds
/// their percentiles to `figures`.
///
/// # Errors
/// When the machine has one CPU only, or what went wrong in either process.
pub fn run(program: &Path, seconds: f64, figures: &mut Figures) -> Result<()> {
    let (writer_cpu, reader_cpu) = pin::two()?;
    let round = Duration::from_secs_f64(seconds / f64::from(ROUNDS));
    let scratch = Scratch::new()?;
    let spec = Spec::new(scratch.path(), "pace", SIZE, Tuning::Bare);
    let task = Task {
        spec: spec.clone(),
        cpu: writer_cpu,
        work: Work::WriteTimed { hz: HZ },
    };
    let hop_ns = hop::probe(writer_cpu, reader_cpu)?;
    let mut peer = Peer::start(program, &task)?;
    pin::to(reader_cpu)?;
    let reader = spec.options()?.attach_reader()?;
    let mut value = Buffer::new(SIZE);
    let mut ours = Recorder::new()?;
    let mut yard = Exchange::new()?;
    for _ in 0..ROUNDS {
        peer.go()?;
        let end = Instant::now() + round;
        let mut last = reader.version();
        while Instant::now() < end {
            if reader.version() == last {
                std::hint::spin_loop();
                continue;
            }
            let start = Instant::now();
            let info = black_box(reader.read_into(black_box(&mut value))?);
            ours.record(start.elapsed());
            last = info.version;
        }
        peer.pause()?;
        yard.run(writer_cpu, reader_cpu, round)?;
    }
    let written = peer.stop()?.latency.ok_or("the writer timed nothing")?;
    let note = format!(
        "{} values at {HZ} Hz; each time includes the clock, {:.0} ns",
        ours.len(),
        clock_ns()
    );
    for (what, ours, yard) in [
        ("write", written, Percentiles::of(&yard.written)),
        ("read", Percentiles::of(&ours), Percentiles::of(&yard.read)),
    ] {
        for ((percentile, ours), (_, yard)) in ours.named().into_iter().zip(yard.named()) {
            figures.push(
                Figure::nanoseconds(format!("pace/{what}/{SIZE}/{percentile}"), ours as f64)
                    .named(format!("{what} of each new value at 10 kHz, {percentile}"))
                    .size(SIZE)
                    .beside("memcpy between two threads", yard as f64)
                    .hop(hop_ns)
                    .note(note.clone()),
            );
        }
        println!(
            "{what} {} at {HZ} Hz: {ours:?}\n  bare memcpy: {yard:?}",
            human(SIZE)
        );
    }
    Ok(())
}

/// The yardstick: two pinned threads, no protocol. One copies the value into
/// one of several buffers and says which; the other copies it out. The lines
/// travel between the cores as they do between two processes. (The locks
/// are what safe Rust asks for; they are taken off the clock and are never
/// contended.)
struct Exchange {
    written: Recorder,
    read: Recorder,
}

impl Exchange {
    fn new() -> Result<Self> {
        Ok(Self {
            written: Recorder::new()?,
            read: Recorder::new()?,
        })
    }

    fn run(&mut self, writer_cpu: usize, reader_cpu: usize, time: Duration) -> Result<()> {
        let buffers: [Mutex<Buffer>; BUFFERS] =
            std::array::from_fn(|_| Mutex::new(Buffer::new(SIZE)));
        let published = AtomicU64::new(0);
        let going = AtomicBool::new(true);
        let (written, read) = (&mut self.written, &mut self.read);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<()> {
                pin::to(writer_cpu)?;
                let value = Buffer::new(SIZE);
                let mut ticker = Ticker::new(Duration::from_secs(1) / HZ);
                let mut count = 0;
                while ticker.wait(|| going.load(Ordering::Relaxed)) {
                    count += 1;
                    let mut buffer = lock(&buffers[count as usize % BUFFERS])?;
                    written.record(timed_copy(&value, &mut buffer));
                    drop(buffer);
                    published.store(count, Ordering::Release);
                }
                Ok(())
            });
            let reader = scope.spawn(|| -> Result<()> {
                let done = pin::to(reader_cpu).and_then(|()| {
                    let mut value = Buffer::new(SIZE);
                    let mut last = 0;
                    let end = Instant::now() + time;
                    while Instant::now() < end {
                        let count = published.load(Ordering::Acquire);
                        if count == last {
                            std::hint::spin_loop();
                            continue;
                        }
                        let buffer = lock(&buffers[count as usize % BUFFERS])?;
                        read.record(timed_copy(&buffer, &mut value));
                        last = count;
                    }
                    Ok(())
                });
                going.store(false, Ordering::Relaxed);
                done
            });
            reader.join().map_err(|_| "the reading thread panicked")??;
            writer.join().map_err(|_| "the writing thread panicked")?
        })
    }
}

fn lock(buffer: &Mutex<Buffer>) -> Result<std::sync::MutexGuard<'_, Buffer>> {
    buffer
        .lock()
        .map_err(|_| "the other thread panicked".into())
}

fn timed_copy(from: &[u8], to: &mut [u8]) -> Duration {
    let start = Instant::now();
    black_box(&mut to[..black_box(from.len())]).copy_from_slice(black_box(from));
    black_box(to);
    start.elapsed()
}

/// What two looks at the clock in a row differ by, in nanoseconds.
fn clock_ns() -> f64 {
    let looks: Vec<f64> = (0..1001)
        .map(|_| Instant::now().elapsed().as_nanos() as f64)
        .collect();
    crate::pair::median(&looks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_thousand() {
        let mut recorder = Recorder::new().unwrap();
        for ns in 1..=1000 {
            recorder.record(Duration::from_nanos(ns));
        }
        let found = Percentiles::of(&recorder);
        assert_eq!(
            (found.p50, found.p95, found.p99, found.max),
            (500, 950, 990, 1000)
        );
    }

    #[test]
    fn a_ticker_keeps_its_rate_and_stops_when_told() {
        let mut ticker = Ticker::new(Duration::from_micros(100));
        let start = Instant::now();
        for _ in 0..50 {
            assert!(ticker.wait(|| true));
        }
        assert!(start.elapsed() >= Duration::from_micros(4_900));
        assert!(!ticker.wait(|| false));
    }
}

//! Pinned reads beside a writer that never rests, and what pins cost the
//! writer.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use snakepit_shm::{SegmentReader, SegmentWriter, ShmError};

use crate::buffer::Buffer;
use crate::figure::{Figure, Figures};
use crate::pace::{Percentiles, Recorder};
use crate::pair::{Run, Sample, sample, verdict};
use crate::peer::{Peer, Task, Work};
use crate::segment::{Scratch, Spec, Tuning, human};
use crate::{Result, hop, pin, value};

const SIZES: [usize; 3] = [64, 64 << 10, 1 << 20];
const SLOTS: usize = 4;
/// Readers of which each has pinned the same value, beside none.
const CROWDS: [usize; 2] = [1, 1000];
/// About this long for each half of a sample.
const BATCH_NS: f64 = 2e6;

/// Adds the figures, from `time` for each size beside a writer, and `samples`
/// for each number of pins.
///
/// # Errors
/// When a pinned value was not whole or did not stay, or what went wrong.
pub fn run(program: &Path, time: Duration, samples: usize, figures: &mut Figures) -> Result<()> {
    let (writer_cpu, reader_cpu) = pin::two()?;
    pin::to(reader_cpu)?;
    let mut torn = 0;
    for size in SIZES {
        torn += beside_a_writer(program, size, time, (writer_cpu, reader_cpu), figures)?;
    }
    figures.push(Figure::count("pinned/torn", torn).named("pinned values that did not stay whole"));
    for size in [64, 4096] {
        for crowd in CROWDS {
            cost(size, crowd, samples, figures)?;
        }
    }
    if torn > 0 {
        return Err(format!("{torn} pinned values were torn").into());
    }
    Ok(())
}

/// What a reader met that pins and copies in turn.
#[derive(Default)]
struct Met {
    pins: u64,
    in_place: u64,
    torn: u64,
    refused: u64,
    plain: u64,
    lapped: u64,
}

fn beside_a_writer(
    program: &Path,
    size: usize,
    time: Duration,
    (writer_cpu, reader_cpu): (usize, usize),
    figures: &mut Figures,
) -> Result<u64> {
    let scratch = Scratch::new()?;
    let spec =
        Spec::new(scratch.path(), format!("pinned-{size}"), size, Tuning::Bare).with_slots(SLOTS);
    let hop_ns = hop::probe(writer_cpu, reader_cpu)?;
    let task = Task {
        spec: spec.clone(),
        cpu: writer_cpu,
        work: Work::WriteDerived,
    };
    let mut peer = Peer::start(program, &task)?;
    let reader = spec.options()?.attach_reader()?;
    let mut buffer = Buffer::new(size);
    let mut met = Met::default();
    let mut took = Recorder::new()?;
    peer.go()?;
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..16 {
            pin_once(&reader, &mut met, &mut took)?;
            match reader.read_into(black_box(&mut buffer)) {
                Ok(_) => met.plain += 1,
                Err(ShmError::VersionConflict { .. }) => met.lapped += 1,
                Err(other) => return Err(other.into()),
            }
        }
    }
    let written = peer.stop()?;
    let found = Percentiles::of(&took);
    let plain = 100.0 * met.plain as f64 / (met.plain + met.lapped) as f64;
    println!(
        "pin {}: P50 {} ns, P99 {} ns, {} pins, {} in place, {} refused, {} torn; plain reads \
         {plain:.2} % ({} lapped); {:.0} writes/s",
        human(size),
        found.p50,
        found.p99,
        met.pins,
        met.in_place,
        met.refused,
        met.torn,
        met.lapped,
        written.rate(),
    );
    figures.push(
        Figure::nanoseconds(format!("pinned/pin/{size}/p99"), found.p99 as f64)
            .named("pin beside a flat-out writer, P99")
            .size(size)
            .beside("the same, P50", found.p50 as f64)
            .hop(hop_ns)
            .note(format!(
                "{} pins, {} of them in place, {} refused; plain reads that came to a value: {plain:.2} %; {:.0} writes/s",
                met.pins,
                met.in_place,
                met.refused,
                written.rate()
            )),
    );
    Ok(met.torn)
}

fn pin_once(reader: &SegmentReader, met: &mut Met, took: &mut Recorder) -> Result<()> {
    let start = Instant::now();
    let pinned = match reader.pin() {
        Ok(pinned) => pinned,
        // Copied instead, and lapped.
        Err(ShmError::VersionConflict { .. }) => {
            met.refused += 1;
            return Ok(());
        }
        Err(other) => return Err(other.into()),
    };
    took.record(start.elapsed());
    met.pins += 1;
    met.in_place += u64::from(pinned.in_place());
    let counter = pinned.version() / 2;
    let whole = value::check(&pinned, counter).is_ok();
    if !whole || pinned.release().is_err() {
        met.torn += 1;
    }
    Ok(())
}

/// A write while `crowd` readers have pinned an earlier value, beside one while nobody has.
fn cost(size: usize, crowd: usize, samples: usize, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    let value = Buffer::new(size);
    let set_up = |name: &str| -> Result<(SegmentWriter, Vec<SegmentReader>)> {
        let spec = Spec::new(scratch.path(), name, size, Tuning::Bare).with_slots(SLOTS);
        let mut writer = spec.options()?.create()?;
        writer.write(&value)?;
        let readers = (0..crowd)
            .map(|_| spec.options()?.attach_reader())
            .collect::<snakepit_shm::Result<_>>()?;
        Ok((writer, readers))
    };
    let (mut pinned_writer, readers) = set_up("pinned")?;
    let (mut free_writer, idle) = set_up("free")?;
    let pins = readers
        .iter()
        .map(SegmentReader::pin)
        .collect::<snakepit_shm::Result<Vec<_>>>()?;
    if !pins.iter().all(snakepit_shm::Pinned::in_place) {
        return Err("not all are pinned in place".into());
    }
    let write = |writer: &mut SegmentWriter, times: u64| {
        for _ in 0..times {
            let _ = black_box(writer.write(black_box(&value)));
        }
    };
    let mut batch = 1000;
    let mut taken: Vec<Sample> = Vec::new();
    for _ in 0..=samples {
        let mut ours = |times| write(&mut pinned_writer, times);
        let mut yard = |times| write(&mut free_writer, times);
        let yards: &mut [Run<'_>] = &mut [&mut yard];
        let (one, _) = sample(batch, &mut ours, yards);
        batch = ((BATCH_NS / one.ours) as u64).max(100);
        taken.push(one);
    }
    for pin in pins {
        pin.release()?;
    }
    drop((readers, idle));
    // The first one only found out how many writes make a batch.
    if let Some(found) = verdict(taken.get(1..).unwrap_or_default(), 0) {
        println!(
            "write {} beside {crowd} pins: {:.1} ns, {:.1} ns beside none",
            human(size),
            found.ours,
            found.yard
        );
        figures.push(
            Figure::nanoseconds(format!("pinned/write/{size}/{crowd}"), found.ours)
                .named(format!("write while {crowd} readers have pinned a value"))
                .size(size)
                .beside("while they idle", found.yard)
                .ratio(found.ratio),
        );
    }
    Ok(())
}

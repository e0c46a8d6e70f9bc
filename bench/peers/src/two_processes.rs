//! A reader beside a writer in another process, each on a core of its own.
//!
//! Ours and the peers take turns in every round, and so it is with each load. A turn has two halves: reads that are
//! merely counted, then reads that are timed one by one and looked at for tears. The writer stops by its own clock: a
//! reader that the peer would leave waiting for ever comes back then, and is counted as without a value.

use std::time::{Duration, Instant};

use snakepit_shm_bench::figure::{Figure, Unit};
use snakepit_shm_bench::pace::{Percentiles, Recorder};
use snakepit_shm_bench::pair::median;
use snakepit_shm_bench::segment::{Scratch, human};
use snakepit_shm_bench::{Result, hop, pin};

use crate::child::{Load, Order, Other, Wrote};
use crate::part::Part;
use crate::port::{self, Kind, Place, Reader};
use crate::{sizes, stamped};

const LOADS: [(Load, &str, &str); 4] = [
    (Load::Idle, "idle", "writer idle"),
    (Load::Hz(1_000), "1khz", "writer at 1 kHz"),
    (Load::Hz(100_000), "100khz", "writer at 100 kHz"),
    (Load::FlatOut, "flat-out", "writer flat out"),
];
/// From here up a write takes so long that a pace of 1 kHz or 100 kHz would be flat out.
const SLOW: usize = 16 << 20;
/// From here up two at a time only: memory.
const BIG: usize = 100 << 20;

struct Plan {
    rounds: usize,
    half: Duration,
}

fn plan(size: usize, quick: bool) -> Plan {
    let (rounds, millis) = match size {
        _ if quick => (2, 15),
        size if size >= BIG => (2, 400),
        size if size >= SLOW => (5, 60),
        _ => (5, 30),
    };
    Plan {
        rounds,
        half: Duration::from_millis(millis),
    }
}

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let cpus = pin::two()?;
    pin::to(cpus.1)?;
    for &size in sizes(quick) {
        if size > BIG {
            part.skip(
                format!("two-processes, {}", human(size)),
                "left out for time: to make and fill them takes longer than all other sizes together",
            );
            continue;
        }
        for group in [&Kind::COPYING[..], &Kind::IN_PLACE[..]] {
            let (&ours, peers) = group.split_first().ok_or("nobody to measure")?;
            let able = able(peers, size, part);
            let at_a_time = if size < BIG { able.len() } else { 1 };
            for some in able.chunks(at_a_time.max(1)) {
                let kinds: Vec<Kind> = std::iter::once(ours).chain(some.iter().copied()).collect();
                together(&kinds, size, &plan(size, quick), cpus, part)?;
                // What was measured is kept, whatever comes.
                part.save()?;
            }
        }
        if size >= SLOW {
            part.skip(
                format!("two-processes, {}, 1 kHz and 100 kHz", human(size)),
                "a write takes longer than that leaves: it would be flat out",
            );
        }
    }
    Ok(())
}

/// One way, open on this side.
pub struct Side {
    kind: Kind,
    /// Its number over there.
    writer: usize,
    reader: Box<dyn Reader>,
}

/// What a reader met in all rounds of one load.
pub struct Met {
    /// Reads that came to a value, a second; in each round.
    rates: Vec<f64>,
    /// Values that were new, a second; in each round.
    fresh: Vec<f64>,
    /// Nanoseconds of a write; in each round.
    writes: Vec<f64>,
    took: Recorder,
    torn: u64,
    attempts: u64,
    values: u64,
}

impl Met {
    /// Of each side, nothing yet.
    pub fn of_each(sides: &[Side]) -> Result<Vec<Self>> {
        sides.iter().map(|_| Self::new()).collect()
    }

    fn new() -> Result<Self> {
        Ok(Self {
            rates: Vec::new(),
            fresh: Vec::new(),
            writes: Vec::new(),
            took: Recorder::new()?,
            torn: 0,
            attempts: 0,
            values: 0,
        })
    }

    /// With the rounds of another one.
    pub fn add(&mut self, other: Self) {
        self.rates.extend(other.rates);
        self.fresh.extend(other.fresh);
        self.writes.extend(other.writes);
        self.took.extend(&other.took);
        self.torn += other.torn;
        self.attempts += other.attempts;
        self.values += other.values;
    }
}

/// Writers over there, readers here; who cannot be opened is left out and named.
pub fn open(
    kinds: &[Kind],
    size: usize,
    scratch: &Scratch,
    other: &mut Other,
    part: &mut Part,
) -> Vec<Side> {
    let mut sides = Vec::new();
    let mut writers = 0;
    for &kind in kinds {
        let place = Place {
            kind,
            dir: scratch.path().into(),
            name: format!("two-{size}"),
            size,
            readers: 1,
        };
        let opened = other.obey(&Order::Create(place.clone())).and_then(|_| {
            writers += 1;
            port::reader(&place)
        });
        match opened {
            Ok(reader) => sides.push(Side {
                kind,
                writer: writers - 1,
                reader,
            }),
            Err(error) => part.skip(
                format!("{}, {}, {}", part.section(), human(size), kind.word()),
                error.to_string(),
            ),
        }
    }
    sides
}

/// Those of a group that can have values of this size; who cannot is named.
pub fn able(group: &[Kind], size: usize, part: &mut Part) -> Vec<Kind> {
    let mut able = Vec::new();
    for &peer in group.iter().filter(|&&peer| peer != Kind::OursDefaults) {
        match peer.refusal(size) {
            None => able.push(peer),
            Some(reason) => part.skip(
                format!("{}, {}, {}", part.section(), human(size), peer.word()),
                reason,
            ),
        }
    }
    able
}

fn together(
    kinds: &[Kind],
    size: usize,
    plan: &Plan,
    (writer_cpu, reader_cpu): (usize, usize),
    part: &mut Part,
) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut other = Other::start()?;
    other.obey(&Order::Pin(writer_cpu))?;
    let mut sides = open(kinds, size, &scratch, &mut other, part);
    for (load, word, words) in LOADS {
        if size >= SLOW && matches!(load, Load::Hz(_)) {
            continue;
        }
        let hop_ns = hop::probe(writer_cpu, reader_cpu)?;
        let met = rounds(plan.rounds, &mut sides, load, plan.half, &mut other)?;
        report(&sides, &met, size, (word, words), hop_ns, part);
    }
    drop(sides);
    other.obey(&Order::Close)?;
    other.end()
}

/// Rounds in which the sides take turns; what each met.
pub fn rounds(
    rounds: usize,
    sides: &mut [Side],
    load: Load,
    half: Duration,
    other: &mut Other,
) -> Result<Vec<Met>> {
    let mut met = Met::of_each(sides)?;
    for _ in 0..rounds {
        for (side, met) in sides.iter_mut().zip(&mut met) {
            turn(side, met, load, half, other)?;
        }
    }
    Ok(met)
}

/// One side's turn: reads that are counted, then reads that are looked at.
fn turn(
    side: &mut Side,
    met: &mut Met,
    load: Load,
    half: Duration,
    other: &mut Other,
) -> Result<()> {
    let reader = &mut side.reader;
    let (rate, wrote) = other.beside(side.writer, load, half, |end| count(&mut **reader, end))?;
    met.rates.push(rate);
    met.writes.extend(cost(&wrote));
    let in_place = side.kind.in_place();
    let (fresh, wrote) = other.beside(side.writer, load, half, |end| {
        look(&mut **reader, in_place, end, met)
    })?;
    met.fresh.push(fresh);
    met.writes.extend(cost(&wrote));
    Ok(())
}

/// Nanoseconds of a write: the middle one at a pace, the mean flat out.
fn cost(wrote: &Wrote) -> Option<f64> {
    match &wrote.each {
        Some(each) => Some(each.p50 as f64),
        None if wrote.values > 0 => Some(wrote.seconds * 1e9 / wrote.values as f64),
        None => None,
    }
}

/// Reads until `end`; how many a second came to a value.
fn count(reader: &mut dyn Reader, end: Instant) -> Result<f64> {
    let start = Instant::now();
    let mut batch = 1;
    let mut values = 0;
    loop {
        let began = Instant::now();
        let got = reader.read(batch)?;
        let now = Instant::now();
        if now >= end {
            // The last ones may have waited for the writer to stop.
            let seconds = (end - start).as_secs_f64();
            return Ok(values as f64 / seconds);
        }
        values += got;
        if now - began < Duration::from_micros(10) {
            batch *= 2;
        }
    }
}

/// Reads until `end`, times each and looks at its value; how many new ones a second there were.
fn look(reader: &mut dyn Reader, in_place: bool, end: Instant, met: &mut Met) -> Result<f64> {
    let start = Instant::now();
    let (mut last, mut fresh) = (None, 0);
    loop {
        let mut seen = None;
        let got = reader.read_seen(&mut |value, took| {
            seen = Some((stamped::check(value, in_place), took));
        })?;
        let late = Instant::now() >= end;
        met.attempts += 1;
        // Otherwise nothing was to be had, or it was lapped.
        if let Some((number, took)) = seen {
            met.took.record(took);
            met.torn += u64::from(number.is_none());
            if !late {
                met.values += u64::from(got);
                fresh += u64::from(last.is_some() && number != last);
            }
            last = number;
        }
        if late {
            return Ok(fresh as f64 / (end - start).as_secs_f64());
        }
    }
}

/// The figures of one load: ours beside each of the others.
pub fn report(
    sides: &[Side],
    met: &[Met],
    size: usize,
    (load, words): (&str, &str),
    hop_ns: f64,
    part: &mut Part,
) {
    let Some((our_side, ours)) = sides.first().zip(met.first()) else {
        return;
    };
    if our_side.writer != 0 {
        return;
    }
    let section = part.section().to_owned();
    for (side, peer) in sides.iter().zip(met).skip(1) {
        let name = side.kind.word();
        let figure = |what: &str, of: &str, ours: f64, theirs: f64, unit: Unit| {
            let id = format!("peers/{section}/{load}/{what}/{size}/{name}");
            let mut figure = Figure::nanoseconds(id, ours)
                .named(format!("{of}, {words}"))
                .size(size)
                .beside(name, theirs)
                .hop(hop_ns);
            figure.unit = unit;
            figure
        };
        // A queue gives each value once: beside it only what is new counts, and nothing is when the writer idles.
        let (of, rates): (&str, fn(&Met) -> &[f64]) = if side.kind.queue() {
            ("new values read", |met| &met.fresh)
        } else {
            ("values read", |met| &met.rates)
        };
        if !(side.kind.queue() && load == "idle") {
            let mut rate = figure(
                "rate",
                of,
                mean(rates(ours)),
                mean(rates(peer)),
                Unit::PerSecond,
            );
            // Of the sums: in some rounds there may have been no value at all.
            let sum = |met| rates(met).iter().sum::<f64>();
            rate.ratio = (sum(peer) > 0.0).then(|| sum(ours) / sum(peer));
            rate.note = format!(
                "new: ours {:.0}/s, {name} {:.0}/s; without a value: ours {}, {name} {}",
                median(&ours.fresh),
                median(&peer.fresh),
                share(ours),
                share(peer)
            );
            part.push(rate);
            let (a, b) = (Percentiles::of(&ours.took), Percentiles::of(&peer.took));
            for (what, of, a, b) in [
                ("p50", "a read, P50", a.p50, b.p50),
                ("p99", "a read, P99", a.p99, b.p99),
            ] {
                if a > 0 && b > 0 {
                    part.push(figure(what, of, a as f64, b as f64, Unit::Ns));
                }
            }
        }
        if load != "idle" {
            let ratios: Vec<f64> = ours
                .writes
                .iter()
                .zip(&peer.writes)
                .map(|(ours, theirs)| ours / theirs)
                .collect();
            let mut write = figure(
                "write",
                "a write beside a busy reader",
                median(&ours.writes),
                median(&peer.writes),
                Unit::Ns,
            );
            write.ratio = (!ratios.is_empty()).then(|| median(&ratios));
            part.push(write);
            let mut torn = figure(
                "torn",
                "torn values that were taken for whole",
                ours.torn as f64,
                peer.torn as f64,
                Unit::Count,
            );
            torn.ratio = None;
            torn.note = format!("of {} and {} values", ours.values, peer.values);
            part.push(torn);
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The part of the attempts that came to nothing.
fn share(met: &Met) -> String {
    let misses = met.attempts.saturating_sub(met.values);
    format!(
        "{:.2} %",
        100.0 * misses as f64 / met.attempts.max(1) as f64
    )
}

//! Writes, reads, and both in turn, in one thread: what each way costs by itself.

use snakepit_shm_bench::figure::Figure;
use snakepit_shm_bench::pair::{Run, Sample, sample, verdict};
use snakepit_shm_bench::segment::{Scratch, human};
use snakepit_shm_bench::{Result, pin};

use crate::part::Part;
use crate::port::{self, Kind, Place, Reader, Writer};
use crate::sizes;
use crate::stamped::{self, Values};

/// From here up only two are there at a time: memory.
const BIG: usize = 100 << 20;

struct Plan {
    samples: usize,
    /// About this long for ours in each sample.
    batch_ns: f64,
}

/// One way, set up.
struct Side {
    kind: Kind,
    writer: Box<dyn Writer>,
    reader: Box<dyn Reader>,
    values: Values,
}

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let (_, cpu) = pin::two()?;
    pin::to(cpu)?;
    for &size in sizes(quick) {
        let plan = match size {
            _ if quick => Plan {
                samples: 7,
                batch_ns: 0.5e6,
            },
            size if size < 16 << 20 => Plan {
                samples: 25,
                batch_ns: 2e6,
            },
            size if size < BIG => Plan {
                samples: 15,
                batch_ns: 0.0,
            },
            size if size == BIG => Plan {
                samples: 7,
                batch_ns: 0.0,
            },
            _ => Plan {
                samples: 2,
                batch_ns: 0.0,
            },
        };
        for group in [&Kind::COPYING[..], &Kind::IN_PLACE[..]] {
            let (ours, peers) = group.split_first().ok_or("nobody to measure")?;
            let mut able = Vec::new();
            for &peer in peers {
                match peer.refusal(size) {
                    // Where nobody laps anybody it is the plain read and a pin.
                    None if peer == Kind::OursPinned => {}
                    None if size >= BIG && peer == Kind::OursDefaults => {}
                    None => able.push(peer),
                    Some(reason) => part.skip(
                        format!("one-thread, {}, {}", human(size), peer.word()),
                        reason,
                    ),
                }
            }
            if size < BIG {
                together(*ours, &able, size, &plan, part)?;
            } else {
                for peer in able {
                    together(*ours, &[peer], size, &plan, part)?;
                }
            }
        }
    }
    Ok(())
}

fn together(ours: Kind, peers: &[Kind], size: usize, plan: &Plan, part: &mut Part) -> Result<()> {
    if ours.refusal(size).is_some() || peers.is_empty() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let mut ours = set_up(&scratch, ours, size)?;
    let mut sides = Vec::new();
    for &kind in peers {
        match set_up(&scratch, kind, size) {
            Ok(side) => sides.push(side),
            Err(error) => part.skip(
                format!("one-thread, {}, {}", human(size), kind.word()),
                error.to_string(),
            ),
        }
    }
    // Reads first: a writer that was not read for long lets the next one who pins wait, which is measured by itself.
    for operation in [
        Operation::Read,
        Operation::HandOver,
        Operation::Write,
        Operation::ReadAfterWrites,
    ] {
        if operation == Operation::ReadAfterWrites && ours.kind != Kind::OursInPlace {
            continue;
        }
        // A queue gives a value once only.
        let able = |side: &Side| !operation.reads_again() || !side.kind.queue();
        let mut taking: Vec<&mut Side> = sides.iter_mut().filter(|side| able(side)).collect();
        let taken = samples(operation, &mut ours, &mut taking, plan);
        for (yard, side) in taking.iter().enumerate() {
            let Some(found) = verdict(&taken, yard) else {
                continue;
            };
            let word = side.kind.word();
            let figure = Figure::nanoseconds(
                format!("peers/one-thread/{}/{size}/{word}", operation.word()),
                found.ours,
            )
            .named(format!("{}, one thread", operation.words()))
            .size(size)
            .beside(word, found.yard)
            .ratio(found.ratio);
            part.push(figure);
        }
    }
    Ok(())
}

fn set_up(scratch: &Scratch, kind: Kind, size: usize) -> Result<Side> {
    let place = Place {
        kind,
        dir: scratch.path().into(),
        name: format!("one-{size}"),
        size,
        readers: 1,
    };
    let mut values = Values::new(size);
    let mut writer = port::writer(&place)?;
    let mut reader;
    // Some cannot be opened before there is a value, some get no value from before they were opened.
    match port::reader(&place) {
        Ok(early) => reader = early,
        Err(_) => {
            writer.write(&mut values, 1)?;
            reader = port::reader(&place)?;
        }
    }
    for _ in 0..4 {
        writer.write(&mut values, 1)?;
        let mut seen = None;
        reader.read_seen(&mut |value, _| seen = stamped::check(value, kind.in_place()))?;
        if seen != Some(values.count()) {
            return Err(format!("wrote value {}, read {seen:?}", values.count()).into());
        }
    }
    Ok(Side {
        kind,
        writer,
        reader,
        values,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Write,
    Read,
    HandOver,
    ReadAfterWrites,
}

impl Operation {
    /// Whether the same value is read again and again.
    fn reads_again(self) -> bool {
        matches!(self, Self::Read | Self::ReadAfterWrites)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::HandOver => "hand-over",
            Self::ReadAfterWrites => "read-after-writes",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::HandOver => "write and read",
            Self::ReadAfterWrites => "read of what nobody has read through thousands of writes",
        }
    }
}

/// Ours and all others in turns within each sample.
fn samples(
    operation: Operation,
    ours: &mut Side,
    others: &mut [&mut Side],
    plan: &Plan,
) -> Vec<Sample> {
    let mut batch = if plan.batch_ns > 0.0 { 12 } else { 1 };
    let mut taken = Vec::new();
    for _ in 0..=plan.samples {
        let mut runs: Vec<Box<dyn FnMut(u64) + '_>> = others
            .iter_mut()
            .map(|side| Box::new(move |times| step(operation, side, times)) as Box<dyn FnMut(u64)>)
            .collect();
        let mut yards: Vec<Run<'_>> = runs.iter_mut().map(|run| &mut **run as Run<'_>).collect();
        let (one, _) = sample(batch, &mut |times| step(operation, ours, times), &mut yards);
        if operation == Operation::ReadAfterWrites {
            // Each of ours may take milliseconds.
            batch = 1;
        } else if plan.batch_ns > 0.0 {
            // Ours as long as planned, but the slowest not much longer.
            let slowest = one.yards.iter().fold(one.ours, |a, &b| a.max(b));
            let most = (5.0 * plan.batch_ns / slowest) as u64;
            batch = ((plan.batch_ns / one.ours) as u64)
                .min(most)
                .clamp(12, 1_000_000);
        }
        taken.push(one);
    }
    // The first one only found out how many make a batch.
    taken.split_off(1)
}

fn step(operation: Operation, side: &mut Side, times: u64) {
    // What failed here would have failed in `set_up`.
    let done = match operation {
        Operation::Write => side.writer.write(&mut side.values, times),
        Operation::Read | Operation::ReadAfterWrites => whole(side.reader.read(times), times),
        Operation::HandOver => (0..times).try_for_each(|_| {
            side.writer.write(&mut side.values, 1)?;
            whole(side.reader.read(1), 1)
        }),
    };
    if let Err(error) = done {
        panic!("{}: {error}", side.kind.word());
    }
}

fn whole(values: Result<u64>, times: u64) -> Result<()> {
    match values? {
        values if values == times => Ok(()),
        values => Err(format!("{times} reads gave {values} values").into()),
    }
}

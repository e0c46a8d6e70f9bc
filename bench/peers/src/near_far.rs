//! The two cores near to one another and far: the flat-out rounds of `two_processes`, sorted by the hop.
//!
//! On a virtual machine the way from core to core flips between some 30 and some 220 ns within a minute, and what is
//! measured across it flips along. So short rounds are repeated, each between two probes, until both kinds were seen.

use std::time::{Duration, Instant};

use snakepit_shm_bench::pair::median;
use snakepit_shm_bench::segment::{Scratch, human};
use snakepit_shm_bench::{Result, hop, pin};

use crate::child::{Load, Order, Other};
use crate::part::Part;
use crate::port::Kind;
use crate::two_processes::{Met, Side, able, open, report, rounds};

const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];
/// Nanoseconds of a hop: below it is near, from it on far. What was seen on such machines is far from it.
const FAR: f64 = 100.0;
const HALF: Duration = Duration::from_millis(30);

/// The rounds of one kind.
struct Kept {
    word: &'static str,
    words: &'static str,
    met: Vec<Met>,
    hops: Vec<f64>,
}

impl Kept {
    fn new(word: &'static str, words: &'static str, sides: &[Side]) -> Result<Self> {
        Ok(Self {
            word,
            words,
            met: Met::of_each(sides)?,
            hops: Vec::new(),
        })
    }
}

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let cpus = pin::two()?;
    pin::to(cpus.1)?;
    let (rounds, patience) = if quick {
        (1, Duration::from_secs(2))
    } else {
        (5, Duration::from_secs(60))
    };
    for size in SIZES {
        let Some((&ours, peers)) = Kind::COPYING.split_first() else {
            return Err("nobody to measure".into());
        };
        let kinds: Vec<Kind> = std::iter::once(ours)
            .chain(able(peers, size, part))
            .collect();
        both(&kinds, size, rounds, patience, cpus, part)?;
        // What was measured is kept, whatever comes.
        part.save()?;
    }
    Ok(())
}

fn both(
    kinds: &[Kind],
    size: usize,
    enough: usize,
    patience: Duration,
    (writer_cpu, reader_cpu): (usize, usize),
    part: &mut Part,
) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut other = Other::start()?;
    other.obey(&Order::Pin(writer_cpu))?;
    let mut sides = open(kinds, size, &scratch, &mut other, part);
    let mut kept = [
        Kept::new("near", "writer flat out, cores near", &sides)?,
        Kept::new("far", "writer flat out, cores far", &sides)?,
    ];
    let end = Instant::now() + patience;
    let mut before = hop::probe(writer_cpu, reader_cpu)?;
    while kept.iter().any(|kept| kept.hops.len() < enough) && Instant::now() < end {
        // There is enough of this kind: wait for the other one, without wearing the machine out.
        if kept[usize::from(before >= FAR)].hops.len() >= enough {
            std::thread::sleep(HALF);
            before = hop::probe(writer_cpu, reader_cpu)?;
            continue;
        }
        let met = rounds(1, &mut sides, Load::FlatOut, HALF, &mut other)?;
        let after = hop::probe(writer_cpu, reader_cpu)?;
        // It flipped on the way: of no kind.
        if (before >= FAR) == (after >= FAR) {
            let kept = &mut kept[usize::from(after >= FAR)];
            kept.hops.push((before + after) / 2.0);
            for (all, met) in kept.met.iter_mut().zip(met) {
                all.add(met);
            }
        }
        before = after;
    }
    for kept in &kept {
        if kept.hops.is_empty() {
            part.skip(
                format!("near-far, {}, {}", human(size), kept.word),
                format!(
                    "the hop stayed on the other side of {FAR} ns for {} s",
                    patience.as_secs()
                ),
            );
        } else {
            let hop_ns = median(&kept.hops);
            report(
                &sides,
                &kept.met,
                size,
                (kept.word, kept.words),
                hop_ns,
                part,
            );
        }
    }
    drop(sides);
    other.obey(&Order::Close)?;
    other.end()
}

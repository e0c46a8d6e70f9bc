//! Looks for torn values: a writer that never rests in one process, a reader
//! that checks every word in another.

use std::path::Path;
use std::time::{Duration, Instant};

use snakepit_shm::{Descriptor, ReadInfo, SegmentReader, ShmError};

use crate::buffer::Buffer;
use crate::figure::{Figure, Figures};
use crate::peer::{Peer, Tally, Task, Work};
use crate::segment::{Scratch, Spec, Tuning, human};
use crate::{Result, hop, pin, value};

/// Big values first: they get a fixed time, the small ones the rest of the
/// reads.
const SIZES: [usize; 3] = [1 << 20, 4 << 10, SMALLEST];
const SMALLEST: usize = 64;
const SLOTS: [usize; 3] = [1, 2, 4];
/// So many torn values of a configuration are described; all are counted.
const DESCRIBED: u64 = 5;
/// Reads between two looks at the clock at the smallest size.
const UNTIMED: u64 = 256;

/// How much to read.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Checked reads in total.
    pub reads: u64,
    /// For each configuration above 64 B.
    pub big: Duration,
    /// The most for each configuration of 64 B.
    pub small: Duration,
}

impl Plan {
    /// The one whose result is stated: a thousand million reads.
    pub const FULL: Self = Self {
        reads: 1_000_000_000,
        big: Duration::from_secs(8),
        // Some 10 M reads a second where the cores are far from one another.
        small: Duration::from_secs(300),
    };
    /// A short one.
    pub const QUICK: Self = Self {
        reads: 30_000_000,
        big: Duration::from_millis(700),
        small: Duration::from_secs(5),
    };
}

/// What the reader of one configuration saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Values that were returned and checked word by word.
    pub checked: u64,
    /// Of those, the ones that differed from the one before.
    pub distinct: u64,
    /// Reads that ended in `VersionConflict`.
    pub conflicts: u64,
    /// Values that were returned and are not one whole value.
    pub torn: u64,
    /// Seconds of reading.
    pub seconds: f64,
    last_version: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.checked += other.checked;
        self.distinct += other.distinct;
        self.conflicts += other.conflicts;
        self.torn += other.torn;
        self.seconds += other.seconds;
    }

    fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            self.checked as f64 / self.seconds
        } else {
            0.0
        }
    }
}

/// Runs every configuration and adds the counts to `figures`.
///
/// # Errors
/// When a torn value was seen, when a configuration with two slots or more
/// let no read through (then nothing was shown), or what went wrong.
pub fn run(program: &Path, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let (writer_cpu, reader_cpu) = pin::two()?;
    pin::to(reader_cpu)?;
    let scratch = Scratch::new()?;
    let mut total = Seen::default();
    let mut starved = Vec::new();
    println!(
        "  size slots        reads     reads/s     distinct   conflicts  torn    writes/s  hop ns"
    );
    let configurations = SIZES
        .iter()
        .flat_map(|&size| SLOTS.map(|slots| (size, slots)));
    let mut left = (SIZES.len() * SLOTS.len()) as u64;
    for (size, slots) in configurations {
        let (reads, time) = match size {
            SMALLEST => (
                plan.reads.saturating_sub(total.checked).div_ceil(left),
                plan.small,
            ),
            _ => (u64::MAX, plan.big),
        };
        left -= 1;
        let name = format!("torn-{size}-{slots}");
        let spec = Spec::new(scratch.path(), name, size, Tuning::Bare).with_slots(slots);
        let hop_ns = hop::probe(writer_cpu, reader_cpu)?;
        let (seen, written) = read_beside_writer(program, &spec, writer_cpu, reads, time)?;
        println!(
            "{:>6} {slots:>5} {:>12} {:>11.0} {:>12} {:>11} {:>5} {:>11.0} {hop_ns:>7.0}",
            human(size),
            seen.checked,
            seen.rate(),
            seen.distinct,
            seen.conflicts,
            seen.torn,
            written.rate(),
        );
        if slots > 1 && seen.checked == 0 {
            starved.push(format!("{} with {slots} slots", human(size)));
        }
        total.add(&seen);
        figures.push(figure(size, slots, &seen, &written, hop_ns));
    }
    figures.push(Figure::count("torn/total", total.torn).named("torn values, all together"));
    figures.push(Figure::count("torn/reads", total.checked).named("checked reads, all together"));
    println!(
        "{} reads checked, {} conflicts, {} torn",
        total.checked, total.conflicts, total.torn
    );
    if total.torn > 0 {
        return Err(format!("{} torn values", total.torn).into());
    }
    if !starved.is_empty() {
        return Err(format!("no read got through at {}", starved.join(", ")).into());
    }
    Ok(())
}

fn figure(size: usize, slots: usize, seen: &Seen, written: &Tally, hop_ns: f64) -> Figure {
    Figure::count(format!("torn/{size}/{slots}"), seen.torn)
        .named(format!(
            "torn values, {slots} slot{}",
            if slots == 1 { "" } else { "s" }
        ))
        .size(size)
        .hop(hop_ns)
        .note(format!(
            "{} reads ({:.0}/s), {} times a new value, {} VersionConflict; {:.0} writes/s",
            seen.checked,
            seen.rate(),
            seen.distinct,
            seen.conflicts,
            written.rate()
        ))
}

fn read_beside_writer(
    program: &Path,
    spec: &Spec,
    cpu: usize,
    reads: u64,
    time: Duration,
) -> Result<(Seen, Tally)> {
    let task = Task {
        spec: spec.clone(),
        cpu,
        work: Work::WriteDerived,
    };
    let mut peer = Peer::start(program, &task)?;
    let reader = spec.options()?.attach_reader()?;
    let mut buffer = Buffer::new(spec.size);
    let expected = Expected {
        size: spec.size,
        descriptions: value::descriptions(spec.size)?,
    };
    let mut seen = Seen::default();
    peer.go()?;
    let start = Instant::now();
    let end = start + time;
    let untimed = if spec.size > SMALLEST { 1 } else { UNTIMED };
    while seen.checked < reads && Instant::now() < end {
        for _ in 0..untimed {
            read_once(&reader, &expected, &mut buffer, &mut seen)?;
        }
    }
    seen.seconds = start.elapsed().as_secs_f64();
    let written = peer.stop()?;
    if written.done == 0 {
        return Err("the writer wrote nothing, so nothing was shown".into());
    }
    Ok((seen, written))
}

/// What is known beforehand about the values of a configuration.
struct Expected {
    size: usize,
    descriptions: [Descriptor; 4],
}

fn read_once(
    reader: &SegmentReader,
    expected: &Expected,
    buffer: &mut [u8],
    seen: &mut Seen,
) -> Result<()> {
    let info = match reader.read_into(buffer) {
        Ok(info) => info,
        Err(ShmError::VersionConflict { .. }) => {
            seen.conflicts += 1;
            return Ok(());
        }
        Err(other) => return Err(other.into()),
    };
    seen.checked += 1;
    let judged = Answer::from(&info).judge(expected, buffer, seen.last_version);
    if let Err(why) = judged {
        seen.torn += 1;
        if seen.torn <= DESCRIBED {
            eprintln!("torn value of {}: {why}", human(expected.size));
        }
    }
    seen.distinct += u64::from(info.version != seen.last_version);
    seen.last_version = info.version;
    Ok(())
}

/// What the core says about a value that it returned.
struct Answer {
    version: u64,
    len: usize,
    descriptor: Option<Descriptor>,
}

impl From<&ReadInfo> for Answer {
    fn from(info: &ReadInfo) -> Self {
        Self {
            version: info.version,
            len: info.len,
            descriptor: info.descriptor().ok(),
        }
    }
}

impl Answer {
    /// Whether `buffer` holds, whole, the value that this is said to be, and
    /// it is no older than version `last`.
    fn judge(
        &self,
        expected: &Expected,
        buffer: &[u8],
        last: u64,
    ) -> std::result::Result<(), String> {
        let Self {
            version,
            len,
            descriptor,
        } = self;
        let counter = version / 2;
        if *version == 0 || version % 2 == 1 || *version < last {
            return Err(format!("version {version} after {last}"));
        }
        if *len != value::len(counter, expected.size) {
            return Err(format!("version {version} with a length of {len}"));
        }
        if descriptor.as_ref() != Some(value::description(&expected.descriptions, counter)) {
            return Err(format!("version {version} described as {descriptor:?}"));
        }
        let bytes = buffer
            .get(..*len)
            .ok_or_else(|| format!("a length of {len}"))?;
        value::check(bytes, counter)
            .map_err(|word| format!("version {version} is another value at word {word}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(counter: u64) -> Vec<u8> {
        let mut buffer = vec![0; 64];
        let len = value::len(counter, 64);
        value::fill(&mut buffer[..len], counter);
        buffer
    }

    #[test]
    fn a_whole_value_passes_and_every_lie_about_it_does_not() {
        let expected = Expected {
            size: 64,
            descriptions: value::descriptions(64).unwrap(),
        };
        let [_, of_five, _, of_seven] = expected.descriptions.map(Some);
        let bytes = buffer(5);
        let judge = |version, len, descriptor, last| {
            Answer {
                version,
                len,
                descriptor,
            }
            .judge(&expected, &bytes, last)
        };
        let len = value::len(5, 64);
        assert_eq!(judge(10, len, of_five, 8), Ok(()));
        assert_eq!(judge(10, len, of_five, 10), Ok(()));
        let lies = [
            (10, len, of_five, 12),
            (11, len, of_five, 8),
            (0, len, of_five, 0),
            (10, len - 8, of_five, 8),
            (10, 72, of_five, 8),
            (18, len, of_five, 8),
            (10, len, of_seven, 8),
            (10, len, Some(Descriptor::RAW), 8),
            (10, len, None, 8),
        ];
        for (version, len, descriptor, last) in lies {
            assert!(
                judge(version, len, descriptor, last).is_err(),
                "{version} {len} {last}"
            );
        }
        let mut mixed = bytes.clone();
        mixed[32..40].copy_from_slice(&buffer(9)[32..40]);
        let answer = Answer {
            version: 10,
            len,
            descriptor: of_five,
        };
        assert!(
            answer
                .judge(&expected, &mixed, 8)
                .unwrap_err()
                .contains("word 4")
        );
    }
}

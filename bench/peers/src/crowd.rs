//! What a write costs while many processes are attached to read.

use std::time::{Duration, Instant};

use snakepit_shm_bench::figure::Figure;
use snakepit_shm_bench::pair::{Run, Sample, sample, verdict};
use snakepit_shm_bench::segment::Scratch;
use snakepit_shm_bench::{Result, pin};

use crate::child::{Order, Other};
use crate::part::Part;
use crate::port::{self, Kind, Place, Writer};
use crate::stamped::Values;

const CROWDS: [usize; 4] = [1, 10, 100, 1000];
const SIZE: usize = 64;
/// A peer to which not all have attached by then is left out.
const LIMIT: Duration = Duration::from_secs(25);
const KINDS: [Kind; 7] = [
    Kind::Ours,
    Kind::Blackboard,
    Kind::PubSub,
    Kind::MmapSync,
    Kind::SeqLock,
    Kind::Mutex,
    Kind::RwLock,
];

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let (cpu, _) = pin::two()?;
    pin::to(cpu)?;
    let (crowds, samples) = if quick {
        (&CROWDS[..2], 7)
    } else {
        (&CROWDS[..], 31)
    };
    for &crowd in crowds {
        beside(crowd, samples, part)?;
    }
    Ok(())
}

struct Side {
    kind: Kind,
    writer: Box<dyn Writer>,
    values: Values,
}

impl Side {
    fn write(&mut self, times: u64) {
        if let Err(error) = self.writer.write(&mut self.values, times) {
            panic!("{}: {error}", self.kind.word());
        }
    }
}

fn beside(crowd: usize, samples: usize, part: &mut Part) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut sides = Vec::new();
    let mut places = Vec::new();
    let fail = |kind: Kind, error: String, part: &mut Part| {
        part.skip(format!("crowd, {crowd} processes, {}", kind.word()), error);
    };
    for kind in KINDS {
        let place = Place {
            kind,
            dir: scratch.path().into(),
            name: format!("crowd-{crowd}"),
            size: SIZE,
            readers: crowd,
        };
        let mut values = Values::new(SIZE);
        let made = match kind.refusal(SIZE) {
            Some(reason) => Err(reason),
            None => port::writer(&place)
                .and_then(|mut writer| writer.write(&mut values, 1).map(|()| writer))
                .map_err(|error| error.to_string()),
        };
        match made {
            Ok(writer) => {
                sides.push(Side {
                    kind,
                    writer,
                    values,
                });
                places.push(place);
            }
            Err(error) => fail(kind, error, part),
        }
    }
    let mut others = (0..crowd)
        .map(|_| Other::start())
        .collect::<Result<Vec<_>>>()?;
    // One peer after the other: one that fails is left out, the others go on.
    for place in &places {
        let start = Instant::now();
        let attached: Result<()> = others.iter_mut().enumerate().try_for_each(|(i, other)| {
            if start.elapsed() > LIMIT {
                return Err(format!("{i} had attached after {} s", LIMIT.as_secs()).into());
            }
            other.obey(&Order::Attach(place.clone())).map(drop)
        });
        if let Err(error) = attached {
            sides.retain(|side| side.kind != place.kind);
            fail(place.kind, error.to_string(), part);
        }
    }
    let Some((ours, peers)) = sides.split_first_mut() else {
        return Ok(());
    };
    if ours.kind != Kind::Ours {
        return Err("ours could not be attached to".into());
    }
    let mut batch = 100;
    let mut taken: Vec<Sample> = Vec::new();
    for _ in 0..=samples {
        let mut runs: Vec<Box<dyn FnMut(u64) + '_>> = peers
            .iter_mut()
            .map(|side| Box::new(move |times| side.write(times)) as Box<dyn FnMut(u64)>)
            .collect();
        let mut yards: Vec<Run<'_>> = runs.iter_mut().map(|run| &mut **run as Run<'_>).collect();
        let (one, _) = sample(batch, &mut |times| ours.write(times), &mut yards);
        // So that the slowest takes some milliseconds.
        let slowest = one.yards.iter().fold(one.ours, |a, &b| a.max(b));
        batch = ((4e6 / slowest) as u64).clamp(24, 100_000);
        taken.push(one);
    }
    let taken = taken.split_off(1);
    for (yard, side) in peers.iter().enumerate() {
        let Some(found) = verdict(&taken, yard) else {
            continue;
        };
        let word = side.kind.word();
        part.push(
            Figure::nanoseconds(format!("peers/crowd/{crowd}/{SIZE}/{word}"), found.ours)
                .named(format!("a write while {crowd} processes are attached"))
                .size(SIZE)
                .beside(word, found.yard)
                .ratio(found.ratio),
        );
    }
    // Killed, for to let them leave one by one takes some peers minutes.
    drop(others);
    Ok(())
}

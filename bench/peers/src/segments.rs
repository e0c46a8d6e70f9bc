//! Create one more, and attach to one, among 1 to 10,000 of them.

use std::time::{Duration, Instant};

use snakepit_shm_bench::figure::Figure;
use snakepit_shm_bench::pair::{Sample, verdict};
use snakepit_shm_bench::segment::Scratch;
use snakepit_shm_bench::{Result, pin};

use crate::part::Part;
use crate::port::{self, Kind, Place, Writer};
use crate::stamped::Values;

const COUNTS: [usize; 3] = [1, 100, 10_000];
const SIZE: usize = 64;
/// A peer that is not done making them by then is left out.
const LIMIT: Duration = Duration::from_secs(20);
const KINDS: [Kind; 6] = [
    Kind::Ours,
    Kind::Blackboard,
    Kind::PubSub,
    Kind::MmapSync,
    Kind::SeqLock,
    Kind::Mutex,
];

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let (_, cpu) = pin::two()?;
    pin::to(cpu)?;
    let (counts, samples) = if quick {
        (&COUNTS[..2], 20)
    } else {
        (&COUNTS[..], 200)
    };
    for &count in counts {
        among(count, samples, part)?;
    }
    Ok(())
}

/// All of one kind.
struct Side {
    kind: Kind,
    places: Vec<Place>,
    writers: Vec<Box<dyn Writer>>,
}

fn among(count: usize, samples: usize, part: &mut Part) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut sides = Vec::new();
    for kind in KINDS {
        let what = format!("segments, {count}, {}", kind.word());
        if let Some(reason) = kind.refusal(SIZE) {
            part.skip(what, reason);
            continue;
        }
        match make(&scratch, kind, count) {
            Ok(side) => sides.push(side),
            Err(error) => part.skip(what, error.to_string()),
        }
    }
    let Some((ours, peers)) = sides.split_first_mut() else {
        return Ok(());
    };
    if ours.kind != Kind::Ours {
        return Err("ours could not be made".into());
    }
    let mut made: Vec<Sample> = Vec::new();
    let mut attached: Vec<Sample> = Vec::new();
    for turn in 0..samples {
        made.push(each(ours, peers, |side| side.make_one(&scratch, turn))?);
        attached.push(each(ours, peers, |side| {
            side.attach_one(turn * 7919 % count)
        })?);
    }
    for (yard, side) in peers.iter().enumerate() {
        let word = side.kind.word();
        for (what, of, taken) in [
            ("create", "create one more, and its first value", &made),
            ("attach", "attach to one and read it", &attached),
        ] {
            if let Some(found) = verdict(taken, yard) {
                part.push(
                    Figure::nanoseconds(
                        format!("peers/segments/{count}/{what}/{word}"),
                        found.ours,
                    )
                    .named(format!("{of}, among {count}"))
                    .size(SIZE)
                    .beside(word, found.yard)
                    .ratio(found.ratio),
                );
            }
        }
    }
    keys(&scratch, ours, count, samples, part)
}

fn each(
    ours: &mut Side,
    peers: &mut [Side],
    mut once: impl FnMut(&mut Side) -> Result<f64>,
) -> Result<Sample> {
    Ok(Sample {
        ours: once(ours)?,
        yards: peers.iter_mut().map(once).collect::<Result<_>>()?,
    })
}

fn place(scratch: &Scratch, kind: Kind, name: String) -> Place {
    Place {
        kind,
        dir: scratch.path().into(),
        name,
        size: SIZE,
        readers: 2,
    }
}

fn make(scratch: &Scratch, kind: Kind, count: usize) -> Result<Side> {
    let start = Instant::now();
    let mut side = Side {
        kind,
        places: Vec::with_capacity(count),
        writers: Vec::with_capacity(count),
    };
    for i in 0..count {
        let place = place(scratch, kind, format!("among-{count}-{i}"));
        side.writers.push(first_value(&place)?);
        side.places.push(place);
        if start.elapsed() > LIMIT {
            return Err(format!("{} took {} s", i + 1, LIMIT.as_secs()).into());
        }
    }
    Ok(side)
}

fn first_value(place: &Place) -> Result<Box<dyn Writer>> {
    let mut writer = port::writer(place)?;
    writer.write(&mut Values::new(SIZE), 1)?;
    Ok(writer)
}

impl Side {
    fn make_one(&mut self, scratch: &Scratch, turn: usize) -> Result<f64> {
        let place = place(
            scratch,
            self.kind,
            format!("more-{}-{turn}", self.places.len()),
        );
        let mut values = Values::new(SIZE);
        let start = Instant::now();
        let mut writer = port::writer(&place)?;
        writer.write(&mut values, 1)?;
        Ok(start.elapsed().as_nanos() as f64)
    }

    fn attach_one(&mut self, which: usize) -> Result<f64> {
        let place = &self.places[which];
        let start = Instant::now();
        let mut reader = port::reader(place)?;
        reader.read(1)?;
        Ok(start.elapsed().as_nanos() as f64)
    }
}

/// A blackboard may have many entries: finding one of them, and attaching to one of our segments.
#[cfg(feature = "iceoryx2")]
fn keys(
    scratch: &Scratch,
    ours: &mut Side,
    count: usize,
    samples: usize,
    part: &mut Part,
) -> Result<()> {
    let place = place(scratch, Kind::Blackboard, format!("keys-{count}"));
    let mut lookup = match crate::iox::keys(&place, count as u64) {
        Ok(lookup) => lookup,
        Err(error) => {
            part.skip(
                format!("segments, {count}, entries of one iceoryx2 blackboard"),
                error.to_string(),
            );
            return Ok(());
        }
    };
    let mut taken = Vec::new();
    for turn in 0..samples {
        let which = turn * 7919 % count;
        let ours = ours.attach_one(which)?;
        let start = Instant::now();
        lookup(which as u64)?;
        taken.push(Sample {
            ours,
            yards: vec![start.elapsed().as_nanos() as f64],
        });
    }
    if let Some(found) = verdict(&taken, 0) {
        let name = "iceoryx2-blackboard-entry";
        part.push(
            Figure::nanoseconds(format!("peers/segments/{count}/entry/{name}"), found.ours)
                .named(format!("attach to one and read it; theirs: an entry of one open blackboard, among {count}"))
                .beside(name, found.yard)
                .ratio(found.ratio),
        );
    }
    Ok(())
}

#[cfg(not(feature = "iceoryx2"))]
fn keys(_: &Scratch, _: &mut Side, _: usize, _: usize, _: &mut Part) -> Result<()> {
    Ok(())
}

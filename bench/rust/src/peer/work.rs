//! What the other process does between `go` and `pause`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use snakepit_shm::{Descriptor, SegmentReader, SegmentWriter, ShmError};

use super::control::Control;
use super::{Pace, Tally, Task, Work};
use crate::buffer::Buffer;
use crate::pace::{Percentiles, Recorder, Ticker};
use crate::{Result, value};

/// Calls between two looks at whether to go on, when flat out: the look is
/// not to be measured.
const UNWATCHED: u32 = 64;

pub fn run(task: &Task, control: &Control) -> Result<Tally> {
    match task.work {
        Work::Write(pace) => write(task, pace, control),
        Work::Read(pace) => read(task, pace, control),
        Work::WriteDerived => write_derived(task, control),
        Work::WriteTimed { hz } => write_timed(task, hz, control),
    }
}

fn write(task: &Task, pace: Pace, control: &Control) -> Result<Tally> {
    let value = Buffer::new(task.spec.size);
    let mut writer = task.spec.options()?.create()?;
    writer.write(&value)?;
    let bytes: &[u8] = &value;
    let mut tally = Tally::default();
    tally.seconds = control.obey(|control| {
        paced(pace, task.spec.size, control, || {
            black_box(writer.write(black_box(bytes))?);
            tally.done += 1;
            Ok(())
        })
    })?;
    end(writer, tally)
}

fn read(task: &Task, pace: Pace, control: &Control) -> Result<Tally> {
    let mut value = Buffer::new(task.spec.size);
    let reader = task.spec.options()?.attach_reader()?;
    let mut tally = Tally::default();
    tally.seconds = control.obey(|control| {
        paced(pace, task.spec.size, control, || {
            match try_read(&reader, &mut value)? {
                true => tally.done += 1,
                false => tally.conflicts += 1,
            }
            Ok(())
        })
    })?;
    Ok(tally)
}

/// One read; false if it ended in a conflict.
fn try_read(reader: &SegmentReader, into: &mut [u8]) -> Result<bool> {
    match reader.read_into(black_box(into)) {
        Ok(info) => {
            black_box((info.version, info.len));
            Ok(true)
        }
        Err(ShmError::VersionConflict { .. }) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

fn paced(
    pace: Pace,
    size: usize,
    control: &Control,
    mut step: impl FnMut() -> Result<()>,
) -> Result<()> {
    match pace {
        Pace::Idle => Ok(()),
        Pace::FlatOut => {
            let unwatched = if size < 1 << 20 { UNWATCHED } else { 1 };
            while control.going() {
                for _ in 0..unwatched {
                    step()?;
                }
            }
            Ok(())
        }
        Pace::Hz(hz) => {
            let mut ticker = Ticker::new(Duration::from_secs(1) / hz);
            while ticker.wait(|| control.going()) {
                step()?;
            }
            Ok(())
        }
    }
}

fn write_derived(task: &Task, control: &Control) -> Result<Tally> {
    let mut writer = task.spec.options()?.create()?;
    let mut buffer = Buffer::new(task.spec.size);
    let descriptions = value::descriptions(task.spec.size)?;
    let mut publish = |counter| {
        let description = value::description(&descriptions, counter);
        publish_derived(&mut writer, &mut buffer, counter, description)
    };
    publish(1)?;
    let mut tally = Tally::default();
    tally.seconds = control.obey(|control| {
        while control.going() {
            tally.done += 1;
            publish(1 + tally.done)?;
        }
        Ok(())
    })?;
    end(writer, tally)
}

/// Publishes value number `counter`: most of them from one buffer, one in
/// eight from three pieces, one in eight filled in place (which a single slot,
/// that holds the current value, does not offer).
fn publish_derived(
    writer: &mut SegmentWriter,
    buffer: &mut [u8],
    counter: u64,
    description: &Descriptor,
) -> Result<()> {
    let len = value::len(counter, buffer.len());
    let version = if counter % 8 == 7 && writer.slots() > 1 {
        let mut loan = writer.loan()?;
        let place = loan
            .as_mut_slice()
            .get_mut(..len)
            .ok_or("the loan is too short")?;
        value::fill(place, counter);
        loan.publish(len, description)?
    } else {
        let bytes = &mut buffer[..len];
        value::fill(bytes, counter);
        if counter % 8 == 3 {
            let (first, rest) = bytes.split_at(len / 3);
            let (second, third) = rest.split_at(len / 5);
            writer.write_vectored(&[first, second, third], description)?
        } else {
            writer.write_described(bytes, description)?
        }
    };
    if version == 2 * counter {
        Ok(())
    } else {
        Err(format!("write {counter} got version {version}").into())
    }
}

fn write_timed(task: &Task, hz: u32, control: &Control) -> Result<Tally> {
    let value = Buffer::new(task.spec.size);
    let mut writer = task.spec.options()?.create()?;
    writer.write(&value)?;
    let mut recorder = Recorder::new()?;
    let seconds = control.obey(|control| {
        let mut ticker = Ticker::new(Duration::from_secs(1) / hz);
        while ticker.wait(|| control.going()) {
            let start = Instant::now();
            black_box(writer.write(black_box(&value))?);
            recorder.record(start.elapsed());
        }
        Ok(())
    })?;
    let latency = Percentiles::of(&recorder);
    end(
        writer,
        Tally {
            done: recorder.len(),
            conflicts: 0,
            seconds,
            latency: Some(latency),
        },
    )
}

fn end(writer: SegmentWriter, tally: Tally) -> Result<Tally> {
    writer.close()?;
    Ok(tally)
}

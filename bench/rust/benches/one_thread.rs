//! Reads and writes of one thread, beside `memcpy` of the same size.
#![allow(missing_docs, reason = "a bench has no interface")]

use std::cell::Cell;
use std::hint::black_box;

use snakepit_shm_bench::buffer::{Buffer, Memcpy};
use snakepit_shm_bench::segment::{SIZES, Scratch, Spec, Tuning};
use snakepit_shm_bench::{Result, pin};

mod common;

use common::{Outcome, Session, Subject, read};

fn main() -> Result<()> {
    if let Some(cpu) = pin::allowed()?.last() {
        pin::to(*cpu)?;
    }
    let scratch = Scratch::new()?;
    let mut session = Session::new("one-thread");
    for size in SIZES {
        for tuning in Tuning::ALL {
            let name = |what: &str| format!("{what}-{size}-{}", tuning.word());
            reads(
                &mut session,
                &Spec::new(scratch.path(), name("read"), size, tuning),
            )?;
            writes(
                &mut session,
                &Spec::new(scratch.path(), name("write"), size, tuning),
            )?;
        }
    }
    session.finish()
}

fn subject(what: &str, spec: &Spec) -> Subject {
    let tuning = spec.tuning.word();
    Subject {
        id: format!("{what}/{}/{tuning}", spec.size),
        name: format!("Rust {what}, one thread, {tuning}"),
        size: spec.size,
        hop_ns: None,
    }
}

fn reads(session: &mut Session, spec: &Spec) -> Result<()> {
    let value = Buffer::new(spec.size);
    let mut writer = spec.options()?.create()?;
    writer.write(&value)?;
    let reader = spec.options()?.attach_reader()?;
    let mut buffer = Buffer::new(spec.size);
    buffer.fill(0);
    let mut yardstick = Memcpy::new(spec.size);
    let total = Cell::new(Outcome::default());
    session.pair(
        &subject("read", spec),
        &mut |times| {
            let mut outcome = total.get();
            read(&reader, &mut buffer, times, &mut outcome);
            total.set(outcome);
        },
        &mut [("memcpy", &mut |times| yardstick.run(times))],
        &|| total.get(),
    );
    let ran = total.get().values > 0;
    assert!(
        !ran || *buffer == *value,
        "the read did not bring the value"
    );
    assert!(yardstick.copied() || !ran, "the yardstick did not copy");
    writer.close()?;
    Ok(())
}

fn writes(session: &mut Session, spec: &Spec) -> Result<()> {
    let value = Buffer::new(spec.size);
    let bytes: &[u8] = &value;
    let mut writer = spec.options()?.create()?;
    let slots = writer.slots();
    let mut same_place = Memcpy::new(spec.size);
    let mut rotating = Memcpy::rotating(spec.size, slots);
    let rotating_name = format!("memcpy into {slots} buffers in turn");
    let mut written = 0;
    session.pair(
        &subject("write", spec),
        &mut |times| {
            for _ in 0..times {
                black_box(writer.write(black_box(bytes)).expect("a write failed"));
            }
            written += times;
        },
        &mut [
            ("memcpy", &mut |times| same_place.run(times)),
            (&rotating_name, &mut |times| rotating.run(times)),
        ],
        &Outcome::default,
    );
    assert_eq!(
        writer.current_version(),
        2 * written,
        "not every write was published"
    );
    if written > 0 {
        let mut buffer = vec![0; spec.size];
        spec.options()?.attach_reader()?.read_into(&mut buffer)?;
        assert!(buffer == *value, "the write did not bring the value");
    }
    writer.close()?;
    Ok(())
}

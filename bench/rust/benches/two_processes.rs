//! Reads beside a writer in another process, and writes beside a reader in
//! another process, each on a core of its own.
#![allow(missing_docs, reason = "a bench has no interface")]

use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;

use snakepit_shm_bench::buffer::{Buffer, Memcpy};
use snakepit_shm_bench::figure::Figures;
use snakepit_shm_bench::peer::{Pace, Peer, Tally, Task, Work};
use snakepit_shm_bench::segment::{SIZES, Scratch, Spec, Tuning};
use snakepit_shm_bench::{Result, hop, pin};

mod common;

use common::{Outcome, Session, Subject, read};

/// What the other process does, with the word for it in ids and names.
const WRITER: [(Pace, &str, &str); 3] = [
    (Pace::Idle, "idle", "writer idle"),
    (Pace::Hz(1000), "1khz", "writer at 1 kHz"),
    (Pace::FlatOut, "flat-out", "writer flat out"),
];
const READER: [(Pace, &str, &str); 2] = [
    (Pace::Idle, "idle", "reader idle"),
    (Pace::FlatOut, "flat-out", "reader flat out"),
];

/// From here up the options make no difference that could be measured.
const DEFAULTS_UP_TO: usize = 4096;

struct Bench {
    session: Session,
    scratch: Scratch,
    writer_cpu: usize,
    reader_cpu: usize,
}

fn main() -> Result<()> {
    let (writer_cpu, reader_cpu) = pin::two()?;
    let session = Session::new("two-processes");
    let mut bench = Bench {
        session,
        scratch: Scratch::new()?,
        writer_cpu,
        reader_cpu,
    };
    for size in SIZES {
        for tuning in Tuning::ALL {
            if tuning == Tuning::Defaults && size > DEFAULTS_UP_TO {
                continue;
            }
            for (pace, word, name) in WRITER {
                bench.reads(size, tuning, pace, word, name)?;
            }
            for (pace, word, name) in READER {
                bench.writes(size, tuning, pace, word, name)?;
            }
        }
    }
    bench.session.finish()
}

impl Bench {
    fn reads(
        &mut self,
        size: usize,
        tuning: Tuning,
        pace: Pace,
        word: &str,
        other: &str,
    ) -> Result<()> {
        let spec = self.spec("read", size, tuning, word);
        let mut peer = Peer::start(
            program(),
            &Task {
                spec: spec.clone(),
                cpu: self.writer_cpu,
                work: Work::Write(pace),
            },
        )?;
        pin::to(self.reader_cpu)?;
        let reader = spec.options()?.attach_reader()?;
        let mut buffer = Buffer::new(size);
        buffer.fill(0);
        let mut yardstick = Memcpy::new(size);
        let total = Cell::new(Outcome::default());
        let subject = self.subject("read", &spec, word, other)?;
        peer.go()?;
        let figures = self.session.pair(
            &subject,
            &mut |times| {
                let mut outcome = total.get();
                read(&reader, &mut buffer, times, &mut outcome);
                total.set(outcome);
            },
            &mut [("memcpy", &mut |times| yardstick.run(times))],
            &|| total.get(),
        );
        peer.pause()?;
        if total.get().values > 0 {
            // At rest again: the value must come through whole.
            reader.read_into(&mut buffer)?;
            assert!(
                *buffer == *Buffer::new(size),
                "the read did not bring the value"
            );
        }
        remark(figures, "the other process wrote", &peer.stop()?);
        Ok(())
    }

    fn writes(
        &mut self,
        size: usize,
        tuning: Tuning,
        pace: Pace,
        word: &str,
        other: &str,
    ) -> Result<()> {
        let spec = self.spec("write", size, tuning, word);
        pin::to(self.writer_cpu)?;
        let value = Buffer::new(size);
        let bytes: &[u8] = &value;
        let mut writer = spec.options()?.create()?;
        writer.write(&value)?;
        let mut peer = Peer::start(
            program(),
            &Task {
                spec: spec.clone(),
                cpu: self.reader_cpu,
                work: Work::Read(pace),
            },
        )?;
        let mut yardstick = Memcpy::new(size);
        let mut written = 1;
        let subject = self.subject("write", &spec, word, other)?;
        peer.go()?;
        let figures = self.session.pair(
            &subject,
            &mut |times| {
                for _ in 0..times {
                    black_box(writer.write(black_box(bytes)).expect("a write failed"));
                }
                written += times;
            },
            &mut [("memcpy", &mut |times| yardstick.run(times))],
            &Outcome::default,
        );
        remark(figures, "the other process read", &peer.stop()?);
        assert_eq!(
            writer.current_version(),
            2 * written,
            "not every write was published"
        );
        writer.close()?;
        Ok(())
    }

    fn spec(&self, what: &str, size: usize, tuning: Tuning, word: &str) -> Spec {
        let name = format!("{what}-{size}-{}-{word}", tuning.word());
        Spec::new(self.scratch.path(), name, size, tuning)
    }

    /// Also probes the hop: the other process is not working yet.
    fn subject(&self, what: &str, spec: &Spec, word: &str, other: &str) -> Result<Subject> {
        let tuning = spec.tuning.word();
        Ok(Subject {
            id: format!("{what}/{}/{tuning}/{word}", spec.size),
            name: format!("Rust {what}, two processes, {other}, {tuning}"),
            size: spec.size,
            hop_ns: Some(hop::probe(self.writer_cpu, self.reader_cpu)?),
        })
    }
}

/// How busy the other process really was: on a machine with other work to do
/// it may have been waiting for its core.
fn remark(figures: Option<&mut Figures>, what: &str, tally: &Tally) {
    if let Some(figures) = figures.filter(|_| tally.done > 0) {
        let remark = format!("{what} {:.0} times a second", tally.rate());
        println!("    {remark}");
        figures.remark(&remark);
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_snakepit-shm-bench"))
}

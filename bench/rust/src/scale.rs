//! Readers do not disturb one another: one reader's time per read, alone and
//! with another process that reads the same segment on the other core.

use std::hint::black_box;
use std::path::Path;

use crate::buffer::Buffer;
use crate::figure::{Figure, Figures};
use crate::pair::{Sample, verdict};
use crate::peer::{Pace, Peer, Task, Work};
use crate::segment::{Scratch, Spec, Tuning, human};
use crate::{Result, hop, pin};

const SIZES: [usize; 3] = [64, 4 << 10, 64 << 10];
/// About this long for each half of a sample.
const BATCH_NS: f64 = 5e6;

/// Adds one figure a size to `figures`, from `samples` alternations each.
///
/// # Errors
/// When the machine has one CPU only, or what went wrong in either process.
pub fn run(program: &Path, samples: usize, figures: &mut Figures) -> Result<()> {
    let (other_cpu, own_cpu) = pin::two()?;
    pin::to(own_cpu)?;
    let scratch = Scratch::new()?;
    for size in SIZES {
        let spec = Spec::new(scratch.path(), format!("scale-{size}"), size, Tuning::Bare);
        let mut buffer = Buffer::new(size);
        let mut writer = spec.options()?.create()?;
        writer.write(&buffer)?;
        let reader = spec.options()?.attach_reader()?;
        let hop_ns = hop::probe(other_cpu, own_cpu)?;
        let mut peer = Peer::start(
            program,
            &Task {
                spec: spec.clone(),
                cpu: other_cpu,
                work: Work::Read(Pace::FlatOut),
            },
        )?;
        let mut batch = 100;
        let mut taken = Vec::with_capacity(samples);
        for _ in 0..=samples {
            let alone = read(&reader, &mut buffer, batch)?;
            peer.go()?;
            let together = read(&reader, &mut buffer, batch)?;
            peer.pause()?;
            batch = ((BATCH_NS / alone) as u64).max(100);
            taken.push(Sample {
                ours: together,
                yards: vec![alone],
            });
        }
        peer.stop()?;
        writer.close()?;
        // The first one only found out how many reads make a batch.
        let Some(found) = verdict(taken.get(1..).unwrap_or_default(), 0) else {
            continue;
        };
        println!(
            "read {}: {:.1} ns alone, {:.1} ns beside another reader",
            human(size),
            found.yard,
            found.ours
        );
        figures.push(
            Figure::nanoseconds(format!("scale/read/{size}"), found.ours)
                .named("read beside a second reader on another core")
                .size(size)
                .beside("the same read alone", found.yard)
                .ratio(found.ratio)
                .hop(hop_ns),
        );
    }
    Ok(())
}

fn read(reader: &snakepit_shm::SegmentReader, buffer: &mut [u8], times: u64) -> Result<f64> {
    let start = std::time::Instant::now();
    for _ in 0..times {
        let info = reader.read_into(black_box(&mut *buffer))?;
        black_box((info.version, info.len));
    }
    black_box(buffer);
    Ok(start.elapsed().as_nanos() as f64 / times as f64)
}

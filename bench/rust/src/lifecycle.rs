//! What comes before the first read: create, attach and list.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use snakepit_shm::{Reserve, SegmentDiscovery, SegmentWriter};

use crate::figure::{Figure, Figures};
use crate::pair::{Sample, verdict};
use crate::segment::{NAMESPACE, Scratch, Spec, Tuning};
use crate::{Error, Result};

const SMALL: usize = 4096;
const GIANT: usize = 1 << 30;
/// Segments that are listed.
const LISTED: usize = 1000;

/// Adds the figures, of `samples` each, to `figures`.
///
/// # Errors
/// What went wrong.
pub fn run(samples: usize, figures: &mut Figures) -> Result<()> {
    create(samples, true, figures)?;
    create(samples, false, figures)?;
    attach(samples, SMALL, figures)?;
    attach(samples, GIANT, figures)?;
    list(samples / 10, figures)
}

/// The first segment of a process in its namespace, for which it registers there, or another.
fn create(samples: usize, first: bool, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    let other = Spec::new(scratch.path(), "other", SMALL, Tuning::Defaults).options()?;
    let other = if first { None } else { Some(other.create()?) };
    let spec = Spec::new(scratch.path(), "create", SMALL, Tuning::Defaults);
    let options = spec.options()?;
    let file = scratch.path().join("yardstick");
    let taken = alternate(samples, || {
        let (ours, writer) = timed(|| options.create().map_err(Error::from))?;
        writer.close()?;
        let (yard, ()) = timed(|| bare_file(&file))?;
        std::fs::remove_file(&file)?;
        Ok(Sample {
            ours,
            yards: vec![yard],
        })
    })?;
    if let Some(other) = other {
        other.close()?;
    }
    let (id, name) = if first {
        ("create-first", "create, the first in a namespace")
    } else {
        ("create", "create, defaults")
    };
    push(
        figures,
        id,
        name,
        Some(SMALL),
        &taken,
        "create, write and size a bare file",
    );
    Ok(())
}

/// As many bytes as a segment of the smallest capacity with four slots, in
/// pages that must be made.
fn bare_file(path: &Path) -> Result<()> {
    use std::io::Write;
    File::create_new(path)?
        .write_all(&[1; 4 * SMALL])
        .map_err(Into::into)
}

fn attach(samples: usize, size: usize, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    let spec = Spec::new(scratch.path(), "attach", size, Tuning::Defaults)
        .with_slots(if size > SMALL { 1 } else { 4 });
    // Lazily: a giant that nobody has filled needs no memory.
    let options = spec.options()?.reserve(Reserve::Lazy);
    let mut writer = options.create()?;
    writer.write(b"a value")?;
    let file = scratch.path().join("yardstick");
    bare_file(&file)?;
    let taken = alternate(samples, || {
        let (ours, reader) = timed(|| options.attach_reader().map_err(Error::from))?;
        reader.close()?;
        let (yard, _) = timed(|| File::open(&file)?.metadata().map_err(Error::from))?;
        Ok(Sample {
            ours,
            yards: vec![yard],
        })
    })?;
    writer.close()?;
    push(
        figures,
        "attach",
        "attach a reader",
        Some(size),
        &taken,
        "open a bare file",
    );
    Ok(())
}

fn list(samples: usize, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut writers: Vec<SegmentWriter> = Vec::with_capacity(LISTED);
    for i in 0..LISTED {
        let spec =
            Spec::new(scratch.path(), format!("list-{i}"), SMALL, Tuning::Defaults).with_slots(1);
        writers.push(spec.options()?.create()?);
    }
    let taken = alternate(samples, || {
        let (ours, found) = timed(|| {
            SegmentDiscovery::new(NAMESPACE, scratch.path())
                .and_then(|d| d.list())
                .map_err(Error::from)
        })?;
        if found.len() != LISTED {
            return Err(format!("{} of {LISTED} segments were listed", found.len()).into());
        }
        let (yard, _) = timed(|| Ok(std::fs::read_dir(scratch.path())?.count()))?;
        Ok(Sample {
            ours: ours / LISTED as f64,
            yards: vec![yard / LISTED as f64],
        })
    })?;
    for writer in writers {
        writer.close()?;
    }
    push(
        figures,
        "list",
        "list 1,000 segments, cold, each",
        None,
        &taken,
        "read_dir, each segment",
    );
    Ok(())
}

/// `samples` of them, after one that only warms up.
fn alternate(samples: usize, mut once: impl FnMut() -> Result<Sample>) -> Result<Vec<Sample>> {
    once()?;
    (0..samples.max(5)).map(|_| once()).collect()
}

fn timed<T>(call: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let result = call()?;
    Ok((start.elapsed().as_nanos() as f64, result))
}

fn push(
    figures: &mut Figures,
    id: &str,
    name: &str,
    size: Option<usize>,
    taken: &[Sample],
    yardstick: &str,
) {
    let Some(found) = verdict(taken, 0) else {
        return;
    };
    println!(
        "{name}: {:.1} µs; {yardstick}: {:.1} µs",
        found.ours / 1e3,
        found.yard / 1e3
    );
    let id = size.map_or_else(
        || format!("lifecycle/{id}"),
        |size| format!("lifecycle/{id}/{size}"),
    );
    let figure = Figure::nanoseconds(id, found.ours)
        .named(name)
        .beside(yardstick, found.yard)
        .ratio(found.ratio);
    figures.push(match size {
        Some(size) => figure.size(size),
        None => figure,
    });
}

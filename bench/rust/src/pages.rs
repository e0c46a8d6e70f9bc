//! What fresh pages cost: the first write and the first read of a large value, with pages of each kind.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use snakepit_shm::{HugePages, SegmentOptions, capabilities};

use crate::buffer::{Buffer, Memcpy};
use crate::figure::{Figure, Figures};
use crate::pair::{Sample, verdict};
use crate::segment::{NAMESPACE, Scratch};
use crate::{Result, pin};

/// What this binary is called as, in a mount namespace of its own.
pub const SUBCOMMAND: &str = "pages-on-mount";
const SIZE: usize = 100 * 1000 * 1000;
const YARDSTICK: &str = "memcpy, warm";

/// How the pages of a new segment come.
#[derive(Clone, Copy)]
struct Way {
    word: &'static str,
    name: &'static str,
    huge: bool,
    prefault: bool,
    /// Whether several threads may map them.
    together: bool,
}

const WAYS: [Way; 5] = [
    way("small/fault", "a fault a page", false, false, false),
    way("small/prefault-1", "prefault, 1 thread", false, true, false),
    way("small/prefault", "prefault", false, true, true),
    way("huge", "huge pages", true, false, false),
    way("huge/prefault", "huge pages, prefault", true, true, true),
];

const fn way(
    word: &'static str,
    name: &'static str,
    huge: bool,
    prefault: bool,
    together: bool,
) -> Way {
    Way {
        word,
        name,
        huge,
        prefault,
        together,
    }
}

impl Way {
    fn options(self, dir: &Path) -> Result<SegmentOptions> {
        let huge = if self.huge {
            HugePages::Prefer
        } else {
            HugePages::No
        };
        Ok(SegmentOptions::new("pages")
            .namespace(NAMESPACE)
            .dir(dir)
            .size(snakepit_shm::round_up_capacity(SIZE)?)
            .slots(1)
            .huge_pages(huge)
            .prefault(self.prefault))
    }
}

/// Adds the figures, of `samples` each, to `figures`.
///
/// # Errors
/// What went wrong.
pub fn run(program: &Path, samples: usize, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    println!(
        "CPUs, half of which map pages together: {}",
        pin::allowed()?.len()
    );
    for figure in collect(scratch.path(), samples)? {
        show(&figure);
        figures.push(figure);
    }
    for mount in ["advise", "within_size"] {
        if let Err(why) = on_mount(program, mount, samples, figures) {
            println!("NOT MEASURED: a mount with huge={mount}: {why}");
        }
    }
    Ok(())
}

/// In a mount namespace of its own, where a memory file system lies over a directory of ours.
fn on_mount(program: &Path, mount: &str, samples: usize, figures: &mut Figures) -> Result<()> {
    let scratch = Scratch::new()?;
    let script = r#"mount -t tmpfs -o "size=1g,huge=$1" tmpfs "$2" && exec "$3" "$4" "$2" "$5""#;
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            mount,
        ])
        .arg(scratch.path())
        .arg(program)
        .args([SUBCOMMAND, &samples.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    let parts: Vec<Figure> = serde_json::from_slice(&output.stdout)?;
    for mut figure in parts {
        figure.id = figure.id.replacen("pages/", &format!("pages/{mount}/"), 1);
        figure.name = format!("{}, huge={mount}", figure.name);
        show(&figure);
        figures.push(figure);
    }
    Ok(())
}

/// The other process: its figures go to its standard output, as JSON.
///
/// # Errors
/// What went wrong.
pub fn run_on_mount(dir: &str, samples: &str) -> Result<()> {
    let samples = samples.parse().map_err(|_| "how many samples?")?;
    let found = collect(Path::new(dir), samples)?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

fn show(figure: &Figure) {
    println!(
        "{}: {:.1} ms, {:.2} × memcpy {}",
        figure.name,
        figure.ours / 1e6,
        figure.ratio.unwrap_or(0.0),
        figure.note
    );
}

/// The ways that this machine has, each with its first write and the first read of it.
fn collect(dir: &Path, samples: usize) -> Result<Vec<Figure>> {
    let possible = capabilities(dir)?.huge_pages_possible;
    let mut figures = Vec::new();
    for way in WAYS {
        if way.huge && !possible {
            eprintln!("NOT MEASURED: {}: {} has none", way.name, dir.display());
            continue;
        }
        let taken = if way.together {
            once_each(dir, way, samples)
        } else {
            // Only one thread on one CPU.
            let cpu = pin::allowed()?[0];
            std::thread::scope(|scope| {
                let alone = scope.spawn(|| {
                    pin::to(cpu).map_err(|e| e.to_string())?;
                    once_each(dir, way, samples).map_err(|e| e.to_string())
                });
                alone
                    .join()
                    .unwrap_or_else(|_| Err("a thread panicked".into()))
            })
            .map_err(Into::into)
        }?;
        for (what, name, samples) in [
            ("write", "create and write", &taken.writes),
            ("read", "attach and read", &taken.reads),
        ] {
            if let Some(found) = verdict(samples, 0) {
                let figure = Figure::nanoseconds(format!("pages/{what}/{}", way.word), found.ours)
                    .named(format!("{name} 100 MB: {}", way.name))
                    .size(SIZE)
                    .beside(YARDSTICK, found.yard)
                    .ratio(found.ratio);
                figures.push(figure.note(format!("{} % in huge pages", taken.percent_huge)));
            }
        }
    }
    Ok(figures)
}

struct Taken {
    writes: Vec<Sample>,
    reads: Vec<Sample>,
    percent_huge: u64,
}

fn once_each(dir: &Path, way: Way, samples: usize) -> Result<Taken> {
    let options = way.options(dir)?;
    let value = Buffer::new(SIZE);
    let mut copy = Buffer::new(SIZE);
    let mut memcpy = Memcpy::new(SIZE);
    let mut taken = Taken {
        writes: Vec::new(),
        reads: Vec::new(),
        percent_huge: 0,
    };
    for sample in 0..=samples.max(5) {
        memcpy.run(1);
        let start = Instant::now();
        memcpy.run(1);
        let yard = start.elapsed().as_nanos() as f64;

        let start = Instant::now();
        let mut writer = options.create()?;
        writer.write(&value)?;
        let wrote = start.elapsed().as_nanos() as f64;
        let pages = writer.pages()?;
        taken.percent_huge = pages.huge * 100 / pages.bytes.max(1);

        let start = Instant::now();
        let reader = options.attach_reader()?;
        let info = reader.read_into(&mut copy)?;
        let read = start.elapsed().as_nanos() as f64;
        if info.len != SIZE || copy[..] != value[..] {
            return Err("what was read is not what was written".into());
        }
        reader.close()?;
        writer.close()?;
        // Unmapped in the background: not while others are timed.
        snakepit_shm::settle();
        // The first only warms up.
        if sample > 0 {
            let pair = |ours| Sample {
                ours,
                yards: vec![yard],
            };
            taken.writes.push(pair(wrote));
            taken.reads.push(pair(read));
        }
    }
    Ok(taken)
}

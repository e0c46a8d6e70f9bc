//! The benches that criterion cannot run, and the final table. See
//! `bench/README.md`; `bench/run.sh` calls it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use snakepit_shm_bench::buffer::Memcpy;
use snakepit_shm_bench::figure::Figures;
use snakepit_shm_bench::{Result, lifecycle, pace, pages, peer, pin, pinned, report, scale, torn};

const USAGE: &str = "\
usage: snakepit-shm-bench COMMAND

  torn [--quick] [--reads N]     look for torn values; fails if there is one
  pace [--quick]                 latency percentiles of 4 KiB at 10 kHz
  scale [--quick]                one reader beside another one
  pinned [--quick]               pinned reads beside a writer, and what they cost it
  lifecycle [--quick]            create, attach, list
  pages [--quick]                first write and first read of 100 MB, by kind of pages
  memcpy BYTES                   time one warm memcpy for each line of input
  report --parts DIR --targets FILE [--results DIR] [--quick]
         [--commit ID] [--date DATE] [--failed SECTION]...
                                 the final table, also as files in --results

torn, pace, scale, pinned, lifecycle and pages write their figures into $SNAKEPIT_BENCH_PARTS, if set,
and keep their segments in $SNAKEPIT_BENCH_DIR (default /dev/shm).";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let (command, rest) = arguments.split_first().ok_or(USAGE)?;
    let mut options = Options::new(rest);
    match command.as_str() {
        peer::SUBCOMMAND => peer::run(rest.first().ok_or("a task is missing")?),
        "torn" => {
            let mut plan = if options.flag("--quick") {
                torn::Plan::QUICK
            } else {
                torn::Plan::FULL
            };
            if let Some(reads) = options.value("--reads")? {
                plan.reads = reads
                    .parse()
                    .map_err(|_| format!("--reads takes a number, not {reads}"))?;
            }
            options.end()?;
            save("torn", |figures| torn::run(&program()?, &plan, figures))
        }
        "pace" => {
            let seconds = if options.flag("--quick") { 0.5 } else { 5.0 };
            options.end()?;
            save("pace", |figures| pace::run(&program()?, seconds, figures))
        }
        "scale" => {
            let samples = if options.flag("--quick") { 5 } else { 31 };
            options.end()?;
            save("scale", |figures| scale::run(&program()?, samples, figures))
        }
        "pinned" => {
            let (millis, samples) = if options.flag("--quick") {
                (300, 5)
            } else {
                (5000, 31)
            };
            options.end()?;
            let time = std::time::Duration::from_millis(millis);
            save("pinned", |figures| {
                pinned::run(&program()?, time, samples, figures)
            })
        }
        "lifecycle" => {
            let samples = if options.flag("--quick") { 20 } else { 300 };
            options.end()?;
            save("lifecycle", |figures| lifecycle::run(samples, figures))
        }
        "pages" => {
            let samples = if options.flag("--quick") { 5 } else { 15 };
            options.end()?;
            save("pages", |figures| pages::run(&program()?, samples, figures))
        }
        pages::SUBCOMMAND => match rest {
            [dir, samples] => pages::run_on_mount(dir, samples),
            _ => Err(USAGE.into()),
        },
        "memcpy" => memcpy(rest.first().ok_or("how many bytes?")?),
        "report" => make_report(&mut options),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(format!("unknown command {other}\n{USAGE}").into()),
    }
}

/// This binary, which is also the other process.
fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(Into::into)
}

/// What was measured is handed on even when the bench failed in the end.
fn save(section: &'static str, bench: impl FnOnce(&mut Figures) -> Result<()>) -> Result<()> {
    let mut figures = Figures::of(section);
    let outcome = bench(&mut figures);
    figures.save()?;
    outcome
}

/// A yardstick for the other languages: answers each line of input with the
/// nanoseconds of one copy between buffers that were just copied once.
fn memcpy(bytes: &str) -> Result<()> {
    let bytes = bytes
        .parse()
        .map_err(|_| format!("{bytes} is not a number of bytes"))?;
    let mut yardstick = Memcpy::new(bytes);
    for line in std::io::stdin().lines() {
        line?;
        yardstick.run(1);
        let start = std::time::Instant::now();
        yardstick.run(1);
        println!("{}", start.elapsed().as_nanos());
    }
    Ok(())
}

fn make_report(options: &mut Options) -> Result<()> {
    let need =
        |value: Option<String>, name: &str| value.ok_or_else(|| format!("report needs {name}"));
    let parts = need(options.value("--parts")?, "--parts")?;
    let targets = need(options.value("--targets")?, "--targets")?;
    let results = options.value("--results")?;
    let mut run = report::Run {
        cpu: cpu_model(),
        cpus: pin::allowed()?.len(),
        kernel: read_trimmed("/proc/sys/kernel/osrelease"),
        date: options.value("--date")?.unwrap_or_default(),
        commit: options.value("--commit")?.unwrap_or_default(),
        quick: options.flag("--quick"),
        failed: Vec::new(),
    };
    while let Some(section) = options.value("--failed")? {
        run.failed.push(section);
    }
    options.end()?;
    report::write(
        Path::new(&parts),
        Path::new(&targets),
        results.as_deref().map(Path::new),
        &run,
    )
}

fn cpu_model() -> String {
    let info = read_trimmed("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

fn read_trimmed(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The options of one command, taken away one by one.
struct Options(Vec<String>);

impl Options {
    fn new(arguments: &[String]) -> Self {
        Self(arguments.to_vec())
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|argument| argument != name);
        self.0.len() < before
    }

    fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        if at + 1 == self.0.len() {
            return Err(format!("{name} needs a value").into());
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    fn end(&self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(unknown) => Err(format!("unknown option {unknown}\n{USAGE}").into()),
        }
    }
}

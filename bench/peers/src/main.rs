//! Other people's ways of handing values from process to process, measured beside ours in one run.
//!
//! `bench/peers/run.py` calls it, one section at a time. A section prints what it finds and, in
//! `$SNAKEPIT_BENCH_PARTS`, leaves `{section}.json`, a list of figures (`bench/README.md` has their fields), and
//! `{section}.skipped.json`, what was not measured and why. The method is that of `bench/rust`, whose parts it uses.

mod beam;
mod child;
mod crowd;
#[cfg(feature = "iceoryx2")]
mod iox;
#[cfg(feature = "shared-memory")]
mod locked;
mod messages;
#[cfg(feature = "mmap-sync")]
mod mmapsync;
mod near_far;
#[cfg(any(feature = "seqlock", feature = "shared-memory"))]
mod object;
mod one_thread;
mod ours;
mod part;
mod port;
mod segments;
#[cfg(feature = "seqlock")]
mod seq;
#[cfg_attr(
    not(all(feature = "iceoryx2", feature = "mmap-sync", feature = "seqlock")),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "for peers that were not built"
    )
)]
mod sized;
mod stamped;
mod two_processes;

use std::process::ExitCode;

use snakepit_shm_bench::Result;

const USAGE: &str = "\
usage: snakepit-shm-peers SECTION [--quick]

  one-thread      write, read, and hand over in one thread
  two-processes   a reader beside a writer that idles, writes at 1 kHz, 100 kHz, flat out
  near-far        the same flat out, with the cores near to one another and far
  crowd           a write while 1 to 1,000 processes are attached
  segments        create and attach among 1 to 10,000
  messages        round trip and one way: pipe, socket, shared memory

What they measure lies in $SNAKEPIT_BENCH_DIR (default /dev/shm).";

/// Bytes of a value.
pub const SIZES: [usize; 9] = [
    8,
    64,
    1 << 10,
    4 << 10,
    64 << 10,
    1 << 20,
    16 << 20,
    100 << 20,
    1 << 30,
];
/// Those of a short run.
pub const QUICK_SIZES: [usize; 4] = [8, 64, 4 << 10, 1 << 20];

/// The sizes of this run.
#[must_use]
pub fn sizes(quick: bool) -> &'static [usize] {
    if quick { &QUICK_SIZES } else { &SIZES }
}

/// What names of POSIX shared memory objects begin with: some peers put theirs into /dev/shm itself, where whoever runs
/// the bench finds and removes by this what is left of them.
#[must_use]
pub fn object_prefix(dir: &std::path::Path) -> String {
    let run = std::env::var_os("SNAKEPIT_BENCH_DIR").map(std::path::PathBuf::from);
    let run = run.as_deref().and_then(std::path::Path::file_name);
    let run = run.map_or_else(|| "snakepit-bench".into(), |name| name.to_string_lossy());
    let own = dir.file_name().unwrap_or_default().to_string_lossy();
    format!("{run}-{}", own.trim_start_matches("snakepit-bench-"))
}

/// Some peers return values on the stack. It is reserved, and takes memory only as far as it is used.
const STACK: usize = 1 << 30;

fn main() -> ExitCode {
    // Thousands of segments, of which some peers keep descriptors.
    if let Ok((_, hard)) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
    {
        // Refused: the section that needs them says so.
        let _ =
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let worker = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || run(&arguments));
    let outcome = match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("a panic, see above".into()),
        Err(error) => Err(format!("no thread: {error}").into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let (command, rest) = arguments.split_first().ok_or(USAGE)?;
    if command == child::COMMAND {
        return child::run();
    }
    if command == beam::COMMAND {
        return beam::run(rest);
    }
    if command == messages::ECHO {
        return messages::echo(rest);
    }
    let quick = match rest {
        [] => false,
        [only] if only == "--quick" => true,
        _ => return Err(USAGE.into()),
    };
    let mut part = part::Part::of(command);
    let outcome = match command.as_str() {
        "one-thread" => one_thread::run(quick, &mut part),
        "two-processes" => two_processes::run(quick, &mut part),
        "near-far" => near_far::run(quick, &mut part),
        "crowd" => crowd::run(quick, &mut part),
        "segments" => segments::run(quick, &mut part),
        "messages" => messages::run(quick, &mut part),
        _ => Err(USAGE.into()),
    };
    // What was measured is handed on even when the section failed in the end.
    part.save()?;
    outcome
}

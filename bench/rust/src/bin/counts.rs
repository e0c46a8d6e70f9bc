//! What `bench/counts.py` runs under callgrind: every counted operation a few thousand times, and one
//! of them so many times more. The difference between two such runs is what that one executes;
//! everything around it is in both.
//!
//! ```text
//! counts list                  the operations, one a line
//! counts run OPERATION TIMES   each of them WARM times, OPERATION so many times more
//! ```
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;

use snakepit_shm_bench::Result;
use snakepit_shm_bench::segment::{Scratch, Spec, Tuning};

const SIZES: [usize; 2] = [64, 4096];
/// More writes than a writer needs to become calm (`hazard.rs`): the steady state is counted.
const WARM: u64 = 3000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["list"] => {
            for (what, size, tuning) in operations() {
                println!("{}", id(what, size, tuning));
            }
            Ok(())
        }
        ["run", chosen, times] => {
            let mut times: u64 = times.parse()?;
            let scratch = Scratch::new()?;
            for (what, size, tuning) in operations() {
                let id = id(what, size, tuning);
                let more = if id == chosen {
                    std::mem::take(&mut times)
                } else {
                    0
                };
                let spec = Spec::new(scratch.path(), id.replace('/', "-"), size, tuning);
                operate(what, &spec, WARM + more)?;
            }
            if times == 0 {
                Ok(())
            } else {
                Err(format!("no operation is called {chosen}").into())
            }
        }
        _ => Err("usage: counts list | counts run OPERATION TIMES".into()),
    }
}

fn operations() -> impl Iterator<Item = (&'static str, usize, Tuning)> {
    ["read", "write"].into_iter().flat_map(|what| {
        SIZES
            .into_iter()
            .flat_map(move |size| Tuning::ALL.into_iter().map(move |t| (what, size, t)))
    })
}

fn id(what: &str, size: usize, tuning: Tuning) -> String {
    format!("{what}/{size}/{}", tuning.word())
}

fn operate(what: &str, spec: &Spec, times: u64) -> Result<()> {
    let value = vec![7u8; spec.size];
    let mut buffer = vec![0u8; spec.size];
    let mut writer = spec.options()?.create()?;
    let reader = spec.options()?.attach_reader()?;
    writer.write(&value)?;
    if what == "write" {
        for _ in 0..times {
            black_box(writer.write(black_box(&value))?);
        }
    } else {
        for _ in 0..times {
            let info = reader.read_into(black_box(&mut buffer))?;
            black_box((info.version, info.len));
        }
    }
    reader.read_into(&mut buffer)?;
    let written = if what == "write" { times + 1 } else { 1 };
    if buffer != value || writer.current_version() != 2 * written {
        return Err(format!("{what} of {} bytes went wrong", spec.size).into());
    }
    reader.close()?;
    writer.close()?;
    Ok(())
}

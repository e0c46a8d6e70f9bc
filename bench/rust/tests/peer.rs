//! The other process does what it is told, and ends when nobody tells it
//! anything any more.
#![allow(missing_docs, reason = "a test has no interface")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use snakepit_shm_bench::peer::{Pace, Peer, SUBCOMMAND, Task, Work};
use snakepit_shm_bench::pin;
use snakepit_shm_bench::segment::{Scratch, Spec, Tuning};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_snakepit-shm-bench"))
}

fn task(scratch: &Scratch, work: Work) -> Task {
    let cpu = pin::allowed().unwrap()[0];
    Task {
        spec: Spec::new(scratch.path(), "peer", 4096, Tuning::Bare),
        cpu,
        work,
    }
}

#[test]
fn a_writer_writes_between_go_and_pause_only() {
    let scratch = Scratch::new().unwrap();
    let task = task(&scratch, Work::Write(Pace::FlatOut));
    let mut peer = Peer::start(program(), &task).unwrap();
    let reader = task.spec.options().unwrap().attach_reader().unwrap();
    assert_eq!(reader.version(), 2, "one value before it was told to go");
    for _ in 0..3 {
        let before = reader.version();
        peer.go().unwrap();
        while reader.version() == before {
            std::thread::yield_now();
        }
        peer.pause().unwrap();
        let paused = reader.version();
        assert_eq!(paused, reader.version());
    }
    let last = reader.version();
    let tally = peer.stop().unwrap();
    assert_eq!(last, 2 * (1 + tally.done));
    assert!(tally.seconds > 0.0 && tally.rate() > 0.0);
}

#[test]
fn what_goes_wrong_over_there_is_an_error_here() {
    let scratch = Scratch::new().unwrap();
    assert!(
        Peer::start(program(), &task(&scratch, Work::Read(Pace::Idle))).is_err(),
        "nothing to read"
    );
    let nowhere = Task {
        cpu: 1023,
        ..task(&scratch, Work::WriteDerived)
    };
    assert!(Peer::start(program(), &nowhere).is_err(), "no such CPU");
}

#[test]
fn it_ends_by_itself_when_its_input_ends() {
    let scratch = Scratch::new().unwrap();
    let task = serde_json::to_string(&task(&scratch, Work::Write(Pace::FlatOut))).unwrap();
    let mut child = Command::new(program())
        .args([SUBCOMMAND, &task])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(said.starts_with("ready\n"), "{said}");
}

//! The other process of a two-process figure.
//!
//! The bench starts its own binary again with a [`Task`]; that process pins
//! itself, sets its side of the segment up, says `ready` and then obeys three
//! words on its standard input: `go`, `pause` and `stop`. It answers each one
//! when it has happened, the last one with a [`Tally`]. When its standard
//! input ends, because the bench died however it died, it stops by itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::pace::Percentiles;
use crate::segment::Spec;
use crate::{Error, Result};

mod control;
mod work;

/// The word on the command line that makes the binary a peer; the task
/// follows as JSON.
pub const SUBCOMMAND: &str = "peer";

/// What the other process does, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The segment: made by a writer, opened by a reader.
    pub spec: Spec,
    /// The CPU to stay on.
    pub cpu: usize,
    /// What to do with it.
    pub work: Work,
}

/// What the other process does after `go`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Publishes one value at once, more of them after `go`.
    Write(Pace),
    /// Reads.
    Read(Pace),
    /// Publishes values of [`crate::value`] as fast as it can, counting from 1
    /// (which is there before `ready`), by every way of writing.
    WriteDerived,
    /// Publishes so many values a second and times each write.
    WriteTimed {
        /// Values a second.
        hz: u32,
    },
}

/// How often.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Pace {
    /// Never.
    Idle,
    /// So many times a second.
    Hz(u32),
    /// As often as it can.
    FlatOut,
}

/// What the other process did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Writes or reads that succeeded.
    pub done: u64,
    /// Reads that ended in `VersionConflict`.
    pub conflicts: u64,
    /// Seconds between `go` and `pause` or `stop`, all together.
    pub seconds: f64,
    /// How long each took, of those that were timed.
    pub latency: Option<Percentiles>,
}

impl Tally {
    /// Successes a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            self.done as f64 / self.seconds
        } else {
            0.0
        }
    }
}

/// The bench's end of the other process. Dropping it ends that process.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `program` (the bench binary) on `task` and waits until it is
    /// ready.
    ///
    /// # Errors
    /// When it cannot be started, or what went wrong over there.
    pub fn start(program: &Path, task: &Task) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .arg(serde_json::to_string(task)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let input = child.stdin.take();
        let output = BufReader::new(
            child
                .stdout
                .take()
                .ok_or("no pipe from the other process")?,
        );
        let mut peer = Self {
            child,
            input,
            output,
        };
        peer.expect("ready")?;
        Ok(peer)
    }

    /// Lets it work.
    ///
    /// # Errors
    /// What went wrong over there.
    pub fn go(&mut self) -> Result<()> {
        self.say("go")?;
        self.expect("going")
    }

    /// Makes it rest until the next [`Self::go`].
    ///
    /// # Errors
    /// What went wrong over there.
    pub fn pause(&mut self) -> Result<()> {
        self.say("pause")?;
        self.expect("paused")
    }

    /// Ends it; returns what it did.
    ///
    /// # Errors
    /// What went wrong over there.
    pub fn stop(mut self) -> Result<Tally> {
        self.say("stop")?;
        let line = self.line()?;
        let tally = serde_json::from_str(&line).map_err(|_| unexpected(&line))?;
        self.input = None;
        let status = self.child.wait()?;
        if status.success() {
            Ok(tally)
        } else {
            Err(format!("the other process ended with {status}").into())
        }
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or("the other process has ended")?;
        writeln!(input, "{word}")
            .map_err(|e| format!("the other process does not listen: {e}").into())
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let line = self.line()?;
        if line == word {
            Ok(())
        } else {
            Err(unexpected(&line))
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the other process ended; its message is above".into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Of no effect on one that has ended. Both can only fail in that case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unexpected(line: &str) -> Error {
    format!("the other process said {line:?}").into()
}

/// The other process itself: does `task` (JSON) until told to stop.
///
/// # Errors
/// Whatever keeps it from its work.
pub fn run(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task)?;
    crate::pin::to(task.cpu)?;
    let control = control::listen();
    let tally = work::run(&task, &control)?;
    control::answer(&serde_json::to_string(&tally)?)
}

//! The other process: writes, or is merely attached, as it is told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use snakepit_shm_bench::pace::{Percentiles, Recorder, Ticker};
use snakepit_shm_bench::{Result, pin};

use crate::port::{self, Place, Reader, Writer};
use crate::stamped::Values;

/// The word on the command line that makes the binary the other process.
pub const COMMAND: &str = "child";

/// What it is told, a line of JSON each.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Stay on a CPU.
    Pin(usize),
    /// Make a writer and write one value. Writers are numbered from 0.
    Create(Place),
    /// Attach a reader, and look at the value if there is one.
    Attach(Place),
    /// Let a writer write for so long.
    Write {
        /// Which.
        writer: usize,
        /// How often.
        load: Load,
        /// For how long.
        millis: u64,
    },
    /// Close all writers and readers.
    Close,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Load {
    /// Never.
    Idle,
    /// So many times a second.
    Hz(u32),
    /// As often as it can.
    FlatOut,
}

/// What it wrote.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wrote {
    /// Values.
    pub values: u64,
    /// Seconds it took, flat out: of writing alone.
    pub seconds: f64,
    /// How long each took, at a pace.
    pub each: Option<Percentiles>,
}

/// Its answer to every order.
type Answer = std::result::Result<Wrote, String>;

/// The bench's end of it. Dropping it ends it.
pub struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Other {
    /// Starts it.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = child
            .stdout
            .take()
            .ok_or("no pipe from the other process")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Tells it something; [`Self::answer`] waits until it has happened.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, order: &Order) -> Result<()> {
        let input = self.input.as_mut().ok_or("the other process has ended")?;
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        input.write_all(line.as_bytes()).map_err(Into::into)
    }

    /// What came of the oldest order that was not answered yet.
    ///
    /// # Errors
    /// What went wrong over there.
    pub fn answer(&mut self) -> Result<Wrote> {
        let line = self.line()?;
        let answer: Answer = serde_json::from_str(&line)?;
        answer.map_err(Into::into)
    }

    /// Both.
    ///
    /// # Errors
    /// As of each.
    pub fn obey(&mut self, order: &Order) -> Result<Wrote> {
        self.tell(order)?;
        self.answer()
    }

    /// Lets a writer write for so long, and calls `meanwhile` with the moment at which it ends.
    ///
    /// # Errors
    /// As of both sides.
    pub fn beside<R>(
        &mut self,
        writer: usize,
        load: Load,
        time: Duration,
        meanwhile: impl FnOnce(Instant) -> Result<R>,
    ) -> Result<(R, Wrote)> {
        let millis = time.as_millis() as u64;
        self.tell(&Order::Write {
            writer,
            load,
            millis,
        })?;
        // It has begun.
        self.line()?;
        let result = meanwhile(Instant::now() + time);
        let wrote = self.answer()?;
        Ok((result?, wrote))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the other process ended; its message is above".into());
        }
        Ok(line)
    }

    /// Lets it end by itself, by the end of its input.
    ///
    /// # Errors
    /// When it ended badly.
    pub fn end(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the other process ended with {status}").into())
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Of no effect on one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process itself.
///
/// # Errors
/// When nobody hears its answers.
pub fn run() -> Result<()> {
    let mut writers: Vec<(Box<dyn Writer>, Values)> = Vec::new();
    let mut readers: Vec<Box<dyn Reader>> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Order::Pin(cpu) => pin::to(cpu).map(|()| Wrote::default()),
            Order::Create(place) => create(&place).map(|writer| {
                writers.push(writer);
                Wrote::default()
            }),
            Order::Attach(place) => attach(&place).map(|reader| {
                readers.push(reader);
                Wrote::default()
            }),
            Order::Write {
                writer,
                load,
                millis,
            } => match writers.get_mut(writer) {
                Some((writer, values)) => {
                    say("going")?;
                    write(&mut **writer, values, load, Duration::from_millis(millis))
                }
                None => Err(format!("no writer {writer}").into()),
            },
            Order::Close => {
                writers.clear();
                readers.clear();
                Ok(Wrote::default())
            }
        };
        let answer: Answer = answer.map_err(|error| error.to_string());
        say(&serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush().map_err(Into::into)
}

fn create(place: &Place) -> Result<(Box<dyn Writer>, Values)> {
    let mut writer = port::writer(place)?;
    let mut values = Values::new(place.size);
    // Every slot's pages are there before the clock starts.
    writer.write(&mut values, 4)?;
    Ok((writer, values))
}

fn attach(place: &Place) -> Result<Box<dyn Reader>> {
    let mut reader = port::reader(place)?;
    reader.read(1)?;
    Ok(reader)
}

fn write(
    writer: &mut dyn Writer,
    values: &mut Values,
    load: Load,
    time: Duration,
) -> Result<Wrote> {
    let start = Instant::now();
    let end = start + time;
    let before = values.count();
    let mut each = None;
    match load {
        Load::Idle => std::thread::sleep(time),
        Load::Hz(hz) => {
            let mut recorder = Recorder::new()?;
            let mut ticker = Ticker::new(Duration::from_secs(1) / hz);
            while ticker.wait(|| Instant::now() < end) {
                recorder.record(writer.write_timed(values)?);
            }
            each = Some(Percentiles::of(&recorder));
        }
        Load::FlatOut => {
            // The look at the clock is not to be measured.
            let mut batch = 1;
            while Instant::now() < end {
                let began = Instant::now();
                writer.write(values, batch)?;
                if began.elapsed() < Duration::from_micros(10) {
                    batch *= 2;
                }
            }
        }
    }
    Ok(Wrote {
        values: values.count() - before,
        seconds: start.elapsed().as_secs_f64(),
        each,
    })
}

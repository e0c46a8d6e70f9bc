//! Value and answer between two processes: a pipe and a Unix socket, which block, beside a segment each way on which
//! the other side sleeps; and publish-subscribe, which is polled, beside the same segments polled.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use snakepit_shm::{SegmentOptions, SegmentReader, SegmentWriter};
use snakepit_shm_bench::buffer::Buffer;
use snakepit_shm_bench::figure::Figure;
use snakepit_shm_bench::pair::{Sample, verdict};
use snakepit_shm_bench::segment::{NAMESPACE, Scratch, human};
use snakepit_shm_bench::{Result, hop, pin};

use crate::part::Part;
use crate::port::{self, Kind, Place, Reader, Writer};
use crate::sizes;
use crate::stamped::Values;

/// The word on the command line that makes the binary the one who answers.
pub const ECHO: &str = "echo";
/// Of an answer that only says that the value has arrived.
const ACK: usize = 8;
/// As much as an unprivileged process may ask for.
const PIPE_ROOM: i32 = 1 << 20;

/// How the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Way {
    /// Two segments; the other side sleeps.
    Sleeping,
    /// Two segments, without notification, polled.
    Polling,
    /// Two pipes.
    Pipe,
    /// A connected pair of Unix stream sockets.
    Socket,
    /// Two iceoryx2 services, polled.
    PubSub,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Sleeping => "snakepit",
            Self::Polling => "snakepit-polling",
            Self::Pipe => "pipe",
            Self::Socket => "unix-socket",
            Self::PubSub => "iceoryx2-pubsub-polling",
        }
    }
}

/// What the one who answers is told.
#[derive(Clone, Serialize, Deserialize)]
struct Task {
    way: Way,
    cpu: usize,
    dir: std::path::PathBuf,
    there: usize,
    back: usize,
}

pub fn run(quick: bool, part: &mut Part) -> Result<()> {
    let cpus = pin::two()?;
    pin::to(cpus.0)?;
    for &size in sizes(quick) {
        let (samples, budget) = match size {
            _ if quick => (5, 1e6),
            size if size < 16 << 20 => (21, 5e6),
            104_857_600 => (5, 0.0),
            1_073_741_824 => (2, 0.0),
            _ => (9, 0.0),
        };
        for (what, back) in [("round-trip", size), ("one-way", ACK)] {
            for (ours, peers) in [
                (Way::Sleeping, &[Way::Pipe, Way::Socket][..]),
                (Way::Polling, &[Way::PubSub][..]),
            ] {
                if peers[0] == Way::PubSub
                    && let Some(reason) = Kind::PubSub.refusal(size)
                {
                    part.skip(
                        format!("messages, {}, {}", human(size), peers[0].word()),
                        reason,
                    );
                    continue;
                }
                let scratch = Scratch::new()?;
                let task = |way| Task {
                    way,
                    cpu: cpus.1,
                    dir: scratch.path().into(),
                    there: size,
                    back,
                };
                let hop_ns = hop::probe(cpus.0, cpus.1)?;
                let mut own = Talk::start(&task(ours))?;
                let mut others = peers
                    .iter()
                    .map(|&way| Talk::start(&task(way)))
                    .collect::<Result<Vec<_>>>()?;
                let mut batch = 1;
                let mut taken = Vec::new();
                for _ in 0..=samples {
                    let ours = own.exchange(batch)?;
                    let yards = others
                        .iter_mut()
                        .map(|other| other.exchange(batch))
                        .collect::<Result<Vec<_>>>()?;
                    let slowest = yards.iter().fold(ours, |a, &b| a.max(b));
                    batch = ((budget / slowest) as u64).max(1);
                    taken.push(Sample { ours, yards });
                }
                let taken = taken.split_off(1);
                for (yard, way) in peers.iter().enumerate() {
                    let Some(found) = verdict(&taken, yard) else {
                        continue;
                    };
                    let word = way.word();
                    let figure = Figure::nanoseconds(
                        format!("peers/messages/{what}/{size}/{word}"),
                        found.ours,
                    )
                    .named(format!(
                        "{}{}",
                        if what == "round-trip" {
                            "there and back"
                        } else {
                            "there, and 8 bytes back"
                        },
                        if *way == Way::PubSub { ", polled" } else { "" }
                    ))
                    .size(size)
                    .beside(word, found.yard)
                    .ratio(found.ratio)
                    .hop(hop_ns);
                    part.push(figure);
                }
                own.end()?;
                others.into_iter().try_for_each(Talk::end)?;
                // What was measured is kept, whatever comes.
                part.save()?;
            }
        }
    }
    Ok(())
}

/// Both directions, as one side has them.
enum Line {
    Segments {
        to: SegmentWriter,
        from: SegmentReader,
        sleep: bool,
        seen: u64,
    },
    Stream {
        to: Option<File>,
        from: File,
    },
    Ported {
        to: Box<dyn Writer>,
        from: Box<dyn Reader>,
    },
}

/// Our end of a conversation.
struct Talk {
    child: Child,
    polled: bool,
    line: Line,
    values: Values,
    answer: Buffer,
}

fn segment(task: &Task, name: &str, size: usize) -> Result<SegmentOptions> {
    let size = snakepit_shm::round_up_capacity(size)?;
    let name = format!("{}-{name}", task.way.word());
    let options = SegmentOptions::new(name)
        .namespace(NAMESPACE)
        .dir(&task.dir)
        .size(size);
    Ok(match task.way {
        Way::Sleeping => options,
        _ => options
            .notify(false)
            .timestamps(snakepit_shm::Timestamps::Off),
    })
}

fn service(task: &Task, name: &str, size: usize) -> Place {
    Place {
        kind: Kind::PubSub,
        dir: task.dir.clone(),
        name: name.to_owned(),
        size,
        readers: 1,
    }
}

impl Talk {
    fn start(task: &Task) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ECHO).arg(serde_json::to_string(task)?);
        let (child, line) = match task.way {
            Way::Sleeping | Way::Polling => {
                let to = segment(task, "there", task.there)?.create()?;
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                ready(&mut child)?;
                let from = segment(task, "back", task.back)?.attach_reader()?;
                let line = Line::Segments {
                    to,
                    from,
                    sleep: task.way == Way::Sleeping,
                    seen: 0,
                };
                (child, line)
            }
            Way::PubSub => {
                let to = port::writer(&service(task, "there", task.there))?;
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                ready(&mut child)?;
                let from = port::reader(&service(task, "back", task.back))?;
                (child, Line::Ported { to, from })
            }
            Way::Pipe => {
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                let to = widened(child.stdin.take().ok_or("no pipe")?.into());
                let from = widened(child.stdout.take().ok_or("no pipe")?.into());
                (child, Line::Stream { to: Some(to), from })
            }
            Way::Socket => {
                let (ours, theirs) = UnixStream::pair()?;
                let theirs = OwnedFd::from(theirs);
                let child = command.stdin(theirs.try_clone()?).stdout(theirs).spawn()?;
                let ours = OwnedFd::from(ours);
                let line = Line::Stream {
                    to: Some(ours.try_clone()?.into()),
                    from: ours.into(),
                };
                (child, line)
            }
        };
        let mut talk = Self {
            child,
            polled: matches!(task.way, Way::Polling | Way::PubSub),
            line,
            values: Values::new(task.there),
            answer: Buffer::new(task.back),
        };
        talk.once()?;
        talk.once()?;
        talk.signal(Signal::SIGSTOP)?;
        Ok(talk)
    }

    /// Nanoseconds of one of `times`.
    fn exchange(&mut self, times: u64) -> Result<f64> {
        self.signal(Signal::SIGCONT)?;
        self.once()?;
        let start = Instant::now();
        for _ in 0..times {
            self.once()?;
        }
        let took = start.elapsed();
        self.signal(Signal::SIGSTOP)?;
        Ok(took.as_nanos() as f64 / times as f64)
    }

    /// Who polls is stopped between its turns: it would take the core from whose turn it is.
    fn signal(&self, signal: Signal) -> Result<()> {
        if self.polled {
            kill(Pid::from_raw(self.child.id() as i32), signal)?;
        }
        Ok(())
    }

    fn once(&mut self) -> Result<()> {
        self.line.say(&mut self.values)?;
        self.line.hear(&mut self.answer)?;
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        match &mut self.line {
            Line::Segments { to, .. } => to.seal()?,
            // End of file, of both directions of a socket too.
            Line::Stream { to, from } => {
                *to = None;
                let _ = nix::sys::socket::shutdown(
                    std::os::fd::AsRawFd::as_raw_fd(from),
                    nix::sys::socket::Shutdown::Write,
                );
            }
            Line::Ported { .. } => {
                self.child.kill()?;
                self.child.wait()?;
                return Ok(());
            }
        }
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("who answers ended with {status}").into())
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready(child: &mut Child) -> Result<()> {
    let output = child.stdout.as_mut().ok_or("no pipe")?;
    let mut word = [0; 6];
    output.read_exact(&mut word)?;
    Ok(())
}

fn widened(fd: OwnedFd) -> File {
    // Refused: it stays as wide as it is.
    let _ = nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_ROOM));
    fd.into()
}

impl Line {
    fn say(&mut self, values: &mut Values) -> Result<()> {
        match self {
            Self::Segments { to, .. } => {
                to.write(values.next())?;
            }
            Self::Stream { to: Some(to), .. } => to.write_all(values.next())?,
            Self::Stream { to: None, .. } => return Err("it is closed".into()),
            Self::Ported { to, .. } => to.write(values, 1)?,
        }
        Ok(())
    }

    /// False at the end of the conversation.
    fn hear(&mut self, into: &mut [u8]) -> Result<bool> {
        match self {
            Self::Segments {
                from, sleep, seen, ..
            } => {
                if *sleep {
                    match from.wait_changed(*seen, None) {
                        Ok(_) => {}
                        Err(snakepit_shm::ShmError::Sealed { .. }) => return Ok(false),
                        Err(other) => return Err(other.into()),
                    }
                } else {
                    let mut spins = 0_u32;
                    while from.version() == *seen {
                        spins += 1;
                        if spins.is_multiple_of(1 << 16) && from.is_sealed() {
                            return Ok(false);
                        }
                        std::hint::spin_loop();
                    }
                }
                *seen = from.read_into(into)?.version;
            }
            Self::Stream { from, .. } => match from.read_exact(into) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(other) => return Err(other.into()),
            },
            Self::Ported { from, .. } => {
                while from.read(1)? == 0 {
                    std::hint::spin_loop();
                }
            }
        }
        Ok(true)
    }
}

/// The one who answers: hears a value, says one of its own.
///
/// # Errors
/// What keeps it from that.
pub fn echo(arguments: &[String]) -> Result<()> {
    let task: Task = serde_json::from_str(arguments.first().ok_or("a task is missing")?)?;
    pin::to(task.cpu)?;
    let mut heard = Buffer::new(task.there);
    let mut values = Values::new(task.back);
    let mut line = match task.way {
        Way::Sleeping | Way::Polling => {
            let to = segment(&task, "back", task.back)?.create()?;
            let from = segment(&task, "there", task.there)?.attach_reader()?;
            Line::Segments {
                to,
                from,
                sleep: task.way == Way::Sleeping,
                seen: 0,
            }
        }
        Way::PubSub => Line::Ported {
            to: port::writer(&service(&task, "back", task.back))?,
            from: port::reader(&service(&task, "there", task.there))?,
        },
        Way::Pipe | Way::Socket => Line::Stream {
            to: Some(std::io::stdout().as_fd().try_clone_to_owned()?.into()),
            from: std::io::stdin().as_fd().try_clone_to_owned()?.into(),
        },
    };
    if !matches!(line, Line::Stream { .. }) {
        std::io::stdout().write_all(b"ready\n")?;
        std::io::stdout().flush()?;
    }
    if matches!(line, Line::Ported { .. }) {
        // Polling hears nothing of the end; whoever started it ends it, and if that died, the pipe says so.
        std::thread::spawn(|| {
            let _ = std::io::stdin().lock().read(&mut [0]);
            std::thread::sleep(Duration::from_millis(1));
            std::process::exit(0);
        });
    }
    while line.hear(&mut heard)? {
        line.say(&mut values)?;
    }
    Ok(())
}

//! What the integration tests share: a directory of their own, and peers in other processes.

#![allow(dead_code)] // each test file uses a part

use snakepit_shm::{Pool, SegmentOptions, SegmentWriter};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A directory on the memory file system, removed at the end; a test that leaves a file in it fails.
pub struct Shm(tempfile::TempDir);

impl Shm {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("shm-test-")
            .tempdir_in("/dev/shm")
            .unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn options(&self, name: &str) -> SegmentOptions {
        options(self.path(), name)
    }

    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Files of segments, their metadata aside.
    pub fn segment_files(&self) -> Vec<String> {
        let of_segment = |f: &String| !f.ends_with(".meta") && !f.ends_with(".participants");
        self.files().into_iter().filter(of_segment).collect()
    }

    /// Files that pools keep.
    pub fn pool_files(&self) -> Vec<String> {
        let of_pool = |f: &String| f.starts_with("test.pool.");
        self.files().into_iter().filter(of_pool).collect()
    }

    /// The segment's own file.
    pub fn segment_file(&self, name: &str) -> PathBuf {
        let suffix = format!("_{name}_");
        let file = self
            .files()
            .into_iter()
            .find(|f| f.contains(&suffix) && !f.ends_with(".meta"))
            .expect("segment file");
        self.path().join(file)
    }

    /// Forgets what a test leaves on purpose.
    pub fn clear(&self) {
        for file in self.files() {
            std::fs::remove_file(self.path().join(file)).unwrap();
        }
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // What was dropped rather than closed is removed in the background.
        let started = Instant::now();
        while !self.files().is_empty() && started.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
        if self.files() == ["test.participants"] {
            // On a busy machine a process that leaves may not wait for the namespace any longer, and
            // leaves the table to whoever looks next.
            drop(snakepit_shm::join("test", self.path()));
        }
        assert_eq!(self.files(), Vec::<String>::new(), "left behind");
    }
}

/// A segment of the tests' namespace in a directory.
pub fn options(dir: &Path, name: &str) -> SegmentOptions {
    SegmentOptions::new(name).namespace("test").dir(dir)
}

/// One that is written once, as what is shared is.
pub fn once(dir: &Path, name: &str, size: usize) -> SegmentOptions {
    options(dir, name).size(size).slots(1)
}

/// A segment of a pool, full of one byte.
pub fn fill(pool: &Pool, options: &SegmentOptions, byte: u8) -> SegmentWriter {
    let mut writer = pool.create(options).unwrap();
    writer.write(&vec![byte; writer.capacity()]).unwrap();
    writer
}

/// Waits for a condition, generously.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::yield_now();
    }
}

const ROLE: &str = "SNAKEPIT_SHM_TEST_ROLE";

/// A part that a peer can play: its name, and what it does in the test's directory.
pub type Role = (&'static str, fn(&Path));

/// In a test function that peers run as: does the peer's work and ends the process, if this is one.
pub fn play(roles: &[Role]) {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (role, dir) = role.split_once(':').unwrap();
    let (_, work) = roles.iter().find(|(name, _)| *name == role).unwrap();
    work(Path::new(dir));
    std::process::exit(0);
}

/// Another process of this test binary.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `role`, which `entry` (a test function) plays.
    pub fn start(entry: &str, role: &str, shm: &Shm) -> Self {
        Self::start_by(&[], entry, role, shm)
    }

    /// [`Self::start`] by way of a command that sets something up first (`unshare`, `prlimit`).
    pub fn start_by(by: &[&str], entry: &str, role: &str, shm: &Shm) -> Self {
        Self::start_program(&std::env::current_exe().unwrap(), by, entry, role, shm)
    }

    /// [`Self::start_by`] of a copy of this program that lies elsewhere.
    pub fn start_program(this: &Path, by: &[&str], entry: &str, role: &str, shm: &Shm) -> Self {
        let mut command = match by.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(this);
                command
            }
            None => Command::new(this),
        };
        let mut child = command
            .args([entry, "--exact", "--nocapture", "--quiet"])
            .env(ROLE, format!("{role}:{}", shm.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for a line that the peer says with [`say`].
    #[track_caller]
    pub fn expect(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "peer ended before it said {word}");
            if let Some(rest) = line.trim_end().strip_prefix(&format!("peer:{word}")) {
                return rest.trim_start().to_owned();
            }
        }
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// SIGKILL, and until it is gone.
    pub fn kill(mut self) {
        let _ = self.child.kill(); // it may be dead already
        self.child.wait().unwrap();
    }

    /// Lets it end by itself.
    #[track_caller]
    pub fn finish(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }
}

/// A peer tells its test something.
pub fn say(word: &str) {
    println!("peer:{word}");
    std::io::stdout().flush().unwrap();
}

/// A peer waits for a line of its test, or for its test to end.
pub fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A value of `len` bytes that shows its counter everywhere, so that any tear is seen.
pub fn pattern(counter: u64, bytes: &mut [u8]) {
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = counter ^ (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let n = chunk.len();
        chunk.copy_from_slice(&word.to_le_bytes()[..n]);
    }
}

/// The counter of a whole value; `None` for a torn one.
pub fn counter_of(bytes: &[u8]) -> Option<u64> {
    let counter = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let mut expected = vec![0; bytes.len()];
    pattern(counter, &mut expected);
    (expected == bytes).then_some(counter)
}

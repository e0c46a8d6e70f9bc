//! How the other process is told what to do: the receiving end.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use crate::Result;

/// A word from the bench.
enum Word {
    Go,
    Pause,
    Stop,
}

/// Hears the bench's words. [`Self::going`] is cheap to ask in a hot loop.
pub struct Control {
    going: Arc<AtomicBool>,
    words: mpsc::Receiver<Word>,
}

/// Starts listening to standard input. The end of it counts as `stop`.
pub fn listen() -> Control {
    let going = Arc::new(AtomicBool::new(false));
    let (sender, words) = mpsc::channel();
    let shared = Arc::clone(&going);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let word = match line.as_deref() {
                Ok("go") => Word::Go,
                Ok("pause") => Word::Pause,
                _ => break,
            };
            shared.store(matches!(word, Word::Go), Ordering::Relaxed);
            if sender.send(word).is_err() {
                return;
            }
        }
        shared.store(false, Ordering::Relaxed);
        // Fails only when the worker has ended by itself.
        let _ = sender.send(Word::Stop);
    });
    Control { going, words }
}

impl Control {
    /// Whether to go on working.
    #[inline]
    pub fn going(&self) -> bool {
        self.going.load(Ordering::Relaxed)
    }

    /// Says `ready`, then calls `work` after every `go`; `work` returns soon
    /// after [`Self::going`] turns false. Comes back after `stop` with the
    /// seconds that were spent in `work`.
    pub fn obey(&self, mut work: impl FnMut(&Self) -> Result<()>) -> Result<f64> {
        answer("ready")?;
        let mut seconds = 0.0;
        loop {
            match self.words.recv()? {
                Word::Go => {
                    answer("going")?;
                    let start = Instant::now();
                    work(self)?;
                    seconds += start.elapsed().as_secs_f64();
                }
                Word::Pause => answer("paused")?,
                Word::Stop => return Ok(seconds),
            }
        }
    }
}

/// Writes one line to the bench.
pub fn answer(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush().map_err(Into::into)
}

//! Rust's processes of the chaos harness. What each does is drawn from a seed; what came of it goes to
//! stdout, to be judged by the orchestrator, for these processes are killed.
//!
//! ```text
//! chaos-peer peer     NAMESPACE DIR UID SEED PAUSE_US      a writer and reader of many segments
//! chaos-peer overseer NAMESPACE DIR GRACE_MS               a reaper, and what can be seen from outside
//! chaos-peer cleaner  NAMESPACE DIR ROUNDS GRACE_MS PURGE  cleans up, and says what it removed
//! chaos-peer victim   NAMESPACE DIR NAME read|write        uses a segment that is going to be damaged
//! ```
//!
//! All but the cleaner end when stdin does.

#![forbid(unsafe_code)]

mod cleaner;
mod overseer;
mod peer;
mod record;
mod seeded;
mod value;
mod victim;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the segments are.
#[derive(Clone)]
pub struct Place {
    namespace: String,
    dir: String,
}

impl Place {
    fn options(&self, name: &str) -> snakepit_shm::SegmentOptions {
        snakepit_shm::SegmentOptions::new(name)
            .namespace(&self.namespace)
            .dir(&self.dir)
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let place = Place {
        namespace: args[1].clone(),
        dir: args[2].clone(),
    };
    let number = |at: usize| args[at].parse::<u64>().expect("a number");
    match args[0].as_str() {
        "peer" => peer::run(
            place,
            number(3) as u32,
            number(4),
            number(5),
            &until_stdin(),
        ),
        "overseer" => overseer::run(&place, number(3), &until_stdin()),
        "cleaner" => cleaner::run(&place, number(3), number(4), args[5] == "purge"),
        "victim" => victim::run(&place, &args[3], args[4] == "write", &until_stdin()),
        role => panic!("no role {role}"),
    }
}

/// Set when stdin ends: the orchestrator asks for an end, or has died.
fn until_stdin() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    std::thread::spawn(move || {
        let mut end = [0; 1];
        while matches!(std::io::stdin().read(&mut end), Ok(n) if n > 0) {}
        set.store(true, Ordering::SeqCst);
    });
    stop
}

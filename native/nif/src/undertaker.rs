//! Ends what must not end where the BEAM collects garbage.
//!
//! A destructor runs on a normal scheduler, which may neither join a thread nor wait for a lock. What
//! needs that is closed by an explicit call on a dirty scheduler; when its holder was killed before
//! it could call, the destructor hands it to the one thread here.

use std::any::Any;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use snakepit_shm::{Resource, ShmError};

use crate::error::Answer;

type Remains = Box<dyn Any + Send>;

static UNDERTAKER: OnceLock<Mutex<Sender<Remains>>> = OnceLock::new();

/// Starts the thread unless it runs: to be called before there is anything that it may have to end.
pub fn ready() -> Answer<()> {
    if UNDERTAKER.get().is_some() {
        return Ok(());
    }
    let (sender, remains) = mpsc::channel::<Remains>();
    thread::Builder::new()
        .name("shm-undertaker".to_owned())
        .spawn(move || remains.iter().for_each(drop))
        .map_err(|_| ShmError::ResourceExhausted {
            name: None,
            resource: Resource::Threads,
            needed: 1,
            available: None,
        })?;
    // Somebody else was first: without its sender our thread ends.
    let _ = UNDERTAKER.set(Mutex::new(sender));
    Ok(())
}

/// Drops `value` on the thread. It is never dropped here: without the thread, it is leaked.
pub fn bury(value: impl Any + Send) {
    let remains: Remains = Box::new(value);
    let unburied = match UNDERTAKER.get() {
        Some(sender) => {
            let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
            sender.send(remains).err().map(|refused| refused.0)
        }
        None => Some(remains),
    };
    std::mem::forget(unburied);
}

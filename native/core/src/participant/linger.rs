//! Registrations that outlast their last user for a while.
//!
//! To join a namespace takes several times as long as to attach to a segment of it: the table's file is opened
//! and locked, and leftovers are swept. A worker that looks at one value a request, and at nothing in between,
//! would do that each time.

use super::Participant;
use crate::name::Place;
use crate::platform::background;
use crate::platform::fork::PerProcess;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A registration that nobody attached with for so long is given back with its last user.
const IDLE: Duration = Duration::from_secs(5);

static WANTED: AtomicBool = AtomicBool::new(false);
static LINGERING: PerProcess<Mutex<Lingering>> = PerProcess::new();

#[derive(Default)]
struct Lingering {
    list: Vec<(Arc<Participant>, Instant)>,
    /// Whether the background will look for what is old.
    watched: bool,
}

/// From now on this process stays registered in a namespace for some seconds after it attached to a segment of a
/// pool there, used or not: whoever attaches again and again registers once. In the end it has to say that it goes
/// ([`Pool::drain_shared`](crate::Pool::drain_shared)), or the namespace's table is left to whoever leaves next.
pub fn linger() {
    // Relaxed: nothing depends on when it is seen.
    WANTED.store(true, Ordering::Relaxed);
}

/// It was attached with just now.
pub(crate) fn used(participant: &Arc<Participant>) {
    if !WANTED.load(Ordering::Relaxed) {
        return;
    }
    let now = Instant::now();
    let mut lingering = lock();
    let known = lingering
        .list
        .iter_mut()
        .find(|(known, _)| Arc::ptr_eq(known, participant));
    match known {
        Some((_, since)) => *since = now,
        None => {
            if !lingering.watched {
                lingering.watched = background::run_after(IDLE, expire);
            }
            // Else nobody would take it out.
            if lingering.watched {
                lingering.list.push((participant.clone(), now));
            }
        }
    }
}

/// Gives all back that nobody uses.
pub(crate) fn forget() {
    let list = std::mem::take(&mut lock().list);
    drop(list); // not under the lock: files are looked at
}

/// [`forget`] of one namespace.
pub(crate) fn forget_in(place: &Place) {
    let mut lingering = lock();
    let (out, rest) = std::mem::take(&mut lingering.list)
        .into_iter()
        .partition::<Vec<_>, _>(|(participant, _)| participant.place == *place);
    lingering.list = rest;
    drop(lingering);
    drop(out);
}

fn expire() {
    let now = Instant::now();
    let mut lingering = lock();
    let (old, young) = std::mem::take(&mut lingering.list)
        .into_iter()
        .partition::<Vec<_>, _>(|(_, since)| now.duration_since(*since) >= IDLE);
    let next = young.iter().map(|(_, since)| *since + IDLE).min();
    lingering.list = young;
    lingering.watched =
        next.is_some_and(|next| background::run_after(next.saturating_duration_since(now), expire));
    drop(lingering);
    drop(old);
}

fn lock() -> MutexGuard<'static, Lingering> {
    let lingering = LINGERING.get().lock();
    lingering.unwrap_or_else(PoisonError::into_inner)
}

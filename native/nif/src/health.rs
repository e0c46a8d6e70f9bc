//! What a health check asks: both cheap, the second may touch a file system.

use rustler::{Atom, NifMap};
use snakepit_shm::GuardState;

use crate::atoms;
use crate::error::Answer;

/// Whether a fault in a mapping would reach the guard first.
#[rustler::nif]
fn guard_state() -> Atom {
    match snakepit_shm::guard_state() {
        GuardState::NotInstalled => atoms::not_installed(),
        GuardState::InFront => atoms::in_front(),
        GuardState::Covered => atoms::covered(),
    }
}

/// Room on a file system, in bytes.
#[derive(NifMap)]
struct Space {
    total: u64,
    available: u64,
}

#[rustler::nif(schedule = "DirtyIo")]
fn space(dir: String) -> Answer<Space> {
    let space = snakepit_shm::space(dir)?;
    Ok(Space {
        total: space.total,
        available: space.available,
    })
}

//! What a call answers when it fails: one small encoder.

use std::panic::RefUnwindSafe;

use rustler::{Atom, Encoder, Env, Term};
use snakepit_shm::ShmError;

use crate::atoms;

/// Why a call gave no result; encodes as the second element of `{:error, _}`.
pub enum Failure {
    /// Refused by the core: `{code, message, segment | nil, remedy}`.
    Shm(ShmError),
    /// Another process of this VM has the exclusive right to write the segment of this name.
    Held(String),
    /// Another OS process has the writer's place of the segment of this name.
    Lent(String),
    /// Each call is told to others: call the function without `_quick`, from where that is done.
    Traced,
    /// Too much for a normal scheduler, or a lock is held: call the `_dirty` twin.
    Dirty,
}

// An error is only read while it is encoded; a panic in between leaves nothing half-changed.
impl RefUnwindSafe for Failure {}

/// Result of every NIF that can fail.
pub type Answer<T> = Result<T, Failure>;

impl From<ShmError> for Failure {
    fn from(error: ShmError) -> Self {
        Self::Shm(error)
    }
}

impl Encoder for Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Self::Dirty => atoms::dirty().encode(env),
            Self::Traced => atoms::traced().encode(env),
            Self::Held(name) => {
                let message = format!(
                    "segment busy: another process of this VM has the right to write {name}"
                );
                let remedy = "wait for the right by with_writer/3; its holder's death frees it";
                (atoms::segment_busy(), message, name, remedy).encode(env)
            }
            Self::Lent(name) => {
                let message = format!("segment busy: {name} is lent to another OS process");
                let remedy =
                    "wait until that one has filled it, or take it back by take_back_region/2";
                (atoms::segment_busy(), message, name, remedy).encode(env)
            }
            Self::Shm(error) => {
                let message = error.to_string();
                (code(env, error), message, error.segment(), error.remedy()).encode(env)
            }
        }
    }
}

/// The error's code as an atom. The codes are the core's own constants, a small fixed set.
pub fn code(env: Env<'_>, error: &ShmError) -> Atom {
    Atom::from_str(env, error.code()).unwrap_or_else(|_| rustler::types::atom::error())
}

/// The codes that the core can answer with, so that Elixir can be checked against them.
#[rustler::nif]
fn error_codes() -> Vec<&'static str> {
    ShmError::CODES.to_vec()
}

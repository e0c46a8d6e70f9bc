//! The NIF library behind `Snakepit.SharedMemory.Native`: thin, without policy.
//!
//! Each function turns terms into arguments of the `snakepit-shm` crate and its results into
//! terms. What a region is, who owns it and when it goes is decided in Elixir.
//!
//! **Schedulers.** A call that may take more than a millisecond has two names: the plain one runs
//! on a normal scheduler and answers `{:error, :dirty}` when the work turns out too large or a
//! lock is held, and the caller then calls the `_dirty` twin. Work on files is dirty always.
//!
//! **Panics.** None is reachable from an argument; rustler would turn one into an `ErlangError`,
//! never into the end of the virtual machine (`panic = "abort"` is set in no profile).
#![forbid(unsafe_code)]

mod atoms;
mod batch;
mod buffer;
mod capabilities;
mod cleanup;
mod error;
mod filling;
mod handle;
mod health;
mod listing;
mod membership;
mod order;
mod pool;
mod reader;
mod reaper;
mod resources;
mod segment;
mod tally;
mod terms;
mod undertaker;
mod waiter;
mod writer;

rustler::init!("Elixir.Snakepit.SharedMemory.Native");

//! One file per operating system behind one private set of functions (DESIGN 11).
//!
//! Everything that is not portable is here: unnamed files and their publication, page reservation,
//! futexes, clocks, byte locks that the kernel drops with their holder, fork notice, memory policy.
//! The functions are safe; the unsafe calls are inside.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(not(target_os = "linux"))]
compile_error!("snakepit-shm runs on Linux; other systems need a file in src/platform/");

pub(crate) mod background;
pub(crate) mod barrier;
pub(crate) mod fork;
pub(crate) mod guard;
pub(crate) mod numa;
pub(crate) mod pages;
pub(crate) mod populate;
pub(crate) mod smaps;
pub(crate) mod waitv;
pub(crate) mod watch;

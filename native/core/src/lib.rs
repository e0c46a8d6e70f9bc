//! Named pieces of shared memory with one writer and many lock-free readers in other processes.
//!
//! A **segment** lives in a memory file system (`/dev/shm`) and is found by name. Its writer publishes
//! whole values; readers copy the last one, or wait for the next, without ever disturbing the writer.
//! Once sealed it is read in place. A value that was published survives its writer: with two or more
//! slots, a writer killed in the middle of a write hides nothing.
//!
//! ```
//! use snakepit_shm::{attach_reader, create_segment};
//! # let name = format!("crate-docs-{}", std::process::id());
//! # let name = name.as_str();
//!
//! let mut writer = create_segment(name, 4096)?;
//! writer.write(b"21.5 C")?;
//!
//! let mut reader = attach_reader(name)?; // in another process, as a rule
//! assert_eq!(reader.read()?, b"21.5 C");
//!
//! reader.close()?;
//! writer.close()?;
//! # Ok::<(), snakepit_shm::ShmError>(())
//! ```
//!
//! [`SegmentOptions`] names everything that can be chosen. The chapters: [`docs::format`],
//! [`docs::protocol`], [`docs::limitations`].
//!
//! # Layers
//!
//! Each module uses only those to its left: `error, sync, layout` → `copy, seqlock, hazard` → `platform` →
//! `mapping, capabilities` → `name, participant` → `pages` → `segment, reclaim` → `writer, reader` →
//! `discovery, lifecycle, page_report` → `monitor` → `lib`. Unsafe code
//! is in `mapping`, `copy` and `platform` alone.

#![deny(unsafe_code)]

mod error;
#[cfg_attr(loom, allow(dead_code))]
mod hazard;
#[cfg_attr(loom, allow(dead_code))]
mod home;
#[cfg_attr(loom, allow(dead_code))]
pub mod layout;
mod seqlock;
mod sync;
#[cfg_attr(loom, allow(dead_code))]
mod tenure;

// Loom runs the protocol alone; what follows touches real memory and real files.
#[cfg(not(loom))]
mod capabilities;
#[cfg(not(loom))]
#[allow(unsafe_code)]
mod copy;
#[cfg(not(loom))]
mod descriptor;
#[cfg(not(loom))]
mod discovery;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
mod health;
#[cfg(not(loom))]
mod inspect;
#[cfg(not(loom))]
mod lifecycle;
#[cfg(not(loom))]
mod loan;
#[cfg(not(loom))]
#[allow(unsafe_code)]
mod mapping;
#[cfg(not(loom))]
mod meta;
#[cfg(not(loom))]
mod monitor;
#[cfg(not(loom))]
mod name;
#[cfg(not(loom))]
mod options;
#[cfg(not(loom))]
mod order;
#[cfg(not(loom))]
mod page_report;
#[cfg(not(loom))]
mod pages;
#[cfg(not(loom))]
mod participant;
#[cfg(not(loom))]
mod patch;
#[cfg(not(loom))]
#[allow(unsafe_code)]
mod platform;
#[cfg(not(loom))]
mod pool;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod reclaim;
#[cfg(not(loom))]
mod retired;
#[cfg(not(loom))]
mod segment;
#[cfg(not(loom))]
mod value;
#[cfg(not(loom))]
mod view;
#[cfg(not(loom))]
mod writer;

pub use error::{Resource, Result, ShmError};
pub use layout::{
    DEFAULT_MAX_READERS, MAX_CAPACITY, MAX_READERS, MAX_SLOTS, MIN_CAPACITY, SegmentState,
    version_parts,
};

#[cfg(not(loom))]
mod api;
#[cfg(not(loom))]
pub use api::*;

#[cfg(all(feature = "measure", not(loom)))]
#[doc(hidden)]
pub use copy::{Measured, measured as measured_copies};

/// The chapters of the documentation.
pub mod docs {
    #[doc = include_str!("../../../docs/format.md")]
    pub mod format {}
    #[doc = include_str!("../../../docs/limitations.md")]
    pub mod limitations {}
    #[doc = include_str!("../../../docs/protocol.md")]
    pub mod protocol {}
}

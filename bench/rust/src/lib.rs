//! Tools of the benches: everything that two of them share.
//!
//! A *figure* is one measured number beside its yardstick. The benches only
//! produce figures ([`figure`]); what DESIGN 9 asks of them is written down
//! once, in `bench/targets.json`, and judged by [`report`].
//!
//! Method, the same everywhere: ours and the yardstick run alternately in
//! short batches within one sample, so that whatever disturbs the machine
//! disturbs both; every sample gives one ratio and the median of those
//! ratios is reported. The yardstick `memcpy` is the C library's: a
//! `copy_from_slice` whose length the optimiser cannot see is a call to it.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod figure;
pub mod hop;
pub mod lifecycle;
pub mod pace;
pub mod pages;
pub mod pair;
pub mod peer;
pub mod pin;
pub mod pinned;
pub mod report;
pub mod scale;
pub mod segment;
pub mod torn;
pub mod value;

/// What any part of the benches can fail with: the message is for a person.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of anything that can fail here.
pub type Result<T> = std::result::Result<T, Error>;

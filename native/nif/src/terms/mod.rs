//! Conversions between Erlang terms and the core's types.

pub mod cleanup;
pub mod descriptor;
pub mod iodata;
pub mod json;
pub mod options;
pub mod report;

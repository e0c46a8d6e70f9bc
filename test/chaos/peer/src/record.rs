//! Records of 64 bytes: what a peer is about to do and what came of it. `chaos/records.py` reads them.
//!
//! Each is written by one system call before or after the step that it tells of, so that what a killed
//! peer may have done is known: it had said that it was about to.

use nix::time::{ClockId, clock_gettime};
use snakepit_shm::ShmError;
use std::io::Write;

/// Kinds of records; the same numbers in `chaos/records.py` and `elixir/record.exs`.
#[derive(Clone, Copy)]
#[repr(u16)]
pub enum Kind {
    Intent = 1,
    Published = 2,
    Read = 3,
    ClaimBegin = 4,
    Claimed = 5,
    GiveBegin = 6,
    Given = 7,
    AttachBegin = 8,
    Attached = 9,
    DetachBegin = 10,
    Detached = 11,
    SealBegin = 12,
    Sealed = 13,
    Error = 14,
    Bad = 15,
    Waited = 16,
}

/// Steps, for `Kind::Error`.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Step {
    Create = 1,
    Claim = 2,
    Write = 3,
    Read = 4,
    Wait = 5,
    Attach = 6,
    Give = 7,
    Detach = 8,
    Seal = 9,
    Look = 10,
}

/// `ShmError::code` by number.
pub const CODES: [&str; 24] = [
    "already_exists",
    "not_found",
    "invalid_name",
    "invalid_size",
    "invalid_option",
    "invalid_handle",
    "version_conflict",
    "torn",
    "empty",
    "permission_denied",
    "resource_exhausted",
    "deadline_violation",
    "io",
    "segment_busy",
    "out_of_bounds",
    "corrupted",
    "truncated",
    "sealed",
    "not_sealed",
    "schema_mismatch",
    "stale",
    "timeout",
    "closed",
    "unsupported",
];

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of the machine share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// One record; fields that a kind has no use for are 0.
#[derive(Clone, Copy, Default)]
pub struct Record {
    pub seg: u32,
    pub len: u32,
    pub t0: u64,
    pub t1: u64,
    pub tag: u64,
    pub version: u64,
    pub aux: u64,
    pub crc: u32,
}

/// Where the records of this peer go.
pub struct Log {
    uid: u32,
    out: std::fs::File,
}

impl Log {
    pub fn new(uid: u32) -> Self {
        let out = std::fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/fd/1")
            .expect("stdout");
        Self { uid, out }
    }

    pub fn put(&mut self, kind: Kind, record: Record) {
        self.write(kind, 0, record);
    }

    pub fn error(&mut self, step: Step, error: &ShmError, record: Record) {
        let code = CODES.iter().position(|code| *code == error.code());
        let code = code.map_or(u16::MAX, |at| at as u16);
        if !matches!(code, 0 | 1 | 8 | 13 | 17 | 21 | 22 | 19) {
            eprintln!("peer {} step {}: {error}", self.uid, step as u64);
        }
        let aux = step as u64;
        self.write(Kind::Error, code, Record { aux, ..record });
    }

    fn write(&mut self, kind: Kind, code: u16, record: Record) {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&(kind as u16).to_le_bytes());
        bytes.extend_from_slice(&code.to_le_bytes());
        for word in [self.uid, record.seg, record.len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let t1 = if record.t1 == 0 { now() } else { record.t1 };
        for word in [record.t0, t1, record.tag, record.version, record.aux] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&record.crc.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        // Nobody listens any more: the orchestrator has ended, so this peer ends too.
        if self.out.write_all(&bytes).is_err() {
            std::process::exit(0);
        }
    }
}

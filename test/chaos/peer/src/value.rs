//! Values that say of themselves whether they are whole, and the segments that hold them.
//!
//! A value is a row of 64-bit words: magic, tag of the segment's incarnation, version of the last whole
//! write, writer, noise. All words together add up to 0, also after a patch, which chooses its last word
//! so. A mixture of two values does not. The same in `value.py`.

use crate::seeded::Seeded;
use snakepit_shm::{Integrity, SegmentOptions};

pub const MAGIC: u64 = 0x5341_4843_5641_4C31;
pub const HEAD: usize = 4;
/// Ordinary segments, whose names anybody may create.
pub const SEGMENTS: usize = 12;

/// Names that are prefixes of one another.
pub fn name(seg: usize) -> String {
    if seg.is_multiple_of(2) {
        format!("s-{}", seg / 2)
    } else {
        format!("s-{}_data", seg / 2)
    }
}

pub fn capacity(seg: usize) -> usize {
    [4096, 16_384, 65_536, 262_144, 1 << 20][seg % 5]
}

pub fn shaped(options: SegmentOptions, seg: usize) -> SegmentOptions {
    let integrity = if seg.is_multiple_of(3) {
        Integrity::Crc32c
    } else {
        Integrity::None
    };
    options
        .size(capacity(seg))
        .slots(1 + seg % 4)
        .integrity(integrity)
}

/// A whole value of some length.
pub fn whole(rng: &mut Seeded, seg: usize, tag: u64, version: u64, uid: u32) -> Vec<u8> {
    let longest = capacity(seg) / 8;
    let words = HEAD + 2 + rng.below(longest - HEAD - 1);
    let mut value = Vec::with_capacity(words * 8);
    let mut sum = 0u64;
    let head = [MAGIC, tag, version, u64::from(uid) << 32 | seg as u64];
    for at in 0..words {
        let word = match at {
            at if at < HEAD => head[at],
            at if at == words - 1 => 0u64.wrapping_sub(sum),
            _ => rng.next(),
        };
        sum = sum.wrapping_add(word);
        value.extend_from_slice(&word.to_le_bytes());
    }
    value
}

/// A patch for `value`: where, and what; `value` is changed as the segment is going to be.
pub fn patch(rng: &mut Seeded, seg: usize, value: &mut Vec<u8>) -> (usize, Vec<u8>) {
    let room = capacity(seg) / 8;
    let offset = HEAD + rng.below(room - HEAD - 2);
    let words = 2 + rng.below((room - offset - 1).min(512));
    let old = value.get(offset * 8..).unwrap_or_default();
    let covered = &old[..old.len().min(words * 8)];
    let mut left = sum(covered);
    let mut data = Vec::with_capacity(words * 8);
    for at in 0..words {
        let word = if at == words - 1 { left } else { rng.next() };
        left = left.wrapping_sub(word);
        data.extend_from_slice(&word.to_le_bytes());
    }
    let end = (offset + words) * 8;
    if value.len() < end {
        value.resize(end, 0);
    }
    value[offset * 8..end].copy_from_slice(&data);
    (offset * 8, data)
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0u64, |sum, word| {
        sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap_or_default()))
    })
}

/// What is wrong with a value; 0 = nothing.
pub fn fault(value: &[u8], seg: usize, tag: u64) -> u64 {
    let word = |at: usize| {
        let bytes = value.get(at * 8..at * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if !value.len().is_multiple_of(8) || word(HEAD).is_none() {
        1
    } else if word(0) != Some(MAGIC) {
        2
    } else if word(1) != Some(tag) {
        3
    } else if word(3).is_none_or(|w| w & 0xFFFF_FFFF != seg as u64) {
        4
    } else if sum(value) != 0 {
        5
    } else {
        0
    }
}

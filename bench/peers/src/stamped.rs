//! Values that give away a tear and cost their writer two stores.
//!
//! The first and the last word are the value's number; the words between follow from the number modulo [`KINDS`], so
//! that a writer copies from one of a few buffers that were filled beforehand and only stamps it. Two values that
//! follow each other, or that follow each other in the same one of 2 or 4 slots, differ in every word.

use snakepit_shm_bench::buffer::Buffer;

/// Odd, and no multiple of a usual number of slots.
pub const KINDS: usize = 3;
const WORD: usize = 8;
const PER_KIND: u64 = 0xD6E8_FEB8_6659_FD93;
const PER_PLACE: u64 = 0x9E37_79B9_7F4A_7C15;

/// The values of one writer.
pub struct Values {
    buffers: Vec<Buffer>,
    count: u64,
}

impl Values {
    /// Values of `size` bytes, a multiple of 8. From 100 MiB up there is one buffer only, and a tear shows in
    /// the last word alone.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let kinds = if size >= 100 << 20 { 1 } else { KINDS };
        let buffers = (0..kinds)
            .map(|kind| {
                let mut buffer = Buffer::new(size);
                for (i, word) in buffer.chunks_exact_mut(WORD).enumerate() {
                    word.copy_from_slice(&expected(kind, i).to_le_bytes());
                }
                buffer
            })
            .collect();
        Self { buffers, count: 0 }
    }

    /// The next value.
    #[inline]
    pub fn next(&mut self) -> &[u8] {
        self.count += 1;
        let kinds = self.buffers.len();
        let buffer = &mut self.buffers[self.count as usize % kinds];
        stamp(buffer, self.count);
        &self.buffers[self.count as usize % kinds]
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Writes `count` into the first and the last word.
#[inline]
pub fn stamp(value: &mut [u8], count: u64) {
    let end = value.len();
    value[..WORD].copy_from_slice(&count.to_le_bytes());
    value[end - WORD..].copy_from_slice(&count.to_le_bytes());
}

/// The value's number by its first and by its last word.
#[inline]
#[must_use]
pub fn ends(value: &[u8]) -> (u64, u64) {
    (word(&value[..WORD]), word(&value[value.len() - WORD..]))
}

/// The value's number, if it is whole. With `in_place` the middle was not written and is not looked at.
#[must_use]
pub fn check(value: &[u8], in_place: bool) -> Option<u64> {
    let (first, last) = ends(value);
    if first != last {
        return None;
    }
    if in_place || value.len() <= 2 * WORD || value.len() >= 100 << 20 {
        return Some(first);
    }
    let kind = first as usize % KINDS;
    let mut wrong = 0;
    let middle = &value[WORD..value.len() - WORD];
    let mut wanted = expected(kind, 1);
    for part in middle.chunks_exact(WORD) {
        wrong |= word(part) ^ wanted;
        wanted = wanted.wrapping_add(PER_PLACE);
    }
    (wrong == 0).then_some(first)
}

fn expected(kind: usize, place: usize) -> u64 {
    (kind as u64)
        .wrapping_mul(PER_KIND)
        .wrapping_add((place as u64).wrapping_mul(PER_PLACE))
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_values_pass_and_count() {
        for size in [8, 16, 64, 4096] {
            let mut values = Values::new(size);
            for n in 1..=7 {
                assert_eq!(check(values.next(), false), Some(n), "{size}");
            }
        }
    }

    #[test]
    fn a_mixture_of_two_that_meet_in_a_slot_is_found_wherever_it_is() {
        for apart in [1, 2, 4] {
            let mut values = Values::new(256);
            let old = values.next().to_vec();
            let mut new = old.clone();
            for _ in 0..apart {
                new = values.next().to_vec();
            }
            for at in 0..32 {
                let mut torn = new.clone();
                torn[at * WORD..][..WORD].copy_from_slice(&old[at * WORD..][..WORD]);
                assert_eq!(check(&torn, false), None, "{apart} apart, word {at}");
            }
        }
    }
}

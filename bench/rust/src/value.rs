//! Values that give away any tear.
//!
//! Every word of a value, its length, its description and its version follow
//! from one counter. Two values differ in every word, and a word of one place
//! differs from that of every other place, so a mixture of two values, a part
//! left out, a part at the wrong place or an answer with the wrong version
//! cannot pass.

use snakepit_shm::{Descriptor, Result};

/// Bytes of a word.
const WORD: usize = 8;
/// Both odd, so that neither product repeats within 2^64 counters or places.
const PER_COUNTER: u64 = 0xD6E8_FEB8_6659_FD93;
const PER_PLACE: u64 = 0x9E37_79B9_7F4A_7C15;
/// How many different lengths, each with its description, there are.
const LENGTHS: usize = 4;

/// The length in bytes of value number `counter` in a segment of `size`
/// bytes: now and then a little shorter, so that a length of one value with
/// the bytes of another one is seen too. `size` is a multiple of 8, at least
/// 64.
#[must_use]
pub fn len(counter: u64, size: usize) -> usize {
    size - WORD * class(counter)
}

/// The descriptions of the values of a segment of `size` bytes: that of value
/// number `counter` is [`description`].
///
/// # Errors
/// None for a size that [`len`] takes.
pub fn descriptions(size: usize) -> Result<[Descriptor; LENGTHS]> {
    let bytes = |counter| len(counter, size) as u64;
    Ok([
        Descriptor::RAW,
        Descriptor::numpy("|u1", &[bytes(1)])?,
        Descriptor::RAW,
        Descriptor::numpy("<u8", &[1, bytes(3) / WORD as u64])?,
    ])
}

/// That of value number `counter` among the [`descriptions`].
#[must_use]
pub fn description(descriptions: &[Descriptor; LENGTHS], counter: u64) -> &Descriptor {
    &descriptions[class(counter)]
}

fn class(counter: u64) -> usize {
    (counter % LENGTHS as u64) as usize
}

/// Fills `value` (a multiple of 8 bytes) with value number `counter`.
pub fn fill(value: &mut [u8], counter: u64) {
    let mut expected = counter.wrapping_mul(PER_COUNTER);
    for word in value.chunks_exact_mut(WORD) {
        word.copy_from_slice(&expected.to_le_bytes());
        expected = expected.wrapping_add(PER_PLACE);
    }
}

/// Whether every word of `value` is that of value number `counter`; otherwise
/// the index of the first word that is not. Looks at all of them: it is a
/// loop without branches, which keeps the reader fast.
///
/// # Errors
/// The index of the first wrong word.
pub fn check(value: &[u8], counter: u64) -> Result<(), usize> {
    let mut expected = counter.wrapping_mul(PER_COUNTER);
    let mut wrong = 0;
    for word in value.chunks_exact(WORD) {
        wrong |= from_le(word) ^ expected;
        expected = expected.wrapping_add(PER_PLACE);
    }
    let tail = value.chunks_exact(WORD).remainder();
    if wrong == 0 && tail.is_empty() {
        Ok(())
    } else {
        Err(first_wrong(value, counter))
    }
}

#[cold]
fn first_wrong(value: &[u8], counter: u64) -> usize {
    let first = counter.wrapping_mul(PER_COUNTER);
    let place = |i: usize| first.wrapping_add((i as u64).wrapping_mul(PER_PLACE));
    let words = value.chunks_exact(WORD);
    words
        .clone()
        .enumerate()
        .position(|(i, word)| from_le(word) != place(i))
        .unwrap_or(words.len())
}

fn from_le(word: &[u8]) -> u64 {
    word.iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(counter: u64, size: usize) -> Vec<u8> {
        let mut value = vec![0; len(counter, size)];
        fill(&mut value, counter);
        value
    }

    #[test]
    fn whole_values_pass() {
        for counter in [1, 2, 3, 4, 77, u64::MAX] {
            assert_eq!(check(&value(counter, 4096), counter), Ok(()));
        }
    }

    #[test]
    fn a_single_wrong_word_is_found_wherever_it_is() {
        for place in 0..512 {
            let mut torn = value(8, 4096);
            let next = value(12, 4096);
            torn[place * WORD..][..WORD].copy_from_slice(&next[place * WORD..][..WORD]);
            assert_eq!(check(&torn, 8), Err(place));
        }
    }

    #[test]
    fn a_single_wrong_byte_is_found_wherever_it_is() {
        for at in 0..64 {
            let mut torn = value(8, 64);
            torn[at] ^= 1;
            assert_eq!(check(&torn, 8), Err(at / WORD));
        }
    }

    #[test]
    fn another_value_a_shifted_one_and_an_uneven_one_are_found() {
        let whole = value(8, 4096);
        assert_eq!(check(&whole, 12), Err(0));
        assert_eq!(check(&whole[WORD..], 8), Err(0));
        assert_eq!(check(&whole[..20], 8), Err(2));
    }

    #[test]
    fn lengths_vary_and_fit() {
        let lengths: std::collections::BTreeSet<_> = (0..100).map(|c| len(c, 64)).collect();
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [40, 48, 56, 64]);
    }

    #[test]
    fn descriptions_fit_their_lengths() {
        for size in [64, 4096] {
            let all = descriptions(size).unwrap();
            for counter in 0..8 {
                let described = description(&all, counter).byte_len();
                assert_eq!(described.unwrap_or(len(counter, size)), len(counter, size));
            }
            assert_eq!(all.iter().filter(|d| d.byte_len().is_some()).count(), 2);
        }
    }
}

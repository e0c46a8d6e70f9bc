//! The copy that is not a data race.
//!
//! A reader may copy a slot while the writer of another process overwrites it; the seqlock then
//! throws the copy away. Plain `memcpy` on such memory is undefined behaviour however the result is
//! used, and a loop of relaxed atomic words costs more than twice a `memcpy`. So the bytes are moved
//! by inline assembly: to the compiler an opaque operation that reads and writes memory, with the
//! meaning of relaxed atomic accesses of unspecified size (P1478 proposes the same for C++ as
//! `atomic_load_per_byte_memcpy`). Other targets, loom and Miri use the relaxed-atomic loop of
//! [`fallback`].
//!
//! Ordering is not the copy's business: the fences around it are in [`crate::seqlock`].

mod fallback;

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod aarch64;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

#[cfg(all(target_arch = "aarch64", not(miri)))]
use aarch64::copy as machine_copy;
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
use fallback::copy as machine_copy;
#[cfg(any(miri, not(target_arch = "x86_64")))]
use fallback::six_words as machine_six_words;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use x86_64::{copy as machine_copy, six_words as machine_six_words};

/// Copies `len` bytes, either side of which may lie in shared memory that other processes read or
/// write at the same time.
///
/// # Safety
///
/// `src` must be readable and `dst` writable for `len` bytes, the two must not overlap, and no
/// Rust reference may exist to bytes of `dst`, or to bytes of `src` that another thread of this
/// process writes.
#[inline(always)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise is the machine copy's.
    unsafe { machine_copy(dst, src, len) }
}

/// Loads six words of shared memory; each is loaded whole, as by a relaxed atomic load.
///
/// # Safety
///
/// `src` must be readable for 48 bytes, and aligned to 16.
#[inline]
pub(crate) unsafe fn six_words(src: *const u8) -> [u64; 6] {
    // SAFETY: the caller's promise.
    unsafe { machine_six_words(src) }
}

/// A way to copy, to be measured.
#[cfg(feature = "measure")]
pub type Measured = fn(&mut [u8], &[u8]);

/// The ways to copy that this processor has, by name, and `copy`, which chooses among them; each for two
/// slices of one length of at least 64. To be measured, not to be used.
#[cfg(feature = "measure")]
pub fn measured() -> Vec<(&'static str, Measured)> {
    fn chosen(to: &mut [u8], from: &[u8]) {
        assert_eq!(to.len(), from.len());
        // SAFETY: private memory of that length, apart.
        unsafe { copy(to.as_mut_ptr(), from.as_ptr(), from.len()) }
    }
    let mut all: Vec<(&'static str, Measured)> = vec![("copy", chosen)];
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    all.extend(x86_64::measured());
    all
}

/// Zeroes `len` bytes of shared memory; cannot be optimised away.
///
/// # Safety
///
/// As for [`copy`], for `dst`.
pub(crate) unsafe fn zero(dst: *mut u8, len: usize) {
    static ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZEROS.len());
        // SAFETY: done + n <= len, so the target is inside the caller's range.
        let to = unsafe { dst.add(done) };
        // SAFETY: ZEROS has n bytes and is private.
        unsafe { copy(to, ZEROS.as_ptr(), n) };
        done += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Copy = unsafe fn(*mut u8, *const u8, usize);

    fn check(copy: Copy, len: usize, from: usize, to: usize) {
        let source: Vec<u8> = (0..len + from)
            .map(|i| (i.wrapping_mul(31) >> 3) as u8)
            .collect();
        let mut target = vec![0xA5u8; len + to + 64];
        // SAFETY: source has from + len bytes.
        let src = unsafe { source.as_ptr().add(from) };
        // SAFETY: target has to + len + 64 bytes.
        let dst = unsafe { target.as_mut_ptr().add(to) };
        // SAFETY: both are private, large enough and apart.
        unsafe { copy(dst, src, len) };
        assert!(target[..to].iter().all(|b| *b == 0xA5), "wrote before");
        assert_eq!(&target[to..to + len], &source[from..], "{len} {from} {to}");
        assert!(target[to + len..].iter().all(|b| *b == 0xA5), "wrote after");
    }

    #[test]
    fn every_short_length_and_alignment() {
        for len in 0..=if cfg!(miri) { 80 } else { 700 } {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (3, 5), (8, 8), (15, 16)] {
                check(copy, len, from, to);
                check(fallback::copy, len, from, to);
            }
        }
    }

    #[test]
    fn around_every_threshold() {
        for edge in [
            256,
            1024,
            2048,
            4096,
            8192,
            32_768,
            65_536,
            131_072,
            1 << 20,
        ] {
            for len in edge - 3..=edge + 3 {
                check(copy, len, 0, 0);
                check(copy, len, 7, 9);
            }
        }
    }

    #[test]
    fn six_words_are_those_that_are_there() {
        #[repr(align(16))]
        struct Line([u64; 8]);
        let line = Line(std::array::from_fn(|i| {
            (i as u64 + 1).wrapping_mul(0x0123_4567_89AB_CDEF)
        }));
        // SAFETY: words 2 to 7 of a line that is aligned and private.
        let at = unsafe { line.0.as_ptr().add(2) }.cast::<u8>();
        for load in [six_words, fallback::six_words] {
            // SAFETY: as above.
            assert_eq!(unsafe { load(at) }, line.0[2..]);
        }
    }

    #[test]
    fn zero_reaches_exactly_its_range() {
        let mut bytes = vec![1u8; 10_000];
        // SAFETY: 1 + 9000 bytes lie inside the private vector.
        let at = unsafe { bytes.as_mut_ptr().add(1) };
        // SAFETY: as above.
        unsafe { zero(at, 9000) };
        assert_eq!(bytes[0], 1);
        assert!(bytes[1..9001].iter().all(|b| *b == 0));
        assert!(bytes[9001..].iter().all(|b| *b == 1));
    }

    proptest! {
        #[test]
        fn any_length_and_alignment(len in 0usize..200_000, from in 0usize..64, to in 0usize..64) {
            check(copy, len, from, to);
        }
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        /// The loops that this machine's processor does not get are right too.
        #[test]
        fn each_x86_loop(len in 65usize..20_000, from in 0usize..64, to in 0usize..64) {
            for copy in x86_64::loops() {
                check(copy, len, from, to);
            }
        }
    }
}

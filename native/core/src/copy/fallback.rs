//! Relaxed atomics, for targets without assembly of ours, and for Miri.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// See [`super::copy`].
///
/// # Safety
///
/// As for [`super::copy`].
#[cfg_attr(
    all(
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(miri),
        not(test)
    ),
    allow(dead_code)
)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    let mut done = 0;
    if (dst as usize) % 8 == (src as usize) % 8 {
        let head = dst.align_offset(8).min(len);
        while done < head {
            // SAFETY: done < len.
            unsafe { byte(dst, src, done) };
            done += 1;
        }
        while len - done >= 8 {
            // SAFETY: 8 bytes from done on lie inside both ranges, and both are aligned there.
            unsafe { word(dst, src, done) };
            done += 8;
        }
    }
    while done < len {
        // SAFETY: done < len.
        unsafe { byte(dst, src, done) };
        done += 1;
    }
}

/// See [`super::six_words`].
///
/// # Safety
///
/// As for [`super::six_words`].
#[cfg_attr(all(target_arch = "x86_64", not(miri), not(test)), allow(dead_code))]
pub(crate) unsafe fn six_words(src: *const u8) -> [u64; 6] {
    std::array::from_fn(|i| {
        // SAFETY: one of six words from `src` on.
        let at = unsafe { src.add(8 * i) }.cast_mut().cast::<u64>();
        // SAFETY: aligned and valid; only loaded from.
        unsafe { AtomicU64::from_ptr(at) }.load(Relaxed)
    })
}

/// # Safety
///
/// `at` lies inside both ranges.
#[inline]
unsafe fn byte(dst: *mut u8, src: *const u8, at: usize) {
    // SAFETY: inside the range by contract.
    let from = unsafe { src.add(at) }.cast_mut();
    // SAFETY: inside the range by contract.
    let to = unsafe { dst.add(at) };
    // SAFETY: valid for atomic access of one byte; only loaded from.
    let value = unsafe { AtomicU8::from_ptr(from) }.load(Relaxed);
    // SAFETY: valid for atomic access of one byte.
    unsafe { AtomicU8::from_ptr(to) }.store(value, Relaxed);
}

/// # Safety
///
/// Eight bytes from `at` on lie inside both ranges and are aligned to eight in both.
#[inline]
unsafe fn word(dst: *mut u8, src: *const u8, at: usize) {
    // SAFETY: inside the range by contract.
    let from = unsafe { src.add(at) }.cast_mut().cast::<u64>();
    // SAFETY: inside the range by contract.
    let to = unsafe { dst.add(at) }.cast::<u64>();
    // SAFETY: aligned and valid; only loaded from.
    let value = unsafe { AtomicU64::from_ptr(from) }.load(Relaxed);
    // SAFETY: aligned and valid.
    unsafe { AtomicU64::from_ptr(to) }.store(value, Relaxed);
}

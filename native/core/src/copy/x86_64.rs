//! x86-64: overlapping loads up to 64 bytes, a vector loop above, `rep movsb` for large blocks
//! (`docs/performance-copy.md`).

use std::arch::asm;
use std::arch::x86_64::__m128i;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Length from which `rep movsb` takes over where the processor has ERMS. Measured beside the
/// vector loops: even at 64 KiB, 15-20 % faster from 1 MiB on (no read-for-ownership of the target).
const REP_MOVSB_FROM: usize = 64 * 1024;

const UNKNOWN: u8 = 0;
const SSE2: u8 = 1;
const AVX2: u8 = 2;
const AVX512: u8 = 3;
const ERMS: u8 = 0x80;

/// What the processor can do, asked once.
static LEVEL: AtomicU8 = AtomicU8::new(UNKNOWN);

#[cold]
fn detect() -> u8 {
    let mut level = if std::arch::is_x86_feature_detected!("avx512f") {
        AVX512
    } else if std::arch::is_x86_feature_detected!("avx2") {
        AVX2
    } else {
        SSE2
    };
    if std::arch::is_x86_feature_detected!("ermsb") {
        level |= ERMS;
    }
    LEVEL.store(level, Relaxed);
    level
}

/// See [`super::copy`].
///
/// # Safety
///
/// As for [`super::copy`].
#[inline(always)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    if len <= 64 {
        // SAFETY: the caller's promise, and the length.
        unsafe { short(dst, src, len) }
    } else {
        // SAFETY: the caller's promise, and the length.
        unsafe { long(dst, src, len) }
    }
}

/// See [`super::six_words`]: in three registers, where the words would take six.
///
/// # Safety
///
/// As for [`super::six_words`].
#[inline]
pub(crate) unsafe fn six_words(src: *const u8) -> [u64; 6] {
    let (a, b, c): (__m128i, __m128i, __m128i);
    // SAFETY: reads 48 bytes from `src` on. An aligned load of 16 bytes splits no aligned word.
    unsafe {
        asm!(
            "movaps {a}, [{s}]", "movaps {b}, [{s} + 16]", "movaps {c}, [{s} + 32]",
            s = in(reg) src, a = out(xmm_reg) a, b = out(xmm_reg) b, c = out(xmm_reg) c,
            options(nostack, preserves_flags, pure, readonly)
        );
    }
    // SAFETY: any bits are words.
    unsafe { std::mem::transmute([a, b, c]) }
}

/// # Safety
///
/// As for [`super::copy`]; `len > 64`.
#[inline(never)]
unsafe fn long(dst: *mut u8, src: *const u8, len: usize) {
    let level = match LEVEL.load(Relaxed) {
        UNKNOWN => detect(),
        level => level,
    };
    if len >= REP_MOVSB_FROM && level & ERMS != 0 {
        // SAFETY: the caller's promise.
        unsafe { rep_movsb(dst, src, len) }
    } else {
        match level & !ERMS {
            // SAFETY: the processor has AVX-512F; len > 64.
            AVX512 => unsafe { avx512(dst, src, len) },
            // SAFETY: the processor has AVX2; len > 64.
            AVX2 => unsafe { avx2(dst, src, len) },
            // SAFETY: every x86-64 processor has SSE2; len > 64.
            _ => unsafe { sse2(dst, src, len) },
        }
    }
}

/// Two overlapping accesses of each power of two.
///
/// # Safety
///
/// As for [`super::copy`]; `len <= 64`.
#[inline(always)]
unsafe fn short(dst: *mut u8, src: *const u8, len: usize) {
    match len {
        // SAFETY: every access lies between the first and the last of `len` bytes.
        33..=64 => unsafe {
            asm!(
                "movups {a}, [{s}]", "movups {b}, [{s} + 16]",
                "movups {c}, [{s} + {n} - 32]", "movups {d}, [{s} + {n} - 16]",
                "movups [{t}], {a}", "movups [{t} + 16], {b}",
                "movups [{t} + {n} - 32], {c}", "movups [{t} + {n} - 16], {d}",
                s = in(reg) src, t = in(reg) dst, n = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        },
        // SAFETY: every access lies between the first and the last of `len` bytes.
        16..=32 => unsafe {
            asm!(
                "movups {a}, [{s}]", "movups {b}, [{s} + {n} - 16]",
                "movups [{t}], {a}", "movups [{t} + {n} - 16], {b}",
                s = in(reg) src, t = in(reg) dst, n = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        },
        // SAFETY: every access lies between the first and the last of `len` bytes.
        8..=15 => unsafe {
            asm!(
                "mov {a}, [{s}]", "mov {b}, [{s} + {n} - 8]",
                "mov [{t}], {a}", "mov [{t} + {n} - 8], {b}",
                s = in(reg) src, t = in(reg) dst, n = in(reg) len,
                a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        },
        // SAFETY: every access lies between the first and the last of `len` bytes.
        4..=7 => unsafe {
            asm!(
                "mov {a:e}, [{s}]", "mov {b:e}, [{s} + {n} - 4]",
                "mov [{t}], {a:e}", "mov [{t} + {n} - 4], {b:e}",
                s = in(reg) src, t = in(reg) dst, n = in(reg) len,
                a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        },
        // SAFETY: every access lies between the first and the last of `len` bytes.
        1..=3 => unsafe {
            // First, middle and last byte cover one, two and three.
            asm!(
                "mov {a}, byte ptr [{s}]", "mov {b}, byte ptr [{s} + {h}]",
                "mov {c}, byte ptr [{s} + {n} - 1]",
                "mov byte ptr [{t}], {a}", "mov byte ptr [{t} + {h}], {b}",
                "mov byte ptr [{t} + {n} - 1], {c}",
                s = in(reg) src, t = in(reg) dst, n = in(reg) len, h = in(reg) len / 2,
                a = out(reg_byte) _, b = out(reg_byte) _, c = out(reg_byte) _,
                options(nostack, preserves_flags)
            );
        },
        _ => {}
    }
}

/// # Safety
///
/// As for [`super::copy`].
unsafe fn rep_movsb(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: moves exactly `len` bytes; the direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags)
        );
    }
}

/// A vector that starts at the first byte, then, where the target is aligned, a loop over four vectors, single vectors,
/// and one that ends with the last byte. The target decides: a store that crosses a cache line costs more than a load
/// that does, and binaries and byte strings start in the middle of one.
macro_rules! vector_loop {
    ($name:ident, $width:literal, $load:literal, $aligned:literal, $reg:literal, $after:literal) => {
        /// # Safety
        ///
        /// As for [`super::copy`]; `len >= 64`, and the processor has the instructions.
        unsafe fn $name(dst: *mut u8, src: *const u8, len: usize) {
            // The first vector reaches beyond the next boundary, or just up to it.
            let head = $width - (dst as usize & ($width - 1));
            // SAFETY: every access lies between the first and the last of `len` bytes: head <= width <= 64
            // <= len, and the last vector starts `width` before the end, which is not before the start.
            // The xmm clobbers stand for the whole of the wider registers.
            unsafe {
                asm!(
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!($load, " [{t}], ", $reg, "0"),
                    "add {s}, {h}", "add {t}, {h}", "sub {n}, {h}",
                    concat!("sub {n}, 4*", $width), "jb 3f",
                    ".p2align 4",
                    "2:",
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!($load, " ", $reg, "1, [{s} + ", $width, "]"),
                    concat!($load, " ", $reg, "2, [{s} + 2*", $width, "]"),
                    concat!($load, " ", $reg, "3, [{s} + 3*", $width, "]"),
                    concat!("add {s}, 4*", $width),
                    concat!($aligned, " [{t}], ", $reg, "0"),
                    concat!($aligned, " [{t} + ", $width, "], ", $reg, "1"),
                    concat!($aligned, " [{t} + 2*", $width, "], ", $reg, "2"),
                    concat!($aligned, " [{t} + 3*", $width, "], ", $reg, "3"),
                    concat!("add {t}, 4*", $width),
                    concat!("sub {n}, 4*", $width), "jae 2b",
                    "3:",
                    concat!("add {n}, 3*", $width), "jnc 4f",
                    "5:",
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!("add {s}, ", $width),
                    concat!($aligned, " [{t}], ", $reg, "0"),
                    concat!("add {t}, ", $width),
                    concat!("sub {n}, ", $width), "jae 5b",
                    "4:",
                    concat!($load, " ", $reg, "0, [{s} + {n}]"),
                    concat!($load, " [{t} + {n}], ", $reg, "0"),
                    $after,
                    s = inout(reg) src => _, t = inout(reg) dst => _, n = inout(reg) len => _,
                    h = in(reg) head,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    options(nostack)
                );
            }
        }
    };
}

vector_loop!(avx512, 64, "vmovups", "vmovaps", "zmm", "vzeroupper");
vector_loop!(avx2, 32, "vmovups", "vmovaps", "ymm", "vzeroupper");
vector_loop!(sse2, 16, "movups", "movaps", "xmm", "");

/// The loop over AVX2 or AVX-512 vectors with stores that go past the caches. They must not be seen after
/// what follows, which `sfence` sees to: the seqlock's fences say nothing about such stores.
#[cfg(any(test, feature = "measure"))]
macro_rules! streaming_loop {
    ($name:ident, $width:literal, $load:literal, $stream:literal, $reg:literal) => {
        /// # Safety
        ///
        /// As for [`super::copy`]; `len >= 64`, and the processor has the instructions.
        unsafe fn $name(dst: *mut u8, src: *const u8, len: usize) {
            let head = $width - (dst as usize & ($width - 1));
            // SAFETY: as for the loops above.
            unsafe {
                asm!(
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!($load, " [{t}], ", $reg, "0"),
                    "add {s}, {h}", "add {t}, {h}", "sub {n}, {h}",
                    concat!("sub {n}, 4*", $width), "jb 3f",
                    ".p2align 4",
                    "2:",
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!($load, " ", $reg, "1, [{s} + ", $width, "]"),
                    concat!($load, " ", $reg, "2, [{s} + 2*", $width, "]"),
                    concat!($load, " ", $reg, "3, [{s} + 3*", $width, "]"),
                    concat!("add {s}, 4*", $width),
                    concat!($stream, " [{t}], ", $reg, "0"),
                    concat!($stream, " [{t} + ", $width, "], ", $reg, "1"),
                    concat!($stream, " [{t} + 2*", $width, "], ", $reg, "2"),
                    concat!($stream, " [{t} + 3*", $width, "], ", $reg, "3"),
                    concat!("add {t}, 4*", $width),
                    concat!("sub {n}, 4*", $width), "jae 2b",
                    "3:",
                    concat!("add {n}, 3*", $width), "jnc 4f",
                    "5:",
                    concat!($load, " ", $reg, "0, [{s}]"),
                    concat!("add {s}, ", $width),
                    concat!($load, " [{t}], ", $reg, "0"),
                    concat!("add {t}, ", $width),
                    concat!("sub {n}, ", $width), "jae 5b",
                    "4:",
                    concat!($load, " ", $reg, "0, [{s} + {n}]"),
                    concat!($load, " [{t} + {n}], ", $reg, "0"),
                    "sfence",
                    "vzeroupper",
                    s = inout(reg) src => _, t = inout(reg) dst => _, n = inout(reg) len => _,
                    h = in(reg) head,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    options(nostack)
                );
            }
        }
    };
}

#[cfg(any(test, feature = "measure"))]
streaming_loop!(avx512_streaming, 64, "vmovups", "vmovntps", "zmm");
#[cfg(any(test, feature = "measure"))]
streaming_loop!(avx2_streaming, 32, "vmovups", "vmovntps", "ymm");

#[cfg(any(test, feature = "measure"))]
type Loop = unsafe fn(*mut u8, *const u8, usize);

/// Every loop that this processor can run, by name.
#[cfg(any(test, feature = "measure"))]
fn named() -> Vec<(&'static str, Loop)> {
    let mut all: Vec<(&'static str, Loop)> = vec![("sse2", sse2), ("rep_movsb", rep_movsb)];
    let level = detect() & !ERMS;
    if level >= AVX2 {
        all.extend([("avx2", avx2 as Loop), ("avx2_streaming", avx2_streaming)]);
    }
    if level >= AVX512 {
        all.extend([
            ("avx512", avx512 as Loop),
            ("avx512_streaming", avx512_streaming),
        ]);
    }
    all
}

/// The same for the tests.
#[cfg(test)]
pub(super) fn loops() -> Vec<Loop> {
    named().into_iter().map(|(_, copy)| copy).collect()
}

/// The same for `bench/`.
#[cfg(feature = "measure")]
pub(super) fn measured() -> Vec<(&'static str, super::Measured)> {
    macro_rules! safely {
        ($name:ident) => {{
            fn run(to: &mut [u8], from: &[u8]) {
                assert!(to.len() == from.len() && to.len() >= 64);
                // SAFETY: private memory of that length, apart; only those of `named` are used.
                unsafe { $name(to.as_mut_ptr(), from.as_ptr(), from.len()) }
            }
            (stringify!($name), run as super::Measured)
        }};
    }
    let all = [
        safely!(sse2),
        safely!(rep_movsb),
        safely!(avx2),
        safely!(avx2_streaming),
        safely!(avx512),
        safely!(avx512_streaming),
    ];
    let has = |name| named().iter().any(|(known, _)| *known == name);
    all.into_iter().filter(|(name, _)| has(*name)).collect()
}

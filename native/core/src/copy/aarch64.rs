//! AArch64: overlapping loads up to 64 bytes, then a loop of pairs of 128-bit registers.

use std::arch::asm;

/// See [`super::copy`].
///
/// # Safety
///
/// As for [`super::copy`].
#[inline]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    match len {
        0 => {}
        // SAFETY: the caller's promise, and the length.
        1..=15 => unsafe { bytes(dst, src, len) },
        // SAFETY: as above.
        16..=63 => unsafe { quads(dst, src, len) },
        // SAFETY: as above.
        _ => unsafe { pairs(dst, src, len) },
    }
}

/// # Safety
///
/// As for [`super::copy`]; `1 <= len <= 15`.
unsafe fn bytes(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: exactly `len` bytes are read and written.
    unsafe {
        asm!(
            "2:",
            "ldrb {a:w}, [{s}], #1",
            "strb {a:w}, [{t}], #1",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            s = inout(reg) src => _, t = inout(reg) dst => _, n = inout(reg) len => _,
            a = out(reg) _,
            options(nostack)
        );
    }
}

/// # Safety
///
/// As for [`super::copy`]; `len >= 16`.
unsafe fn quads(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: whole quads while 16 remain, then one that ends with the last byte and starts no
    // earlier than the first, since len >= 16.
    unsafe {
        asm!(
            "2:",
            "cmp {n}, #16",
            "b.lo 3f",
            "ldr {a:q}, [{s}], #16",
            "str {a:q}, [{t}], #16",
            "sub {n}, {n}, #16",
            "b 2b",
            "3:",
            "sub {n}, {n}, #16",
            "ldr {a:q}, [{s}, {n}]",
            "str {a:q}, [{t}, {n}]",
            s = inout(reg) src => _, t = inout(reg) dst => _, n = inout(reg) len => _,
            a = out(vreg) _,
            options(nostack)
        );
    }
}

/// # Safety
///
/// As for [`super::copy`]; `len >= 64`.
unsafe fn pairs(dst: *mut u8, src: *const u8, len: usize) {
    let body = len & !63;
    // SAFETY: `body` is a multiple of 64 and not larger than `len`.
    unsafe {
        asm!(
            "2:",
            "ldp {a:q}, {b:q}, [{s}]",
            "ldp {c:q}, {d:q}, [{s}, #32]",
            "add {s}, {s}, #64",
            "stp {a:q}, {b:q}, [{t}]",
            "stp {c:q}, {d:q}, [{t}, #32]",
            "add {t}, {t}, #64",
            "subs {n}, {n}, #64",
            "b.ne 2b",
            s = inout(reg) src => _, t = inout(reg) dst => _, n = inout(reg) body => _,
            a = out(vreg) _, b = out(vreg) _, c = out(vreg) _, d = out(vreg) _,
            options(nostack)
        );
    }
    if body < len {
        // SAFETY: the last 16 bytes of the range, and up to 48 before them, are inside it.
        let from = unsafe { src.add(body) };
        // SAFETY: as above.
        let to = unsafe { dst.add(body) };
        match len - body {
            // SAFETY: 1..=15 bytes remain.
            rest @ 1..=15 => unsafe { bytes(to, from, rest) },
            // SAFETY: 16..=63 bytes remain.
            rest => unsafe { quads(to, from, rest) },
        }
    }
}

//! Values whose size is part of their type, as some peers ask for.

/// As many words. (iceoryx2 0.10 calls a service with values on cache lines of their own corrupted.)
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Block<const WORDS: usize>(pub [u64; WORDS]);

/// Eight bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Word(pub u64);

/// A value that is nothing but its bytes.
///
/// # Safety
/// No padding, and every pattern of bits is a value.
pub unsafe trait Plain: Copy + 'static {
    /// Its bytes.
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the implementer has no padding, so all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// Writes them all.
    ///
    /// # Safety
    /// `to` is valid for writes of a `Self`, and nobody else uses it meanwhile.
    #[inline]
    unsafe fn fill(to: *mut Self, value: &[u8]) {
        assert_eq!(value.len(), size_of::<Self>());
        // SAFETY: as long as the value, by the assertion; valid by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to.cast(), value.len()) }
    }
}

// SAFETY: as long as its words wherever it is used, which `exact` asserts: no padding.
unsafe impl<const WORDS: usize> Plain for Block<WORDS> {}
// SAFETY: one integer.
unsafe impl Plain for Word {}

const fn exact<const WORDS: usize>() {
    assert!(size_of::<Block<WORDS>>() == 8 * WORDS);
}
const _: () = {
    exact::<8>();
    exact::<{ 1 << 7 }>();
    exact::<{ 4 << 7 }>();
    exact::<{ 64 << 7 }>();
    exact::<{ 1 << 17 }>();
    exact::<{ 16 << 17 }>();
};

/// Evaluates an expression with `T` the type of so many bytes.
macro_rules! by_type {
    ($size:expr, $t:ident => $then:expr) => {
        match $size {
            65_536 => { type $t = $crate::sized::Block<8_192>; $then }
            1_048_576 => { type $t = $crate::sized::Block<131_072>; $then }
            16_777_216 => { type $t = $crate::sized::Block<2_097_152>; $then }
            small => $crate::sized::by_small_type!(small, $t => $then),
        }
    };
}

/// The same for at most 4 KiB.
macro_rules! by_small_type {
    ($size:expr, $t:ident => $then:expr) => {
        match $size {
            8 => {
                type $t = $crate::sized::Word;
                $then
            }
            64 => {
                type $t = $crate::sized::Block<8>;
                $then
            }
            1_024 => {
                type $t = $crate::sized::Block<128>;
                $then
            }
            4_096 => {
                type $t = $crate::sized::Block<512>;
                $then
            }
            other => Err(format!("no type of {other} bytes").into()),
        }
    };
}

/// Evaluates an expression with `N` the number of bytes.
macro_rules! by_len {
    ($size:expr, $n:ident => $then:expr) => {
        match $size {
            8 => {
                const $n: usize = 8;
                $then
            }
            64 => {
                const $n: usize = 64;
                $then
            }
            1_024 => {
                const $n: usize = 1_024;
                $then
            }
            4_096 => {
                const $n: usize = 4_096;
                $then
            }
            65_536 => {
                const $n: usize = 65_536;
                $then
            }
            1_048_576 => {
                const $n: usize = 1_048_576;
                $then
            }
            16_777_216 => {
                const $n: usize = 16_777_216;
                $then
            }
            104_857_600 => {
                const $n: usize = 104_857_600;
                $then
            }
            1_073_741_824 => {
                const $n: usize = 1_073_741_824;
                $then
            }
            other => Err(format!("no array of {other} bytes").into()),
        }
    };
}

pub(crate) use {by_len, by_small_type, by_type};

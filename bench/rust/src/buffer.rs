//! Page-aligned heap buffers and the `memcpy` yardstick over them.

use std::hint::black_box;
use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// A heap buffer that starts on a page, as the slots of a segment do from
/// 64 KiB up, so that neither side of a comparison has the better alignment.
/// Every byte was written once: its pages are there before the clock starts.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes, the same bytes for the same length in every
    /// process, with neighbours and pages that differ from one another.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut bytes = vec![0; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        for (i, byte) in bytes[start..start + len].iter_mut().enumerate() {
            *byte = (i * 31 + i / PAGE) as u8;
        }
        Self { bytes, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The yardstick: the C library's `memcpy` between warm, private buffers.
pub struct Memcpy {
    from: Buffer,
    to: Vec<Buffer>,
    next: usize,
}

impl Memcpy {
    /// Copies of `len` bytes, always into the same buffer.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self::rotating(len, 1)
    }

    /// Copies of `len` bytes into `count` buffers in turn: the memory
    /// traffic of a writer that rotates through as many slots.
    #[must_use]
    pub fn rotating(len: usize, count: usize) -> Self {
        Self {
            from: Buffer::new(len),
            to: (0..count.max(1)).map(|_| Buffer::new(len)).collect(),
            next: 0,
        }
    }

    /// Copies `iterations` times.
    #[inline(never)]
    pub fn run(&mut self, iterations: u64) {
        if self.to.len() == 1 {
            let (from, to) = (&*self.from, &mut *self.to[0]);
            for _ in 0..iterations {
                copy(from, to);
            }
        } else {
            for _ in 0..iterations {
                copy(&self.from, &mut self.to[self.next]);
                self.next = (self.next + 1) % self.to.len();
            }
        }
    }

    /// Whether every destination holds the source's bytes, as it must after
    /// as many copies as there are destinations.
    #[must_use]
    pub fn copied(&self) -> bool {
        self.to.iter().all(|to| **to == *self.from)
    }
}

#[inline(always)]
fn copy(from: &[u8], to: &mut [u8]) {
    // The hidden length makes this a call of memcpy; the hidden buffers make
    // the call's result needed.
    let len = black_box(from.len());
    black_box(&mut to[..len]).copy_from_slice(black_box(&from[..len]));
    black_box(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_page_and_keep_their_length() {
        for len in [64, 4096, 70_000] {
            let buffer = Buffer::new(len);
            assert_eq!(buffer.as_ptr() as usize % PAGE, 0);
            assert_eq!(buffer.len(), len);
        }
    }

    #[test]
    fn every_destination_is_reached() {
        let mut yardstick = Memcpy::rotating(4096, 4);
        for to in &mut yardstick.to {
            to.fill(0);
        }
        yardstick.run(3);
        assert!(!yardstick.copied());
        yardstick.run(1);
        assert!(yardstick.copied());
    }
}

//! iodata as a list of slices: large binaries are pointed at, never flattened.

use std::ops::Range;

use rustler::{Binary, Term};

/// Pieces up to this many bytes are gathered: pointing at each would cost more than copying it.
const GATHER: usize = 64;

/// How much work a walk may do.
#[derive(Clone, Copy)]
pub struct Budget {
    /// List cells visited at most.
    pub cells: usize,
    /// Bytes found at most.
    pub bytes: usize,
}

impl Budget {
    /// Well under a millisecond: 4,096 list cells, 256 KiB.
    pub const NORMAL: Self = Self {
        cells: 4096,
        bytes: 256 * 1024,
    };
    /// A second or so. A list may hold the same list many times over, so a small term can stand for
    /// more cells than anybody could ever walk.
    pub const DIRTY: Self = Self {
        cells: 1 << 26,
        bytes: usize::MAX,
    };

    /// Whether this is the budget of a dirty scheduler, where waiting is allowed, too.
    pub fn dirty(self) -> bool {
        self.bytes == usize::MAX
    }
}

/// Why a term could not be walked.
pub enum Refusal {
    /// It is not iodata: a bitstring, an integer above 255, an atom, an improper tail that is not a binary, …
    NotIodata,
    /// It is more than the budget allows.
    OverBudget,
    /// It is longer than what it is for; how much had been found by then.
    TooLong(usize),
}

enum Piece<'a> {
    Borrowed(&'a [u8]),
    Gathered(Range<usize>),
}

/// The bytes of an iodata term, in order.
pub struct Fragments<'a> {
    pieces: Vec<Piece<'a>>,
    gathered: Vec<u8>,
    len: usize,
    cells: usize,
}

impl<'a> Fragments<'a> {
    /// Walks `term` within `budget`, and no further than `capacity` bytes.
    ///
    /// Nesting of any depth is walked with a stack on the heap, so a hostile term costs memory in
    /// proportion to its own size and never the thread's stack.
    pub fn collect(term: Term<'a>, capacity: usize, budget: Budget) -> Result<Self, Refusal> {
        let mut found = Self {
            pieces: Vec::new(),
            gathered: Vec::new(),
            len: 0,
            cells: 0,
        };
        let mut cells = budget.cells;
        let mut tails = vec![term];
        while let Some(mut list) = tails.pop() {
            loop {
                let Ok((head, tail)) = list.list_get_cell() else {
                    found.push_tail(list)?;
                    found.check(capacity, budget)?;
                    break;
                };
                cells = cells.checked_sub(1).ok_or(Refusal::OverBudget)?;
                if let Ok(binary) = Binary::from_term(head) {
                    found.push(binary.as_slice());
                    list = tail;
                } else if let Some(byte) = byte(head) {
                    found.gather(&[byte]);
                    list = tail;
                } else if head.is_list() {
                    if !tail.is_empty_list() {
                        tails.push(tail);
                    }
                    list = head;
                } else {
                    return Err(Refusal::NotIodata);
                }
                found.check(capacity, budget)?;
            }
        }
        found.cells = budget.cells - cells;
        Ok(found)
    }

    /// List cells that were visited.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces as slices, in order.
    pub fn slices(&self) -> Vec<&[u8]> {
        self.pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Borrowed(bytes) => Some(*bytes),
                Piece::Gathered(range) => self.gathered.get(range.clone()),
            })
            .collect()
    }

    fn check(&self, capacity: usize, budget: Budget) -> Result<(), Refusal> {
        if self.len > capacity {
            return Err(Refusal::TooLong(self.len));
        }
        if self.len > budget.bytes {
            return Err(Refusal::OverBudget);
        }
        Ok(())
    }

    /// The end of a list: empty, or a binary (`[1 | "rest"]` is iodata). A binary alone is one, too.
    fn push_tail(&mut self, tail: Term<'a>) -> Result<(), Refusal> {
        if tail.is_empty_list() {
            return Ok(());
        }
        let binary = Binary::from_term(tail).map_err(|_| Refusal::NotIodata)?;
        self.push(binary.as_slice());
        Ok(())
    }

    fn push(&mut self, bytes: &'a [u8]) {
        if bytes.len() <= GATHER {
            return self.gather(bytes);
        }
        self.len = self.len.saturating_add(bytes.len());
        self.pieces.push(Piece::Borrowed(bytes));
    }

    /// Appends a copy of `bytes` to the last gathered piece, or starts one.
    fn gather(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len = self.len.saturating_add(bytes.len());
        let start = self.gathered.len();
        self.gathered.extend_from_slice(bytes);
        let end = self.gathered.len();
        match self.pieces.last_mut() {
            Some(Piece::Gathered(range)) => range.end = end,
            _ => self.pieces.push(Piece::Gathered(start..end)),
        }
    }
}

/// An integer from 0 to 255. (Decoding as `u8` would cut a larger one to its low bits.)
fn byte(term: Term<'_>) -> Option<u8> {
    let number = term.decode::<u32>().ok()?;
    u8::try_from(number).ok()
}

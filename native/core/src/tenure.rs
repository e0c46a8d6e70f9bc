//! Who may use the memory of a segment while its name goes, and when it becomes another's.
//!
//! Attaching takes no lock, so somebody may be late: it has found the name and opened the file before that
//! went, and takes its entry of the reader table after. Whoever ends a segment therefore first marks it, then
//! looks at the table; a reader first takes its entry, then looks at the mark. Of the two SeqCst fences in
//! between one comes first, so one of the two sees the other.
//!
//! The memory may become another segment, and then the mark is taken away again. A reader that finds none is
//! in time, or too late for even that; so it looks at the header line as well, which no two segments of one
//! file share (their times of creation differ), and which was written before the mark was taken away.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(loom)]
use {
    crate::sync::AtomicU32,
    loom::sync::atomic::{Ordering, fence},
};

/// What of a segment's shared words decides this.
pub(crate) trait Tenure {
    /// 1 while and after the segment is removed.
    fn removed(&self) -> &AtomicU32;
    /// The same, for whoever may write it.
    fn mark_word(&self) -> &AtomicU32;
    /// Whether anybody has an entry of the reader table. Acquire: who has left has read to the end.
    fn is_entered(&self) -> bool;
    /// Whether the header line is the one that this process found when it opened the file.
    fn is_same(&self) -> bool;
}

/// For a reader that has taken its entry: whether the segment is still there, and the one that it opened.
pub(crate) fn is_admitted(words: &impl Tenure) -> bool {
    // Pairs with the fence in `mark`.
    fence(Ordering::SeqCst);
    // Acquire pairs with `admit`: who sees the mark taken away sees the line behind it.
    words.removed().load(Ordering::Acquire) == 0 && words.is_same()
}

/// From now on nobody is admitted. Who was before shows in [`is_left`].
pub(crate) fn mark(words: &impl Tenure) {
    words.mark_word().store(1, Ordering::Relaxed);
    // Pairs with the fence in `is_admitted`: that reader sees the mark, or we see its entry.
    fence(Ordering::SeqCst);
}

/// After [`mark`]: whether nobody is in it, nor can come in.
pub(crate) fn is_left(words: &impl Tenure) -> bool {
    !words.is_entered()
}

/// Takes the mark away: of a segment that stays after all, or of a new one whose header line is written.
pub(crate) fn admit(words: &impl Tenure) {
    // Release: pairs with the load in `is_admitted`.
    words.mark_word().store(0, Ordering::Release);
}

#[cfg(all(test, loom))]
#[path = "tenure_loom.rs"]
mod models;

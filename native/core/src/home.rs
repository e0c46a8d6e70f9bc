//! Memory that was given away with its value, and comes back when that has served its purpose.
//!
//! Who gives a segment away knows its pages: they are mapped in its page tables, and the next value would
//! fault nothing. So it leaves its key in the header, as the home of the memory. Whoever has taken the segment
//! and ends it keeps the file under a pool's name, as ever, but hands the claim on to that key instead of
//! keeping it: a claim that somebody finds handed to him means that the memory is his again.
//!
//! Either of them may die on the way. The claim says at each moment whose file it is to be removed with:
//! until it is handed on, of whoever ends the segment; after that, of its home.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use {crate::sync::AtomicU64, loom::sync::atomic::Ordering};

/// What of a segment's shared words decides this.
pub(crate) trait Home {
    /// The key of whoever would have the memory back; 0 = nobody.
    fn home(&self) -> &AtomicU64;
    /// The key of whoever holds the writer claim; 0 = nobody.
    fn writer(&self) -> &AtomicU64;
}

/// For a writer that is about to give its claim back: `key` would have the memory back.
pub(crate) fn expect(words: &impl Home, key: u64) {
    // Relaxed: the Release of the claim publishes it.
    words.home().store(key, Ordering::Relaxed);
}

/// Whose the memory is, for whoever has taken the claim; 0 = nobody waits for it.
pub(crate) fn of(words: &impl Home) -> u64 {
    // Relaxed: it was published with the claim.
    words.home().load(Ordering::Relaxed)
}

/// Hands the claim on that `from` holds; says whether it did. From now on the memory is `to`'s.
pub(crate) fn send(words: &impl Home, from: u64, to: u64) -> bool {
    // Before the claim goes: who dies in between leaves the file with his own claim, to be removed as his.
    words.home().store(0, Ordering::Relaxed);
    // Release pairs with `has_come`: all that was done to the file lies behind it.
    words
        .writer()
        .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed)
        .is_ok()
}

/// Whether the memory that `key` expects is back. The claim alone does not say so: it is still the one that
/// was never given back, or one that was taken again by the same process, while the word is there.
pub(crate) fn has_come(words: &impl Home, key: u64) -> bool {
    words.writer().load(Ordering::Acquire) == key && words.home().load(Ordering::Relaxed) == 0
}

/// Expects nothing any more: whoever ends the segment keeps the memory. Under the namespace lock, as `send` is.
pub(crate) fn forgo(words: &impl Home, key: u64) {
    // Only its own: another may have given the segment away since.
    let _ = words
        .home()
        .compare_exchange(key, 0, Ordering::Relaxed, Ordering::Relaxed);
}

#[cfg(all(test, loom))]
#[path = "home_loom.rs"]
mod models;

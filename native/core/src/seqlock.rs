//! The protocol, written once over [`Words`] so that loom checks the code that runs.
//!
//! A slot that holds version v has `seq == v` (even); `seq == v - 1` (odd) while v is being written.
//! `publish` names the last complete value. The orderings (argued in `docs/protocol.md`):
//!
//! * `begin` stores the odd `seq`, then a release fence, then the payload. A reader that saw any byte
//!   of the new payload and then passes its acquire fence therefore sees that odd `seq`, or a later
//!   one, and throws its copy away.
//! * `commit` stores the even `seq` with Release: a reader that loads it with Acquire sees the whole
//!   payload. Then `publish` with Release: who sees the name sees the slot behind it.
//! * Versions only grow, so `seq` never has the same value twice for two payloads: no ABA.
//! * Sleeping is a Dekker pattern: the writer stores `publish`, fences (SeqCst) and looks for waiters;
//!   the waiter announces itself, fences (SeqCst) and looks at `publish`. At least one sees the other.

use crate::layout::publish_word::{pack, unpack};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};

/// Where the protocol's words are.
pub(crate) trait Words {
    /// The `publish` word.
    fn publish(&self) -> &AtomicU64;
    /// The `seq` word of a slot; `slot < slots()`.
    fn seq(&self, slot: usize) -> &AtomicU64;
    /// How many slots there are.
    fn slots(&self) -> usize;
    /// The futex word.
    fn notify(&self) -> &AtomicU32;
    /// How many readers sleep, or are about to.
    fn waiters(&self) -> &AtomicU32;
}

/// Marks a slot as being written.
#[inline(always)]
pub(crate) fn begin(words: &impl Words, slot: usize, version: u64) {
    words.seq(slot).store(version - 1, Ordering::Relaxed);
    // Pairs with the acquire fence of `finish_read`: payload stores stay behind the odd seq.
    fence(Ordering::Release);
}

/// Publishes a slot whose payload is complete.
#[inline(always)]
pub(crate) fn commit(words: &impl Words, slot: usize, version: u64) {
    // Pairs with the Acquire load of `seq` in `start_read`.
    words.seq(slot).store(version, Ordering::Release);
    // Pairs with the Acquire load of `publish` in `start_read` and `latest`.
    words
        .publish()
        .store(pack(version, slot), Ordering::Release);
}

/// After a commit: how many sleep and must be woken by the caller, after it has changed the futex word.
/// With a `handoff` whose thread is at it, nobody: the thread sees to it.
#[inline]
pub(crate) fn sleepers(words: &impl Words, handoff: Option<&Handoff>) -> u32 {
    if let Some(handoff) = handoff {
        // Release pairs with the Acquire of `Handoff::take`: the thread sees our `publish`.
        handoff.dirty.store(1, Ordering::Release);
    }
    // Pairs with the fence of `announce_wait`: we see the waiter, or it sees our `publish`. And with
    // that of `Handoff::disarm`: we see that the thread has stopped, or it sees `dirty`.
    fence(Ordering::SeqCst);
    if handoff.is_some_and(Handoff::armed) {
        return 0;
    }
    words.waiters().load(Ordering::Relaxed)
}

/// Between a writer and a thread of its process that wakes sleepers for it.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// Something was published since the thread took it over last.
    dirty: AtomicU32,
    /// The thread is at it: it looks at `dirty` before long.
    armed: AtomicU32,
}

impl Handoff {
    pub(crate) fn new() -> Self {
        Self {
            dirty: AtomicU32::new(0),
            armed: AtomicU32::new(0),
        }
    }

    /// Whether the thread is at it.
    #[inline]
    pub(crate) fn armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed) != 0
    }

    /// By the writer, when `sleepers` has found some; the thread must be woken afterwards, which
    /// orders this store before its look.
    pub(crate) fn arm(&self) {
        self.dirty.store(1, Ordering::Release);
        self.armed.store(1, Ordering::Relaxed);
    }

    /// By the thread: whether something was published; if so, it must look for sleepers now.
    pub(crate) fn take(&self) -> bool {
        // Looked at first, for most rounds find nothing, and the line is the writer's.
        self.dirty.load(Ordering::Relaxed) != 0 && self.dirty.swap(0, Ordering::Acquire) != 0
    }

    /// By the thread: from now on the writer looks for sleepers itself. Must be followed by a last
    /// [`Self::take`], for a write may have seen it armed until now.
    pub(crate) fn disarm(&self) {
        self.armed.store(0, Ordering::Relaxed);
        // Pairs with the fence of `sleepers`.
        fence(Ordering::SeqCst);
    }
}

/// Changes the futex word, so that no waiter falls asleep on what it was.
#[inline]
pub(crate) fn bump_notify(words: &impl Words) {
    // Release pairs with the Acquire load in `sleep_word`: a waiter that sees the new word sees
    // what was stored before it.
    words.notify().fetch_add(1, Ordering::Release);
}

/// The last published version and its slot; version 0 = nothing published.
#[inline]
pub(crate) fn latest(words: &impl Words) -> (u64, usize) {
    unpack(words.publish().load(Ordering::Acquire))
}

/// Why there is no value to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// Nothing was published yet.
    Empty,
    /// The slot is being overwritten; try again.
    Busy,
    /// The publish word names no possible slot or version.
    Corrupt,
}

/// A slot that held `version` when the read began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    pub version: u64,
    pub slot: usize,
}

/// First half of a read: which slot to copy.
#[inline]
pub(crate) fn start_read(words: &impl Words) -> Result<Started, NoValue> {
    let (version, slot) = latest(words);
    if version == 0 {
        return Err(NoValue::Empty);
    }
    if slot >= words.slots() || version % 2 != 0 {
        return Err(NoValue::Corrupt);
    }
    // Pairs with the Release store of `commit`.
    if words.seq(slot).load(Ordering::Acquire) != version {
        return Err(NoValue::Busy);
    }
    Ok(Started { version, slot })
}

/// Second half: whether what was copied since `start_read` is whole.
#[inline]
pub(crate) fn finish_read(words: &impl Words, started: Started) -> bool {
    // Pairs with the release fence of `begin`: if a copied byte was newer, so is `seq` now.
    fence(Ordering::Acquire);
    words.seq(started.slot).load(Ordering::Relaxed) == started.version
}

/// How long a read tries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Copies that turned out torn.
    pub copies: u32,
    /// Looks at a slot that was being written.
    pub spins: u32,
}

/// Copies with `copy` until a copy was whole, within `limits`.
#[inline]
pub(crate) fn read<T>(
    words: &impl Words,
    limits: Limits,
    mut copy: impl FnMut(Started) -> T,
) -> Result<(Started, T), NoValue> {
    let (mut copies, mut spins) = (0, 0);
    loop {
        match start_read(words) {
            Ok(started) => {
                let copied = copy(started);
                if finish_read(words, started) {
                    return Ok((started, copied));
                }
                copies += 1;
            }
            Err(NoValue::Busy) => {
                spin_loop();
                spins += 1;
            }
            Err(other) => return Err(other),
        }
        if copies >= limits.copies || spins >= limits.spins {
            return Err(NoValue::Busy);
        }
    }
}

/// First half of a read of the stream: the oldest complete value newer than `after` that is still
/// there; `None` when there is nothing newer.
pub(crate) fn start_next(words: &impl Words, after: u64) -> Result<Option<Started>, NoValue> {
    let (published, slot) = latest(words);
    if slot >= words.slots() || published % 2 != 0 {
        return Err(NoValue::Corrupt);
    }
    if published <= after {
        return Ok(None);
    }
    (0..words.slots())
        .map(|slot| Started {
            // Pairs with the Release store of `commit`.
            version: words.seq(slot).load(Ordering::Acquire),
            slot,
        })
        // What is complete but not published is nobody's to see.
        .filter(|s| s.version % 2 == 0 && s.version > after && s.version <= published)
        .min_by_key(|s| s.version)
        .map(Some)
        .ok_or(NoValue::Busy)
}

/// [`read`] of the value after `after`.
pub(crate) fn read_next<T>(
    words: &impl Words,
    after: u64,
    limits: Limits,
    mut copy: impl FnMut(Started) -> T,
) -> Result<Option<(Started, T)>, NoValue> {
    let (mut copies, mut spins) = (0, 0);
    while copies < limits.copies && spins < limits.spins {
        match start_next(words, after) {
            Ok(None) => return Ok(None),
            Ok(Some(started)) => {
                let copied = copy(started);
                if finish_read(words, started) {
                    return Ok(Some((started, copied)));
                }
                copies += 1;
            }
            Err(NoValue::Busy) => {
                spin_loop();
                spins += 1;
            }
            Err(other) => return Err(other),
        }
    }
    Err(NoValue::Busy)
}

/// Announces that the caller may sleep. Returns the futex word to sleep on, or `None` when there is
/// a version other than `since` already. [`retract_wait`] must follow in both cases.
pub(crate) fn announce_wait(words: &impl Words, since: u64) -> Option<u32> {
    words.waiters().fetch_add(1, Ordering::Relaxed);
    // Pairs with the fence of `sleepers`.
    fence(Ordering::SeqCst);
    let word = sleep_word(words);
    (latest(words).0 == since).then_some(word)
}

/// The futex word to sleep on, for who has announced itself; to be loaded before `publish` is. Had it been
/// read after it, a change between the two would be slept through.
pub(crate) fn sleep_word(words: &impl Words) -> u32 {
    // Pairs with the Release of `bump_notify`.
    words.notify().load(Ordering::Acquire)
}

/// The caller will not sleep any more.
pub(crate) fn retract_wait(words: &impl Words) {
    // Never below zero, whatever others wrote there.
    let _ = words
        .waiters()
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
}

#[cfg(all(test, loom))]
#[path = "seqlock_loom.rs"]
mod models;

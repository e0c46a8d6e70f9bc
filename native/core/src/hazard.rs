//! Pins: readers that look at a value in place, and a writer that passes over what they look at.
//!
//! A pin is a hazard pointer (Michael 2004): the reader names the slot in its entry of the reader
//! table, fences, and looks whether the slot still holds the value; the writer marks a slot as being
//! written, fences, and looks whether an entry names it. At least one of the two sees the other: then
//! the reader has no pin, or the writer gives the slot back unwritten and takes another.
//!
//! Writers of segments that nobody pins must not pay for this. So a writer is *calm* or it *looks*:
//!
//! * The table is summed up in `pins`, one bit for a group of entries. Readers only set bits, before
//!   they pin; only the writer clears them, and what a pin holds is put back at once.
//! * A writer looks from its start on, and becomes calm when it has long seen no pin. A calm writer
//!   fences nothing: it marks, and loads `pins`. Should its load have been done before its mark could
//!   be seen, a reader might pin what is being written; so a reader that finds the writer calm
//!   (`pinnable` is not [`writer::LOOKS`]) does not trust its own look until the writer looks too, or the kernel has put a
//!   barrier into the writer's threads (membarrier(2)): into those of all processes that asked for it, if
//!   the writer's says that it did, which takes microseconds; else into every thread of the machine.
//!
//! The table is writable by every reader, so it is hostile: whatever is in it, the writer looks at so
//! many entries at most, and when every slot is named it takes the one with the oldest value. Whoever
//! holds that pin finds out with [`is_kept`].

use crate::seqlock::{self, NoValue, Started, Words};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};

/// Bits of `pins`.
const GROUPS: usize = 64;
/// Looks without a pin after which a writer is calm; after as many, bits of old pins are cleared.
#[cfg(not(loom))]
const CALM_AFTER: u32 = 1024;
#[cfg(loom)]
const CALM_AFTER: u32 = 1;
/// Looks at a slot that is marked just now, before its value counts as lost.
#[cfg(not(loom))]
const MARKED_SPINS: u32 = 100_000;
#[cfg(loom)]
const MARKED_SPINS: u32 = 2;
/// Slots that no reader may pin: the writer needs one beside the current value.
const SPARE: usize = 2;

/// What the writer says of itself in `pinnable`.
pub(crate) mod writer {
    /// It looks at no pins.
    pub(crate) const CALM: u32 = 0;
    /// It looks at the pins of every reader before it writes.
    pub(crate) const LOOKS: u32 = 1;
    /// It looks at no pins, and its process has registered for barriers.
    pub(crate) const CALM_REGISTERED: u32 = 2;
}

/// Where the words of the pins are.
pub(crate) trait Hazards: Words {
    /// One bit for each group of entries in which somebody may have pinned something.
    fn pins(&self) -> &AtomicU64;
    /// One of [`writer`].
    fn pinnable(&self) -> &AtomicU32;
    /// Room of the table.
    fn entries(&self) -> usize;
    /// Entries that were ever used lie below this, which is at most `entries()`.
    fn used(&self) -> usize;
    /// Whether an entry is somebody's.
    fn taken(&self, entry: usize) -> bool;
    /// Slot + 1 that an entry pins; 0 = none.
    fn pinned_by(&self, entry: usize) -> &AtomicU32;

    /// The same words where they stay. What a write keeps in registers must not be handed to the rare way
    /// of [`begin`], or it would have to be kept in memory for it.
    type Whole: Hazards;
    fn whole(&self) -> &Self::Whole;
}

fn group_len(words: &impl Hazards) -> usize {
    words.entries().div_ceil(GROUPS).max(1)
}

fn group_bit(words: &impl Hazards, entry: usize) -> u64 {
    1 << (entry / group_len(words)).min(GROUPS - 1)
}

/// The slots that entries of these groups name, and the groups that name any; as bits.
fn look(words: &impl Hazards, groups: u64) -> (u64, u64) {
    let (len, used, slots) = (group_len(words), words.used(), words.slots());
    let (mut pinned, mut busy, mut left) = (0, 0, groups);
    while left != 0 {
        let group = left.trailing_zeros() as usize;
        left &= left - 1;
        for entry in group * len..((group + 1) * len).min(used) {
            // Acquire pairs with the Release of `unpin`: what its holder read is read.
            let pin = words.pinned_by(entry).load(Ordering::Acquire) as usize;
            if (1..=slots).contains(&pin) && words.taken(entry) {
                pinned |= 1 << (pin - 1);
                busy |= 1 << group;
            }
        }
    }
    (pinned, busy)
}

// -- the writer's side ------------------------------------------------------------------------

/// What a writer knows of pins; its own.
#[derive(Debug)]
pub(crate) struct Lookout {
    looking: bool,
    /// What it says of itself while it is calm.
    calm: u32,
    /// Slots that were pinned when it looked last: not even marked while they may be.
    avoid: u64,
    /// Looks since one found a pin, and since bits were cleared.
    without: u32,
    since_cleared: u32,
}

impl Lookout {
    /// Of the writer that creates the segment. `register` has the kernel put barriers into this process when
    /// readers ask for them, and says whether it does.
    pub(crate) fn of_new(words: &impl Hazards, register: impl FnOnce() -> bool) -> Self {
        words.pinnable().store(writer::LOOKS, Ordering::Release);
        Self {
            calm: if can_pin(words.slots()) && register() {
                writer::CALM_REGISTERED
            } else {
                writer::CALM
            },
            // Where nothing can be pinned there is nothing to look at.
            looking: can_pin(words.slots()),
            avoid: 0,
            without: 0,
            since_cleared: 0,
        }
    }

    /// Of a writer that follows another, which may have died between clearing bits and putting them
    /// back.
    pub(crate) fn of_next(words: &impl Hazards, register: impl FnOnce() -> bool) -> Self {
        words.pins().fetch_or(u64::MAX, Ordering::Relaxed);
        Self::of_new(words, register)
    }
}

/// Whether a segment of so many slots has slots for pins.
pub(crate) fn can_pin(slots: usize) -> bool {
    slots > SPARE
}

/// Marks the slot for `version` as being written and returns it: the next one after `current` that
/// nobody has pinned, the first when there is no value yet.
#[inline]
pub(crate) fn begin(
    words: &impl Hazards,
    lookout: &mut Lookout,
    current: Option<usize>,
    version: u64,
) -> usize {
    let slots = words.slots();
    let mut slot = match current {
        Some(current) if current + 1 < slots => current + 1,
        _ => 0,
    };
    if !can_pin(slots) {
        seqlock::begin(words, slot, version);
        return slot;
    }
    if lookout.avoid != 0 {
        slot = free(slots, current, lookout.avoid).unwrap_or(slot);
    }
    let before = words.seq(slot).load(Ordering::Relaxed);
    seqlock::begin(words, slot, version);
    // The mark first: the compiler may not turn them round. What the processor does, the reader
    // answers for (see above).
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    if !lookout.looking && words.pins().load(Ordering::Relaxed) == 0 {
        return slot;
    }
    settle(words.whole(), lookout, current, version, slot, before)
}

/// [`begin`] where nothing is to be looked at: by a calm writer while nobody has announced a pin. Otherwise
/// `None`, and no slot is marked. What a write keeps in registers stays there, for nothing is called.
#[inline(always)]
pub(crate) fn begin_at_once(
    words: &impl Hazards,
    lookout: &Lookout,
    current: Option<usize>,
    version: u64,
) -> Option<usize> {
    if lookout.looking || lookout.avoid != 0 {
        return None;
    }
    let slot = match current {
        Some(current) if current + 1 < words.slots() => current + 1,
        _ => 0,
    };
    let before = words.seq(slot).load(Ordering::Relaxed);
    seqlock::begin(words, slot, version);
    // As in `begin`.
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    if words.pins().load(Ordering::Relaxed) == 0 || !can_pin(words.slots()) {
        return Some(slot);
    }
    // As it was: nobody has written there. Release as in `settle`.
    words.seq(slot).store(before, Ordering::Release);
    None
}

/// The next slot after `current` that is not in `avoid`.
#[cold]
fn free(slots: usize, current: Option<usize>, avoid: u64) -> Option<usize> {
    let from = current.map_or(0, |current| current + 1);
    (from..from + slots)
        .map(|slot| slot % slots)
        .find(|slot| Some(*slot) != current && avoid & (1 << slot) == 0)
}

/// After a mark: looks, and goes on to another slot while the marked one turns out to be pinned.
#[cold]
fn settle(
    words: &impl Hazards,
    lookout: &mut Lookout,
    current: Option<usize>,
    version: u64,
    mut slot: usize,
    mut before: u64,
) -> usize {
    if !lookout.looking {
        lookout.looking = true;
        // Release: a reader that sees it sees the mark of the slot that was chosen without a look.
        words.pinnable().store(writer::LOOKS, Ordering::Release);
    }
    // Also against pins that come while it tries: it does not try for ever.
    let mut tried = 0;
    loop {
        // Pairs with the fence of `pin`: we see the pin, or the reader sees our mark.
        fence(Ordering::SeqCst);
        let groups = words.pins().load(Ordering::Relaxed);
        let (pinned, _) = if groups == 0 {
            (0, 0)
        } else {
            look(words, groups)
        };
        lookout.avoid = pinned;
        if pinned & (1 << slot) == 0 {
            break;
        }
        tried |= 1 << slot;
        let Some(other) = free(words.slots(), current, pinned | tried) else {
            // Against the rule: the oldest goes. It is marked already, or is now.
            slot = take_oldest(words, current, version, slot, before);
            break;
        };
        // As it was: nobody has written there.
        words.seq(slot).store(before, Ordering::Release);
        slot = other;
        before = words.seq(slot).load(Ordering::Relaxed);
        seqlock::begin(words, slot, version);
    }
    account(words, lookout);
    slot
}

fn take_oldest(
    words: &impl Hazards,
    current: Option<usize>,
    version: u64,
    marked: usize,
    before: u64,
) -> usize {
    let age = |slot: usize| {
        if slot == marked {
            before
        } else {
            words.seq(slot).load(Ordering::Relaxed)
        }
    };
    let oldest = (0..words.slots())
        .filter(|slot| Some(*slot) != current)
        .min_by_key(|slot| age(*slot))
        .unwrap_or(marked);
    if oldest != marked {
        words.seq(marked).store(before, Ordering::Release);
        seqlock::begin(words, oldest, version);
    }
    oldest
}

/// Counts a look; now and then clears the bits of groups in which nothing is pinned, and becomes calm
/// when there is none left and has been none for long.
fn account(words: &impl Hazards, lookout: &mut Lookout) {
    lookout.without = if lookout.avoid == 0 {
        lookout.without.saturating_add(1)
    } else {
        0
    };
    lookout.since_cleared += 1;
    if lookout.since_cleared < CALM_AFTER {
        return;
    }
    lookout.since_cleared = 0;
    let groups = words.pins().swap(0, Ordering::Relaxed);
    // Not when somebody has pinned since, and let go: it will again, and would wait for each pin.
    let calm = groups == 0 && lookout.without >= CALM_AFTER;
    if calm {
        words.pinnable().store(lookout.calm, Ordering::Relaxed);
    }
    // Pairs with the fence of `pin`: a reader that still saw its bit and `pinnable` after its fence
    // has its pin seen here.
    fence(Ordering::SeqCst);
    let (_, busy) = look(words, groups);
    if busy != 0 {
        words.pins().fetch_or(busy, Ordering::Relaxed);
    }
    if calm {
        if busy == 0 && words.pins().load(Ordering::Relaxed) == 0 {
            lookout.looking = false;
        } else {
            words.pinnable().store(writer::LOOKS, Ordering::Release);
        }
    }
}

// -- the readers' side ------------------------------------------------------------------------

/// Why there is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPin {
    /// Nothing to pin.
    Value(NoValue),
    /// So many slots are pinned already that the writer needs the others.
    Full,
    /// The writer is calm, and nothing makes sure that it sees the pin.
    Unseen,
}

/// Pins the current value for `entry`, within `tries`. `assure` is called while the writer is calm, with
/// what it says of itself: it waits for [`Hazards::pinnable`], or has a barrier put into the writer's threads, and
/// then answers `true`. Which barrier does follows from the word that was read after the fence: a writer that
/// says otherwise since then has seen the pin when it looked before it became calm.
pub(crate) fn pin(
    words: &impl Hazards,
    entry: usize,
    tries: u32,
    mut assure: impl FnMut(u32) -> bool,
) -> Result<Started, NoPin> {
    if !can_pin(words.slots()) {
        return Err(NoPin::Full);
    }
    let bit = group_bit(words, entry);
    let give_up = |why| {
        unpin(words, entry);
        Err(why)
    };
    for _ in 0..tries {
        let started = match seqlock::start_read(words) {
            Ok(started) => started,
            Err(NoValue::Busy) => {
                spin_loop();
                continue;
            }
            Err(why) => return give_up(NoPin::Value(why)),
        };
        words
            .pinned_by(entry)
            .store(started.slot as u32 + 1, Ordering::Relaxed);
        if words.pins().load(Ordering::Relaxed) & bit == 0 {
            words.pins().fetch_or(bit, Ordering::Relaxed);
        }
        // Pairs with the fences of `settle` and `account`.
        fence(Ordering::SeqCst);
        let said = words.pinnable().load(Ordering::Acquire);
        if said != writer::LOOKS && !assure(said) {
            return give_up(NoPin::Unseen);
        }
        // The writer may have cleared the bit when it had not seen the pin yet: then it sees neither.
        if words.pins().load(Ordering::Relaxed) & bit == 0 {
            continue;
        }
        // Acquire pairs with the Release of `commit`: the value is there.
        if words.seq(started.slot).load(Ordering::Acquire) != started.version {
            continue;
        }
        // Others may come at the same time; then all of them go.
        let (pinned, _) = look(words, words.pins().load(Ordering::Relaxed));
        if pinned.count_ones() as usize > words.slots() - SPARE {
            return give_up(NoPin::Full);
        }
        return Ok(started);
    }
    give_up(NoPin::Value(NoValue::Busy))
}

/// Gives the pin of an entry back.
pub(crate) fn unpin(words: &impl Hazards, entry: usize) {
    // Release pairs with the Acquire of `look`: whoever sees it may write over what was read.
    words.pinned_by(entry).store(0, Ordering::Release);
}

/// Whether what was pinned has been there all the time until now.
pub(crate) fn is_kept(words: &impl Words, pinned: Started) -> bool {
    // Pairs with the release fence of `seqlock::begin`.
    fence(Ordering::Acquire);
    for _ in 0..MARKED_SPINS {
        let seq = words.seq(pinned.slot).load(Ordering::Acquire);
        if seq % 2 == 0 {
            return seq == pinned.version;
        }
        // Marked by a writer that has not looked yet, and will give it back; or that took it.
        spin_loop();
    }
    false
}

#[cfg(all(test, loom))]
#[path = "hazard_loom.rs"]
mod models;

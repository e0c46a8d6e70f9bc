//! The guard: a mapping that loses its pages does not kill the process (DESIGN 7).
//!
//! Another program may cut a file while it is mapped, and a full file system has no page for a hole.
//! The kernel answers an access with SIGBUS, which ends the process: for a virtual machine, everything
//! in it. The guard's handler looks whether the address lies in a mapping of ours; if so it maps zero
//! pages over the mapping from there on, marks the mapping as lost, and lets the instruction run again.
//! Calls on the mapping then answer `Truncated`; views read zeros. A fault elsewhere goes to whatever
//! handler was there before.
//!
//! The handler runs on the alternate stack of its thread (the BEAM and CPython's faulthandler set one
//! up), touches only static atomics and calls `mmap`. It takes no lock and allocates nothing.

use super::page_size;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Parts of a mapping that are guarded together: header, control, slots.
pub(crate) const PARTS: usize = 3;
const CHUNK: usize = 512;
const CHUNKS: usize = 512;

/// The guarded ranges of one mapping.
struct Entry {
    /// Start and end of each part; start 0 = none.
    parts: [(AtomicUsize, AtomicUsize); PARTS],
    /// One of the constants below.
    lost: AtomicU8,
    /// A forked child does not inherit it.
    own: AtomicBool,
}

const KEPT: u8 = 0;
const CUT: u8 = 1;
const NOT_INHERITED: u8 = 2;

/// Why a mapping has no pages any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The file was cut, or had no memory for a hole.
    Cut,
    /// It is the parent's alone, and this is a forked child.
    NotInherited,
}

impl Entry {
    const fn free() -> Self {
        Self {
            parts: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; PARTS],
            lost: AtomicU8::new(KEPT),
            own: AtomicBool::new(false),
        }
    }
}

type Chunk = [Entry; CHUNK];

/// Chunks are made outside the handler and never freed, so that the handler can read them.
static TABLE: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
/// Entries that were handed out at least once.
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: super::fork::PerProcess<Mutex<Vec<&'static Entry>>> = super::fork::PerProcess::new();
/// Next entry never used yet, under the lock of `FREE`.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Guards a mapping until it is dropped, which must happen before the mapping is unmapped.
pub(crate) struct Guard(Option<&'static Entry>);

impl Guard {
    /// Guards up to [`PARTS`] ranges, as (start, length).
    pub(crate) fn new(ranges: [(usize, usize); PARTS]) -> Self {
        install();
        let Some(entry) = take_entry() else {
            // A quarter of a million mappings: more than vm.max_map_count allows.
            return Self(None);
        };
        entry.lost.store(KEPT, Ordering::Relaxed);
        entry.own.store(false, Ordering::Relaxed);
        for ((start, end), (from, len)) in entry.parts.iter().zip(ranges) {
            // Release, both: a handler that reads start, end and the same start again has a pair.
            end.store(from + len, Ordering::Release);
            start.store(from, Ordering::Release);
        }
        Self(Some(entry))
    }

    /// Whether the mapping has lost pages.
    #[inline]
    pub(crate) fn lost(&self) -> bool {
        self.0
            .is_some_and(|entry| entry.lost.load(Ordering::Relaxed) != KEPT)
    }

    /// Why it has.
    pub(crate) fn loss(&self) -> Option<Loss> {
        match self.0?.lost.load(Ordering::Relaxed) {
            KEPT => None,
            NOT_INHERITED => Some(Loss::NotInherited),
            _ => Some(Loss::Cut),
        }
    }

    /// From here on forked children find zeros where the mapping is, and are told so. To be called before
    /// the mapping is taken from them; `false` when there is no room to note it.
    pub(crate) fn keep_from_children(&self) -> bool {
        super::fork::install();
        let Some(entry) = self.0 else { return false };
        entry.own.store(true, Ordering::Relaxed);
        ANY_OWN.store(true, Ordering::Relaxed);
        true
    }
}

/// Whether any mapping of this process or its ancestors was kept from children.
static ANY_OWN: AtomicBool = AtomicBool::new(false);

/// In a forked child: puts zeros where mappings were that it did not inherit, so that whatever it does with
/// what it has of its parent finds memory. Async-signal-safe.
pub(crate) fn fill_in_child() {
    if !ANY_OWN.load(Ordering::Relaxed) {
        return;
    }
    // The thread that forked saw what it had made itself; what other threads were making, nobody has here.
    for index in 0..USED.load(Ordering::Acquire) {
        let chunk = TABLE[index / CHUNK].load(Ordering::Acquire);
        if chunk.is_null() {
            continue;
        }
        // SAFETY: chunks are never freed, and entries are only accessed as atomics.
        let entry = unsafe { &(&*chunk)[index % CHUNK] };
        if !entry.own.load(Ordering::Relaxed) {
            continue;
        }
        for (start, end) in &entry.parts {
            let (from, to) = (start.load(Ordering::Acquire), end.load(Ordering::Acquire));
            if from != 0 {
                entry.lost.store(NOT_INHERITED, Ordering::SeqCst);
                // Read-only needs no memory promised (vm.overcommit_memory = 2).
                let _ = zeros(from, to, libc::PROT_READ | libc::PROT_WRITE)
                    || zeros(from, to, libc::PROT_READ);
            }
        }
    }
}

/// Maps zero pages over a part of a mapping of ours. Async-signal-safe.
fn zeros(from: usize, to: usize, rights: libc::c_int) -> bool {
    // SAFETY: replaces pages of a mapping of ours that are without memory behind them, beyond one that
    // is, or not inherited. Zeros are valid for all who read.
    let mapped = unsafe {
        libc::mmap(
            from as *mut libc::c_void,
            to - from,
            rights,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(entry) = self.0 {
            for (start, _) in &entry.parts {
                start.store(0, Ordering::Release);
            }
            lock_free_list().push(entry);
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("lost", &self.lost()).finish()
    }
}

fn lock_free_list() -> std::sync::MutexGuard<'static, Vec<&'static Entry>> {
    FREE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_entry() -> Option<&'static Entry> {
    let mut free = lock_free_list();
    if let Some(entry) = free.pop() {
        return Some(entry);
    }
    let index = NEXT.load(Ordering::Relaxed);
    let chunk = TABLE.get(index / CHUNK)?;
    if chunk.load(Ordering::Relaxed).is_null() {
        let new: Box<Chunk> = Box::new([const { Entry::free() }; CHUNK]);
        chunk.store(Box::into_raw(new), Ordering::Release);
    }
    NEXT.store(index + 1, Ordering::Relaxed);
    USED.store(index + 1, Ordering::Release);
    // SAFETY: made above or earlier, never freed, and entries are only accessed as atomics.
    let entries: &'static Chunk = unsafe { &*chunk.load(Ordering::Acquire) };
    Some(&entries[index % CHUNK])
}

/// Finds the guarded range of an address and repairs it. Async-signal-safe.
fn repair(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    for index in 0..used {
        let chunk = TABLE[index / CHUNK].load(Ordering::Acquire);
        if chunk.is_null() {
            continue;
        }
        // SAFETY: chunks are never freed, and entries are only accessed as atomics.
        let entry = unsafe { &(&*chunk)[index % CHUNK] };
        for (start, end) in &entry.parts {
            let from = start.load(Ordering::Acquire);
            let to = end.load(Ordering::Acquire);
            // Given back and handed out again meanwhile? Then it was not the range of this fault: the
            // thread that faults holds its mapping.
            if start.load(Ordering::Relaxed) != from {
                continue;
            }
            if from == 0 || !(from..to).contains(&address) {
                continue;
            }
            let page = address & !(page_size() - 1);
            // Marked first: whoever reads the zeros and then asks, is told.
            entry.lost.store(CUT, Ordering::SeqCst);
            return zeros(page, to, libc::PROT_READ | libc::PROT_WRITE);
        }
    }
    false
}

/// The handler that was there before ours; read in the handler, so behind a pointer that is only
/// ever replaced and never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: errno belongs to this thread; the interrupted code must find it unchanged.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let repaired = if code > 0 {
        repair(address)
    } else {
        // Sent, not a fault. CPython's faulthandler, when enabled after us, prints its traceback,
        // puts us back and sends the signal to its own thread, then lets the instruction run again:
        // that second fault is the one to repair.
        // SAFETY: si_pid is valid for a sent signal.
        code == libc::SI_TKILL && unsafe { (*info).si_pid() } == std::process::id() as i32
    };
    if !repaired {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Does what would have happened without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: null or a leaked box.
    let action = unsafe { previous.as_ref() };
    match action.map(|a| (a.sa_sigaction, a.sa_flags)) {
        // A signal that was sent is ignored as before; a fault cannot be.
        // SAFETY: si_code is valid.
        Some((libc::SIG_IGN, _)) if unsafe { (*info).si_code } <= 0 => {}
        Some((handler, flags)) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
            if flags & libc::SA_SIGINFO != 0 {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: installed as a handler of this kind.
                let call: Handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                call(signal, info, context);
            } else {
                type Handler = extern "C" fn(libc::c_int);
                // SAFETY: installed as a handler of this kind.
                let call: Handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                call(signal);
            }
        }
        _ => {
            // The default ends the process when the instruction runs again, or at once for a signal
            // that was sent.
            // SAFETY: a zeroed sigaction with SIG_DFL is valid.
            let mut default: libc::sigaction = unsafe { std::mem::zeroed() };
            default.sa_sigaction = libc::SIG_DFL;
            // SAFETY: sigaction is async-signal-safe.
            unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) };
            // SAFETY: as above; si_code is valid.
            if unsafe { (*info).si_code } <= 0 {
                // SAFETY: raise is async-signal-safe; delivered when this handler returns.
                unsafe { libc::raise(signal) };
            }
        }
    }
}

/// Who is asked first when a mapping loses its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardState {
    /// Nothing has been mapped yet that would need the guard.
    NotInstalled,
    /// The guard.
    InFront,
    /// A handler that somebody installed over the guard; the next attach puts the guard in front again.
    Covered,
}

/// Who is asked first now.
pub(crate) fn state() -> GuardState {
    if current_handler().sa_sigaction == on_sigbus as *const () as usize {
        GuardState::InFront
    } else if PREVIOUS.load(Ordering::Acquire).is_null() {
        GuardState::NotInstalled
    } else {
        GuardState::Covered
    }
}

fn current_handler() -> libc::sigaction {
    // SAFETY: a zeroed sigaction is valid to be written over.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut current) };
    current
}

/// Installs the handler, or puts it back in front of one that was installed over it.
fn install() {
    let Ok(_one_at_a_time) = INSTALLING.try_lock() else {
        return; // somebody is at it (or was, in the parent of this fork)
    };
    super::keep_loaded();
    let current = current_handler();
    let ours = on_sigbus as *const () as usize;
    if current.sa_sigaction == ours {
        return;
    }
    // Known before ours is in front; the old box may be in use by a handler and is leaked.
    PREVIOUS.store(Box::into_raw(Box::new(current)), Ordering::Release);
    // SAFETY: a zeroed sigaction is valid; the fields that matter follow.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: installs a handler that lives as long as the process.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody else's handler; faults of the tests beside this one still reach the guard.
    extern "C" fn over(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        on_sigbus(signal, info, context);
    }

    fn cover() {
        // SAFETY: a zeroed sigaction is valid; the fields that matter follow.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = over as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: installs a handler that lives as long as the process.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    }

    #[test]
    fn a_handler_over_the_guard_is_noticed_until_the_next_attach() {
        let nothing = [(0, 0); PARTS];
        drop(Guard::new(nothing));
        assert_eq!(state(), GuardState::InFront);
        // Tests beside this one attach as well, and put the guard in front at once.
        assert!((0..10_000).any(|_| {
            cover();
            state() == GuardState::Covered
        }));
        // The lock may be held by one of them, which then does the same.
        assert!((0..10_000).any(|_| {
            drop(Guard::new(nothing));
            state() == GuardState::InFront
        }));
    }
}

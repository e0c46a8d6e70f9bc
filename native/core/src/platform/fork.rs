//! Notice of `fork`: a child shares its parent's open file descriptions, and with them its byte
//! locks. The child's copy of the descriptor would keep the parent "alive" after its death, so it is
//! closed in the child before anything else runs there, and the child registers anew.

use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

/// How many descriptors can be registered at once: one for each namespace in use.
const SLOTS: usize = 4096;

static EPOCH: AtomicU32 = AtomicU32::new(0);
/// How often this process has forked.
static FORKS: AtomicU32 = AtomicU32::new(0);
static DESCRIPTORS: [AtomicI32; SLOTS] = [const { AtomicI32::new(-1) }; SLOTS];
/// A descriptor is being opened: a fork waits until it is registered.
static OPENING: AtomicBool = AtomicBool::new(false);

/// Number of forks between the first process of this family and this one. Two equal values in one
/// object's life mean that it is still in the process that made it.
#[inline]
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Number of children that this process has forked. What was mapped at another number may be mapped in a
/// child, whatever this process does with it.
#[inline]
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

fn begin_opening() {
    while OPENING.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn before_fork() {
    begin_opening();
}

extern "C" fn in_parent() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    OPENING.store(false, Ordering::Release);
}

/// Runs in the child, where only async-signal-safe calls are allowed: atomics, `close` and `mmap`.
extern "C" fn in_child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
    for slot in &DESCRIPTORS {
        let fd = slot.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: the descriptor was registered by its owner, whose object gives up closing it
            // in a child (see `ForkFd`).
            unsafe { libc::close(fd) };
        }
    }
    super::guard::fill_in_child();
    OPENING.store(false, Ordering::Release);
}

pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        super::keep_loaded();
        // SAFETY: the handlers only use atomics, `close` and `mmap`, and stay loaded.
        let failed =
            unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
        if failed != 0 {
            tracing::warn!(
                errno = failed,
                "no fork notice: do not use segments across fork"
            );
        }
    });
}

/// A descriptor that is closed in forked children.
#[derive(Debug)]
pub(crate) struct ForkFd {
    fd: RawFd,
    epoch: u32,
    slot: Option<usize>,
}

impl ForkFd {
    /// Opens a descriptor; no fork can happen between the opening and its registration.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        install();
        begin_opening();
        let opened = open().and_then(Self::register);
        OPENING.store(false, Ordering::Release);
        opened
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        let fd = fd.into_raw_fd();
        let slot = DESCRIPTORS.iter().position(|slot| {
            slot.compare_exchange(-1, fd, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        let opened = Self {
            fd,
            epoch: epoch(),
            slot,
        };
        // One that a forked child would not close would keep a dead parent alive.
        match slot {
            Some(_) => Ok(opened),
            None => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        }
    }

    /// The descriptor, unless this is a forked child of the process that opened it.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open until `self` is dropped, in the process that opened it.
        (self.epoch == epoch()).then(|| unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}

impl Drop for ForkFd {
    fn drop(&mut self) {
        if self.get().is_none() {
            return;
        }
        if let Some(slot) = self.slot {
            DESCRIPTORS[slot].store(-1, Ordering::Relaxed);
        }
        // SAFETY: opened by us, closed once: only here in this process.
        unsafe { libc::close(self.fd) };
    }
}

/// A value of its own for every process of a fork family: a lock that another thread of the parent
/// held at the fork stays locked in the child, so the child must not touch it.
pub(crate) struct PerProcess<T> {
    value: OnceLock<T>,
    next: OnceLock<Box<PerProcess<T>>>,
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            value: OnceLock::new(),
            next: OnceLock::new(),
        }
    }

    pub(crate) fn get(&self) -> &T {
        let mut node = self;
        for _ in 0..epoch() {
            node = node.next.get_or_init(|| Box::new(Self::new()));
        }
        node.value.get_or_init(T::default)
    }
}

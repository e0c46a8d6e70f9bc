//! One thread for many futex words (futex_waitv, Linux 5.16), and a descriptor that an event loop polls.

use super::fork::ForkFd;
use super::{futex_wait, monotonic_ns};
use crate::sync::AtomicU32;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many words one call takes (`FUTEX_WAITV_MAX`).
pub(crate) const MOST_WORDS: usize = 128;
/// The rest after a refusal that comes again as long as its cause is there, so that nobody spins.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// A futex word and what it was, as futex_waitv(2) takes it. By address, not by reference: the word may
/// have been unmapped since, which the kernel notices.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Word {
    expected: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

impl Word {
    pub(crate) fn new(word: &AtomicU32, expected: u32) -> Self {
        Self {
            expected: u64::from(expected),
            address: std::ptr::from_ref(word).expose_provenance() as u64,
            // Not private: others wake it from their own mappings.
            flags: libc::FUTEX2_SIZE_U32 as u32,
            reserved: 0,
        }
    }
}

/// Set by a test that sees what is done without.
#[cfg(test)]
pub(crate) static WITHOUT_WAITV: AtomicBool = AtomicBool::new(false);

/// Whether one thread can sleep on many words. Not before Linux 5.16, nor where a sandbox forbids it.
pub(crate) fn can_wait_for_many() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    #[cfg(test)]
    if WITHOUT_WAITV.load(Ordering::Relaxed) {
        return false;
    }
    *CAN.get_or_init(|| {
        // No words at all is EINVAL to a kernel that has the call.
        let refused = waitv(&[], None);
        refused.raw_os_error() == Some(libc::EINVAL)
    })
}

/// Sleeps until one of the words is woken or is not what was expected, at most `timeout`; may wake for no
/// reason. `own` is this process's and comes first; without the call it alone is waited for.
/// `true` when the time is over.
pub(crate) fn futex_wait_any(
    own: (&AtomicU32, u32),
    others: &mut Vec<Word>,
    timeout: Duration,
) -> bool {
    let until =
        monotonic_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    if others.is_empty() || !can_wait_for_many() {
        futex_wait(own.0, own.1, Some(timeout));
        return monotonic_ns() >= until;
    }
    others.push(Word::new(own.0, own.1));
    // futex_waitv(2): the time is absolute.
    let refused = waitv(others, Some(until));
    match refused.raw_os_error() {
        // Woken, changed before, interrupted, or the time is over.
        None | Some(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT) => {}
        // EFAULT: a word is gone, with its file cut or unmapped. Who looks next finds that.
        Some(_) => std::thread::sleep(REFUSED_PAUSE),
    }
    monotonic_ns() >= until
}

/// The call; code 0 when it was woken.
fn waitv(words: &[Word], until: Option<u64>) -> io::Error {
    let spec = until.map(|ns| libc::timespec {
        tv_sec: (ns / 1_000_000_000).min(i64::MAX as u64) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as _,
    });
    let spec = spec
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref::<libc::timespec>);
    // SAFETY: the array and the time live through the call, which copies them. The kernel only loads the
    // words, and answers EFAULT for an address that is not mapped.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            words.as_ptr(),
            words.len() as libc::c_uint,
            0 as libc::c_uint,
            spec,
            libc::CLOCK_MONOTONIC,
        )
    };
    if woken < 0 {
        io::Error::last_os_error()
    } else {
        io::Error::from_raw_os_error(0)
    }
}

/// A descriptor that is readable while it is rung. A forked child has it no more.
#[derive(Debug)]
pub(crate) struct PolledBell(ForkFd);

impl PolledBell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let open = || Ok(OwnedFd::from(EventFd::from_value_and_flags(0, flags)?));
        ForkFd::open(open).map(Self)
    }

    /// The descriptor; `None` in a forked child.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.get()
    }

    pub(crate) fn ring(&self) {
        if let Some(fd) = self.fd() {
            // Cannot fill up: it is rung once for each time that it is silenced.
            let _ = unistd::write(fd, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn silence(&self) {
        if let Some(fd) = self.fd() {
            // EAGAIN: it was not rung.
            let _ = unistd::read(fd, &mut [0; 8]);
        }
    }
}

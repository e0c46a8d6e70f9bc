//! The lock that serialises creation, takeover and removal in a namespace: one byte of its participants
//! file.

use crate::error::{Result, ShmError};
use crate::name::Place;
use crate::platform;
use std::os::fd::BorrowedFd;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// Lock bytes lie beyond the end of the file.
pub(super) const LOCKS_AT: u64 = 1 << 32;
pub(super) const NAMESPACE_LOCK: u64 = LOCKS_AT - 1;
/// The namespace lock is held for microseconds; whoever waits longer than this gets an error.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The namespace is ours until this is dropped: against other processes by the byte, against other
/// threads of this one by the mutex.
pub(crate) struct NamespaceLock<'a> {
    pub(super) _byte: ByteLock<'a>,
    pub(super) _threads: MutexGuard<'a, ()>,
}

/// The namespace's lock byte, of one open file description.
pub(super) struct ByteLock<'a>(BorrowedFd<'a>);

impl<'a> ByteLock<'a> {
    pub(super) fn take(fd: BorrowedFd<'a>, place: &Place, patience: Duration) -> Result<Self> {
        let started = Instant::now();
        let mut pause = Duration::from_micros(1);
        loop {
            let taken = platform::try_lock_byte(fd, NAMESPACE_LOCK)
                .map_err(|e| ShmError::from_io(&place.namespace, "lock", e))?;
            if taken {
                return Ok(Self(fd));
            }
            // Only a stopped holder keeps it longer than microseconds. Waiting in the kernel could
            // not be bounded.
            if started.elapsed() > patience {
                return Err(ShmError::Timeout {
                    name: place.namespace.clone(),
                    after: started.elapsed(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }
}

impl Drop for ByteLock<'_> {
    fn drop(&mut self) {
        let _ = platform::unlock_byte(self.0, NAMESPACE_LOCK);
    }
}

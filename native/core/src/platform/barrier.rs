//! Memory barriers that one process has the kernel put into the threads of others (membarrier(2)).

use super::fork::PerProcess;

struct Registration(bool);

impl Default for Registration {
    fn default() -> Self {
        Self(call(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
    }
}

static REGISTERED: PerProcess<Registration> = PerProcess::new();

/// Has [`in_registered`] reach the threads of this process from now on: asked once a process, which takes microseconds,
/// or milliseconds when it has several threads. `false` where the kernel does not do that (before Linux 4.16).
pub(crate) fn register() -> bool {
    REGISTERED.get().0
}

/// Has every running thread of each process that did [`register`] pass a full memory barrier; microseconds. `false` where
/// the kernel does not do that.
pub(crate) fn in_registered() -> bool {
    call(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED)
}

/// Has every running thread of the machine pass a full memory barrier; about ten milliseconds. `false` where the kernel does
/// not do that (before Linux 4.3).
pub(crate) fn everywhere() -> bool {
    call(libc::MEMBARRIER_CMD_GLOBAL)
}

fn call(command: libc::c_int) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel says which of them it has; what it has must be granted.
    #[test]
    fn what_the_kernel_has_is_used() {
        // SAFETY: takes no pointers.
        let has = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_QUERY, 0, 0) };
        let granted = |command: libc::c_int| has > 0 && has & i64::from(command) != 0;
        assert_eq!(
            register(),
            granted(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED)
        );
        assert_eq!(
            in_registered(),
            granted(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED)
        );
        assert_eq!(everywhere(), granted(libc::MEMBARRIER_CMD_GLOBAL));
    }
}

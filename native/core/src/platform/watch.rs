//! Waiting for several things at once: deaths of processes (pidfd), changes of a directory (inotify),
//! a bell of our own (eventfd).

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
pub(crate) fn process_descriptor(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: makes a descriptor or fails; pidfds are close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits for any of a set of descriptors.
pub(crate) struct Poller(Epoll);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Adds a descriptor; `token` comes back when it is readable.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        Ok(self.0.add(fd, event)?)
    }

    /// Takes a descriptor out; closing is not enough when a forked child has a copy.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Tokens of what is readable, after at most `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<Vec<u64>> {
        // Rounded up: waking a moment too early would spin.
        let ms = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        let timeout = EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX);
        let mut events = [EpollEvent::empty(); 64];
        match self.0.wait(&mut events, timeout) {
            Ok(n) => Ok(events[..n].iter().map(EpollEvent::data).collect()),
            Err(nix::Error::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A bell that ends a [`Poller`]'s wait.
pub(crate) struct Bell(EventFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(crate) fn ring(&self) {
        let _ = self.0.write(1);
    }

    pub(crate) fn silence(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What happened in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Appeared(String),
    Vanished(String),
    /// Events were lost, or the directory itself went: look at everything.
    Unknown,
}

/// Watches a directory or a file.
pub(crate) struct Watch(Inotify);

impl Watch {
    /// Files that appear in and vanish from a directory.
    pub(crate) fn directory(dir: &Path) -> io::Result<Self> {
        Self::new(
            dir,
            AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF,
        )
    }

    /// Writes to a file, and its end.
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        Self::new(
            path,
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF,
        )
    }

    fn new(path: &Path, what: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(path, what)?;
        Ok(Self(inotify))
    }

    /// All changes since the last call; does not wait.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            let events = match self.0.read_events() {
                Ok(events) => events,
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => return changes,
                Err(_) => {
                    changes.push(Change::Unknown);
                    return changes;
                }
            };
            let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
            for event in events {
                let name = event.name.and_then(|n| n.into_string().ok());
                changes.push(match name {
                    Some(name) if event.mask.intersects(gone) => Change::Vanished(name),
                    Some(name) => Change::Appeared(name),
                    None => Change::Unknown,
                });
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

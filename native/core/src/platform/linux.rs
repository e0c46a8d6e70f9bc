//! Linux: tmpfs, futex, open-file-description locks.

use crate::sync::AtomicU32;
use nix::fcntl::{self, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{self, Mode};
use nix::sys::{statvfs, uio};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Bytes of a memory page.
pub(crate) fn page_size() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(4096)
    })
}

/// A file without a name, invisible to everybody until it is linked in whole.
pub(crate) struct Unnamed {
    pub file: File,
    /// Where the file system has no `O_TMPFILE`: a random name.
    temporary: Option<Temporary>,
}

/// A name that is removed when this is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Unnamed {
    /// Creates one in `dir` with exactly the permissions `mode` (whatever the umask is).
    pub(crate) fn create(dir: &Path, mode: u32) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let owner_only = Mode::from_bits_truncate(0o600);
        let unnamed = match fcntl::open(dir, flags | OFlag::O_TMPFILE, owner_only) {
            Ok(fd) => Self {
                file: File::from(fd),
                temporary: None,
            },
            // open(2): file systems without O_TMPFILE say EOPNOTSUPP; kernels without it EISDIR.
            Err(nix::Error::EOPNOTSUPP | nix::Error::EISDIR) => Self::create_named(dir, flags)?,
            Err(errno) => return Err(errno.into()),
        };
        unnamed
            .file
            .set_permissions(std::fs::Permissions::from_mode(mode))?;
        Ok(unnamed)
    }

    fn create_named(dir: &Path, flags: OFlag) -> io::Result<Self> {
        let mut random = [0u8; 12];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let path = dir.join(format!(".{hex}.new"));
        let fd = fcntl::open(
            &path,
            flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW,
            Mode::from_bits_truncate(0o600),
        )?;
        Ok(Self {
            file: File::from(fd),
            temporary: Some(Temporary(path)),
        })
    }

    /// Whether it has no name at all, not even for a while.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.temporary.is_none()
    }

    /// Gives the file its name; `AlreadyExists` when the name is taken.
    pub(crate) fn link(&self, path: &Path) -> io::Result<()> {
        if let Some(Temporary(temporary)) = &self.temporary {
            return std::fs::hard_link(temporary, path);
        }
        let here = fcntl::AT_FDCWD;
        // By descriptor it costs half of the way through /proc. Before Linux 6.10 only with
        // CAP_DAC_READ_SEARCH: ENOENT.
        let refused = match nix::unistd::linkat(&self.file, "", here, path, AtFlags::AT_EMPTY_PATH)
        {
            Err(refused) if refused != nix::Error::EEXIST => refused,
            done => return done.map_err(Into::into),
        };
        let own = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        match nix::unistd::linkat(here, &own, here, path, AtFlags::AT_SYMLINK_FOLLOW) {
            // No /proc either.
            Err(nix::Error::ENOENT) if !own.exists() => Err(refused.into()),
            other => other.map_err(Into::into),
        }
    }
}

/// Renames a file unless the new name is taken (`EEXIST`).
pub(crate) fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    let here = fcntl::AT_FDCWD;
    match fcntl::renameat2(here, from, here, to, RenameFlags::RENAME_NOREPLACE) {
        // rename(2): the file system or the kernel does not know the flag. Two steps then, of which the
        // first refuses.
        Err(nix::Error::EINVAL | nix::Error::ENOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other.map_err(Into::into),
    }
}

/// Opens an existing regular file, never through a symbolic link.
pub(crate) fn open_existing(path: &Path, writable: bool) -> io::Result<File> {
    open_known(fcntl::AT_FDCWD, path, writable).map(|(file, _found)| file)
}

/// [`open_existing`], and what the system says of the file. A relative path is of that directory.
pub(crate) fn open_known(
    dir: BorrowedFd<'_>,
    path: &Path,
    writable: bool,
) -> io::Result<(File, Metadata)> {
    let file = open_unseen(dir, path, writable)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(not_regular());
    }
    Ok((file, found))
}

fn open_unseen(dir: BorrowedFd<'_>, path: &Path, writable: bool) -> io::Result<File> {
    let access = if writable {
        OFlag::O_RDWR
    } else {
        OFlag::O_RDONLY
    };
    // O_NONBLOCK: a FIFO of that name must not hang us before we see what it is.
    let flags = access | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    Ok(fcntl::openat(dir, path, flags, Mode::empty())?.into())
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// Reads a small file, or as much of it as `most` bytes and a little more. A piece that comes short is the last
/// one, so that one call does for what is written at once and never changes; and only what cannot be read so is
/// looked at, whether it is a regular file.
pub(crate) fn read_small(dir: BorrowedFd<'_>, path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let file = open_unseen(dir, path, false)?;
    let mut piece = [0u8; 1024];
    let mut bytes = Vec::new();
    while bytes.len() < most {
        let read = read_once_at(file.as_fd(), &mut piece, bytes.len() as u64);
        let n = read.map_err(|error| match file.metadata() {
            Ok(found) if !found.is_file() => not_regular(),
            _ => error,
        })?;
        bytes.extend_from_slice(&piece[..n]);
        if n < piece.len() {
            break;
        }
    }
    Ok(bytes)
}

/// A directory, for the files in it to be opened without a way from the root to each.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(fcntl::open(path, flags, Mode::empty())?)
}

/// The working directory, which no path of ours begins in: all are absolute, or of a directory that is open.
pub(crate) const NO_DIRECTORY: BorrowedFd<'static> = fcntl::AT_FDCWD;

/// Reserves pages, so that touching them cannot fail later. In pieces, because tmpfs undoes the
/// whole call when a signal interrupts it.
pub(crate) fn reserve(file: &File, offset: usize, len: usize) -> io::Result<()> {
    const PIECE: usize = 16 << 20;
    let mut done = 0;
    while done < len {
        let n = (len - done).min(PIECE);
        let (at, n_off) = ((offset + done) as i64, n as i64);
        match fcntl::fallocate(file, FallocateFlags::empty(), at, n_off) {
            Ok(()) => done += n,
            Err(nix::Error::EINTR) => {}
            // glibc's emulation writes one byte a block.
            Err(nix::Error::EOPNOTSUPP) => {
                fcntl::posix_fallocate(file, at, n_off)?;
                done += n;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Bytes of the file system of `dir`: in all, and still there for us.
pub(crate) fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs::statvfs(dir)?;
    let unit = stat.fragment_size() as u64;
    Ok((
        stat.blocks() as u64 * unit,
        stat.blocks_available() as u64 * unit,
    ))
}

/// Bytes that the file system of `dir` still has for us.
pub(crate) fn available_space(dir: &Path) -> Option<u64> {
    let stat = statvfs::statvfs(dir).ok()?;
    Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// The `huge=` option of the memory file system that holds `dir`; `None` when it has none.
pub(crate) fn huge_option(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mount = mount_of(&dir, &String::from_utf8_lossy(&mounts))?;
    mount
        .split(',')
        .find_map(|option| option.strip_prefix("huge="))
        .filter(|value| *value != "never")
        .map(str::to_owned)
}

/// The options of the file system that is mounted above `dir`, nearest and last.
fn mount_of(dir: &Path, mounts: &str) -> Option<String> {
    // proc_pid_mountinfo(5): field 5 is the mount point; after " - " come type, source and options.
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = PathBuf::from(unescaped(left.split(' ').nth(4)?));
            let options = right.splitn(3, ' ').nth(2)?;
            dir.starts_with(&point)
                .then(|| (point.components().count(), options.to_owned()))
        })
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, options)| options)
}

/// Blanks and the like are written as three octal digits.
fn unescaped(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|c| u8::from_str_radix(c, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// Sleeps while `*word == expected`, at most `timeout`. Returns on any wake, also a spurious one.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: i64::from(t.subsec_nanos()) as _,
    });
    let spec = spec
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref::<libc::timespec>);
    // SAFETY: the word lives as long as the borrow; the kernel only loads it (a mapping without
    // write access will do), and it copies the timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            std::ptr::from_ref(word),
            libc::FUTEX_WAIT,
            expected,
            spec,
        );
    }
}

/// Wakes everybody who sleeps on the word, in any process.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the address only names the queue; nothing is accessed.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            std::ptr::from_ref(word),
            libc::FUTEX_WAKE,
            i32::MAX,
        );
    }
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec; these clocks always exist.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// CLOCK_MONOTONIC as of the last timer tick (1 to 10 ms old), in nanoseconds: a few loads.
#[inline]
pub(crate) fn monotonic_coarse_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

fn byte_lock(kind: libc::c_int, byte: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: len as libc::off_t,
        l_pid: 0,
    }
}

/// Takes the lock on one byte without waiting; `false` when another open file description has it.
pub(crate) fn try_lock_byte(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let lock = byte_lock(libc::F_WRLCK, byte, 1);
    match fcntl::fcntl(fd, fcntl::FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a byte back.
pub(crate) fn unlock_byte(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    let lock = byte_lock(libc::F_UNLCK, byte, 1);
    fcntl::fcntl(fd, fcntl::FcntlArg::F_OFD_SETLK(&lock))?;
    Ok(())
}

/// Whether any *other* open file description holds a lock in `len` bytes from `byte` on.
pub(crate) fn locked_by_others(fd: BorrowedFd<'_>, byte: u64, len: u64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, byte, len);
    fcntl::fcntl(fd, fcntl::FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Reads at an offset until the buffer is full or the file ends; returns how much it read.
pub(crate) fn read_at(fd: BorrowedFd<'_>, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < bytes.len() {
        match uio::pread(fd, &mut bytes[have..], (at + have as u64) as i64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(have)
}

/// Reads once at an offset. Of a regular file less than was asked for is all there is.
pub(crate) fn read_once_at(fd: BorrowedFd<'_>, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match uio::pread(fd, bytes, at as i64) {
            Err(nix::Error::EINTR) => {}
            read => return Ok(read?),
        }
    }
}

/// Writes all bytes at an offset.
pub(crate) fn write_at(fd: BorrowedFd<'_>, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match uio::pwrite(fd, &bytes[done..], (at + done as u64) as i64) {
            Ok(n) => done += n,
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether `path` names the file that is open as `fd`.
pub(crate) fn names(path: &Path, fd: BorrowedFd<'_>) -> bool {
    identity(fd).is_some_and(|open| names_one(path, open))
}

/// What an open file is, whatever it is called: device and inode, which no other file has while it is open.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let found = stat::fstat(fd).ok()?;
    Some((found.st_dev, found.st_ino))
}

/// Whether `path` names the file of that identity, which is open.
pub(crate) fn names_one(path: &Path, open: (u64, u64)) -> bool {
    stat::stat(path).is_ok_and(|found| (found.st_dev, found.st_ino) == open)
}

/// Keeps the library that holds this code loaded until the process ends: signal and fork handlers and
/// threads of ours may outlive the module that brought it (a NIF, an extension module).
pub(crate) fn keep_loaded() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed Dl_info is valid to be written over.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        let here = keep_loaded as *const libc::c_void;
        // SAFETY: writes info; the name it points to lives as long as the library.
        let known = unsafe { libc::dladdr(here, &raw mut info) } != 0;
        if known && !info.dli_fname.is_null() {
            let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
            // SAFETY: the name is a C string. In a program that is linked statically this fails,
            // and nothing needs to be kept.
            unsafe { libc::dlopen(info.dli_fname, flags) };
        }
    });
}

/// Start time of a process in clock ticks since boot (proc(5), field 22), for people; 0 = unknown.
pub(crate) fn process_start_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name, in parentheses, may hold anything: fields are counted after the last ')'.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .unwrap_or(0)
}

/// Name of a process (proc(5), comm), for people.
pub(crate) fn process_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map(|name| name.trim_end().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_holds_a_directory_and_the_last_of_equal_ones_hides_the_others() {
        let mounts = "\
            24 1 0:6 / / rw - ext4 /dev/huge=x rw\n\
            25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw,size=4k\n\
            26 25 0:24 / /dev/shm rw - tmpfs tmpfs rw,huge=advise,size=4k\n\
            27 26 0:25 / /dev/shm/with\\040blank rw - tmpfs tmpfs rw,huge=always\n";
        let options = |dir: &str| mount_of(Path::new(dir), mounts);
        assert_eq!(options("/dev/shmoo").unwrap(), "rw");
        assert_eq!(options("/dev/shm/x").unwrap(), "rw,huge=advise,size=4k");
        assert_eq!(options("/dev/shm/with blank").unwrap(), "rw,huge=always");
    }
}

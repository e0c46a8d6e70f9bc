//! Which CPU a thread runs on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Result;

/// The CPUs that this process may run on, lowest first.
///
/// # Errors
/// When the kernel refuses to say.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Two different CPUs: the first for the writer, the second for the reader.
/// Ask before pinning: a pinned thread may run on one only.
///
/// # Errors
/// When this process may not run on two.
pub fn two() -> Result<(usize, usize)> {
    match allowed()?.as_slice() {
        [writer, reader, ..] => Ok((*writer, *reader)),
        few => Err(format!(
            "two-core figures need two CPUs; this process may use {}",
            few.len()
        )
        .into()),
    }
}

/// Keeps the calling thread, and the threads and processes it starts from
/// now on, on one CPU.
///
/// # Errors
/// When the CPU does not exist or is not allowed.
pub fn to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|e| format!("cannot run on CPU {cpu}: {e}").into())
}

//! Waiting for a value without the GIL, with an ear for Ctrl-C.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use snakepit_shm::ShmError;

use crate::attached::Attached;
use crate::error::Outcome;

/// The longest sleep between two looks for signals. Python's signal handlers only run when the
/// main thread comes back to the interpreter, so this bounds how late Ctrl-C is answered.
const SLICE: Duration = Duration::from_millis(100);

/// Sleeps until `reader` has a value newer than `since`, for at most `timeout`; returns its
/// version.
pub(crate) fn changed(
    py: Python<'_>,
    reader: &Attached,
    since: u64,
    timeout: Option<Duration>,
) -> Outcome<u64> {
    // A time too far away to be counted is no limit.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        let woken =
            py.detach(|| reader.with_detached(|segment| segment.wait_changed(since, Some(slice))));
        match woken {
            Ok(version) => {
                reader.mark_seen(version);
                return Ok(version);
            }
            Err(ShmError::Timeout { .. }) => py.check_signals()?,
            Err(error) => return Err(error.into()),
        }
        if let (Some(deadline), Some(after)) = (deadline, timeout)
            && deadline <= Instant::now()
        {
            return Err(ShmError::Timeout {
                name: reader.name.clone(),
                after,
            }
            .into());
        }
    }
}

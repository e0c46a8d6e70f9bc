//! Times as Python gives them: a number of seconds.

use std::time::Duration;

use pyo3::Borrowed;
use pyo3::prelude::*;
use snakepit_shm::ShmError;

use crate::error::Failure;

/// A length of time, from a number of seconds that is not negative. Infinity and what does not
/// fit count as the longest time there is.
#[derive(Clone, Copy)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromPyObject<'_, '_> for Seconds {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> Result<Self, PyErr> {
        let seconds: f64 = given.extract()?;
        if seconds.is_nan() || seconds < 0.0 {
            return Err(Failure::Core(ShmError::InvalidOption {
                option: "seconds",
                reason: format!("expected a number from 0, got {seconds}"),
            })
            .into());
        }
        Ok(Self(
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
        ))
    }
}

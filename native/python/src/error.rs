//! From the core's errors to the exception classes of `snakepit_shm._errors`, by stable code.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};
use pyo3::{PyErr, intern};
use snakepit_shm::ShmError;

/// A failure on its way to Python: the core's own, or one that a Python call raised.
pub(crate) enum Failure {
    Core(ShmError),
    Python(PyErr),
    /// One that only this binding can have.
    Own {
        code: &'static str,
        segment: String,
        message: String,
        remedy: &'static str,
    },
}

/// Code of a refusal to take memory away that arrays or a loan still lie in.
const VIEWS_ALIVE: &str = "views_alive";

impl Failure {
    /// `message` about memory of `segment` that somebody still looks at.
    pub(crate) fn views_alive(segment: &str, message: String, remedy: &'static str) -> Self {
        Self::Own {
            code: VIEWS_ALIVE,
            segment: segment.to_owned(),
            message,
            remedy,
        }
    }

    /// Whether this is such a refusal.
    pub(crate) fn is_views_alive(&self) -> bool {
        matches!(self, Self::Own { code, .. } if *code == VIEWS_ALIVE)
    }
}

impl From<ShmError> for Failure {
    fn from(error: ShmError) -> Self {
        Self::Core(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Python(error) => error,
            Failure::Core(error) => Python::attach(|py| from_core(py, &error)),
            Failure::Own {
                code,
                segment,
                message,
                remedy,
            } => Python::attach(|py| raise(py, code, &message, remedy, Some(&segment), None)),
        }
    }
}

/// Result of everything that Python calls.
pub(crate) type Outcome<T> = Result<T, Failure>;

fn from_core(py: Python<'_>, error: &ShmError) -> PyErr {
    let errno = match error {
        ShmError::Io { source, .. } => source.raw_os_error(),
        _ => None,
    };
    raise(
        py,
        error.code(),
        &error.to_string(),
        &error.remedy(),
        error.segment(),
        errno,
    )
}

/// The exception of `code`. Whatever goes wrong while it is built is returned in its place, so
/// no failure is ever lost.
fn raise(
    py: Python<'_>,
    code: &str,
    message: &str,
    remedy: &str,
    segment: Option<&str>,
    errno: Option<i32>,
) -> PyErr {
    build(py, code, message, remedy, segment, errno).unwrap_or_else(|error| error)
}

fn build(
    py: Python<'_>,
    code: &str,
    message: &str,
    remedy: &str,
    segment: Option<&str>,
    errno: Option<i32>,
) -> PyResult<PyErr> {
    static BY_CODE: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    static BASE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let classes = BY_CODE.import(py, "snakepit_shm._errors", "BY_CODE")?;
    let class = match classes.get_item(code)? {
        Some(class) => class,
        None => BASE
            .import(py, "snakepit_shm._errors", "ShmError")?
            .clone()
            .into_any(),
    };
    let details = PyDict::new(py);
    details.set_item(intern!(py, "remedy"), remedy)?;
    details.set_item(intern!(py, "segment"), segment)?;
    details.set_item(intern!(py, "errno"), errno)?;
    Ok(PyErr::from_value(class.call((message,), Some(&details))?))
}

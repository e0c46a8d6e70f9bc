//! Handles: what crosses to another process in place of the bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, TryLockError, Weak};

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use snakepit_shm::{Handle, Pool, SealedView, ShmError};

use crate::error::Outcome;
use crate::fork::Tied;
use crate::options;
use crate::view::{Shared, View};

/// What this process looks at, by directory and token: who resolves a handle again while anything of it lives
/// gets the same memory, without another attach. It holds nothing alive.
static LOOKED_AT: LazyLock<Mutex<HashMap<(PathBuf, String), LookedAt>>> =
    LazyLock::new(Mutex::default);

struct LookedAt {
    handle: Handle,
    view: Weak<Tied<SealedView>>,
}

/// From so many entries on those of which nothing lives are thrown out first.
const TIDY_FROM: usize = 256;

/// `f` on what is looked at; `None` when another thread is there (perhaps one that a fork left behind): everything
/// works without.
fn looked_at<R>(f: impl FnOnce(&mut HashMap<(PathBuf, String), LookedAt>) -> R) -> Option<R> {
    match LOOKED_AT.try_lock() {
        Ok(mut map) => Some(f(&mut map)),
        Err(TryLockError::Poisoned(poisoned)) => Some(f(&mut poisoned.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The value that a handle names, of those that are looked at, if it still has its name.
fn found_again(handle: &Handle, directory: &Path) -> snakepit_shm::Result<Option<Shared>> {
    let key = (directory.to_owned(), handle.token.clone());
    let found = looked_at(|map| {
        let known = map.get(&key).filter(|known| known.handle == *handle)?;
        known.view.upgrade()
    });
    let Some(view) = found.flatten() else {
        return Ok(None);
    };
    // What a parent looks at is its own to keep; what was cut is reported by the way that attaches.
    let sound = !view.is_inherited() && view.get().is_some_and(SealedView::is_intact);
    Ok((sound && handle.is_found(directory)?).then_some(view))
}

fn open(handle: &Handle, directory: PathBuf) -> snakepit_shm::Result<Shared> {
    if let Some(view) = found_again(handle, &directory)? {
        return Ok(view);
    }
    let view = Arc::new(Tied::new(handle.open(&directory)?));
    looked_at(|map| {
        if map.len() >= TIDY_FROM {
            map.retain(|_, known| known.view.strong_count() > 0);
        }
        let known = LookedAt {
            handle: handle.clone(),
            view: Arc::downgrade(&view),
        };
        map.insert((directory, handle.token.clone()), known);
    });
    Ok(view)
}

/// The handle as a dictionary.
pub(crate) fn to_python<'py>(py: Python<'py>, handle: &Handle) -> Outcome<Bound<'py, PyAny>> {
    Ok(plain(py, &handle.to_value())?)
}

/// A value of JSON in Python's types. Made here and not by `json.loads`: a daemon thread that is in Python code
/// when the interpreter ends is ended there, and must not have frames of this module under it.
fn plain<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(value) => value.into_bound_py_any(py),
        Value::Number(number) => match number.as_u64() {
            Some(number) => number.into_bound_py_any(py),
            None => number.as_f64().into_bound_py_any(py),
        },
        Value::String(text) => text.into_bound_py_any(py),
        Value::Array(items) => {
            let items = items.iter().map(|item| plain(py, item));
            PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_bound_py_any(py)
        }
        Value::Object(fields) => {
            let dictionary = PyDict::new(py);
            for (name, field) in fields {
                dictionary.set_item(name, plain(py, field)?)?;
            }
            dictionary.into_bound_py_any(py)
        }
    }
}

fn parse(json: &str) -> Outcome<Handle> {
    let value = serde_json::from_str(json).map_err(|error| ShmError::InvalidHandle {
        reason: format!("not JSON: {error}"),
    })?;
    Ok(Handle::from_value(&value)?)
}

/// The sealed value that a handle (JSON text) names, after all checks, and what the handle says of its elements.
#[pyfunction]
#[pyo3(signature = (json, directory=None))]
pub(crate) fn open_handle(
    py: Python<'_>,
    json: &str,
    directory: Option<PathBuf>,
) -> Outcome<(View, Option<String>)> {
    let handle = parse(json)?;
    let directory = options::directory(directory);
    let view = py.detach(|| open(&handle, directory))?;
    Ok((View::new(handle.name, view), handle.element))
}

/// Removes the segment that a handle (JSON text) names, if it is still the one it was made for; says whether
/// its memory is kept.
#[pyfunction]
#[pyo3(signature = (json, directory=None))]
pub(crate) fn remove_handle(
    py: Python<'_>,
    json: &str,
    directory: Option<PathBuf>,
) -> Outcome<bool> {
    let handle = parse(json)?;
    let directory = options::directory(directory);
    Ok(py.detach(|| {
        // The token alone would do; opening also refuses a handle that was tampered with.
        handle.open(&directory)?;
        Pool::shared(&handle.namespace, &directory)?.remove(&handle)
    })?)
}

//! Finding, inspecting and removing segments by name.

use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use snakepit_shm::{
    CleanupItem, CleanupOptions, SegmentDiscovery, SegmentInfo, SegmentState, ShmError,
};

use crate::error::Outcome;
use crate::options;
use crate::seconds::Seconds;

fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Active => "active",
        SegmentState::Sealed => "sealed",
        SegmentState::Closed => "closed",
    }
}

fn to_dict<'py>(py: Python<'py>, info: SegmentInfo) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let set = |key: &str, value: PyResult<Bound<'py, PyAny>>| fields.set_item(key, value?);
    set("name", info.name.into_bound_py_any(py))?;
    set("namespace", info.namespace.into_bound_py_any(py))?;
    set("module", info.module.into_bound_py_any(py))?;
    set("file", info.file.into_bound_py_any(py))?;
    set("capacity", info.size.into_bound_py_any(py))?;
    set("slots", info.slots.into_bound_py_any(py))?;
    set("state", state_name(info.state).into_bound_py_any(py))?;
    set("version", info.version.into_bound_py_any(py))?;
    set("generation", info.generation.into_bound_py_any(py))?;
    set("nbytes", info.len.into_bound_py_any(py))?;
    set("writer_pid", info.writer_pid.into_bound_py_any(py))?;
    set("reader_count", info.reader_count.into_bound_py_any(py))?;
    set("created_at", info.created_at.into_bound_py_any(py))?;
    set("last_accessed", info.last_accessed.into_bound_py_any(py))?;
    Ok(fields)
}

/// One dictionary a segment: the fields of `snakepit_shm.SegmentInfo`.
#[pyfunction]
#[pyo3(signature = (namespace=None, directory=None))]
pub(crate) fn list_segments(
    py: Python<'_>,
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
) -> Outcome<Vec<Py<PyDict>>> {
    let namespace = options::namespace(namespace.map(options::text));
    let directory = options::directory(directory);
    let found = py.detach(|| SegmentDiscovery::new(&namespace, &directory)?.list())?;
    found
        .into_iter()
        .map(|info| Ok(to_dict(py, info)?.unbind()))
        .collect()
}

/// A report as JSON text.
fn json(name: &str, text: serde_json::Result<String>) -> snakepit_shm::Result<String> {
    text.map_err(|error| ShmError::Corrupted {
        name: name.to_owned(),
        reason: format!("what is known of it cannot be shown: {error}"),
    })
}

/// The header of a segment as JSON text.
#[pyfunction]
pub(crate) fn inspect(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<String> {
    let built = options::segment(name, given)?;
    let report = py.detach(|| built.inspect())?;
    Ok(json(&options::text(name), serde_json::to_string(&report))?)
}

/// How the memory under a segment is backed, as JSON text.
#[pyfunction]
pub(crate) fn inspect_pages(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<String> {
    let built = options::segment(name, given)?;
    let pages = py.detach(|| built.inspect_pages())?;
    Ok(json(&options::text(name), serde_json::to_string(&pages))?)
}

/// What the machine gives in a directory, as JSON text.
#[pyfunction]
#[pyo3(signature = (directory=None))]
pub(crate) fn capabilities(py: Python<'_>, directory: Option<PathBuf>) -> Outcome<String> {
    let directory = options::directory(directory);
    let found = py.detach(|| snakepit_shm::capabilities(&directory))?;
    let text = serde_json::to_string(&found);
    Ok(json(&directory.to_string_lossy(), text)?)
}

/// Removes a segment by name, whoever wrote it.
#[pyfunction]
pub(crate) fn remove(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<()> {
    let built = options::segment(name, given)?;
    Ok(py.detach(|| built.remove())?)
}

/// Of a report: name, reason, bytes.
type Item = (String, String, u64);

fn items(found: Vec<CleanupItem>) -> Vec<Item> {
    found
        .into_iter()
        .map(|item| (item.name, item.reason, item.bytes))
        .collect()
}

/// The fields of `snakepit_shm.CleanupReport`: what was removed, kept, is corrupted, was recovered, and
/// how many entries were cleared.
type Report = (Vec<Item>, Vec<Item>, Vec<Item>, Vec<String>, usize);

/// Removes what nobody uses.
#[pyfunction]
#[pyo3(signature = (*, namespace, directory, grace, min_age, module, pattern, dry_run, corrupted))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of the public function"
)]
pub(crate) fn cleanup(
    py: Python<'_>,
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
    grace: Option<Seconds>,
    min_age: Option<Seconds>,
    module: Option<&Bound<'_, PyString>>,
    pattern: Option<&Bound<'_, PyString>>,
    dry_run: bool,
    corrupted: bool,
) -> Outcome<Report> {
    let mut wanted = CleanupOptions::new(
        options::namespace(namespace.map(options::text)),
        options::directory(directory),
    )
    .dry_run(dry_run)
    .corrupted(corrupted);
    if let Some(grace) = grace {
        wanted = wanted.grace(grace.0);
    }
    if let Some(age) = min_age {
        wanted = wanted.min_age(age.0);
    }
    if let Some(module) = module {
        wanted = wanted.module(options::text(module));
    }
    if let Some(pattern) = pattern {
        wanted = wanted.pattern(options::text(pattern));
    }
    let report = py.detach(|| wanted.run())?;
    Ok((
        items(report.removed),
        items(report.kept),
        items(report.corrupted),
        report.recovered,
        report.cleared_readers,
    ))
}

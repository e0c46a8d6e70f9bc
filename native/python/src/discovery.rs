//! Finding, inspecting and removing segments by name.

use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use snakepit_shm::{SegmentDiscovery, SegmentInfo, SegmentState, ShmError};

use crate::error::Outcome;
use crate::options;

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

/// The header of a segment as JSON text.
#[pyfunction]
pub(crate) fn inspect(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    given: &Bound<'_, PyDict>,
) -> Outcome<String> {
    let built = options::segment(name, given)?;
    let report = py.detach(|| built.inspect())?;
    Ok(
        serde_json::to_string(&report).map_err(|error| ShmError::Corrupted {
            name: options::text(name),
            reason: format!("its header cannot be shown: {error}"),
        })?,
    )
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

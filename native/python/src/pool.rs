//! This process's pools: memory of segments that ended, kept for those that come.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use snakepit_shm::{Pool, PoolOptions, Strategy, Zero};

use crate::error::Outcome;
use crate::options::{self, Given};

fn pool(namespace: Option<&Bound<'_, PyString>>, directory: Option<PathBuf>) -> Outcome<Pool> {
    let namespace = options::namespace(namespace.map(options::text));
    Ok(Pool::shared(&namespace, options::directory(directory))?)
}

/// Changes what is given of a pool's limits; what is not has the core's default.
#[pyfunction]
pub(crate) fn configure_pool(py: Python<'_>, given: &Bound<'_, PyDict>) -> Outcome<()> {
    let given = Given::new(given);
    let namespace = options::namespace(given.string("namespace")?);
    let directory = options::directory(given.value("dir", "a path")?);
    let mut limits = PoolOptions::new(&namespace, &directory);
    if let Some(bytes) = given.value("max_idle_bytes", "a whole number from 0")? {
        limits = limits.max_idle_bytes(bytes).enabled(bytes > 0);
    }
    if let Some(files) = given.value("max_idle", "a whole number from 0")? {
        limits = limits.max_idle(files);
    }
    const SECONDS: &str = "a number of seconds from 0";
    if let Some(seconds) = given.value::<f64>("idle_timeout", SECONDS)? {
        let timeout = Duration::try_from_secs_f64(seconds)
            .map_err(|_| given.refused("idle_timeout", SECONDS))?;
        limits = limits.idle_timeout(timeout);
    }
    if let Some(strategy) = given.choice(
        "strategy",
        &[
            ("first_fit", Strategy::FirstFit),
            ("best_fit", Strategy::BestFit),
            ("worst_fit", Strategy::WorstFit),
        ],
    )? {
        limits = limits.strategy(strategy);
    }
    if let Some(zero) = given.choice("zero", &[("never", Zero::Never), ("always", Zero::Always)])? {
        limits = limits.zero(zero);
    }
    let pool = Pool::shared(&namespace, directory)?;
    py.detach(|| pool.configure(limits));
    Ok(())
}

/// What a pool keeps and did: JSON text.
#[pyfunction]
#[pyo3(signature = (namespace=None, directory=None))]
pub(crate) fn pool_stats(
    py: Python<'_>,
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
) -> Outcome<String> {
    let pool = pool(namespace, directory)?;
    let stats = py.detach(|| pool.stats());
    let mut value = serde_json::json!(stats);
    value["fragmentation"] = stats.fragmentation().into();
    Ok(value.to_string())
}

/// Removes what a pool keeps, and cuts what lives in its files to what it needs; returns how many bytes
/// that were.
#[pyfunction]
#[pyo3(signature = (namespace=None, directory=None))]
pub(crate) fn drain_pool(
    py: Python<'_>,
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
) -> Outcome<usize> {
    let pool = pool(namespace, directory)?;
    Ok(py.detach(|| pool.defragment())?)
}

/// Removes what all pools of this process keep.
#[pyfunction]
pub(crate) fn drain_pools(py: Python<'_>) {
    py.detach(Pool::drain_shared);
}

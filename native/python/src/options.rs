//! From the keyword arguments of the Python functions to the core's options.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use snakepit_shm::{
    DEFAULT_DIR, DEFAULT_NAMESPACE, HugePages, Integrity, Numa, Reserve, RunMode, SegmentOptions,
    ShmError, Timestamps,
};

use crate::error::Outcome;

/// Namespace where none is given.
const NAMESPACE_VARIABLE: &str = "SNAKEPIT_SHM_NAMESPACE";
/// Directory where none is given.
const DIR_VARIABLE: &str = "SNAKEPIT_SHM_DIR";

/// The value of an environment variable; set to nothing counts as not set.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The directory: as given, else of the environment, else the core's default.
pub(crate) fn directory(given: Option<PathBuf>) -> PathBuf {
    given
        .or_else(|| variable(DIR_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DIR))
}

/// The namespace: as given, else of the environment, else the core's default.
pub(crate) fn namespace(given: Option<String>) -> String {
    given
        .or_else(|| variable(NAMESPACE_VARIABLE).map(|v| v.to_string_lossy().into_owned()))
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

/// Namespace and directory that are meant now, whatever the environment and the working directory are later.
#[pyfunction]
#[pyo3(signature = (namespace=None, directory=None))]
pub(crate) fn place(
    namespace: Option<&Bound<'_, PyString>>,
    directory: Option<PathBuf>,
) -> (String, OsString) {
    let directory = self::directory(directory);
    // There is always a working directory to go by, but for one that was removed.
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    (
        self::namespace(namespace.map(text)),
        directory.into_os_string(),
    )
}

/// A name as text. What is not valid Unicode (lone surrogates) becomes U+FFFD, which the core's
/// naming rules then refuse under the name given.
pub(crate) fn text(value: &Bound<'_, PyString>) -> String {
    value.to_string_lossy().into_owned()
}

fn invalid(option: &'static str, expected: &str, value: &Bound<'_, PyAny>) -> ShmError {
    let given = value
        .repr()
        .map_or_else(|_| "something unprintable".to_owned(), |r| text(&r));
    ShmError::InvalidOption {
        option,
        reason: format!("expected {expected}, got {given}"),
    }
}

/// One option, taken out of the dictionary; `None` counts as not given.
pub(crate) struct Given<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'g, 'py> Given<'g, 'py> {
    pub(crate) fn new(options: &'g Bound<'py, PyDict>) -> Self {
        Self(options)
    }

    /// The refusal of an option that has the right type.
    pub(crate) fn refused(&self, option: &'static str, expected: &str) -> ShmError {
        match self.raw(option) {
            Ok(Some(value)) => invalid(option, expected, &value),
            _ => ShmError::InvalidOption {
                option,
                reason: format!("expected {expected}"),
            },
        }
    }

    fn raw(&self, option: &'static str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.0.get_item(option)?.filter(|value| !value.is_none()))
    }

    pub(crate) fn string(&self, option: &'static str) -> Outcome<Option<String>> {
        match self.raw(option)? {
            None => Ok(None),
            Some(value) => match value.cast::<PyString>() {
                Ok(string) => Ok(Some(text(string))),
                Err(_) => Err(invalid(option, "a string", &value).into()),
            },
        }
    }

    pub(crate) fn value<T>(&self, option: &'static str, expected: &str) -> Outcome<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        match self.raw(option)? {
            None => Ok(None),
            Some(value) => match value.extract::<T>() {
                Ok(extracted) => Ok(Some(extracted)),
                Err(_) => Err(invalid(option, expected, &value).into()),
            },
        }
    }

    pub(crate) fn choice<T: Copy>(
        &self,
        option: &'static str,
        choices: &[(&str, T)],
    ) -> Outcome<Option<T>> {
        let Some(value) = self.raw(option)? else {
            return Ok(None);
        };
        if let Ok(string) = value.cast::<PyString>() {
            let given = text(string);
            if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == given) {
                return Ok(Some(*choice));
            }
        }
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        Err(invalid(option, &format!("one of {}", names.join(", ")), &value).into())
    }
}

/// `True`, `False`, `"prefer"` or `"require"`.
fn huge_pages(given: &Given<'_, '_>) -> Outcome<Option<HugePages>> {
    const OPTION: &str = "huge_pages";
    let Some(value) = given.raw(OPTION)? else {
        return Ok(None);
    };
    if let Ok(flag) = value.extract::<bool>() {
        return Ok(Some(flag.into()));
    }
    match value.extract::<&str>() {
        Ok("prefer") => Ok(Some(HugePages::Prefer)),
        Ok("require") => Ok(Some(HugePages::Require)),
        _ => Err(invalid(OPTION, "True, False, \"prefer\" or \"require\"", &value).into()),
    }
}

/// A node, several, `"interleave"`, or `("interleave", nodes)`.
fn numa(given: &Given<'_, '_>) -> Outcome<Option<Numa>> {
    const OPTION: &str = "numa";
    const INTERLEAVE: &str = "interleave";
    let Some(value) = given.raw(OPTION)? else {
        return Ok(None);
    };
    if let Ok(node) = value.extract::<u32>() {
        return Ok(Some(Numa::Bind(vec![node])));
    }
    if let Ok(nodes) = value.extract::<Vec<u32>>() {
        return Ok(Some(Numa::Bind(nodes)));
    }
    if value.extract::<&str>().is_ok_and(|word| word == INTERLEAVE) {
        return Ok(Some(Numa::Interleave(Vec::new())));
    }
    match value.extract::<(String, Vec<u32>)>() {
        Ok((word, nodes)) if word == INTERLEAVE => Ok(Some(Numa::Interleave(nodes))),
        _ => {
            let expected = "a node, a list of nodes, \"interleave\" or (\"interleave\", nodes)";
            Err(invalid(OPTION, expected, &value).into())
        }
    }
}

/// The options of a segment from a dictionary whose keys the Python layer has checked (they are
/// the keyword arguments of its functions).
pub(crate) fn segment(
    name: &Bound<'_, PyString>,
    options: &Bound<'_, PyDict>,
) -> Outcome<SegmentOptions> {
    const COUNT: &str = "a whole number from 0";
    const FLAG: &str = "True or False";
    let given = Given(options);
    let mut built = SegmentOptions::new(text(name))
        .namespace(namespace(given.string("namespace")?))
        .dir(directory(given.value("dir", "a path")?));
    if let Some(module) = given.string("module")? {
        built = built.module(module);
    }
    if let Some(slots) = given.value("slots", COUNT)? {
        built = built.slots(slots);
    }
    if let Some(readers) = given.value("max_readers", COUNT)? {
        built = built.max_readers(readers);
    }
    if let Some(mode) = given.choice(
        "mode",
        &[
            ("real_time", RunMode::RealTime),
            ("simulation", RunMode::Simulation),
        ],
    )? {
        built = built.mode(mode);
    }
    if let Some(reserve) = given.choice(
        "reserve",
        &[("eager", Reserve::Eager), ("lazy", Reserve::Lazy)],
    )? {
        built = built.reserve(reserve);
    }
    if let Some(lock) = given.value("lock_memory", FLAG)? {
        built = built.lock_memory(lock);
    }
    if let Some(huge) = huge_pages(&given)? {
        built = built.huge_pages(huge);
    }
    if let Some(prefault) = given.value("prefault", FLAG)? {
        built = built.prefault(prefault);
    }
    if let Some(node) = given.value::<u32>("numa_node", COUNT)? {
        built = built.numa_node(Some(node));
    }
    if let Some(numa) = numa(&given)? {
        built = built.numa(Some(numa));
    }
    if let Some(dont_fork) = given.value("dont_fork", FLAG)? {
        built = built.dont_fork(dont_fork);
    }
    if let Some(integrity) = given.choice(
        "integrity",
        &[("none", Integrity::None), ("crc32c", Integrity::Crc32c)],
    )? {
        built = built.integrity(integrity);
    }
    if let Some(notify) = given.value("notify", FLAG)? {
        built = built.notify(notify);
    }
    if let Some(timestamps) = given.choice(
        "timestamps",
        &[
            ("off", Timestamps::Off),
            ("coarse", Timestamps::Coarse),
            ("precise", Timestamps::Precise),
        ],
    )? {
        built = built.timestamps(timestamps);
    }
    if let Some(schema) = given.value("schema_id", "a whole number below 2**64")? {
        built = built.schema_id(schema);
    }
    if let Some(permissions) = given.value("permissions", "a file mode such as 0o600")? {
        built = built.permissions(permissions);
    }
    Ok(built)
}

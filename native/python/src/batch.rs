//! Many values in one call: what `Reader.read` and `Writer.write` do, for each item.

use pyo3::PyErr;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::Failure;
use crate::reader::Reader;
use crate::writer::Writer;

/// One result after the other; the first failure is raised, or all of them are put in their places.
fn collect<'py, T>(
    items: &Bound<'py, PyAny>,
    return_exceptions: bool,
    each: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Bound<'py, PyList>>
where
    T: IntoPyObject<'py>,
    PyErr: From<T::Error>,
{
    let py = items.py();
    let answers = PyList::empty(py);
    for item in items.try_iter()? {
        match each(&item?) {
            Ok(answer) => answers.append(answer)?,
            // What ends the program (KeyboardInterrupt) is no answer.
            Err(error) if return_exceptions && error.is_instance_of::<PyException>(py) => {
                answers.append(error.into_value(py))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}

/// Copies of the values of many readers.
#[pyfunction]
#[pyo3(signature = (readers, *, return_exceptions=false))]
pub(crate) fn read_many<'py>(
    readers: &Bound<'py, PyAny>,
    return_exceptions: bool,
) -> PyResult<Bound<'py, PyList>> {
    collect(readers, return_exceptions, |reader| {
        let reader = reader.cast::<Reader>()?;
        reader.get().read(reader.py(), None).map_err(raised)
    })
}

/// Publishes a value by each of many writers.
#[pyfunction]
#[pyo3(signature = (values, *, return_exceptions=false))]
pub(crate) fn write_many<'py>(
    values: &Bound<'py, PyAny>,
    return_exceptions: bool,
) -> PyResult<Bound<'py, PyList>> {
    collect(values, return_exceptions, |value| {
        let (writer, data): (Bound<'py, Writer>, Bound<'py, PyAny>) = value.extract()?;
        writer.get().write(&data, None, None, None).map_err(raised)
    })
}

fn raised(failure: Failure) -> PyErr {
    failure.into()
}

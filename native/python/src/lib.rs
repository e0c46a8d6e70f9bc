//! The native half of the Python package `snakepit_shm`.
//!
//! It is thin: every promise about memory is the core's, and what is convenient in Python
//! (`share`, `resolve`, keyword arguments, exception classes) is Python, in `python/snakepit_shm`.
//!
//! | file | what |
//! |---|---|
//! | `reader`, `writer`, `loan` | the classes that users hold |
//! | `blank` | memory that an array fills before it is shared |
//! | `attached`, `shared` | what a reader holds; what a writer does: free, on loan, closed |
//! | `batch` | many readers or writers in one call |
//! | `view`, `pin` | what owns the memory under an array |
//! | `array`, `buffer`, `bytes` | numpy, the buffer protocol, `bytes` |
//! | `wait`, `watch` | sleeping until there is a value: a thread, an event loop |
//! | `fork`, `seconds` | forked children, times |
//! | `membership` | staying registered in a namespace |
//! | `handle`, `discovery`, `pool`, `options`, `error` | the core's other types in Python's terms |
//!
//! **No unsafe code.** Memory reaches numpy as an address in an `__array_interface__`, never as a
//! Rust reference that outlives its owner; foreign buffers are copied by PyO3 or, as cells, by the
//! core. **Locks and the GIL**: no lock is held while Python code runs, and no lock that is held
//! across taking the GIL is waited for by who has it.

#![forbid(unsafe_code)]

mod array;
mod attached;
mod batch;
mod blank;
mod buffer;
mod bytes;
mod discovery;
mod error;
mod fork;
mod handle;
mod loan;
mod membership;
mod options;
mod pin;
mod pool;
mod reader;
mod seconds;
mod shared;
mod view;
mod wait;
mod watch;
mod writer;

use pyo3::prelude::*;

/// `snakepit_shm._native`: use it through `snakepit_shm`.
#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;
    use snakepit_shm::ShmError;

    #[pymodule_export]
    use super::batch::{read_many, write_many};
    #[pymodule_export]
    use super::blank::Blank;
    #[pymodule_export]
    use super::discovery::{capabilities, cleanup, inspect, inspect_pages, list_segments, remove};
    #[pymodule_export]
    use super::fork::after_fork_in_child;
    #[pymodule_export]
    use super::handle::{open_handle, remove_handle};
    #[pymodule_export]
    use super::loan::Loan;
    #[pymodule_export]
    use super::membership::{Membership, join};
    #[pymodule_export]
    use super::options::place;
    #[pymodule_export]
    use super::pin::{Pin, PinnedView};
    #[pymodule_export]
    use super::pool::{configure_pool, drain_pool, drain_pools, pool_stats};
    #[pymodule_export]
    use super::reader::{Reader, attach};
    #[pymodule_export]
    use super::view::View;
    #[pymodule_export]
    use super::watch::{Notifier, saw, take_array, take_bytes, take_into, timed_out};
    #[pymodule_export]
    use super::writer::{Writer, attach_writer, create};

    /// The error codes that the core can answer with.
    #[pyfunction]
    fn error_codes() -> Vec<&'static str> {
        ShmError::CODES.to_vec()
    }

    /// The smallest valid capacity that holds `nbytes` bytes.
    #[pyfunction]
    fn round_up_capacity(nbytes: usize) -> crate::error::Outcome<usize> {
        Ok(snakepit_shm::round_up_capacity(nbytes)?)
    }

    /// Closes a reader or writer when the interpreter ends, also under views: nobody is left to
    /// let go of them.
    #[pyfunction]
    fn close_at_exit(object: &Bound<'_, PyAny>) -> crate::error::Outcome<()> {
        let py = object.py();
        if let Ok(reader) = object.cast::<Reader>() {
            reader.get().detach(py)?;
        } else if let Ok(writer) = object.cast::<Writer>() {
            writer.get().detach(py)?;
        }
        Ok(())
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // Workers come back for the next value; at exit, `_release_all` says that this process goes.
        snakepit_shm::linger();
        let py = module.py();
        // Callbacks run in the order in which they were registered, and those of the package's modules, which
        // import this one first, let go of what a child inherits.
        let hooks = PyDict::new(py);
        hooks.set_item("after_in_child", module.getattr("after_fork_in_child")?)?;
        py.import("os")?
            .call_method("register_at_fork", (), Some(&hooks))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

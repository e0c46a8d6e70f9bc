//! What a forked child may not do with the objects that it inherits.
//!
//! A fork copies every Python object, but the writer claim, the reader entries and the thread that
//! unmaps in the background stay the parent's. So a child that drops an inherited writer must not
//! give its parent's claim back. `os.register_at_fork` (as the module is imported) counts forks, and
//! [`Tied`] leaks what was made before the last one: the memory goes with the child anyway.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;

/// How many forks lie between the first process and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Runs in every child of `os.fork`, before any other code of this package.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A value that only the process that made it may drop.
pub(crate) struct Tied<T> {
    /// `None` only between `into_inner` and drop.
    value: Option<T>,
    born: u64,
}

impl<T> Tied<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Some(value),
            born: FORKS.load(Ordering::Relaxed),
        }
    }

    /// Whether this process inherited the value from its parent.
    pub(crate) fn is_inherited(&self) -> bool {
        self.born != FORKS.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.value.as_mut()
    }

    /// The value, unless it was inherited (then it is leaked).
    pub(crate) fn into_inner(mut self) -> Option<T> {
        if self.is_inherited() {
            None
        } else {
            self.value.take()
        }
    }
}

impl<T> Drop for Tied<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            mem::forget(self.value.take());
        }
    }
}

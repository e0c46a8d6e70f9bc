//! The pools of this process, one a namespace.

use super::{Pool, PoolOptions};
use crate::name::Place;
use crate::platform::fork::PerProcess;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A forked child has its own, which keep nothing yet.
static POOLS: PerProcess<Mutex<HashMap<Place, Pool>>> = PerProcess::new();

pub(super) fn of(place: &Place) -> Pool {
    let mut pools = POOLS.get().lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        Pool::of(
            place.clone(),
            PoolOptions::new(&place.namespace, &place.dir),
        )
    };
    pools.entry(place.clone()).or_insert_with(make).clone()
}

pub(super) fn all() -> Vec<Pool> {
    let pools = POOLS.get().lock().unwrap_or_else(PoisonError::into_inner);
    pools.values().cloned().collect()
}

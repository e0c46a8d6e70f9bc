//! A shared memory object of the crate `shared_memory`, named for this run.

use shared_memory::{Shmem, ShmemConf};
use snakepit_shm_bench::Result;

use crate::port::Place;

/// Where values begin: a page of their own, as our slots.
pub const DATA: usize = 4096;

fn id(place: &Place) -> String {
    let own = crate::object_prefix(&place.dir);
    format!("{own}-{}-{}", place.kind.word(), place.name)
}

pub fn create(place: &Place) -> Result<Shmem> {
    let conf = ShmemConf::new().size(DATA + place.size).os_id(id(place));
    conf.create()
        .map_err(|e| format!("shared_memory: {e}").into())
}

pub fn open(place: &Place) -> Result<Shmem> {
    ShmemConf::new()
        .os_id(id(place))
        .open()
        .map_err(|e| format!("shared_memory: {e}").into())
}

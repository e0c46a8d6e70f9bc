//! Arrays in the order that everybody takes for granted.

use rustler::{Binary, Env, NifResult, OwnedBinary};

/// A copy of an array in Fortran's order that is in C's.
#[rustler::nif(schedule = "DirtyCpu")]
fn in_c_order<'a>(
    env: Env<'a>,
    data: Binary<'a>,
    shape: Vec<u64>,
    item: u64,
) -> NifResult<Binary<'a>> {
    let mut copy = OwnedBinary::new(data.len()).ok_or(rustler::Error::BadArg)?;
    snakepit_shm::in_c_order(&data, copy.as_mut_slice(), &shape, item)
        .ok_or(rustler::Error::BadArg)?;
    Ok(copy.release(env))
}

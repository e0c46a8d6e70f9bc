//! What the bytes of a value mean: `nil`, `:arrow_ipc` or `{:numpy, dtype, shape}`.

use rustler::{NifResult, Term};
use snakepit_shm::{Descriptor, Result};

use crate::atoms;

/// Decodes a descriptor; `badarg` for another term, the core's own error for a dtype or shape that
/// it does not have.
pub fn decode(term: Term<'_>) -> NifResult<Result<Descriptor>> {
    if atoms::nil() == term {
        return Ok(Ok(Descriptor::RAW));
    }
    if atoms::arrow_ipc() == term {
        return Ok(Ok(Descriptor::ARROW_IPC));
    }
    let (format, dtype, shape) = term.decode::<(rustler::Atom, &str, Vec<u64>)>()?;
    if format != atoms::numpy() {
        return Err(rustler::Error::BadArg);
    }
    Ok(Descriptor::numpy(dtype, &shape))
}

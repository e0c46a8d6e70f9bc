//! A new region filled piece by piece, before it has a value: from terms, from a file, from a smaller one.
//!
//! Pieces go straight into the only slot, which nobody reads before it is published.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;

use rustler::{Atom, Binary, Env, NifResult, Term};
use snakepit_shm::{SegmentWriter, ShmError};

use crate::error::{Answer, Failure};
use crate::resources::WriterResource;
use crate::tally::Meter;
use crate::terms::descriptor;
use crate::terms::iodata::{Budget, Fragments, Refusal};
use crate::writer::{locked, over_budget, too_long};

/// Copies iodata to `offset`; answers where the next piece goes.
#[rustler::nif]
fn fill<'a>(writer: &WriterResource, offset: u64, data: Term<'a>) -> NifResult<Answer<u64>> {
    fill_within(writer, offset, data, Budget::NORMAL)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn fill_dirty<'a>(writer: &WriterResource, offset: u64, data: Term<'a>) -> NifResult<Answer<u64>> {
    fill_within(writer, offset, data, Budget::DIRTY)
}

fn fill_within(
    writer: &WriterResource,
    offset: u64,
    data: Term<'_>,
    budget: Budget,
) -> NifResult<Answer<u64>> {
    let env = data.get_env();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let room = writer.capacity().saturating_sub(start);
    let fragments = match Fragments::collect(data, room, budget) {
        Ok(fragments) => fragments,
        Err(Refusal::NotIodata) => return Err(rustler::Error::BadArg),
        Err(Refusal::TooLong(len)) => {
            return Ok(Err(too_long(writer, start.saturating_add(len))));
        }
        Err(Refusal::OverBudget) => return Ok(Err(over_budget(budget))),
    };
    Ok(locked(env, writer, budget, fragments.len(), |segment| {
        let mut loan = segment.loan()?;
        let mut rest = loan.as_mut_slice().get_mut(start..).unwrap_or_default();
        for piece in fragments.slices() {
            // Together they fit, as was just checked.
            let Some((to, after)) = rest.split_at_mut_checked(piece.len()) else {
                return Err(too_long(writer, start.saturating_add(fragments.len())));
            };
            to.copy_from_slice(piece);
            rest = after;
        }
        Ok((start + fragments.len()) as u64)
    }))
}

/// Reads the first `len` bytes of a regular file to the beginning, through no memory in between.
#[rustler::nif(schedule = "DirtyIo")]
fn fill_file(writer: &WriterResource, path: Binary<'_>, len: u64) -> Answer<u64> {
    let path = std::path::PathBuf::from(std::ffi::OsString::from_vec(path.as_slice().to_vec()));
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > writer.capacity() {
        return Err(too_long(writer, len));
    }
    let failed = |operation, source| {
        Failure::Shm(ShmError::Io {
            name: Some(path.display().to_string()),
            operation,
            source,
        })
    };
    let mut file = open_regular(&path).map_err(|error| failed("open", error))?;
    writer.with(|segment| {
        let mut loan = segment.loan()?;
        let room = loan.as_mut_slice().get_mut(..len).unwrap_or_default();
        file.read_exact(room)
            .map_err(|error| failed("read", error))?;
        Ok(len as u64)
    })
}

/// Never waits: whoever opens a pipe for reading waits for a writer of it.
fn open_regular(path: &std::path::Path) -> std::io::Result<File> {
    // As Linux has it on the architectures that there are builds for.
    const O_NONBLOCK: i32 = 0o4000;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// Copies the first `len` bytes of what was filled in to the beginning of a larger one.
#[rustler::nif(schedule = "DirtyCpu")]
fn fill_from(larger: &WriterResource, smaller: &WriterResource, len: u64) -> Answer<u64> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if std::ptr::eq(larger, smaller) {
        return Ok(len as u64);
    }
    smaller.with(|from| {
        larger.with(|to| {
            let (mut from, mut to) = (from.loan()?, to.loan()?);
            let bytes = from.as_mut_slice().get(..len);
            let room = to.as_mut_slice().get_mut(..len);
            match (bytes, room) {
                (Some(bytes), Some(room)) => room.copy_from_slice(bytes),
                _ => return Err(too_long(larger, len)),
            }
            Ok(len as u64)
        })
    })
}

/// Publishes the first `len` bytes of what was filled in.
#[rustler::nif(schedule = "DirtyCpu")]
fn fill_publish<'a>(
    env: Env<'a>,
    writer: &WriterResource,
    len: u64,
    described: Term<'a>,
) -> NifResult<Answer<u64>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let descriptor = match descriptor::decode(described)? {
        Ok(descriptor) => descriptor,
        Err(error) => return Ok(Err(error.into())),
    };
    let meter = Meter::write();
    Ok(writer.with(|segment: &mut SegmentWriter| {
        writer.check_right(env)?;
        let version = segment.loan()?.publish(len, &descriptor)?;
        writer.wrote(meter, len, len, true);
        Ok(version)
    }))
}

/// Lends the writer's place to another OS process; answers which segment that is.
#[rustler::nif(schedule = "DirtyIo")]
fn lend(env: Env<'_>, writer: &WriterResource) -> Answer<String> {
    writer.lend(env)
}

/// Takes the writer's place back if it was lent and nobody has it.
#[rustler::nif(schedule = "DirtyIo")]
fn take_back(writer: &WriterResource) -> Answer<Atom> {
    writer.take_back()?;
    Ok(rustler::types::atom::ok())
}

/// Whether the writer's place is lent.
#[rustler::nif]
fn is_lent(writer: &WriterResource) -> bool {
    writer.is_lent()
}

//! Calls on a writer.

use rustler::{Atom, Binary, Env, LocalPid, NifResult, Term};
use snakepit_shm::{Descriptor, SegmentWriter, ShmError};

use crate::error::{Answer, Failure};
use crate::resources::{ViewResource, WriterResource};
use crate::tally::{Meter, check_untraced};
use crate::terms::iodata::{Budget, Fragments, Refusal};
use crate::terms::{descriptor, json};

#[rustler::nif]
fn write<'a>(
    writer: &WriterResource,
    data: Term<'a>,
    described: Term<'a>,
) -> NifResult<Answer<u64>> {
    write_within(writer, data, described, Budget::NORMAL)
}

/// [`write`] of plain bytes where nothing has been done about telemetry; see `read_quick`.
#[rustler::nif]
fn write_quick<'a>(writer: &WriterResource, data: Term<'a>) -> NifResult<Answer<u64>> {
    match check_untraced() {
        Ok(()) => write_all(writer, data, &Descriptor::RAW, Budget::NORMAL),
        Err(traced) => Ok(Err(traced)),
    }
}

#[rustler::nif(schedule = "DirtyCpu")]
fn write_dirty<'a>(
    writer: &WriterResource,
    data: Term<'a>,
    described: Term<'a>,
) -> NifResult<Answer<u64>> {
    write_within(writer, data, described, Budget::DIRTY)
}

fn write_within(
    writer: &WriterResource,
    data: Term<'_>,
    described: Term<'_>,
    budget: Budget,
) -> NifResult<Answer<u64>> {
    match descriptor::decode(described)? {
        Ok(descriptor) => write_all(writer, data, &descriptor, budget),
        Err(error) => Ok(Err(error.into())),
    }
}

fn write_all(
    writer: &WriterResource,
    data: Term<'_>,
    descriptor: &Descriptor,
    budget: Budget,
) -> NifResult<Answer<u64>> {
    let meter = Meter::write();
    let env = data.get_env();
    if let Ok(binary) = Binary::from_term(data) {
        return Ok(locked(env, writer, budget, binary.len(), |segment| {
            let version = segment.write_described(&binary, descriptor)?;
            writer.wrote(meter, binary.len(), binary.len(), true);
            Ok(version)
        }));
    }
    let capacity = writer.capacity();
    let fragments = match Fragments::collect(data, capacity, budget) {
        Ok(fragments) => fragments,
        Err(Refusal::NotIodata) => return Err(rustler::Error::BadArg),
        Err(Refusal::TooLong(len)) => return Ok(Err(too_long(writer, len))),
        Err(Refusal::OverBudget) => return Ok(Err(over_budget(budget))),
    };
    Ok(locked(env, writer, budget, fragments.len(), |segment| {
        let version = segment.write_vectored(&fragments.slices(), descriptor)?;
        writer.wrote(meter, fragments.len(), fragments.len(), true);
        Ok(version)
    }))
}

pub fn too_long(writer: &WriterResource, len: usize) -> Failure {
    Failure::Shm(ShmError::OutOfBounds {
        name: writer.name().to_owned(),
        offset: 0,
        len,
        capacity: writer.capacity(),
    })
}

pub fn over_budget(budget: Budget) -> Failure {
    if budget.dirty() {
        let reason = format!(
            "a list of more than {} cells, flatten it first",
            budget.cells
        );
        return Failure::Shm(ShmError::InvalidOption {
            option: "data",
            reason,
        });
    }
    Failure::Dirty
}

/// Runs `work` now if it is small and the writer free, or refuses so that the dirty twin is called.
/// Refuses for good while another process has the exclusive right to write.
pub fn locked<T>(
    env: Env<'_>,
    writer: &WriterResource,
    budget: Budget,
    bytes: usize,
    work: impl FnOnce(&mut SegmentWriter) -> Answer<T>,
) -> Answer<T> {
    if bytes > budget.bytes {
        return Err(Failure::Dirty);
    }
    let work = |segment: &mut SegmentWriter| {
        writer.check_right(env)?;
        work(segment)
    };
    if budget.dirty() {
        writer.with(work)
    } else {
        writer.try_with(work)
    }
}

#[rustler::nif]
fn write_at(env: Env<'_>, writer: &WriterResource, offset: u64, data: Binary<'_>) -> Answer<u64> {
    write_at_within(env, writer, offset, &data, Budget::NORMAL)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn write_at_dirty(
    env: Env<'_>,
    writer: &WriterResource,
    offset: u64,
    data: Binary<'_>,
) -> Answer<u64> {
    write_at_within(env, writer, offset, &data, Budget::DIRTY)
}

/// A patch may carry the rest of the previous value over, so the capacity bounds the work.
fn write_at_within(
    env: Env<'_>,
    writer: &WriterResource,
    offset: u64,
    data: &Binary<'_>,
    budget: Budget,
) -> Answer<u64> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let meter = Meter::write();
    locked(env, writer, budget, writer.capacity(), |segment| {
        let version = segment.write_at(offset, data)?;
        writer.wrote(meter, data.len(), offset + data.len(), false);
        Ok(version)
    })
}

#[rustler::nif]
fn seal(env: Env<'_>, writer: &WriterResource) -> Answer<u64> {
    writer.try_with(|segment| {
        writer.check_right(env)?;
        seal_now(segment)
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn seal_dirty(env: Env<'_>, writer: &WriterResource) -> Answer<u64> {
    writer.with(|segment| {
        writer.check_right(env)?;
        seal_now(segment)
    })
}

fn seal_now(writer: &mut SegmentWriter) -> Answer<u64> {
    writer.seal()?;
    Ok(writer.current_version())
}

/// Gives one process of this VM the exclusive right to write; never waits.
#[rustler::nif]
fn hold_writer(env: Env<'_>, writer: &WriterResource, pid: LocalPid) -> Answer<Atom> {
    writer.hold(env, pid)?;
    Ok(rustler::types::atom::ok())
}

/// Takes that right back, if that process has it; never waits.
#[rustler::nif]
fn free_writer(env: Env<'_>, writer: &WriterResource, pid: LocalPid) -> Answer<Atom> {
    writer.free(env, pid);
    Ok(rustler::types::atom::ok())
}

/// Answers when no write is under way that began before.
#[rustler::nif]
fn settle_writer(writer: &WriterResource) -> Answer<Atom> {
    writer.try_with(|_| Ok(rustler::types::atom::ok()))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn settle_writer_dirty(writer: &WriterResource) -> Answer<Atom> {
    writer.with(|_| Ok(rustler::types::atom::ok()))
}

/// Zero-copy binary of a sealed segment, from the writer's own mapping.
#[rustler::nif(schedule = "DirtyCpu")]
fn writer_binary<'a>(env: Env<'a>, writer: &WriterResource) -> Answer<Term<'a>> {
    let view = writer.sealed()?;
    Ok(ViewResource::binary(env, view).to_term(env))
}

/// The handle of a sealed segment.
#[rustler::nif]
fn writer_handle_now<'a>(env: Env<'a>, writer: &WriterResource) -> Answer<Term<'a>> {
    let handle = writer.handle_now()?;
    Ok(json::to_term(env, &handle.to_value()))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn writer_handle_dirty<'a>(env: Env<'a>, writer: &WriterResource) -> Answer<Term<'a>> {
    let handle = writer.handle()?;
    Ok(json::to_term(env, &handle.to_value()))
}

/// Removes this very segment, not another one that has its name by now, and gives the claim back.
///
/// Readers keep what they have mapped; nobody finds the segment any more.
#[rustler::nif(schedule = "DirtyIo")]
fn discard(writer: &WriterResource) -> Answer<Atom> {
    match writer.discard() {
        // Somebody else removed it first: what was asked for holds.
        Ok(()) | Err(Failure::Shm(ShmError::NotFound { .. })) => Ok(rustler::types::atom::ok()),
        Err(error) => Err(error),
    }
}

/// Gives the writer's claim back and leaves the segment to another writer.
#[rustler::nif(schedule = "DirtyIo")]
fn release(writer: &WriterResource) -> Answer<Atom> {
    writer.take()?.release()?;
    Ok(rustler::types::atom::ok())
}

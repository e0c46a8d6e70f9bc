//! Handles: what a JSON library decoded, checked by the core alone.

use std::time::Duration;

use rustler::{Atom, Encoder, Env, NifMap, NifResult, NifUnitEnum, ResourceArc, Term};
use snakepit_shm::{Handle, Pool, SegmentWriter};

use crate::error::Answer;
use crate::listing::making_room;
use crate::resources::{ViewResource, WriterResource};
use crate::terms::json;

/// Opens the sealed region that a handle names: a binary on the mapping.
#[rustler::nif(schedule = "DirtyIo")]
fn open_handle<'a>(env: Env<'a>, handle: Term<'a>, dir: String) -> NifResult<Answer<Term<'a>>> {
    let value = json::to_value(handle)?;
    Ok(open(env, &value, &dir))
}

/// What is to be done with what was given away.
#[derive(NifUnitEnum, Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// Look, but leave it.
    No,
    /// Take it over; in the end it is removed.
    Yes,
    /// Take it over; in the end its memory goes to the VM's pool.
    Pooled,
}

/// A region that was taken over: what is to be known of it, and for how many milliseconds it was there to be taken.
#[derive(NifMap)]
struct Taken {
    writer: ResourceArc<WriterResource>,
    size: u64,
    slots: u64,
    permissions: u32,
    ttl: u64,
}

/// The same, and whether whoever shared it has given it away and nobody has taken it yet; then it is taken over, if
/// `taking` says so, for the caller to make known or to hand back. All in one call: a worker's results come often.
#[rustler::nif(schedule = "DirtyIo")]
fn fetch_handle<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    dir: String,
    taking: Taking,
) -> NifResult<Answer<(Term<'a>, Term<'a>)>> {
    let value = json::to_value(handle)?;
    Ok(fetch(env, &value, &dir, taking))
}

fn fetch<'a>(
    env: Env<'a>,
    value: &serde_json::Value,
    dir: &str,
    taking: Taking,
) -> Answer<(Term<'a>, Term<'a>)> {
    let handle = Handle::from_value(value)?;
    if taking == Taking::No {
        let view = making_room(|| handle.open(dir))?;
        let given = view.is_given_away().then_some(true);
        return Ok((
            ViewResource::binary(env, view).to_term(env),
            given.encode(env),
        ));
    }
    let (view, taken) = making_room(|| handle.take(dir))?;
    let taken = match taken {
        Some((writer, ttl)) => Some(taken_over(writer, &handle, dir, taking, ttl)?),
        None => None,
    };
    Ok((
        ViewResource::binary(env, view).to_term(env),
        taken.encode(env),
    ))
}

fn taken_over(
    writer: SegmentWriter,
    handle: &Handle,
    dir: &str,
    taking: Taking,
    ttl: Duration,
) -> Answer<Taken> {
    let pool = match taking {
        Taking::Pooled => Some(Pool::shared(&handle.namespace, dir)?),
        _ => None,
    };
    Ok(Taken {
        size: writer.capacity() as u64,
        slots: writer.slots() as u64,
        // As whoever may not see them would have made it.
        permissions: writer.permissions().unwrap_or(0o600),
        ttl: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1),
        writer: WriterResource::pooled(writer, pool),
    })
}

/// Gives what was taken over away again, for another to take within so many milliseconds.
#[rustler::nif(schedule = "DirtyIo")]
fn hand_back(writer: &WriterResource, ttl: u64) -> Answer<Atom> {
    let mut writer = writer.take()?;
    writer.give_away(Duration::from_millis(ttl))?;
    Ok(rustler::types::atom::ok())
}

fn open<'a>(env: Env<'a>, value: &serde_json::Value, dir: &str) -> Answer<Term<'a>> {
    let handle = Handle::from_value(value)?;
    let view = making_room(|| handle.open(dir))?;
    Ok(ViewResource::binary(env, view).to_term(env))
}

/// Name and namespace of the region that a handle names; its form is checked, no file is touched.
#[rustler::nif]
fn parse_handle(handle: Term<'_>) -> NifResult<Answer<(String, String)>> {
    let value = json::to_value(handle)?;
    Ok(parse(&value))
}

fn parse(value: &serde_json::Value) -> Answer<(String, String)> {
    let handle = Handle::from_value(value)?;
    Ok((handle.name, handle.namespace))
}

/// Removes the region that a handle names if it was given to whoever has the handle, and nobody has taken it.
#[rustler::nif(schedule = "DirtyIo")]
fn finish_handle(handle: Term<'_>, dir: String, pooled: bool) -> NifResult<Answer<Atom>> {
    let value = json::to_value(handle)?;
    Ok(finish(&value, &dir, pooled))
}

fn finish(value: &serde_json::Value, dir: &str, pooled: bool) -> Answer<Atom> {
    let handle = Handle::from_value(value)?;
    let writer = handle.adopt(dir)?;
    if pooled {
        // What a worker has handed over comes with its pages.
        Pool::shared(&handle.namespace, dir)?.retire(writer)?;
    } else {
        writer.remove()?;
    }
    Ok(rustler::types::atom::ok())
}

/// Removes the region that a handle names, if it is still that very one.
#[rustler::nif(schedule = "DirtyIo")]
fn remove_handle(handle: Term<'_>, dir: String, pooled: bool) -> NifResult<Answer<Atom>> {
    let value = json::to_value(handle)?;
    Ok(remove(&value, &dir, pooled))
}

fn remove(value: &serde_json::Value, dir: &str, pooled: bool) -> Answer<Atom> {
    let handle = Handle::from_value(value)?;
    if pooled {
        // What a worker has handed over comes with its pages.
        Pool::shared(&handle.namespace, dir)?.remove(&handle)?;
    } else {
        handle.remove(dir)?;
    }
    Ok(rustler::types::atom::ok())
}

//! Handles: what a JSON library decoded, checked by the core alone.

use rustler::{Atom, Env, NifResult, Term};
use snakepit_shm::{Handle, Pool};

use crate::error::Answer;
use crate::listing::making_room;
use crate::resources::ViewResource;
use crate::terms::json;

/// Opens the sealed region that a handle names: a binary on the mapping.
#[rustler::nif(schedule = "DirtyIo")]
fn open_handle<'a>(env: Env<'a>, handle: Term<'a>, dir: String) -> NifResult<Answer<Term<'a>>> {
    let value = json::to_value(handle)?;
    Ok(open(env, &value, &dir))
}

/// The same, and whether whoever shared it has given it away and nobody has taken it yet.
#[rustler::nif(schedule = "DirtyIo")]
fn fetch_handle<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    dir: String,
) -> NifResult<Answer<(Term<'a>, bool)>> {
    let value = json::to_value(handle)?;
    Ok(fetch(env, &value, &dir))
}

fn fetch<'a>(env: Env<'a>, value: &serde_json::Value, dir: &str) -> Answer<(Term<'a>, bool)> {
    let handle = Handle::from_value(value)?;
    let view = making_room(|| handle.open(dir))?;
    let given = view.is_given_away();
    Ok((ViewResource::binary(env, view).to_term(env), given))
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

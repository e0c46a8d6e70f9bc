//! Handles cross the border as the maps that a JSON library decodes; the core checks them as JSON.

use rustler::{Encoder, Env, MapIterator, NifResult, Term, TermType};
use serde_json::{Map, Number, Value};

use crate::atoms;

/// A handle is one level of map and one list; nothing legal nests deeper.
const MAX_DEPTH: usize = 4;
/// A handle has 10 fields and at most 6 dimensions; a map or list beyond this is no handle.
const MAX_ITEMS: usize = 64;

/// Turns a term as a JSON library decodes it into a [`Value`]; `badarg` for terms that JSON cannot
/// say (pids, tuples, …) and for anything larger than a handle can be.
pub fn to_value(term: Term<'_>) -> NifResult<Value> {
    value_at(term, 0)
}

fn value_at(term: Term<'_>, depth: usize) -> NifResult<Value> {
    if depth > MAX_DEPTH {
        return Err(rustler::Error::BadArg);
    }
    match term.get_type() {
        TermType::Binary => Ok(Value::String(term.decode::<String>()?)),
        TermType::Integer => integer(term),
        TermType::Float => {
            let number = Number::from_f64(term.decode::<f64>()?).ok_or(rustler::Error::BadArg)?;
            Ok(Value::Number(number))
        }
        TermType::Atom => atom(term),
        TermType::List => list(term, depth),
        TermType::Map => map(term, depth),
        _ => Err(rustler::Error::BadArg),
    }
}

/// Integers beyond 64 bits become a float, as in JSON itself; the core refuses them by name.
fn integer(term: Term<'_>) -> NifResult<Value> {
    if let Ok(number) = term.decode::<u64>() {
        return Ok(Value::Number(number.into()));
    }
    if let Ok(number) = term.decode::<i64>() {
        return Ok(Value::Number(number.into()));
    }
    Number::from_f64(f64::MAX)
        .map(Value::Number)
        .ok_or(rustler::Error::BadArg)
}

fn atom(term: Term<'_>) -> NifResult<Value> {
    if atoms::nil() == term {
        return Ok(Value::Null);
    }
    term.decode::<bool>().map(Value::Bool)
}

fn list(term: Term<'_>, depth: usize) -> NifResult<Value> {
    let mut items = Vec::new();
    let mut rest = term;
    while let Ok((head, tail)) = rest.list_get_cell() {
        if items.len() == MAX_ITEMS {
            return Err(rustler::Error::BadArg);
        }
        items.push(value_at(head, depth + 1)?);
        rest = tail;
    }
    if !rest.is_empty_list() {
        return Err(rustler::Error::BadArg);
    }
    Ok(Value::Array(items))
}

fn map(term: Term<'_>, depth: usize) -> NifResult<Value> {
    if term.map_size()? > MAX_ITEMS {
        return Err(rustler::Error::BadArg);
    }
    let pairs = MapIterator::new(term).ok_or(rustler::Error::BadArg)?;
    let mut object = Map::new();
    for (key, value) in pairs {
        object.insert(key.decode::<String>()?, value_at(value, depth + 1)?);
    }
    Ok(Value::Object(object))
}

/// Turns a [`Value`] of our own (a handle) into a map with string keys.
pub fn to_term<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    match value {
        Value::Null => atoms::nil().encode(env),
        Value::Bool(flag) => flag.encode(env),
        Value::Number(number) => number_term(env, number),
        Value::String(text) => text.encode(env),
        Value::Array(items) => items
            .iter()
            .map(|item| to_term(env, item))
            .collect::<Vec<_>>()
            .encode(env),
        Value::Object(object) => object_term(env, object),
    }
}

fn number_term<'a>(env: Env<'a>, number: &Number) -> Term<'a> {
    if let Some(n) = number.as_u64() {
        n.encode(env)
    } else if let Some(n) = number.as_i64() {
        n.encode(env)
    } else {
        number.as_f64().encode(env)
    }
}

fn object_term<'a>(env: Env<'a>, object: &Map<String, Value>) -> Term<'a> {
    object.iter().fold(Term::map_new(env), |map, (key, value)| {
        // `map_put` fails for a term that is not a map only.
        map.map_put(key, to_term(env, value)).unwrap_or(map)
    })
}

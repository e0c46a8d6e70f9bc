//! Handles cross the border as the maps that a JSON library decodes; the core checks them as JSON.

use rustler::{Binary, Encoder, Env, MapIterator, NifResult, Term, TermType};
use serde_json::{Map, Number, Value};

use crate::atoms;

/// A handle is one level of map and one list; nothing legal nests deeper.
const MAX_DEPTH: usize = 4;
/// A handle has 10 fields and at most 32 dimensions, and a few hundred bytes of text. What is beyond this, in
/// all of the term together, is no handle: parts of a term may be the same, so that a small one, or one of
/// another process, can be of any length when it is walked through.
const MAX_ITEMS: usize = 128;
const MAX_BYTES: usize = 4096;

/// Turns a term as a JSON library decodes it into a [`Value`]; `badarg` for terms that JSON cannot
/// say (pids, tuples, …) and for anything larger than a handle can be.
pub fn to_value(term: Term<'_>) -> NifResult<Value> {
    let mut budget = Budget {
        items: MAX_ITEMS,
        bytes: MAX_BYTES,
    };
    budget.value(term, 0)
}

/// How much more of a term is looked at.
struct Budget {
    items: usize,
    bytes: usize,
}

impl Budget {
    fn value(&mut self, term: Term<'_>, depth: usize) -> NifResult<Value> {
        take(&mut self.items, 1)?;
        if depth > MAX_DEPTH {
            return Err(rustler::Error::BadArg);
        }
        match term.get_type() {
            TermType::Binary => self.text(term).map(Value::String),
            TermType::Integer => integer(term),
            TermType::Float => {
                let number =
                    Number::from_f64(term.decode::<f64>()?).ok_or(rustler::Error::BadArg)?;
                Ok(Value::Number(number))
            }
            TermType::Atom => atom(term),
            TermType::List => self.list(term, depth),
            TermType::Map => self.map(term, depth),
            _ => Err(rustler::Error::BadArg),
        }
    }

    /// Its length is looked at before its bytes are.
    fn text(&mut self, term: Term<'_>) -> NifResult<String> {
        let bytes = term.decode::<Binary<'_>>()?;
        take(&mut self.bytes, bytes.len())?;
        std::str::from_utf8(bytes.as_slice())
            .map(str::to_owned)
            .map_err(|_| rustler::Error::BadArg)
    }

    fn list(&mut self, term: Term<'_>, depth: usize) -> NifResult<Value> {
        let mut items = Vec::new();
        let mut rest = term;
        while let Ok((head, tail)) = rest.list_get_cell() {
            items.push(self.value(head, depth + 1)?);
            rest = tail;
        }
        if !rest.is_empty_list() {
            return Err(rustler::Error::BadArg);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, term: Term<'_>, depth: usize) -> NifResult<Value> {
        if term.map_size()? > self.items {
            return Err(rustler::Error::BadArg);
        }
        let pairs = MapIterator::new(term).ok_or(rustler::Error::BadArg)?;
        let mut object = Map::new();
        for (key, value) in pairs {
            object.insert(self.text(key)?, self.value(value, depth + 1)?);
        }
        Ok(Value::Object(object))
    }
}

fn take(left: &mut usize, amount: usize) -> NifResult<()> {
    *left = left.checked_sub(amount).ok_or(rustler::Error::BadArg)?;
    Ok(())
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

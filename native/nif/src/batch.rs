//! Many values in one call. A call of the virtual machine into the library costs as much as a small
//! read; here a hundred reads cost one.
//!
//! What one call may do, each item may do: the same limits, rights and counts. Whatever is not done on
//! the spot is left to Elixir, which does it by a call of its own and says what is wrong with it.

use rustler::{Binary, Encoder, Env, Term};
use snakepit_shm::{Descriptor, SegmentWriter};

use crate::atoms;
use crate::error::{Answer, Failure};
use crate::reader::{NORMAL_BYTES, read_whole};
use crate::resources::{ReaderResource, WriterResource};
use crate::tally::{Meter, check_untraced};
use crate::terms::iodata::{Budget, Fragments, Refusal};
use crate::writer::locked;

/// So many items at most are a normal scheduler's: some hundred nanoseconds each.
const NORMAL_ITEMS: usize = 2048;
/// What is made room for at once.
const ROOM: usize = 128;

/// The items of a list, within the limit; those before its end, where it has none.
fn items<'a>(mut list: Term<'a>, limit: usize) -> impl Iterator<Item = Answer<Term<'a>>> {
    let cells = std::iter::from_fn(move || {
        let (item, rest) = list.list_get_cell().ok()?;
        list = rest;
        Some(item)
    });
    cells.enumerate().map(move |(at, item)| {
        if at < limit {
            Ok(item)
        } else {
            Err(Failure::Dirty)
        }
    })
}

/// The values of readers, in order, as `{:ok, binary}` or `{:error, _}`; `nil` for what is no reader.
/// `{true, values}` when all of them are there.
#[rustler::nif]
fn read_many<'a>(env: Env<'a>, readers: Term<'a>) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    read_all(env, readers, NORMAL_BYTES, NORMAL_ITEMS)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn read_many_dirty<'a>(env: Env<'a>, readers: Term<'a>) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    read_all(env, readers, usize::MAX, usize::MAX)
}

fn read_all<'a>(
    env: Env<'a>,
    readers: Term<'a>,
    mut left: usize,
    limit: usize,
) -> Answer<(bool, Vec<Term<'a>>)> {
    let ok = rustler::types::atom::ok();
    let mut answers = Vec::with_capacity(ROOM);
    // Counted when it is certain that the values are answered: what turns out to be too much is read again.
    let mut counted = Vec::with_capacity(ROOM);
    let mut all = true;
    for term in items(readers, limit) {
        let Ok(reader) = term?.decode::<&ReaderResource>() else {
            answers.push(atoms::nil().encode(env));
            all = false;
            continue;
        };
        match reader.with(|reader| read_whole(env, reader, left)) {
            Ok((value, bytes)) => {
                left -= bytes.min(left);
                counted.push((reader, bytes));
                answers.push((ok, value).encode(env));
            }
            Err(Failure::Dirty) => return Err(Failure::Dirty),
            Err(failure) => {
                answers.push((rustler::types::atom::error(), failure).encode(env));
                all = false;
            }
        }
    }
    for (reader, bytes) in counted {
        reader.has_read(Meter::untimed_read(), bytes);
    }
    Ok((all, answers))
}

/// Publishes plain values, each by its writer, in order; the answers, `{:ok, version}` or `{:error, _}`,
/// of as many as could be done without waiting. The next one then needs a call of its own. `{true, answers}`
/// when all of them are written.
#[rustler::nif]
fn write_many<'a>(
    env: Env<'a>,
    writers: Term<'a>,
    values: Term<'a>,
) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    write_all(env, writers, values, Budget::NORMAL, NORMAL_ITEMS)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn write_many_dirty<'a>(
    env: Env<'a>,
    writers: Term<'a>,
    values: Term<'a>,
) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    write_all(env, writers, values, Budget::DIRTY, usize::MAX)
}

fn write_all<'a>(
    env: Env<'a>,
    writers: Term<'a>,
    values: Term<'a>,
    budget: Budget,
    limit: usize,
) -> Answer<(bool, Vec<Term<'a>>)> {
    // Before the first of them is written it must be certain that they are not too much.
    let mut left = budget;
    let mut all = true;
    let mut found = Vec::with_capacity(ROOM);
    for (writer, data) in items(writers, limit).zip(items(values, limit)) {
        let (Ok(writer), data) = (writer?.decode::<&WriterResource>(), data?) else {
            all = false;
            break;
        };
        match Value::of(data, writer.capacity(), &mut left) {
            Ok(value) => found.push((writer, value)),
            Err(Refusal::OverBudget) if !budget.dirty() => return Err(Failure::Dirty),
            // Not iodata, too long: for a call of its own to say.
            Err(_) => {
                all = false;
                break;
            }
        }
    }
    let mut answers = Vec::with_capacity(found.len());
    for (writer, value) in found {
        let len = value.len();
        let meter = Meter::write();
        let written = locked(env, writer, budget, len, |segment| {
            let version = value.write(segment)?;
            writer.wrote(meter, len, len, true);
            Ok(version)
        });
        match written {
            Err(Failure::Dirty) => {
                all = false;
                break;
            }
            answer => {
                all &= answer.is_ok();
                answers.push(answer.encode(env));
            }
        }
    }
    Ok((all, answers))
}

/// What is to be written.
enum Value<'a> {
    Whole(Binary<'a>),
    Pieces(Box<Fragments<'a>>),
}

impl<'a> Value<'a> {
    fn of(data: Term<'a>, capacity: usize, left: &mut Budget) -> Result<Self, Refusal> {
        let value = match Binary::from_term(data) {
            Ok(binary) if binary.len() > left.bytes => return Err(Refusal::OverBudget),
            Ok(binary) => Self::Whole(binary),
            Err(_) => {
                let pieces = Fragments::collect(data, capacity, *left)?;
                left.cells -= pieces.cells();
                Self::Pieces(Box::new(pieces))
            }
        };
        left.bytes -= value.len();
        Ok(value)
    }

    fn len(&self) -> usize {
        match self {
            Self::Whole(binary) => binary.len(),
            Self::Pieces(pieces) => pieces.len(),
        }
    }

    fn write(&self, segment: &mut SegmentWriter) -> snakepit_shm::Result<u64> {
        match self {
            Self::Whole(binary) => segment.write(binary),
            Self::Pieces(pieces) => segment.write_vectored(&pieces.slices(), &Descriptor::RAW),
        }
    }
}

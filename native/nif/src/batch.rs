//! Many values in one call. A call of the virtual machine into the library costs as much as a small
//! read; here a hundred reads cost one.
//!
//! What one call may do, each item may do: the same limits, rights and counts. Whatever is not done on
//! the spot is left to Elixir, which does it by a call of its own and says what is wrong with it.

use rustler::{Binary, Encoder, Env, ListIterator, Term};
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

fn items<'a>(list: Term<'a>, limit: usize) -> Answer<Vec<Term<'a>>> {
    // What is no list has no items; Elixir has looked before.
    let Ok(list) = list.decode::<ListIterator<'a>>() else {
        return Ok(Vec::new());
    };
    let items: Vec<Term<'a>> = list.take(limit.saturating_add(1)).collect();
    if items.len() > limit {
        return Err(Failure::Dirty);
    }
    Ok(items)
}

/// The values of readers, in order, as `{:ok, binary}` or `{:error, _}`; `nil` for what is no reader.
/// `{true, values}` when all of them are there.
#[rustler::nif]
fn read_many<'a>(env: Env<'a>, readers: Term<'a>) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    read_all(env, &items(readers, NORMAL_ITEMS)?, NORMAL_BYTES)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn read_many_dirty<'a>(env: Env<'a>, readers: Term<'a>) -> Answer<(bool, Vec<Term<'a>>)> {
    check_untraced()?;
    read_all(env, &items(readers, usize::MAX)?, usize::MAX)
}

fn read_all<'a>(
    env: Env<'a>,
    readers: &[Term<'a>],
    mut left: usize,
) -> Answer<(bool, Vec<Term<'a>>)> {
    let mut answers = Vec::with_capacity(readers.len());
    // Counted when it is certain that the values are answered: what turns out to be too much is read again.
    let mut counted = Vec::with_capacity(readers.len());
    let mut all = true;
    for term in readers {
        let Ok(reader) = term.decode::<&ReaderResource>() else {
            answers.push(atoms::nil().encode(env));
            all = false;
            continue;
        };
        match reader.with(|reader| read_whole(env, reader, left)) {
            Ok((value, bytes)) => {
                left -= bytes.min(left);
                counted.push((reader, bytes));
                answers.push((rustler::types::atom::ok(), value).encode(env));
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

/// Publishes plain values, `{writer, iodata}`, in order; the answers, `{:ok, version}` or `{:error, _}`,
/// of as many as could be done without waiting. The next one then needs a call of its own.
#[rustler::nif]
fn write_many<'a>(env: Env<'a>, items: Term<'a>) -> Answer<Vec<Term<'a>>> {
    check_untraced()?;
    write_all(env, items, Budget::NORMAL, NORMAL_ITEMS)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn write_many_dirty<'a>(env: Env<'a>, items: Term<'a>) -> Answer<Vec<Term<'a>>> {
    check_untraced()?;
    write_all(env, items, Budget::DIRTY, usize::MAX)
}

fn write_all<'a>(
    env: Env<'a>,
    list: Term<'a>,
    budget: Budget,
    limit: usize,
) -> Answer<Vec<Term<'a>>> {
    // Before the first of them is written it must be certain that they are not too much.
    let mut left = budget;
    let mut values = Vec::new();
    for item in items(list, limit)? {
        let Ok((writer, data)) = item.decode::<(&WriterResource, Term<'a>)>() else {
            break;
        };
        match Value::of(data, writer.capacity(), &mut left) {
            Ok(value) => values.push((writer, value)),
            Err(Refusal::OverBudget) if !budget.dirty() => return Err(Failure::Dirty),
            // Not iodata, too long: for a call of its own to say.
            Err(_) => break,
        }
    }
    let mut answers = Vec::with_capacity(values.len());
    for (writer, value) in values {
        let len = value.len();
        let meter = Meter::write();
        let written = locked(env, writer, budget, len, |segment| {
            let version = value.write(segment)?;
            writer.wrote(meter, len, len, true);
            Ok(version)
        });
        match written {
            Err(Failure::Dirty) => break,
            answer => answers.push(answer.encode(env)),
        }
    }
    Ok(answers)
}

/// What is to be written.
enum Value<'a> {
    Whole(Binary<'a>),
    Pieces(Fragments<'a>),
}

impl<'a> Value<'a> {
    fn of(data: Term<'a>, capacity: usize, left: &mut Budget) -> Result<Self, Refusal> {
        let value = match Binary::from_term(data) {
            Ok(binary) if binary.len() > left.bytes => return Err(Refusal::OverBudget),
            Ok(binary) => Self::Whole(binary),
            Err(_) => {
                let pieces = Fragments::collect(data, capacity, *left)?;
                left.cells -= pieces.cells();
                Self::Pieces(pieces)
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

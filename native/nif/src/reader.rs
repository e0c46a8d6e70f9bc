//! Calls on a mapping. All of them take `&self` of the reader: no lock, no reference count.

use std::sync::Arc;
use std::time::Duration;

use rustler::{Atom, Binary, Encoder, Env, NewBinary, OwnedBinary, Term};
use snakepit_shm::{Resource, SegmentReader, ShmError, Sink};

use crate::error::{Answer, Failure};
use crate::resources::{PinResource, ReaderResource, ViewResource};
use crate::tally::check_untraced;
use crate::terms::json;
use crate::terms::report::Info;

/// Up to this many bytes a copy stays on a normal scheduler.
pub const NORMAL_BYTES: usize = 256 * 1024;
/// The BEAM keeps binaries up to this size on the process heap, which is cheaper to make.
const HEAP_BINARY: usize = 64;
/// A value may grow between asking for its length and copying it; each retry starts from the new length.
const ATTEMPTS: usize = 8;

#[rustler::nif]
fn read<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    reader.read(|reader| read_whole(env, reader, NORMAL_BYTES))
}

/// [`read`] where nothing has been done about telemetry: that look costs Elixir a tenth of a read.
#[rustler::nif]
fn read_quick<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    check_untraced()?;
    reader.read(|reader| read_whole(env, reader, NORMAL_BYTES))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn read_dirty<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    reader.read(|reader| read_whole(env, reader, usize::MAX))
}

/// Straight into the binary: one copy.
pub fn read_whole<'a>(
    env: Env<'a>,
    reader: &SegmentReader,
    limit: usize,
) -> Answer<(Term<'a>, usize)> {
    let mut room = Room::new(env, reader, limit);
    let len = reader.read_to(&mut room)?.len;
    Ok((room.into_term(len), len))
}

/// A part of the value; without `len`, to its end.
#[rustler::nif]
fn read_range<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    offset: u64,
    len: Option<u64>,
) -> Answer<Term<'a>> {
    reader.read(|reader| part(env, reader, offset, len, NORMAL_BYTES))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn read_range_dirty<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    offset: u64,
    len: Option<u64>,
) -> Answer<Term<'a>> {
    reader.read(|reader| part(env, reader, offset, len, usize::MAX))
}

fn part<'a>(
    env: Env<'a>,
    reader: &SegmentReader,
    offset: u64,
    len: Option<u64>,
    limit: usize,
) -> Answer<(Term<'a>, usize)> {
    let offset = as_usize(offset);
    match len {
        Some(len) => {
            let len = as_usize(len);
            range(env, reader, offset, len, limit).map(|(part, _)| (part, len))
        }
        None => rest(env, reader, offset, limit),
    }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// From `offset` to the end of the value, whose length can only be guessed: when it has changed
/// meanwhile, tried again.
fn rest<'a>(
    env: Env<'a>,
    reader: &SegmentReader,
    offset: usize,
    limit: usize,
) -> Answer<(Term<'a>, usize)> {
    for _ in 0..ATTEMPTS {
        let len = reader.info()?.len;
        let Some(wanted) = len.checked_sub(offset) else {
            return Err(outside(reader, offset, 0, len));
        };
        match range(env, reader, offset, wanted, limit) {
            Ok((part, found)) if found == len => return Ok((part, wanted)),
            Ok(_) | Err(Failure::Shm(ShmError::OutOfBounds { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Failure::Shm(ShmError::VersionConflict {
        name: reader.name().to_owned(),
        attempts: ATTEMPTS as u32,
    }))
}

/// A part and the length of the value that it is of. Bounds are checked against the capacity before
/// a byte of memory is asked for, and by the core against the value that it copies from.
fn range<'a>(
    env: Env<'a>,
    reader: &SegmentReader,
    offset: usize,
    len: usize,
    limit: usize,
) -> Answer<(Term<'a>, usize)> {
    let capacity = reader.capacity();
    if offset.checked_add(len).is_none_or(|end| end > capacity) {
        return Err(outside(reader, offset, len, capacity));
    }
    let mut value_len = 0;
    let (part, _) = copied(env, reader, len, limit, |buffer| {
        value_len = reader.read_range_into(offset, buffer)?.len;
        Ok(len)
    })?;
    Ok((part, value_len))
}

fn outside(reader: &SegmentReader, offset: usize, len: usize, capacity: usize) -> Failure {
    Failure::Shm(ShmError::OutOfBounds {
        name: reader.name().to_owned(),
        offset,
        len,
        capacity,
    })
}

/// Fills a new binary of `len` bytes by `fill` and cuts it to the length that `fill` reports; answers both.
fn copied<'a>(
    env: Env<'a>,
    reader: &SegmentReader,
    len: usize,
    limit: usize,
    fill: impl FnOnce(&mut [u8]) -> snakepit_shm::Result<usize>,
) -> Answer<(Term<'a>, usize)> {
    let mut room = Room::new(env, reader, limit);
    let filled = fill(room.room(len)?)?;
    Ok((room.into_term(filled), filled))
}

/// Makes the binary that is being filled.
pub struct Room<'a, 'r> {
    env: Env<'a>,
    reader: &'r SegmentReader,
    limit: usize,
    binary: Fresh<'a>,
}

enum Fresh<'a> {
    None,
    OnHeap(NewBinary<'a>),
    Apart(OwnedBinary),
}

impl<'a, 'r> Room<'a, 'r> {
    pub fn new(env: Env<'a>, reader: &'r SegmentReader, limit: usize) -> Self {
        let binary = Fresh::None;
        Self {
            env,
            reader,
            limit,
            binary,
        }
    }

    /// The binary, cut to what was filled.
    pub fn into_term(self, filled: usize) -> Term<'a> {
        let env = self.env;
        let (whole, len): (Term<'a>, usize) = match self.binary {
            Fresh::None => (NewBinary::new(env, 0).into(), 0),
            Fresh::OnHeap(binary) => {
                let len = binary.as_slice().len();
                (binary.into(), len)
            }
            Fresh::Apart(binary) => {
                let len = binary.len();
                (Binary::from_owned(binary, env).to_term(env), len)
            }
        };
        if filled >= len {
            return whole;
        }
        Binary::from_term(whole)
            .and_then(|binary| binary.make_subbinary(0, filled))
            .map_or(whole, |part| part.to_term(env))
    }
}

impl Sink for Room<'_, '_> {
    type Error = Failure;

    fn room(&mut self, len: usize) -> Answer<&mut [u8]> {
        if len > self.limit {
            return Err(Failure::Dirty);
        }
        self.binary = if len <= HEAP_BINARY {
            Fresh::OnHeap(NewBinary::new(self.env, len))
        } else {
            let binary = OwnedBinary::new(len);
            Fresh::Apart(binary.ok_or_else(|| no_memory(self.reader.name(), len))?)
        };
        Ok(match &mut self.binary {
            Fresh::None => &mut [],
            Fresh::OnHeap(binary) => binary.as_mut_slice(),
            Fresh::Apart(binary) => binary.as_mut_slice(),
        })
    }
}

fn no_memory(name: &str, needed: usize) -> Failure {
    Failure::Shm(ShmError::ResourceExhausted {
        name: Some(name.to_owned()),
        resource: Resource::AddressSpace,
        needed: needed as u64,
        available: None,
    })
}

/// `:ok` when the current value is at most `max_age_ms` old, else `stale`. A value read after this
/// answer is that one or a newer one.
#[rustler::nif]
fn check_age(reader: &ReaderResource, max_age_ms: u64) -> Answer<Atom> {
    reader.with(|reader| {
        let max_age = Duration::from_millis(max_age_ms);
        let age = reader.age()?;
        if age > max_age {
            return Err(Failure::Shm(ShmError::Stale {
                name: reader.name().to_owned(),
                age,
                max_age,
            }));
        }
        Ok(rustler::types::atom::ok())
    })
}

/// Version, length, dtype, shape and state of the current value, without its bytes.
#[rustler::nif]
fn reader_info(reader: &ReaderResource) -> Answer<Info> {
    reader.with(Info::of_reader)
}

/// The version of the current value; 0 when nothing has been published.
#[rustler::nif]
fn reader_version(reader: &ReaderResource) -> Answer<u64> {
    reader.with(|reader| Ok(reader.version()))
}

/// Zero-copy binary of a sealed segment. Dirty, for the core may check the value first.
#[rustler::nif(schedule = "DirtyCpu")]
fn reader_binary<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    let view = reader.with(|reader| Ok(reader.sealed()?))?;
    Ok(ViewResource::binary(env, view).to_term(env))
}

/// Binary of the current value, where it lies, for as long as the binary is held; whether it lies there,
/// or had to be copied. Dirty for that case.
#[rustler::nif(schedule = "DirtyCpu")]
fn reader_pin<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<(Term<'a>, bool)> {
    let pinned = reader.with(|reader| Ok(reader.pin()?))?;
    let in_place = pinned.in_place();
    Ok((PinResource::binary(env, pinned).to_term(env), in_place))
}

/// The handle of a sealed segment.
#[rustler::nif(schedule = "DirtyIo")]
fn reader_handle<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    let handle = reader.with(|reader| Ok(reader.handle()?))?;
    Ok(json::to_term(env, &handle.to_value()))
}

/// Another resource on the same mapping, closed on its own.
#[rustler::nif]
fn share_reader<'a>(env: Env<'a>, reader: &ReaderResource) -> Answer<Term<'a>> {
    Ok(reader.sharing()?.encode(env))
}

/// Gives a mapping back; it is unmapped when nothing else of this process uses it. The last reader
/// of a segment that its writer has closed removes it, hence dirty.
#[rustler::nif(schedule = "DirtyIo")]
fn close_reader(reader: &ReaderResource) -> Answer<Atom> {
    if let Some(last) = Arc::into_inner(reader.take()?) {
        last.close()?;
    }
    Ok(rustler::types::atom::ok())
}

//! Memory that large values are read into, again and again.
//!
//! A new binary of a hundred megabytes is new memory each time: the kernel zeroes every page of it as it
//! is first touched, which takes longer than the copy. A buffer keeps a few pieces of memory whose pages
//! are there. A read takes one, fills it and hands it out as a binary; when the last term that points into
//! it has been collected, its destructor gives the piece back. Until then nobody writes there, for
//! binaries never change: a piece belongs to the buffer or to a binary, never to both.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use rustler::{Binary, Encoder, Env, OwnedBinary, Resource, ResourceArc, Term};
use snakepit_shm::{Resource as Exhausted, SegmentReader, ShmError, Sink};

use crate::error::{Answer, Failure};
use crate::reader::{NORMAL_BYTES, Room};
use crate::resources::ReaderResource;
use crate::undertaker;

/// Pieces of memory of one length.
pub struct BufferResource(Hold);

#[rustler::resource_impl]
impl Resource for BufferResource {}

struct Pool {
    /// Bytes of each.
    size: usize,
    /// How many there may be.
    most: usize,
    kept: Mutex<Kept>,
    back: Sender<Vec<u8>>,
}

struct Kept {
    made: usize,
    idle: Receiver<Vec<u8>>,
}

impl Pool {
    /// A piece that no binary points into; `None` when each of them has one that does.
    fn take(&self, name: &str) -> Answer<Option<Vec<u8>>> {
        // Held for a few instructions, or for the making of a piece.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(piece) = kept.idle.try_recv() {
            return Ok(Some(piece));
        }
        if kept.made == self.most {
            return Ok(None);
        }
        let mut piece = Vec::new();
        let room = piece.try_reserve_exact(self.size);
        room.map_err(|_| ShmError::ResourceExhausted {
            name: Some(name.to_owned()),
            resource: Exhausted::AddressSpace,
            needed: self.size as u64,
            available: None,
        })?;
        piece.resize(self.size, 0);
        kept.made += 1;
        Ok(Some(piece))
    }
}

/// A hold on a pool. Where the last one goes, so do all pieces, which takes milliseconds: elsewhere.
struct Hold(Option<Arc<Pool>>);

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(last) = self.0.take().and_then(Arc::into_inner) {
            undertaker::bury(last);
        }
    }
}

/// A piece that is out, and what is in it. Whatever becomes of it, it goes back.
struct Piece {
    memory: Vec<u8>,
    len: usize,
    pool: Hold,
}

#[rustler::resource_impl]
impl Resource for Piece {}

impl Piece {
    fn value(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool.0 {
            // No lock, and nothing is freed.
            let _ = pool.back.send(std::mem::take(&mut self.memory));
        }
    }
}

/// Takes a piece for a value that fits into one.
struct Target<'a, 'r> {
    hold: &'r Hold,
    reader: &'r SegmentReader,
    limit: usize,
    piece: Option<Piece>,
    plain: Room<'a, 'r>,
}

impl Sink for Target<'_, '_> {
    type Error = Failure;

    fn room(&mut self, len: usize) -> Answer<&mut [u8]> {
        if len > self.limit {
            return Err(Failure::Dirty);
        }
        if self
            .piece
            .as_ref()
            .is_none_or(|piece| piece.memory.len() < len)
        {
            self.piece = self.fitting(len)?;
        }
        match &mut self.piece {
            Some(piece) => Ok(&mut piece.memory),
            None => self.plain.room(len),
        }
    }
}

impl<'a> Target<'a, '_> {
    fn fitting(&self, len: usize) -> Answer<Option<Piece>> {
        let Some(pool) = self.hold.0.as_ref().filter(|pool| len <= pool.size) else {
            return Ok(None);
        };
        let piece = |memory| Piece {
            memory,
            len: 0,
            pool: self.hold.clone(),
        };
        Ok(pool.take(self.reader.name())?.map(piece))
    }

    fn into_term(self, env: Env<'a>, len: usize) -> Term<'a> {
        match self.piece {
            Some(mut piece) => {
                piece.len = len;
                let binary = ResourceArc::new(piece).make_binary(env, Piece::value);
                binary.to_term(env)
            }
            None => self.plain.into_term(len),
        }
    }
}

/// At most `most` pieces of `size` bytes, none of which is made yet.
#[rustler::nif]
fn buffer<'a>(env: Env<'a>, size: u64, most: u64) -> Answer<Term<'a>> {
    undertaker::ready()?;
    let (back, idle) = mpsc::channel();
    let pool = Pool {
        size: usize::try_from(size).unwrap_or(usize::MAX),
        most: usize::try_from(most).unwrap_or(usize::MAX),
        kept: Mutex::new(Kept { made: 0, idle }),
        back,
    };
    Ok(ResourceArc::new(BufferResource(Hold(Some(Arc::new(pool))))).encode(env))
}

/// The current value as a binary in a piece of the buffer, or as any other where there is none free or it
/// is longer than they are.
#[rustler::nif]
fn read_into<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    buffer: &BufferResource,
) -> Answer<Term<'a>> {
    read_within(env, reader, buffer, NORMAL_BYTES)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn read_into_dirty<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    buffer: &BufferResource,
) -> Answer<Term<'a>> {
    read_within(env, reader, buffer, usize::MAX)
}

fn read_within<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    buffer: &BufferResource,
    limit: usize,
) -> Answer<Term<'a>> {
    // Making a piece touches all of it.
    if buffer.0.0.as_ref().is_some_and(|pool| pool.size > limit) {
        return Err(Failure::Dirty);
    }
    reader.read(|reader| {
        let mut target = Target {
            hold: &buffer.0,
            reader,
            limit,
            piece: None,
            plain: Room::new(env, reader, limit),
        };
        let len = reader.read_to(&mut target)?.len;
        Ok((target.into_term(env, len), len))
    })
}

/// A binary in a piece of the buffer that is equal to another, or in memory of its own where there is no piece
/// free or it is longer than they are.
#[rustler::nif(schedule = "DirtyCpu")]
fn copy_into<'a>(env: Env<'a>, buffer: &BufferResource, data: Binary<'a>) -> Answer<Term<'a>> {
    let hold = &buffer.0;
    let fits = |pool: &&Arc<Pool>| data.len() <= pool.size;
    let piece = match hold.0.as_ref().filter(fits) {
        Some(pool) => pool.take("buffer")?,
        None => None,
    };
    let Some(memory) = piece else {
        let mut plain = OwnedBinary::new(data.len()).ok_or(ShmError::ResourceExhausted {
            name: None,
            resource: Exhausted::AddressSpace,
            needed: data.len() as u64,
            available: None,
        })?;
        plain.as_mut_slice().copy_from_slice(&data);
        return Ok(plain.release(env).to_term(env));
    };
    let mut piece = Piece {
        memory,
        len: data.len(),
        pool: hold.clone(),
    };
    if let Some(room) = piece.memory.get_mut(..data.len()) {
        room.copy_from_slice(&data);
    }
    let binary = ResourceArc::new(piece).make_binary(env, Piece::value);
    Ok(binary.to_term(env))
}

/// How many pieces there are.
#[rustler::nif]
fn buffer_pieces(buffer: &BufferResource) -> u64 {
    let made = |pool: &Arc<Pool>| {
        pool.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .made
    };
    buffer.0.0.as_ref().map_or(0, made) as u64
}

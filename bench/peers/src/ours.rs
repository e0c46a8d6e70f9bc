//! Ours, through the public API.

use snakepit_shm::{Descriptor, SegmentReader, SegmentWriter, ShmError};
use snakepit_shm_bench::Result;
use snakepit_shm_bench::buffer::Buffer;
use snakepit_shm_bench::segment::{Spec, Tuning};

use crate::port::{Kind, Place, Put, Reader, Take, Writer};

/// Slots where some are pinned: one that is written, one that is current, one more that is pinned.
const SLOTS_TO_PIN: usize = 3;

fn spec(place: &Place) -> Spec {
    let tuning = match place.kind {
        Kind::OursDefaults => Tuning::Defaults,
        _ => Tuning::Bare,
    };
    let name = format!("{}-{}", place.kind.word(), place.name);
    let spec = Spec::new(&place.dir, name, place.size, tuning);
    if matches!(place.kind, Kind::OursPinned | Kind::OursInPlace) {
        spec.with_slots(SLOTS_TO_PIN)
    } else {
        spec
    }
}

fn create(place: &Place) -> Result<SegmentWriter> {
    let options = spec(place).options()?.max_readers(place.readers.max(1));
    options.create().map_err(Into::into)
}

struct Copying(SegmentWriter);

impl Put for Copying {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        self.0.write(value)?;
        Ok(())
    }
}

struct InPlace(SegmentWriter);

impl Put for InPlace {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        let mut loan = self.0.loan()?;
        let slot = loan.as_mut_slice();
        crate::stamped::stamp(&mut slot[..value.len()], crate::stamped::ends(value).0);
        loan.publish(value.len(), &Descriptor::RAW)?;
        Ok(())
    }
}

struct CopyingReader {
    reader: SegmentReader,
    buffer: Buffer,
}

impl Take for CopyingReader {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        match self.reader.read_into(&mut self.buffer) {
            Ok(info) => Ok(Some(then(&self.buffer[..info.len]))),
            Err(ShmError::VersionConflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

struct InPlaceReader(SegmentReader);

impl Take for InPlaceReader {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        match self.0.pin() {
            Ok(pinned) => {
                let seen = then(&pinned);
                // A writer that lost its core while it had the slot marked, to give it back: nothing to rely on.
                match pinned.release() {
                    Ok(()) => Ok(Some(seen)),
                    Err(ShmError::VersionConflict { .. }) => Ok(None),
                    Err(other) => Err(other.into()),
                }
            }
            Err(ShmError::VersionConflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

struct PinnedReader {
    reader: SegmentReader,
    buffer: Buffer,
}

impl Take for PinnedReader {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let pinned = match self.reader.pin() {
            Ok(pinned) => pinned,
            Err(ShmError::VersionConflict { .. }) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        self.buffer.copy_from_slice(&pinned);
        match pinned.release() {
            Ok(()) => Ok(Some(then(&self.buffer))),
            Err(ShmError::VersionConflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

pub fn writer(place: &Place) -> Result<Box<dyn Writer>> {
    Ok(Box::new(Copying(create(place)?)))
}

pub fn writer_in_place(place: &Place) -> Result<Box<dyn Writer>> {
    Ok(Box::new(InPlace(create(place)?)))
}

pub fn reader(place: &Place) -> Result<Box<dyn Reader>> {
    Ok(Box::new(CopyingReader {
        reader: spec(place).options()?.attach_reader()?,
        buffer: Buffer::new(place.size),
    }))
}

pub fn reader_pinned(place: &Place) -> Result<Box<dyn Reader>> {
    Ok(Box::new(PinnedReader {
        reader: spec(place).options()?.attach_reader()?,
        buffer: Buffer::new(place.size),
    }))
}

pub fn reader_in_place(place: &Place) -> Result<Box<dyn Reader>> {
    Ok(Box::new(InPlaceReader(
        spec(place).options()?.attach_reader()?,
    )))
}

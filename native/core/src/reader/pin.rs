//! Values in place while the writer goes on: pinned reads.

use super::SegmentReader;
use crate::descriptor::Descriptor;
use crate::error::{Result, ShmError};
use crate::hazard::{self, NoPin};
use crate::layout::flags;
use crate::platform::{self, fork};
use crate::segment::{Segment, corrupted};
use crate::seqlock::{self, Started};
use crate::value::ReadInfo;
use crate::view::{Attachment, Held, Pin, SealedView};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Attempts to pin; each is a few loads, and fails only when a whole lap was written in between.
const TRIES: u32 = 1000;
/// Looks whether a calm writer looks again, before the kernel is asked for a barrier in every thread of the
/// machine, which takes milliseconds.
const ACKNOWLEDGED_SPINS: u32 = 2_000;
/// The same before it is asked for one in the writer's threads, which takes microseconds.
const QUICK_SPINS: u32 = 50;

/// A value that stays as it is while this is held, whatever the writer does; see
/// [`SegmentReader::pin`].
#[derive(Debug)]
pub struct Pinned {
    place: Place,
    info: ReadInfo,
    descriptor: Descriptor,
}

#[derive(Debug)]
enum Place {
    Held(Held),
    /// It never changes, and needs no pin.
    Sealed(SealedView),
    Copied(Vec<u8>, Arc<Attachment>),
}

impl Place {
    /// The segment is kept by whatever the bytes are kept by: counted once, for counting costs as much as pinning.
    fn segment(&self) -> &Segment {
        match self {
            Self::Held(held) => held.segment(),
            Self::Sealed(view) => view.segment(),
            Self::Copied(_, attachment) => &attachment.segment,
        }
    }
}

impl SegmentReader {
    /// The current value, to be looked at where it lies. The writer passes its slot over until the
    /// last [`Pinned`] of it is dropped; it never waits for that.
    ///
    /// A sealed value is looked at in place without a pin. Otherwise pinning cannot starve, however fast the writer is. Of n slots n - 2 can be pinned at a time, by
    /// all readers together (any number may pin the same one), and a reader has one slot pinned at a
    /// time. Beyond that the value is copied, as it is for readers that may not write into the reader
    /// table, and in a forked child; [`Pinned::in_place`] tells. A pin of a process that dies is void
    /// with the next sweep.
    ///
    /// A pin of a segment that has long been written without any, and is not written just now, asks the kernel for a
    /// barrier in the writer's threads (membarrier(2)): microseconds, or ten milliseconds before Linux 4.16.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("live").dir(dir.path());
    /// # let mut writer = options.create().unwrap();
    /// let reader = options.attach_reader().unwrap();
    /// writer.write(b"first").unwrap();
    /// let pinned = reader.pin().unwrap();
    /// for n in 0..100u8 {
    ///     writer.write(&[n]).unwrap();
    /// }
    /// assert!(pinned.in_place());
    /// assert_eq!((&pinned[..], pinned.version()), (&b"first"[..], 2));
    /// pinned.release().unwrap();
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`]; [`ShmError::VersionConflict`] only where the value has to be copied.
    pub fn pin(&self) -> Result<Pinned> {
        let mapping = self.mapping();
        if self.is_sealed() {
            return self.sealed_instead();
        }
        let pinned = self.attachment.pin(&self.attachment);
        if mapping.lost() {
            return Err(self.truncated());
        }
        let (held, started) = match pinned {
            Ok(pinned) => pinned,
            Err(NoPin::Value(why)) if why != seqlock::NoValue::Busy => {
                return Err(self.no_value(why));
            }
            Err(_) => return self.copy_instead(),
        };
        let info = ReadInfo::load(mapping, started.slot, started.version);
        if !info.is_possible(mapping.geometry().capacity) {
            return Err(corrupted(self.name(), "length of its value is impossible"));
        }
        if mapping.geometry().has(flags::CRC32C) {
            self.check_crc(&info, mapping.checksum(started.slot, info.len))?;
        }
        Ok(Pinned {
            descriptor: info.descriptor()?,
            info: self.note(info),
            place: Place::Held(held),
        })
    }

    fn sealed_instead(&self) -> Result<Pinned> {
        let view = self.sealed()?;
        Ok(Pinned {
            descriptor: view.descriptor(),
            info: self.note(self.info()?),
            place: Place::Sealed(view),
        })
    }

    fn copy_instead(&self) -> Result<Pinned> {
        let mut bytes = Vec::new();
        let info = self.read_to_vec(&mut bytes)?;
        bytes.truncate(info.len);
        Ok(Pinned {
            descriptor: info.descriptor()?,
            info,
            place: Place::Copied(bytes, self.attachment.clone()),
        })
    }
}

impl Attachment {
    /// Pins the current value for as long as the answer is held.
    fn pin(&self, this: &Arc<Self>) -> std::result::Result<(Held, Started), NoPin> {
        let mapping = &*self.segment.mapping;
        let entry = self
            .entry()
            .filter(|_| self.segment.epoch == fork::epoch())
            .ok_or(NoPin::Full)?;
        let mut pins = self.pins();
        if let Some(pin) = &mut pins.pin {
            // One entry, one slot. What is held already is held once more, if it still is the latest.
            let latest = seqlock::latest(mapping) == (pin.started.version, pin.started.slot);
            if !latest || !hazard::is_kept(mapping, pin.started) {
                return Err(NoPin::Full);
            }
            pin.holders += 1;
            return Ok((Held::new(this.clone(), pin.started.slot), pin.started));
        }
        let started = hazard::pin(mapping, entry, TRIES, |said| {
            let quick = said == hazard::writer::CALM_REGISTERED;
            let spins = if quick {
                QUICK_SPINS
            } else {
                ACKNOWLEDGED_SPINS
            };
            let looks = || {
                std::hint::spin_loop();
                let word = hazard::Hazards::pinnable(mapping).load(Ordering::Acquire);
                word == hazard::writer::LOOKS
            };
            (0..spins).any(|_| looks())
                || quick && platform::barrier::in_registered()
                || platform::barrier::everywhere()
        })?;
        pins.pin = Some(Pin {
            started,
            holders: 1,
        });
        Ok((Held::new(this.clone(), started.slot), started))
    }
}

impl Pinned {
    /// Whether these are the segment's own bytes; `false` when they had to be copied.
    pub fn in_place(&self) -> bool {
        !matches!(self.place, Place::Copied(..))
    }

    /// Whether the bytes have stayed as they were until now. Only a damaged or hostile reader table
    /// makes a writer take a pinned slot; a file that was cut reads as zeros from the cut on.
    pub fn is_intact(&self) -> bool {
        match &self.place {
            Place::Held(held) => {
                let mapping = &*held.segment().mapping;
                let started = Started {
                    slot: held.slot(),
                    version: self.info.version,
                };
                !mapping.lost() && hazard::is_kept(mapping, started)
            }
            Place::Sealed(view) => view.is_intact(),
            Place::Copied(..) => true,
        }
    }

    /// About the value.
    pub fn info(&self) -> ReadInfo {
        self.info
    }

    /// Version of the value.
    pub fn version(&self) -> u64 {
        self.info.version
    }

    /// Format, element type and shape.
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.place.segment().name
    }

    /// Gives the pin back, and says whether the bytes stayed as they were.
    ///
    /// # Errors
    ///
    /// [`ShmError::VersionConflict`] when a writer took the slot against the rule,
    /// [`ShmError::Truncated`] when the file was cut: what was read may be wrong.
    pub fn release(self) -> Result<()> {
        if self.is_intact() {
            return Ok(());
        }
        let name = self.name().to_owned();
        let mapping = &self.place.segment().mapping;
        if mapping.lost() {
            return Err(mapping.loss(&name));
        }
        Err(ShmError::VersionConflict { name, attempts: 1 })
    }
}

impl std::ops::Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Held(held) => held.slice(self.info.len),
            Place::Sealed(view) => view,
            Place::Copied(bytes, _) => bytes,
        }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

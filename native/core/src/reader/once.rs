//! The straight way of a read: a value that is there, fits, and stays while it is copied.

use super::{Copied, ReadInfo, SegmentReader};
use crate::error::Result;
use crate::layout::flags;
use crate::mapping::{SlotWord, Slots};
use crate::seqlock::{self, Started};
use std::sync::atomic::Ordering;

impl SegmentReader {
    #[inline(never)]
    pub(super) fn read_long(&self, buffer: &mut [u8]) -> Result<ReadInfo> {
        match self.read_at_once(buffer) {
            Some(info) => Ok(self.note(info)),
            None => self.read_patiently(buffer),
        }
    }

    /// The straight way of [`Self::read_into`]: a value that is there, fits and stays while it is copied.
    /// Whatever else there is, [`Self::read_patiently`] finds out.
    #[inline]
    pub(super) fn read_at_once(&self, buffer: &mut [u8]) -> Option<ReadInfo> {
        let slots = self.mapping().slots_now();
        let (started, len) = self.start_at_once(&slots)?;
        self.finish_at_once(&slots, started, buffer.get_mut(..len)?)
    }

    /// The slot of the current value, if it can be copied, and the length that it says.
    #[inline]
    pub(super) fn start_at_once(&self, slots: &Slots<'_>) -> Option<(Started, usize)> {
        if slots.mapping().geometry().has(flags::CRC32C) {
            return None;
        }
        let started = seqlock::start_read(slots).ok()?;
        let len = slots
            .word(started.slot, SlotWord::Len)
            .load(Ordering::Relaxed) as usize;
        (len > 0 && len <= slots.capacity()).then_some((started, len))
    }

    /// Copies a slot into `buffer`, which is as long as its value; `None` when the value did not stay.
    #[inline]
    pub(super) fn finish_at_once(
        &self,
        slots: &Slots<'_>,
        started: Started,
        buffer: &mut [u8],
    ) -> Option<ReadInfo> {
        slots.copy_out(started.slot, buffer);
        let info = ReadInfo::load_rest(slots, started.slot, started.version, buffer.len());
        let whole = seqlock::finish_read(slots, started);
        (whole && !slots.mapping().lost()).then_some(info)
    }

    /// [`Self::read_into`] in as many attempts as a reader has, with a checksum, or with an error.
    #[cold]
    #[inline(never)]
    pub(super) fn read_patiently(&self, buffer: &mut [u8]) -> Result<ReadInfo> {
        let room = buffer.len();
        let info = self.copy(|mapping, slot, info| {
            if info.len > room {
                return Copied::Short(info);
            }
            mapping.copy_out(slot, 0, &mut buffer[..info.len]);
            Copied::Done(info)
        })?;
        if self.mapping().geometry().has(flags::CRC32C) {
            self.check_crc(&info, crc32c::crc32c(&buffer[..info.len]))?;
        }
        Ok(self.note(info))
    }
}

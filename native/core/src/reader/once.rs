//! The straight way of a read: a value that is there, fits, and stays while it is copied.

use super::{Copied, ReadInfo, SegmentReader};
use crate::error::Result;
use crate::layout::flags;
use crate::mapping::{Bytes, Slots};
use crate::seqlock::{self, Started};

impl SegmentReader {
    /// [`Self::read_into`] but for what it does at once. What was read goes to a place of its own: were it the
    /// answer, that of the straight way would lie in the caller's memory too, not in registers.
    #[inline(never)]
    pub(super) fn read_otherwise(&self, buffer: &mut [u8], info: &mut ReadInfo) -> Result<()> {
        *info = match self.read_at_once(buffer) {
            Some(info) => self.note(info),
            None => self.read_patiently(buffer)?,
        };
        Ok(())
    }

    /// The straight way of [`Self::read_into`]: a value that is there, fits and stays while it is copied.
    /// Whatever else there is, [`Self::read_patiently`] finds out.
    #[inline(always)]
    pub(super) fn read_at_once(&self, buffer: &mut [u8]) -> Option<ReadInfo> {
        let slots = self.mapping().slots_now();
        let (started, bytes) = self.start_at_once(&slots)?;
        self.finish_at_once(&slots, started, bytes, buffer)
    }

    /// The slot of the current value, if it can be copied, and its bytes, if they are inside the slot.
    #[inline(always)]
    pub(super) fn start_at_once<'a>(&self, slots: &Slots<'a>) -> Option<(Started, Bytes<'a>)> {
        if slots.mapping().geometry().has(flags::CRC32C) {
            return None;
        }
        let started = seqlock::start_read(slots).ok()?;
        Some((started, slots.value(started.slot)?))
    }

    /// Copies a value into `buffer`; `None` when it does not fit or did not stay.
    #[inline(always)]
    pub(super) fn finish_at_once(
        &self,
        slots: &Slots<'_>,
        started: Started,
        bytes: Bytes<'_>,
        buffer: &mut [u8],
    ) -> Option<ReadInfo> {
        bytes.copy_out(buffer)?;
        let info = ReadInfo::load_rest(slots, started.slot, started.version, bytes.len());
        let whole = seqlock::finish_read(slots, started);
        (whole && !slots.mapping().lost()).then_some(info)
    }

    /// [`Self::read_into`] in as many attempts as a reader has, with a checksum, or with an error.
    #[cold]
    #[inline(never)]
    fn read_patiently(&self, buffer: &mut [u8]) -> Result<ReadInfo> {
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

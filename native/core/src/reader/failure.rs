//! What a read that did not come to a value answers.

use super::{COPIES, Copied, SegmentReader};
use crate::error::{Result, ShmError};
use crate::layout::SegmentState;
use crate::segment::corrupted;
use crate::seqlock::NoValue;
use crate::value::ReadInfo;
use crate::writer::torn_by_death;

impl SegmentReader {
    #[cold]
    pub(super) fn truncated(&self) -> ShmError {
        self.mapping().loss(self.name())
    }

    #[cold]
    pub(super) fn no_fit(&self, copied: &Copied) -> ShmError {
        match copied {
            // What is needed is the value's length; the limit is the buffer's, known to the caller.
            Copied::Short(info) => self.outside(0, info.len, 0),
            Copied::Outside(info) => self.outside(0, 0, info.len),
            Copied::Done(_) | Copied::Impossible => {
                corrupted(self.name(), "length of its value is impossible")
            }
        }
    }

    #[cold]
    pub(super) fn no_value(&self, why: NoValue) -> ShmError {
        let name = self.name().to_owned();
        match why {
            // There will never be one.
            NoValue::Empty if self.mapping().state() == Some(SegmentState::Closed) => {
                ShmError::Closed { name }
            }
            NoValue::Empty => ShmError::Empty { name },
            NoValue::Corrupt => corrupted(&name, "its publish word names no slot"),
            NoValue::Busy if torn_by_death(self.segment(), why) => ShmError::Torn { name },
            NoValue::Busy => ShmError::VersionConflict {
                name,
                attempts: COPIES,
            },
        }
    }

    pub(super) fn outside(&self, offset: usize, len: usize, limit: usize) -> ShmError {
        ShmError::OutOfBounds {
            name: self.name().to_owned(),
            offset,
            len,
            capacity: limit,
        }
    }

    pub(super) fn check_crc(&self, info: &ReadInfo, found: u32) -> Result<()> {
        if found == info.crc() {
            return Ok(());
        }
        Err(corrupted(self.name(), "checksum of its value"))
    }
}

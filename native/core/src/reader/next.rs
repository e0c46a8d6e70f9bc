//! The values of a segment as a stream: each in turn, as long as the reader keeps up.

use super::{Copied, SegmentReader};
use crate::error::{Result, ShmError};
use crate::layout::flags;
use crate::seqlock;
use crate::value::ReadInfo;
use std::sync::atomic::Ordering;

/// A value of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Next<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// About it.
    pub info: ReadInfo,
    /// How many values between this one and the last one read were overwritten before they could be
    /// read.
    pub missed: u64,
}

impl SegmentReader {
    /// Copies the value after the one that this reader has read last and returns it; `None` when there
    /// is nothing newer (then [`Self::wait_changed`] with [`Self::last_version`] waits for it).
    ///
    /// A segment with n slots holds the last n values, the one being written excepted: a reader that is
    /// never more than n - 1 values behind misses none. One that falls further behind goes on with the
    /// oldest that is left, and is told how many it missed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("stream").dir(dir.path()).slots(3);
    /// # let mut writer = options.create().unwrap();
    /// let mut reader = options.attach_reader().unwrap();
    /// writer.write(b"first").unwrap();
    /// writer.write(b"second").unwrap();
    /// assert_eq!(reader.read_next().unwrap().unwrap().data, b"first");
    /// assert_eq!(reader.read_next().unwrap().unwrap().data, b"second");
    /// assert!(reader.read_next().unwrap().is_none());
    /// for n in 0..5 {
    ///     writer.write(&[n]).unwrap();
    /// }
    /// let next = reader.read_next().unwrap().unwrap();
    /// assert_eq!((next.data, next.missed), (&[2][..], 2));
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::VersionConflict`] when the writer overwrote each value while it was being copied,
    /// [`ShmError::Torn`], [`ShmError::Corrupted`], [`ShmError::Truncated`].
    pub fn read_next(&mut self) -> Result<Option<Next<'_>>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            match self.read_next_into(&mut buffer) {
                Err(ShmError::OutOfBounds { len, .. }) if len > buffer.len() => {
                    buffer.resize(len, 0);
                }
                other => break other,
            }
        };
        self.buffer = buffer;
        Ok(result?.map(|(info, missed)| Next {
            data: &self.buffer[..info.len],
            info,
            missed,
        }))
    }

    /// [`Self::read_next`] into `buffer`, allocating nothing: what it is, and how many were missed. Of threads that
    /// share a reader and call nothing else of it that reads, each value comes to one.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read_next`], and [`ShmError::OutOfBounds`] with the length needed in `len` when
    /// the buffer is too short; the value then is still the next.
    pub fn read_next_into(&self, buffer: &mut [u8]) -> Result<Option<(ReadInfo, u64)>> {
        loop {
            let seen = self.last_version();
            let Some(info) = self.copy_next(seen, buffer)? else {
                return Ok(None);
            };
            // Of threads that draw on one reader, one has it; the others go on with what comes after. Relaxed: it
            // orders nothing else, and failing means that another one went on.
            let drawn = self.seen.compare_exchange(
                seen,
                info.version,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if drawn.is_ok() {
                // Newer than what was seen, so at least 2 more.
                return Ok(Some((info, (info.version - seen) / 2 - 1)));
            }
        }
    }

    /// Copies the value after version `seen`.
    fn copy_next(&self, seen: u64, buffer: &mut [u8]) -> Result<Option<ReadInfo>> {
        let mapping = self.mapping();
        let (capacity, room) = (mapping.geometry().capacity, buffer.len());
        let copied = seqlock::read_next(mapping, seen, self.limits(), |started| {
            let info = ReadInfo::load(mapping, started.slot, started.version);
            if !info.is_possible(capacity) {
                return Copied::Impossible;
            }
            if info.len > room {
                return Copied::Short(info);
            }
            mapping.copy_out(started.slot, 0, &mut buffer[..info.len]);
            Copied::Done(info)
        });
        if mapping.lost() {
            return Err(self.truncated());
        }
        match copied {
            Ok(None) => Ok(None),
            Ok(Some((_, Copied::Done(info)))) => {
                if mapping.geometry().has(flags::CRC32C) {
                    self.check_crc(&info, crc32c::crc32c(&buffer[..info.len]))?;
                }
                Ok(Some(info))
            }
            Ok(Some((_, other))) => Err(self.no_fit(&other)),
            Err(why) => Err(self.no_value(why)),
        }
    }
}

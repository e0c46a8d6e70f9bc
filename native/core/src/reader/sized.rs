//! Reads into memory that is asked for once the value's length is known.

use super::{ReadInfo, SegmentReader};
use crate::error::ShmError;
use crate::seqlock;

/// So often a longer value may come between a look at the length and the copy, before room is asked for
/// that any value of the segment fits into.
const GROWTHS: usize = 8;

/// Whoever provides memory for a value.
pub trait Sink {
    /// What a read answers: why there is no memory, or no value.
    type Error: From<ShmError>;

    /// At least `len` bytes, which take the place of what was provided before.
    ///
    /// # Errors
    ///
    /// Whatever the read is to answer then.
    fn room(&mut self, len: usize) -> Result<&mut [u8], Self::Error>;
}

/// A vector becomes as long as the value, and stays as long when that is shorter than it was.
impl Sink for Vec<u8> {
    type Error = ShmError;

    fn room(&mut self, len: usize) -> Result<&mut [u8], ShmError> {
        if self.len() < len {
            self.resize(len, 0);
        }
        Ok(self)
    }
}

impl SegmentReader {
    /// [`Self::read_into`] memory that `sink` provides for a value of that length, which is in its first
    /// bytes afterwards. It is asked again only when the writer has published a longer value meanwhile.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("r").dir(dir.path());
    /// # let mut writer = options.create().unwrap();
    /// writer.write(b"value").unwrap();
    /// let reader = options.attach_reader().unwrap();
    /// let mut buffer = Vec::new();
    /// let info = reader.read_to(&mut buffer).unwrap();
    /// assert_eq!(buffer[..info.len], *b"value");
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Self::read_into`], and what the sink answers.
    #[inline]
    pub fn read_to<S: Sink>(&self, sink: &mut S) -> Result<ReadInfo, S::Error> {
        let slots = self.mapping().slots_now();
        if let Some((started, bytes)) = self.start_at_once(&slots)
            // The length was this value's, before memory is asked for.
            && seqlock::finish_read(&slots, started)
            && let room = sink.room(bytes.len())?
            && let Some(info) = self.finish_at_once(&slots, started, bytes, room)
        {
            return Ok(self.note(info));
        }
        self.read_to_patiently(sink)
    }

    #[cold]
    #[inline(never)]
    fn read_to_patiently<S: Sink>(&self, sink: &mut S) -> Result<ReadInfo, S::Error> {
        let mut len = self.info()?.len;
        for _ in 1..GROWTHS {
            let room = sink.room(len)?;
            let had = room.len();
            match self.read_into(room) {
                Err(ShmError::OutOfBounds { len: needed, .. }) if needed > had => len = needed,
                Err(error) => return Err(error.into()),
                Ok(info) => return Ok(info),
            }
        }
        Ok(self.read_into(sink.room(self.capacity())?)?)
    }
}

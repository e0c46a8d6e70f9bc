//! A slot to fill in place: no copy at all.

use crate::descriptor::Descriptor;
use crate::error::{Result, ShmError};
use crate::layout::flags;
use crate::mapping::LoanToken;
use crate::writer::SegmentWriter;

/// The next slot of a segment, lent by its writer. Dropped unpublished, it changes nothing.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{Descriptor, SegmentOptions};
///
/// let options = SegmentOptions::new("frame").dir(dir.path());
/// let mut writer = options.create().unwrap();
/// let mut loan = writer.loan().unwrap();
/// loan.as_mut_slice()[..3].copy_from_slice(b"abc");
/// loan.publish(3, &Descriptor::RAW).unwrap();
/// assert_eq!(options.attach_reader().unwrap().read().unwrap(), b"abc");
/// writer.close().unwrap();
/// ```
#[derive(Debug)]
pub struct Loan<'w> {
    writer: &'w mut SegmentWriter,
    open: Open,
}

/// A loan that owns its writer, for callers that cannot hold a borrow (other languages).
#[derive(Debug)]
pub struct OwnedLoan {
    writer: SegmentWriter,
    open: Open,
}

#[derive(Debug)]
struct Open {
    token: LoanToken,
    version: u64,
}

fn open(writer: &mut SegmentWriter) -> Result<Open> {
    if writer.slots() == 1 && writer.has_value() {
        return Err(ShmError::Unsupported {
            name: writer.name().to_owned(),
            operation: "loan",
            reason: "its only slot holds the current value, which an unpublished loan would lose",
        });
    }
    let (slot, version) = writer.begin()?;
    writer.note_unknown(slot);
    Ok(Open {
        token: LoanToken { slot },
        version,
    })
}

fn publish(
    writer: &mut SegmentWriter,
    open: &Open,
    len: usize,
    descriptor: &Descriptor,
) -> Result<u64> {
    writer.check_writable()?;
    // No bytes are a value only where they are described as none.
    if len > 0 || !descriptor.is_empty() {
        writer.check_range(0, len)?;
    }
    descriptor.check_len(len)?;
    let mapping = &writer.segment.mapping;
    let crc = if mapping.geometry().has(flags::CRC32C) {
        mapping.checksum(open.token.slot, len)
    } else {
        0
    };
    writer.commit(open.token.slot, open.version, len, *descriptor, crc);
    writer.note_rewritten();
    writer.check_kept(open.version)
}

impl SegmentWriter {
    /// Lends the next slot to be filled in place.
    ///
    /// Of a segment with one slot and no value yet, each loan is of that slot, and has what the one before has
    /// left in it: so it can be filled piece by piece, with other calls in between.
    ///
    /// # Errors
    ///
    /// [`ShmError::Unsupported`] for the second value of a one-slot segment, and those of
    /// [`Self::write`].
    pub fn loan(&mut self) -> Result<Loan<'_>> {
        let open = open(self)?;
        Ok(Loan { writer: self, open })
    }

    /// Lends the next slot together with the writer.
    ///
    /// # Errors
    ///
    /// As [`Self::loan`], together with the writer.
    pub fn into_loan(mut self) -> Result<OwnedLoan, Box<(Self, ShmError)>> {
        match open(&mut self) {
            Ok(open) => Ok(OwnedLoan { writer: self, open }),
            Err(error) => Err(Box::new((self, error))),
        }
    }
}

impl Loan<'_> {
    /// Bytes that the slot holds.
    pub fn capacity(&self) -> usize {
        self.writer.capacity()
    }

    /// The slot's bytes; what an earlier version left in them is unspecified.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.writer.segment.mapping.loan_slice(&mut self.open.token)
    }

    /// Publishes the first `len` bytes; returns the version. None at all are a value if they are described as
    /// [none](Descriptor::is_empty).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::{Descriptor, SegmentOptions};
    ///
    /// let options = SegmentOptions::new("nothing").dir(dir.path());
    /// let mut writer = options.create().unwrap();
    /// let no_rows = Descriptor::numpy("<f4", &[0, 3]).unwrap();
    /// writer.loan().unwrap().publish(0, &no_rows).unwrap();
    /// let mut reader = options.attach_reader().unwrap();
    /// assert_eq!(reader.read().unwrap(), b"");
    /// assert_eq!(reader.info().unwrap().descriptor().unwrap(), no_rows);
    /// assert!(writer.loan().unwrap().publish(0, &Descriptor::RAW).is_err());
    /// writer.loan().unwrap().publish(0, &Descriptor::NO_BYTES).unwrap();
    /// assert_eq!(reader.read_next().unwrap().unwrap().data, b"");
    /// assert_eq!(&reader.pin().unwrap()[..], b"");
    /// writer.seal().unwrap();
    /// assert_eq!(&reader.sealed().unwrap()[..], b"");
    /// # reader.close().unwrap(); writer.close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ShmError::OutOfBounds`], [`ShmError::InvalidOption`]; nothing is published then.
    pub fn publish(self, len: usize, descriptor: &Descriptor) -> Result<u64> {
        publish(self.writer, &self.open, len, descriptor)
    }
}

impl OwnedLoan {
    /// Bytes that the slot holds.
    pub fn capacity(&self) -> usize {
        self.writer.capacity()
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        self.writer.name()
    }

    /// The slot's bytes; what an earlier version left in them is unspecified.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.writer.segment.mapping.loan_slice(&mut self.open.token)
    }

    /// Address of the slot's bytes, for languages that fill them by themselves; valid until the
    /// writer is dropped.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_slice().as_mut_ptr()
    }

    /// Publishes the first `len` bytes and gives the writer back.
    ///
    /// # Errors
    ///
    /// As [`Loan::publish`], together with the loan, which stays open.
    pub fn publish(
        mut self,
        len: usize,
        descriptor: &Descriptor,
    ) -> Result<(SegmentWriter, u64), Box<(Self, ShmError)>> {
        match publish(&mut self.writer, &self.open, len, descriptor) {
            Ok(version) => Ok((self.writer, version)),
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// Gives the writer back and changes nothing.
    pub fn abandon(self) -> SegmentWriter {
        self.writer
    }
}

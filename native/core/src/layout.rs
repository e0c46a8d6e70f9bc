//! Format version 1: where every byte of a segment lies (`docs/format.md`).
//!
//! Little-endian, offsets fixed. This module computes and checks; it touches no memory. What it
//! decodes comes from a file that anybody may have written, so `Geometry::decode` believes
//! nothing: every field is bounded before it is used in arithmetic, and all arithmetic is checked.

/// First eight bytes of every segment.
pub const MAGIC: u64 = 0x4556_4F5F_5348_4D00;
/// Version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u16 = 1;
/// Smallest capacity of a slot, in bytes (FR-009).
pub const MIN_CAPACITY: usize = 4096;
/// Largest capacity of a slot, in bytes (FR-009).
pub const MAX_CAPACITY: usize = 1 << 30;
/// Most slots that a segment can have.
pub const MAX_SLOTS: usize = 64;
/// Readers that a segment has room for unless asked otherwise.
pub const DEFAULT_MAX_READERS: usize = 1024;
/// Most readers that a segment can have room for.
pub const MAX_READERS: usize = 16_384;

/// Bytes of a cache line; slot headers and hot fields are aligned to it.
pub(crate) const CACHE_LINE: usize = 64;
/// Capacity from which a slot's bytes start on a page.
pub(crate) const PAGE_ALIGNED_FROM: usize = 64 * 1024;
/// Length of the immutable first cache line.
pub(crate) const HEADER_LEN: usize = 64;
/// Length of a slot header, directly before the slot's bytes.
pub(crate) const SLOT_HEADER: usize = 64;
/// Length of a reader-table entry.
pub(crate) const READER_ENTRY: usize = 16;
/// Offset of the identity block in the header page: length, CRC32C, and a copy of the `.meta`.
pub(crate) const IDENTITY_AT: usize = 1024;
/// Length of the identity block.
pub(crate) const IDENTITY_LEN: usize = 2048;
/// Offset of the reader table in the control pages.
pub(crate) const READER_TABLE: usize = 64;

/// Offsets in the header page. Line 0 never changes after creation.
pub(crate) mod header {
    /// `publish: u64` = version << 6 | slot. Line 1.
    pub const PUBLISH: usize = 64;
    /// `notify: u32`, the futex word.
    pub const NOTIFY: usize = 72;
    /// `state: u32`, see [`super::State`]. Line 2.
    pub const STATE: usize = 128;
    /// `generation: u32`, one more with every writer.
    pub const GENERATION: usize = 132;
    /// `writer: u64`, the participant key that holds the writer claim; 0 = nobody.
    pub const WRITER: usize = 136;
    /// `removed: u32`, 1 while and after the files are unlinked.
    pub const REMOVED: usize = 144;
    /// `pinnable: u32`, whether the writer looks at the pins of every reader before it writes (`hazard::writer`).
    pub const PINNABLE: usize = 148;
    /// `orphaned: u64`, CLOCK_MONOTONIC nanoseconds when somebody first saw that the writer is gone
    /// and may come back; 0 = it is there, or gone for good.
    pub const ORPHANED: usize = 152;
    /// `ttl: u64`, nanoseconds for which a sealed segment that its writer has given away waits for somebody to
    /// take it; 0 = it was not given away.
    pub const TTL: usize = 160;
    /// `lender: u64`, the participant key of whoever has lent the writer's place to others and owns the segment
    /// meanwhile; 0 = nobody.
    pub const LENDER: usize = 168;
    /// `home: u64`, the participant key of whoever has given the segment away and would have its memory back
    /// (`home`); 0 = nobody.
    pub const HOME: usize = 176;
    /// `takeovers: u64`, writers that followed a dead one.
    pub const TAKEOVERS: usize = 192;
    /// `discarded: u64`, half-written values that a takeover discarded.
    pub const DISCARDED: usize = 200;
}

/// Offsets in the control pages.
pub(crate) mod control {
    /// `waiters: u32`, readers that sleep on the futex word.
    pub const WAITERS: usize = 0;
    /// `high: u32`, entries of the reader table that were ever used lie below it.
    pub const HIGH: usize = 4;
    /// `pins: u64`, a bit for each 64th part of the reader table in which somebody may have pinned a
    /// slot.
    pub const PINS: usize = 8;
    /// `inherited: u32`, 1 when a forked child of somebody who left may still look: the memory of a pool is
    /// not used again then.
    pub const INHERITED: usize = 16;
}

/// Offsets in a reader-table entry.
pub(crate) mod reader_entry {
    /// `key: u64`, participant key; 0 = free.
    pub const KEY: usize = 0;
    /// In the key of an entry that is being cleared; never a participant's key.
    pub const CLEARING: u64 = u64::MAX;
    /// `pin: u32`, slot + 1; 0 = none.
    pub const PIN: usize = 8;
    /// `waiting: u32`, calls of this reader that sleep on the futex word.
    pub const WAITING: usize = 12;
}

/// Offsets in a slot header: eight words.
pub(crate) mod slot {
    /// `seq: u64`: even = the version that is there, odd = being written.
    pub const SEQ: usize = 0;
    /// `len: u64`, bytes of the value.
    pub const LEN: usize = 8;
    /// `timestamp: u64`, CLOCK_MONOTONIC nanoseconds; 0 = off.
    pub const TIMESTAMP: usize = 16;
    /// CRC32C in the low half; dimensions and format above it.
    pub const CHECK: usize = 24;
    /// dtype, 8 ASCII bytes padded with zeros.
    pub const DTYPE: usize = 32;
    /// Three words with two 32-bit dimensions each.
    pub const SHAPE: usize = 40;
}

const _: () = {
    assert!(header::PUBLISH == HEADER_LEN && header::NOTIFY == header::PUBLISH + 8);
    assert!(header::STATE == 2 * CACHE_LINE && header::WRITER % 8 == 0);
    assert!(header::PINNABLE == header::REMOVED + 4 && header::PINNABLE + 4 <= header::ORPHANED);
    assert!(control::PINS % 8 == 0 && control::PINS + 8 <= READER_TABLE);
    assert!(header::ORPHANED % 8 == 0 && header::ORPHANED + 8 <= header::TTL);
    assert!(header::TTL % 8 == 0 && header::TTL + 8 <= header::LENDER);
    assert!(header::LENDER % 8 == 0 && header::LENDER + 8 <= header::HOME);
    assert!(header::HOME % 8 == 0 && header::HOME + 8 <= header::TAKEOVERS);
    assert!(header::DISCARDED + 8 <= 4 * CACHE_LINE);
    assert!(IDENTITY_AT + IDENTITY_LEN <= MIN_CAPACITY);
    assert!(slot::SHAPE + 24 == SLOT_HEADER && SLOT_HEADER == CACHE_LINE);
    assert!(reader_entry::WAITING + 4 == READER_ENTRY && READER_TABLE % READER_ENTRY == 0);
    assert!(MAX_SLOTS == 1 << publish_word::SLOT_BITS);
};

/// Flags of the header.
pub(crate) mod flags {
    /// Writers wake waiting readers.
    pub const NOTIFY: u32 = 1;
    /// Values carry a CRC32C that readers check.
    pub const CRC32C: u32 = 1 << 1;
    /// Values carry a coarse timestamp.
    pub const TIMESTAMP_COARSE: u32 = 1 << 2;
    /// Values carry a precise timestamp.
    pub const TIMESTAMP_PRECISE: u32 = 1 << 3;
    /// Pages were not reserved at creation.
    pub const LAZY: u32 = 1 << 4;
    /// Huge pages were asked for at creation.
    pub const HUGE: u32 = 1 << 5;
    /// The file comes from a pool and goes back to one: it may be longer than its slots need, and lives
    /// on under other names.
    pub const POOLED: u32 = 1 << 6;
    /// All that this version knows.
    pub const KNOWN: u32 =
        NOTIFY | CRC32C | TIMESTAMP_COARSE | TIMESTAMP_PRECISE | LAZY | POOLED | HUGE;
}

/// `publish` word: version << 6 | slot.
pub mod publish_word {
    pub(crate) const SLOT_BITS: u32 = 6;
    const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
    /// Largest version that fits; a writer stops there (more than a million years at 1 kHz).
    pub const MAX_VERSION: u64 = (u64::MAX >> SLOT_BITS) & !1;

    /// Packs a version and a slot.
    ///
    /// ```
    /// use snakepit_shm::layout::publish_word::{pack, unpack};
    /// assert_eq!(unpack(pack(42, 3)), (42, 3));
    /// ```
    #[inline]
    pub const fn pack(version: u64, slot: usize) -> u64 {
        version << SLOT_BITS | (slot as u64 & SLOT_MASK)
    }

    /// Splits a publish word into version and slot.
    #[inline]
    pub const fn unpack(word: u64) -> (u64, usize) {
        (word >> SLOT_BITS, (word & SLOT_MASK) as usize)
    }
}

/// Splits a version into its epoch and 32-bit sequence, for display (plan, "Risk Mitigation").
///
/// A version is even; the sequence counts writes (version / 2) modulo 2³² and the epoch counts its
/// carries.
///
/// ```
/// assert_eq!(snakepit_shm::version_parts(2), (0, 1));
/// assert_eq!(snakepit_shm::version_parts(2 * (1 << 32)), (1, 0));
/// ```
pub const fn version_parts(version: u64) -> (u32, u32) {
    let writes = version >> 1;
    ((writes >> 32) as u32, writes as u32)
}

/// State of a segment, in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentState {
    /// Can be written.
    Active,
    /// Will never change again.
    Sealed,
    /// Its writer has gone cleanly and nothing newer will come unless a new one attaches.
    Closed,
}

impl SegmentState {
    pub(crate) const fn to_word(self) -> u32 {
        match self {
            Self::Active => 0,
            Self::Sealed => 1,
            Self::Closed => 2,
        }
    }

    pub(crate) const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::Active),
            1 => Some(Self::Sealed),
            2 => Some(Self::Closed),
            _ => None,
        }
    }
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Magic,
    Version(u16),
    Checksum,
    Flags(u32),
    Slots(u16),
    Capacity(u64),
    Readers(u32),
    Control(u32),
    SlotsOffset(u32),
    Stride(u64),
    Truncated { needed: u64, found: u64 },
}

impl std::fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Magic => write!(f, "no segment (wrong magic)"),
            Self::Version(v) => {
                write!(f, "format version {v}, this program knows {FORMAT_VERSION}")
            }
            Self::Checksum => write!(f, "header checksum does not match"),
            Self::Flags(x) => write!(f, "unknown flags {x:#x}"),
            Self::Slots(n) => write!(f, "slot count {n}"),
            Self::Capacity(n) => write!(f, "capacity {n}"),
            Self::Readers(n) => write!(f, "reader table of {n} entries"),
            Self::Control(n) => write!(f, "control pages at offset {n}"),
            Self::SlotsOffset(n) => write!(f, "slot 0 at offset {n}"),
            Self::Stride(n) => write!(f, "slot stride {n}"),
            Self::Truncated { needed, found } => {
                write!(f, "file has {found} bytes, header says {needed}")
            }
        }
    }
}

/// The immutable part of a header: sizes and places, validated once and kept in private memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub flags: u32,
    pub slots: usize,
    pub capacity: usize,
    pub max_readers: usize,
    /// Offset of the control pages = length of the header pages.
    pub control: usize,
    /// Offset of slot 0's header.
    pub first_slot: usize,
    /// Distance from one slot header to the next.
    pub stride: usize,
    pub schema_id: u64,
    /// CLOCK_REALTIME nanoseconds since 1970, for people.
    pub created_ns: u64,
}

/// The nearest capacity that a segment may have on a machine with pages of `page` bytes.
pub(crate) fn nearest_capacity(size: usize, page: usize) -> usize {
    let unit = page.max(MIN_CAPACITY);
    let down = size / unit * unit;
    let nearest = match size.checked_next_multiple_of(unit) {
        Some(up) if up - size <= size - down => up,
        _ => down,
    };
    nearest.clamp(unit, MAX_CAPACITY)
}

const fn round_up(n: usize, unit: usize) -> usize {
    n.div_ceil(unit) * unit
}

impl Geometry {
    /// Lays out a segment; the arguments are in range already.
    pub fn new(slots: usize, capacity: usize, max_readers: usize, page: usize) -> Self {
        let control = page;
        let control_len = round_up(READER_TABLE + max_readers * READER_ENTRY, page);
        let (first_slot, stride) = Self::slot_places(capacity, control + control_len, page);
        Self {
            flags: 0,
            slots,
            capacity,
            max_readers,
            control,
            first_slot,
            stride,
            schema_id: 0,
            created_ns: 0,
        }
    }

    /// Where slot headers go when the control pages end at `end`: directly before bytes that start
    /// on a cache line, or on a page when the slot is large.
    const fn slot_places(capacity: usize, end: usize, page: usize) -> (usize, usize) {
        if capacity >= PAGE_ALIGNED_FROM {
            (end + page - SLOT_HEADER, capacity + page)
        } else {
            (end, capacity + SLOT_HEADER)
        }
    }

    /// Length of the control pages, in bytes.
    pub fn control_len(&self, page: usize) -> usize {
        round_up(READER_TABLE + self.max_readers * READER_ENTRY, page)
    }

    /// Length of the file, in bytes, up to the last byte of the last slot, in whole pages.
    pub fn file_len(&self, page: usize) -> usize {
        round_up(
            self.first_slot + (self.slots - 1) * self.stride + SLOT_HEADER + self.capacity,
            page,
        )
    }

    /// Whether a flag of [`flags`] is set.
    #[inline]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The immutable cache line.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut line = [0u8; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| line[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &FORMAT_VERSION.to_le_bytes());
        put(10, &(self.slots as u16).to_le_bytes());
        put(12, &self.flags.to_le_bytes());
        put(16, &(self.capacity as u64).to_le_bytes());
        put(24, &(self.first_slot as u32).to_le_bytes());
        put(28, &(self.max_readers as u32).to_le_bytes());
        put(32, &(self.stride as u64).to_le_bytes());
        put(40, &self.schema_id.to_le_bytes());
        put(48, &self.created_ns.to_le_bytes());
        put(56, &(self.control as u32).to_le_bytes());
        let sum = crc32c::crc32c(&line[..60]);
        line[60..].copy_from_slice(&sum.to_le_bytes());
        line
    }

    /// Reads a cache line that anybody may have written, of a file of `file_len` bytes.
    pub fn decode(
        line: &[u8; HEADER_LEN],
        file_len: u64,
        page: usize,
    ) -> Result<Self, HeaderFault> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| line[at + i]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| line[at + i]));
        let short = |at: usize| u16::from_le_bytes(std::array::from_fn(|i| line[at + i]));
        if word(0) != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if short(8) != FORMAT_VERSION {
            return Err(HeaderFault::Version(short(8)));
        }
        if half(60) != crc32c::crc32c(&line[..60]) {
            return Err(HeaderFault::Checksum);
        }
        // A checksum guards against accidents only: whoever forges a header computes it too.
        let (flags, slots, capacity) = (half(12), short(10), word(16));
        if flags & !flags::KNOWN != 0 {
            return Err(HeaderFault::Flags(flags));
        }
        if !(1..=MAX_SLOTS).contains(&usize::from(slots)) {
            return Err(HeaderFault::Slots(slots));
        }
        let in_range = (MIN_CAPACITY as u64..=MAX_CAPACITY as u64).contains(&capacity);
        if !in_range || capacity % MIN_CAPACITY as u64 != 0 {
            return Err(HeaderFault::Capacity(capacity));
        }
        let readers = half(28);
        if !(1..=MAX_READERS).contains(&(readers as usize)) {
            return Err(HeaderFault::Readers(readers));
        }
        // The places follow from the sizes and the page size of the creator: any other layout is
        // forged, and a page size that is not ours cannot be mapped piece by piece.
        let laid_out = Self::new(
            usize::from(slots),
            capacity as usize,
            readers as usize,
            page,
        );
        if half(56) as usize != laid_out.control {
            return Err(HeaderFault::Control(half(56)));
        }
        if half(24) as usize != laid_out.first_slot {
            return Err(HeaderFault::SlotsOffset(half(24)));
        }
        if word(32) != laid_out.stride as u64 {
            return Err(HeaderFault::Stride(word(32)));
        }
        let needed = laid_out.file_len(page) as u64;
        if file_len < needed {
            return Err(HeaderFault::Truncated {
                needed,
                found: file_len,
            });
        }
        Ok(Self {
            flags,
            schema_id: word(40),
            created_ns: word(48),
            ..laid_out
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn data_starts_on_a_cache_line_and_large_data_on_a_page() {
        for capacity in [4096, 8192, 65_536, 1 << 20, MAX_CAPACITY] {
            let g = Geometry::new(4, capacity, 1024, 4096);
            for slot in 0..4 {
                let data = g.first_slot + slot * g.stride + SLOT_HEADER;
                assert_eq!(data % CACHE_LINE, 0);
                if capacity >= PAGE_ALIGNED_FROM {
                    assert_eq!(data % 4096, 0);
                }
            }
        }
    }

    #[test]
    fn nearest_capacity_is_valid_and_nearest() {
        assert_eq!(nearest_capacity(0, 4096), 4096);
        assert_eq!(nearest_capacity(4097, 4096), 4096);
        assert_eq!(nearest_capacity(7000, 4096), 8192);
        assert_eq!(nearest_capacity(usize::MAX, 4096), MAX_CAPACITY);
        assert_eq!(nearest_capacity(1, 65_536), 65_536);
    }

    prop_compose! {
        fn geometry()(
            slots in 1..=MAX_SLOTS,
            pages in 1usize..=MAX_CAPACITY / 4096,
            readers in 1..=MAX_READERS,
            flags in 0..=flags::KNOWN,
            schema_id: u64,
            created_ns: u64,
        ) -> Geometry {
            Geometry { flags, schema_id, created_ns, ..Geometry::new(slots, pages * 4096, readers, 4096) }
        }
    }

    proptest! {
        #[test]
        fn a_header_survives_encoding(g in geometry()) {
            let len = g.file_len(4096) as u64;
            prop_assert_eq!(Geometry::decode(&g.encode(), len, 4096), Ok(g));
            let cut = Geometry::decode(&g.encode(), len - 1, 4096);
            let truncated = matches!(cut, Err(HeaderFault::Truncated { .. }));
            prop_assert!(truncated);
        }

        #[test]
        fn arbitrary_bytes_never_decode_beyond_the_file(bytes: [u8; 32], tail: [u8; 32], len in 0u64..1 << 40) {
            let mut line = [0u8; HEADER_LEN];
            line[..32].copy_from_slice(&bytes);
            line[32..].copy_from_slice(&tail);
            prop_assert!(Geometry::decode(&line, len, 4096).is_err());
        }

        /// Forged with a right magic, version and checksum: what decodes lies inside the file.
        #[test]
        fn forged_headers_stay_inside_the_file(g in geometry(), at in 10usize..60, value: u8, len in 0u64..1 << 40) {
            let mut line = g.encode();
            line[at] = value;
            let sum = crc32c::crc32c(&line[..60]);
            line[60..].copy_from_slice(&sum.to_le_bytes());
            if let Ok(decoded) = Geometry::decode(&line, len, 4096) {
                prop_assert!(decoded.file_len(4096) as u64 <= len);
            }
        }

        #[test]
        fn one_flipped_bit_is_found(g in geometry(), bit in 0usize..HEADER_LEN * 8) {
            let mut line = g.encode();
            line[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Geometry::decode(&line, u64::MAX, 4096).is_err());
        }

        #[test]
        fn publish_words_keep_version_and_slot(writes in 0..=publish_word::MAX_VERSION / 2, slot in 0..MAX_SLOTS) {
            let word = publish_word::pack(writes * 2, slot);
            prop_assert_eq!(publish_word::unpack(word), (writes * 2, slot));
        }

        /// The carry from sequence to epoch loses nothing and keeps the order.
        #[test]
        fn version_parts_carry(near in 0u64..3, delta in 0u64..1 << 20, step in 1u64..1 << 20) {
            let version = ((near << 32) + (1 << 32) - (1 << 19) + delta) * 2;
            let (epoch, sequence) = version_parts(version);
            prop_assert_eq!((u64::from(epoch) << 32 | u64::from(sequence)) * 2, version);
            prop_assert!(version_parts(version + 2 * step) > (epoch, sequence));
        }
    }
}

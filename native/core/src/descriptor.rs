//! What a value is: its format, element type and shape, kept in the slot header beside the bytes.

use crate::error::{Result, ShmError};

/// Most dimensions that a slot header can describe.
pub const MAX_DIMS: usize = 6;

/// How a value's bytes are to be understood.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Plain bytes.
    #[default]
    Raw,
    /// An array: dtype, shape and [order](Order) say which.
    Numpy,
    /// An Arrow IPC stream.
    ArrowIpc,
}

impl DataFormat {
    /// Stable name, as in handles.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Numpy => "numpy",
            Self::ArrowIpc => "arrow_ipc",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Numpy, Self::ArrowIpc]
            .into_iter()
            .find(|format| format.as_str() == name)
    }
}

/// How the elements of an array follow one another in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// The last index varies fastest, as in C.
    #[default]
    C,
    /// The first index varies fastest, as in Fortran.
    Fortran,
}

impl Order {
    /// `"C"` or `"F"`, as in handles.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::C => "C",
            Self::Fortran => "F",
        }
    }

    /// The order of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::C, Self::Fortran]
            .into_iter()
            .find(|order| order.as_str() == name)
    }
}

/// Bits of the word that says more about a value than its format; as in a slot header.
const FORTRAN: u16 = 1;
const NOTHING: u16 = 2;

/// Format, element type and shape of a value.
///
/// A value without a byte (an array with a dimension of 0, no bytes at all) is described as
/// [empty](Self::is_empty); without such a description a length of 0 is garbage.
///
/// ```
/// use snakepit_shm::{DataFormat, Descriptor};
///
/// let image = Descriptor::numpy("|u1", &[512, 512, 3]).unwrap();
/// assert_eq!(image.format(), DataFormat::Numpy);
/// assert_eq!(image.byte_len(), Some(512 * 512 * 3));
/// assert!(Descriptor::numpy("<f4", &[u64::MAX]).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    format: DataFormat,
    dtype: [u8; 8],
    ndim: u8,
    /// `FORTRAN`, `NOTHING`.
    bits: u16,
    shape: [u32; MAX_DIMS],
}

impl Descriptor {
    /// Plain bytes.
    pub const RAW: Self = Self {
        format: DataFormat::Raw,
        dtype: [0; 8],
        ndim: 0,
        bits: 0,
        shape: [0; MAX_DIMS],
    };

    /// Plain bytes, and not one of them.
    pub const NO_BYTES: Self = Self {
        bits: NOTHING,
        ..Self::RAW
    };

    /// An Arrow IPC stream.
    pub const ARROW_IPC: Self = Self {
        format: DataFormat::ArrowIpc,
        ..Self::RAW
    };

    /// An array in C order. `dtype` is numpy's array-protocol string (`"<f4"`, `"|u1"`, `"<M8[ns]"`).
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidOption`] for a dtype that is none or has more than 8 characters, more than
    /// [`MAX_DIMS`] dimensions, a dimension over 2³²-1, or a product that overflows.
    pub fn numpy(dtype: &str, shape: &[u64]) -> Result<Self> {
        let invalid = |option, reason| Err(ShmError::InvalidOption { option, reason });
        if item_size(dtype).is_none() {
            let shown: String = dtype.chars().take(32).collect();
            return invalid(
                "dtype",
                format!(
                    "expected an array-protocol type string such as \"<f4\" of at most 8 characters, got {shown:?}"
                ),
            );
        }
        if shape.len() > MAX_DIMS {
            return invalid(
                "shape",
                format!(
                    "expected at most {MAX_DIMS} dimensions, got {}",
                    shape.len()
                ),
            );
        }
        let mut descriptor = Self {
            format: DataFormat::Numpy,
            ndim: shape.len() as u8,
            ..Self::RAW
        };
        descriptor.dtype[..dtype.len()].copy_from_slice(dtype.as_bytes());
        for (to, from) in descriptor.shape.iter_mut().zip(shape) {
            let Ok(dim) = u32::try_from(*from) else {
                return invalid("shape", format!("a dimension of {from} is too large"));
            };
            *to = dim;
        }
        if descriptor.byte_len().is_none() {
            return invalid("shape", "its product overflows".into());
        }
        Ok(descriptor)
    }

    /// The format.
    #[inline]
    pub fn format(&self) -> DataFormat {
        self.format
    }

    /// Element type as numpy's array-protocol string; empty unless the format is `Numpy`.
    pub fn dtype(&self) -> &str {
        let len = self.dtype.iter().position(|b| *b == 0).unwrap_or(8);
        std::str::from_utf8(&self.dtype[..len]).unwrap_or("")
    }

    /// Length of each dimension; empty for a scalar and for other formats.
    pub fn shape(&self) -> Vec<u64> {
        let dims = &self.shape[..usize::from(self.ndim)];
        dims.iter().copied().map(u64::from).collect()
    }

    /// The same array, its elements in this order; other formats have none and stay as they are.
    #[must_use]
    pub fn with_order(mut self, order: Order) -> Self {
        if self.format == DataFormat::Numpy {
            self.bits = match order {
                Order::C => self.bits & !FORTRAN,
                Order::Fortran => self.bits | FORTRAN,
            };
        }
        self
    }

    /// How the elements follow one another.
    pub fn order(&self) -> Order {
        if self.bits & FORTRAN == 0 {
            Order::C
        } else {
            Order::Fortran
        }
    }

    /// Whether the value has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bits & NOTHING != 0 || self.byte_len() == Some(0)
    }

    /// Bytes that an array of this type and shape has; `None` for other formats.
    pub fn byte_len(&self) -> Option<usize> {
        if self.format != DataFormat::Numpy {
            return None;
        }
        let dims = &self.shape[..usize::from(self.ndim)];
        dims.iter().try_fold(item_size(self.dtype())?, |n, dim| {
            n.checked_mul(*dim as usize)
        })
    }

    /// Refuses a descriptor that does not fit the length of its value.
    #[inline]
    pub(crate) fn check_len(&self, len: usize) -> Result<()> {
        match self.format {
            DataFormat::Numpy => self.check_product(len),
            DataFormat::Raw | DataFormat::ArrowIpc if self.bits == 0 => Ok(()),
            DataFormat::Raw | DataFormat::ArrowIpc => self.check_product(len),
        }
    }

    /// Bytes that such a value has; `None` when any number above 0 will do.
    fn value_len(&self) -> Option<usize> {
        match self.format {
            DataFormat::Numpy => self.byte_len(),
            _ if self.bits & NOTHING != 0 => Some(0),
            _ => None,
        }
    }

    fn check_product(&self, len: usize) -> Result<()> {
        match self.value_len() {
            Some(expected) if expected != len => Err(ShmError::InvalidOption {
                option: "shape",
                reason: format!("dtype and shape make {expected} bytes, the value has {len}"),
            }),
            _ => Ok(()),
        }
    }

    /// As words of a slot header: format and dimensions (to be put above a CRC), dtype, shape.
    #[inline]
    pub(crate) fn encode(&self) -> [u64; 5] {
        let pair = |i: usize| u64::from(self.shape[i]) | u64::from(self.shape[i + 1]) << 32;
        let format = match self.format {
            DataFormat::Raw => 0u64,
            DataFormat::Numpy => 1,
            DataFormat::ArrowIpc => 2,
        };
        [
            u64::from(self.ndim) << 32 | format << 40 | u64::from(self.bits) << 48,
            u64::from_le_bytes(self.dtype),
            pair(0),
            pair(2),
            pair(4),
        ]
    }

    /// From words that anybody may have written; `None` for what `encode` cannot have made.
    pub(crate) fn decode(words: &[u64; 5], len: usize) -> Option<Self> {
        let format = match (words[0] >> 40) as u8 {
            0 => DataFormat::Raw,
            1 => DataFormat::Numpy,
            2 => DataFormat::ArrowIpc,
            _ => return None,
        };
        let ndim = (words[0] >> 32) as u8;
        if usize::from(ndim) > MAX_DIMS {
            return None;
        }
        let bits = (words[0] >> 48) as u16;
        let allowed = match format {
            DataFormat::Raw => NOTHING,
            DataFormat::Numpy => FORTRAN,
            DataFormat::ArrowIpc => 0,
        };
        if bits & !allowed != 0 {
            return None;
        }
        let half = |i: usize| (words[2 + i / 2] >> (32 * (i % 2))) as u32;
        let decoded = Self {
            format,
            dtype: words[1].to_le_bytes(),
            ndim,
            bits,
            shape: std::array::from_fn(half),
        };
        if format == DataFormat::Numpy {
            decoded.byte_len()?;
        }
        let fits = match decoded.value_len() {
            Some(expected) => expected == len,
            None => len > 0,
        };
        fits.then_some(decoded)
    }
}

/// Bytes of one element, by numpy's array protocol: byte order, kind, size (`U` counts characters of
/// four bytes), for times a unit.
fn item_size(dtype: &str) -> Option<usize> {
    if dtype.len() > 8 || !dtype.is_ascii() {
        return None;
    }
    let rest = dtype.strip_prefix(['<', '>', '|', '='])?;
    let kind = rest.chars().next()?;
    let rest = &rest[1..];
    let (digits, unit) = match rest.find('[') {
        Some(at) => (&rest[..at], Some(&rest[at..])),
        None => (rest, None),
    };
    match (kind, unit) {
        ('m' | 'M', Some(unit)) if unit.ends_with(']') => {}
        ('b' | 'i' | 'u' | 'f' | 'c' | 'V' | 'S' | 'U' | 'm' | 'M', None) => {}
        _ => return None,
    }
    let size: usize = digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())??;
    let size = if kind == 'U' { size * 4 } else { size };
    (size > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_of_dtypes() {
        for (dtype, size) in [
            ("<f4", 4),
            ("|b1", 1),
            ("<c16", 16),
            ("<M8[ns]", 8),
            ("<U3", 12),
            ("|V5", 5),
        ] {
            assert_eq!(item_size(dtype), Some(size), "{dtype}");
        }
        for bad in [
            "",
            "f4",
            "<x4",
            "<f",
            "<f0",
            "<f-4",
            "<f4[ns]",
            "<M8[ns",
            "|O8",
            "<f44444444",
            "<f٤",
        ] {
            assert_eq!(item_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_length_of_0_is_described() {
        let nothing = Descriptor::NO_BYTES;
        assert!(nothing.is_empty() && !Descriptor::RAW.is_empty());
        assert_eq!(Descriptor::decode(&nothing.encode(), 0), Some(nothing));
        assert_eq!(Descriptor::decode(&nothing.encode(), 1), None);
        assert_eq!(Descriptor::decode(&Descriptor::RAW.encode(), 0), None);
        assert_eq!(Descriptor::decode(&Descriptor::ARROW_IPC.encode(), 0), None);
        assert!(nothing.check_len(0).is_ok() && nothing.check_len(1).is_err());
    }

    #[test]
    fn only_an_array_has_an_order_and_only_plain_bytes_are_none() {
        let array = Descriptor::numpy("<f4", &[2, 3]).unwrap();
        for (of, bit, len) in [
            (Descriptor::RAW, 1u64, 4),
            (Descriptor::ARROW_IPC, 1, 4),
            (Descriptor::ARROW_IPC, 2, 0),
            (array, 2, 24),
            (array, 4, 24),
        ] {
            let mut words = of.encode();
            words[0] |= bit << 48;
            assert_eq!(Descriptor::decode(&words, len), None);
        }
        assert_eq!(Descriptor::RAW.with_order(Order::Fortran), Descriptor::RAW);
    }

    proptest! {
        #[test]
        fn survives_encoding(shape in prop::collection::vec(0u64..64, 0..=MAX_DIMS)) {
            for order in [Order::C, Order::Fortran] {
                let d = Descriptor::numpy("<f8", &shape).unwrap().with_order(order);
                let len = d.byte_len().unwrap();
                prop_assert_eq!(Descriptor::decode(&d.encode(), len), Some(d));
                prop_assert_eq!(Descriptor::decode(&d.encode(), len + 1), None);
                prop_assert_eq!(d.shape(), shape.clone());
                prop_assert_eq!(d.order(), order);
                prop_assert_eq!(d.is_empty(), shape.contains(&0));
            }
        }

        #[test]
        fn garbage_is_refused_or_fits(words: [u64; 5], len in 0usize..1 << 30) {
            if let Some(d) = Descriptor::decode(&words, len) {
                prop_assert!(d.byte_len().is_none_or(|n| n == len));
                prop_assert_eq!(d.is_empty(), len == 0);
                prop_assert!(d.shape().len() <= MAX_DIMS);
            }
        }
    }
}

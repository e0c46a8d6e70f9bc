//! Handles: what crosses a pipe instead of the bytes (DESIGN 8).

use crate::descriptor::{DataFormat, Descriptor, Order};
use crate::error::{Result, ShmError};
use crate::meta::Meta;
use crate::name::{DEFAULT_DIR, MAX_NAME, Place};
use crate::options::SegmentOptions;
use crate::reader::SegmentReader;
use crate::segment::Segment;
use crate::view::SealedView;
use crate::writer::SegmentWriter;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most dimensions that a handle may have; more is nonsense.
const MOST_DIMS: usize = 32;

/// Most bytes of [`Handle::element`].
const MOST_ELEMENT: usize = 4096;

/// Names one sealed value: a small JSON-safe map.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{Handle, SegmentOptions};
///
/// let mut writer = SegmentOptions::new("result").dir(dir.path()).slots(1).create().unwrap();
/// writer.write(b"42").unwrap();
/// writer.seal().unwrap();
/// let sent = writer.handle().unwrap().to_value().to_string();
///
/// let received = Handle::from_value(&serde_json::from_str(&sent).unwrap()).unwrap();
/// assert_eq!(&received.open(dir.path()).unwrap()[..], b"42");
/// assert!(received.is_found(dir.path()).unwrap());
/// writer.close().unwrap();
/// assert!(!received.is_found(dir.path()).unwrap());
/// assert_eq!(received.open(dir.path()).unwrap_err().code(), "not_found");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The segment.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Version of the value.
    pub version: u64,
    /// Generation of the segment.
    pub generation: u32,
    /// Length of the value, in bytes; 0 for one that has none.
    pub bytes: u64,
    /// numpy's array-protocol string; `"|u1"` for bytes.
    pub dtype: String,
    /// Length of each dimension; `[bytes]` for bytes.
    pub shape: Vec<u64>,
    /// How the bytes are to be understood.
    pub format: DataFormat,
    /// How the elements of an array follow one another; the field `order` is there for Fortran's only.
    pub order: Order,
    /// What the elements mean, where `dtype` cannot say it (`"|V2"` that are `"bfloat16"`; records): a word
    /// among those who exchange it, that the segment does not know. The field `element`, where there is one.
    pub element: Option<String>,
    /// Says which incarnation of the name is meant: a handle to an earlier segment is refused.
    pub token: String,
}

fn invalid<T>(reason: impl Into<String>) -> Result<T> {
    Err(ShmError::InvalidHandle {
        reason: reason.into(),
    })
}

impl Handle {
    /// The key that marks a map as a handle; its value is 1.
    pub const MARKER: &'static str = "__snakepit_shm__";

    const KEYS: [&'static str; 12] = [
        Self::MARKER,
        "name",
        "namespace",
        "version",
        "generation",
        "bytes",
        "dtype",
        "shape",
        "format",
        "token",
        Self::ORDER,
        Self::ELEMENT,
    ];

    /// Fields that most handles do without.
    const ORDER: &'static str = "order";
    const ELEMENT: &'static str = "element";

    /// Takes a decoded map apart; it may come from anybody.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidHandle`] for a missing, unknown or contradicting field,
    /// [`ShmError::InvalidName`].
    pub fn from_value(value: &Value) -> Result<Self> {
        let Value::Object(map) = value else {
            return invalid("expected a map");
        };
        if let Some(key) = map.keys().find(|key| !Self::KEYS.contains(&key.as_str())) {
            let shown: String = key.chars().take(64).collect();
            return invalid(format!("unknown field {shown:?}"));
        }
        if number(map, Self::MARKER)? != 1 {
            return invalid(format!("{} must be 1", Self::MARKER));
        }
        let format = text(map, "format")?;
        let Some(format) = DataFormat::from_name(&format) else {
            return invalid(format!(
                "format must be raw, numpy or arrow_ipc, got {format:?}"
            ));
        };
        let Ok(generation) = u32::try_from(number(map, "generation")?) else {
            return invalid("generation is too large");
        };
        let handle = Self {
            name: text(map, "name")?,
            namespace: text(map, "namespace")?,
            version: number(map, "version")?,
            generation,
            bytes: number(map, "bytes")?,
            dtype: text(map, "dtype")?,
            shape: shape(map)?,
            format,
            order: order(map)?,
            element: element(map)?,
            token: text(map, "token")?,
        };
        handle.check()?;
        Ok(handle)
    }

    fn check(&self) -> Result<()> {
        Place::new(Path::new(DEFAULT_DIR), &self.namespace)?.meta_path(&self.name)?;
        if self.version == 0 || self.version % 2 != 0 {
            return invalid("version must be even and above 0");
        }
        if self.bytes > crate::MAX_CAPACITY as u64 {
            return invalid(format!("bytes must be 0..={}", crate::MAX_CAPACITY));
        }
        let is_array = self.format == DataFormat::Numpy;
        if !is_array && (self.order != Order::C || self.element.is_some()) {
            return invalid("only an array has order and element");
        }
        if self.element.is_some() && self.dtype.as_bytes().get(1) != Some(&b'V') {
            return invalid("dtype says what the elements are");
        }
        if self.bytes == 0 && self.format == DataFormat::ArrowIpc {
            return invalid("an Arrow IPC stream has bytes");
        }
        if self.token.len() != 32 || !self.token.bytes().all(|b| b.is_ascii_hexdigit()) {
            return invalid("token is none");
        }
        let described = match self.format {
            DataFormat::Numpy => Descriptor::numpy(&self.dtype, &self.shape)
                .or_else(|e| invalid(e.to_string()))?
                .byte_len(),
            // Bytes are an array of bytes.
            _ if self.dtype == "|u1" && self.shape.len() == 1 => {
                usize::try_from(self.shape[0]).ok()
            }
            _ => return invalid("dtype and shape of bytes are \"|u1\" and [bytes]"),
        };
        if described.map(|n| n as u64) != Some(self.bytes) {
            return invalid("dtype and shape do not make that many bytes");
        }
        Ok(())
    }

    /// The map, as it crosses a pipe.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            (Self::MARKER): 1,
            "name": self.name,
            "namespace": self.namespace,
            "version": self.version,
            "generation": self.generation,
            "bytes": self.bytes,
            "dtype": self.dtype,
            "shape": self.shape,
            "format": self.format.as_str(),
            "token": self.token,
        });
        if self.order != Order::C {
            value[Self::ORDER] = json!(self.order.as_str());
        }
        if let Some(element) = &self.element {
            value[Self::ELEMENT] = json!(element);
        }
        value
    }

    /// Options that name the segment in `dir`.
    pub fn options(&self, dir: impl AsRef<Path>) -> SegmentOptions {
        SegmentOptions::new(&self.name)
            .namespace(&self.namespace)
            .dir(dir.as_ref())
    }

    /// Views the value that the handle names, without a copy.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`] when the segment is gone or another has its name now,
    /// [`ShmError::InvalidHandle`] when it contradicts the segment, and those of attaching.
    pub fn open(&self, dir: impl AsRef<Path>) -> Result<SealedView> {
        self.check()?;
        let reader = self.options(dir).attach_reader()?;
        if reader.incarnation() != self.token {
            return Err(ShmError::NotFound {
                name: self.name.clone(),
            });
        }
        let view = reader.sealed()?;
        self.verify(&view)?;
        Ok(view)
    }

    /// [`Self::open`], and the writer's place if whoever shared the value has given it away and nobody has taken
    /// it yet: with the view, for how long it was to be had. One attach for both.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("result").dir(dir.path()).slots(1);
    /// # let mut writer = options.create().unwrap();
    /// # writer.write(b"for whoever comes").unwrap();
    /// # writer.seal().unwrap();
    /// let handle = writer.handle().unwrap();
    /// assert!(handle.take(dir.path()).unwrap().1.is_none());
    /// let minute = std::time::Duration::from_secs(60);
    /// writer.give_away(minute).unwrap();
    ///
    /// let (view, taken) = handle.take(dir.path()).unwrap();
    /// let (taken, time) = taken.unwrap();
    /// assert_eq!(time, minute);
    /// taken.remove().unwrap();
    /// assert_eq!(&view[..], b"for whoever comes");
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`].
    pub fn take(
        &self,
        dir: impl AsRef<Path>,
    ) -> Result<(SealedView, Option<(SegmentWriter, Duration)>)> {
        self.check()?;
        let Some(view) = SealedView::of_heir(&self.options(&dir), &self.token)? else {
            return Ok((self.open(dir)?, None));
        };
        self.verify(&view)?;
        let taken = match view.given_away_for() {
            Some(time) => SegmentWriter::of_view(&view)?.map(|writer| (writer, time)),
            None => None,
        };
        Ok((view, taken))
    }

    /// Whether a view of the segment is what this handle was made for.
    fn verify(&self, view: &SealedView) -> Result<()> {
        let generation = view.segment().mapping.generation().load(Ordering::Relaxed);
        let found = Self {
            // The segment does not know; whoever understands it judges it.
            element: self.element.clone(),
            ..Self::of(view.segment(), view, generation)
        };
        if found != *self {
            return invalid("it contradicts the segment");
        }
        Ok(())
    }

    /// Whether the segment that the handle names is still to be found: it is looked up by name, and not opened. For
    /// who holds a view of it and wants to know whether another one could be had.
    ///
    /// # Errors
    ///
    /// Those of reading its metadata, other than [`ShmError::NotFound`].
    pub fn is_found(&self, dir: impl AsRef<Path>) -> Result<bool> {
        self.check()?;
        match Meta::load(&self.options(dir).place()?, &self.name) {
            Ok(meta) => Ok(meta.incarnation == self.token),
            Err(ShmError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over the segment that the handle names, and no other of the same name, if nobody has it: for whoever
    /// has copied or mapped what was given away, and is to see to its end.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = snakepit_shm::SegmentOptions::new("result").dir(dir.path()).slots(1);
    /// # let mut writer = options.create().unwrap();
    /// # writer.write(b"for whoever comes").unwrap();
    /// # writer.seal().unwrap();
    /// let handle = writer.handle().unwrap();
    /// assert_eq!(handle.adopt(dir.path()).unwrap_err().code(), "segment_busy");
    /// writer.give_away(std::time::Duration::from_secs(60)).unwrap();
    /// handle.adopt(dir.path()).unwrap().remove().unwrap();
    /// assert_eq!(handle.adopt(dir.path()).unwrap_err().code(), "not_found");
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`SegmentOptions::adopt_incarnation`].
    pub fn adopt(&self, dir: impl AsRef<Path>) -> Result<SegmentWriter> {
        self.check()?;
        self.options(dir).adopt_incarnation(&self.token)
    }

    /// Removes the segment that the handle names, and no other of the same name.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotFound`] when it is gone already.
    pub fn remove(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.check()?;
        let options = self.options(dir);
        options.remove_if(&options.place()?, &self.token)
    }

    pub(crate) fn of(segment: &Segment, view: &SealedView, generation: u32) -> Self {
        let descriptor = view.descriptor();
        let (dtype, shape) = match descriptor.format() {
            DataFormat::Numpy => (descriptor.dtype().to_owned(), descriptor.shape()),
            _ => ("|u1".to_owned(), vec![view.len() as u64]),
        };
        Self {
            name: segment.name.clone(),
            namespace: segment.place.namespace.clone(),
            version: view.version(),
            generation,
            bytes: view.len() as u64,
            dtype,
            shape,
            format: descriptor.format(),
            order: descriptor.order(),
            element: None,
            token: segment.incarnation.clone(),
        }
    }
}

fn field<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a Value> {
    map.get(key)
        .map_or_else(|| invalid(format!("{key} is missing")), Ok)
}

fn number(map: &Map<String, Value>, key: &str) -> Result<u64> {
    field(map, key)?.as_u64().map_or_else(
        || invalid(format!("{key} must be a whole number, not negative")),
        Ok,
    )
}

fn text(map: &Map<String, Value>, key: &str) -> Result<String> {
    match field(map, key)?.as_str() {
        Some(text) if text.len() <= MAX_NAME => Ok(text.to_owned()),
        Some(_) => invalid(format!("{key} is too long")),
        None => invalid(format!("{key} must be a string")),
    }
}

fn shape(map: &Map<String, Value>) -> Result<Vec<u64>> {
    let dims = field(map, "shape")?.as_array();
    match dims {
        Some(dims) if dims.len() <= MOST_DIMS => dims
            .iter()
            .map(|dim| {
                dim.as_u64().map_or_else(
                    || invalid("shape must hold whole numbers, not negative"),
                    Ok,
                )
            })
            .collect(),
        _ => invalid(format!(
            "shape must be a list of at most {MOST_DIMS} numbers"
        )),
    }
}

fn order(map: &Map<String, Value>) -> Result<Order> {
    let Some(given) = map.get(Handle::ORDER) else {
        return Ok(Order::C);
    };
    match given.as_str().and_then(Order::from_name) {
        Some(order) => Ok(order),
        None => invalid("order must be \"C\" or \"F\""),
    }
}

fn element(map: &Map<String, Value>) -> Result<Option<String>> {
    match map.get(Handle::ELEMENT) {
        None => Ok(None),
        Some(Value::String(element)) if (1..=MOST_ELEMENT).contains(&element.len()) => {
            Ok(Some(element.clone()))
        }
        Some(_) => invalid(format!(
            "element must be a string of 1..={MOST_ELEMENT} bytes"
        )),
    }
}

impl SegmentWriter {
    /// Handle of the sealed value. With `crc32c` the value is read for it.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`].
    pub fn handle(&self) -> Result<Handle> {
        let view = self.sealed()?;
        Ok(Handle::of(view.segment(), &view, self.generation()))
    }
}

impl SegmentReader {
    /// Handle of the sealed value.
    ///
    /// # Errors
    ///
    /// [`ShmError::NotSealed`].
    pub fn handle(&self) -> Result<Handle> {
        let view = self.sealed()?;
        Ok(Handle::of(view.segment(), &view, self.generation()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn good() -> Value {
        json!({
            "__snakepit_shm__": 1, "name": "n", "namespace": "ns", "version": 2, "generation": 1,
            "bytes": 12, "dtype": "<f4", "shape": [3], "format": "numpy",
            "token": "0123456789abcdef0123456789abcdef",
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut map = good();
        map[key] = value;
        map
    }

    #[test]
    fn survives_its_map() {
        let handle = Handle::from_value(&good()).unwrap();
        assert_eq!(handle.to_value(), good());
    }

    #[test]
    fn what_most_handles_do_without_survives_its_map() {
        let mut map = with("order", json!("F"));
        map["dtype"] = json!("|V4");
        map["element"] = json!("records of ours");
        let handle = Handle::from_value(&map).unwrap();
        assert_eq!(
            (handle.order, handle.element.as_deref()),
            (Order::Fortran, Some("records of ours"))
        );
        assert_eq!(handle.to_value(), map);
        let said = Handle::from_value(&with("order", json!("C"))).unwrap();
        assert_eq!(said.to_value(), good());
    }

    #[test]
    fn nothing_has_handles_too() {
        let nothing = |dtype: &str, shape: Value, format: &str| {
            let mut map = with("bytes", json!(0));
            map["dtype"] = json!(dtype);
            map["shape"] = shape;
            map["format"] = json!(format);
            Handle::from_value(&map).map(|handle| handle.bytes)
        };
        assert_eq!(nothing("<f4", json!([3, 0]), "numpy").ok(), Some(0));
        assert_eq!(nothing("|u1", json!([0]), "raw").ok(), Some(0));
        for (dtype, shape, format) in [
            ("<f4", json!([3]), "numpy"),
            ("|u1", json!([1]), "raw"),
            ("|u1", json!([0]), "arrow_ipc"),
        ] {
            assert!(nothing(dtype, shape, format).is_err(), "{format}");
        }
    }

    #[test]
    fn every_field_is_needed_and_no_other_allowed() {
        for key in Handle::KEYS
            .into_iter()
            .filter(|key| good().get(key).is_some())
        {
            let mut map = good();
            map.as_object_mut().unwrap().remove(key);
            assert_eq!(
                Handle::from_value(&map).unwrap_err().code(),
                "invalid_handle"
            );
        }
        let extra = with("more", json!(1));
        assert_eq!(
            Handle::from_value(&extra).unwrap_err().code(),
            "invalid_handle"
        );
    }

    #[test]
    fn hostile_fields_are_refused() {
        for bad in [
            json!(null),
            json!([1]),
            with("__snakepit_shm__", json!(2)),
            with("name", json!("../../etc/passwd")),
            with("namespace", json!("a_b")),
            with("version", json!(3)),
            with("version", json!(-2)),
            with("generation", json!(1u64 << 40)),
            with("bytes", json!(13)),
            with("bytes", json!(u64::MAX)),
            with("shape", json!([u64::MAX, u64::MAX])),
            with("shape", json!("3")),
            with("shape", json!([1.5])),
            with("dtype", json!("|O8")),
            with("format", json!("pickle")),
            with("token", json!("")),
            with("order", json!("K")),
            with("order", json!(1)),
            with("element", json!("bfloat16")),
            with("element", json!("")),
            with("element", json!(["<f4"])),
            with("element", json!("x".repeat(4097))),
            with("bytes", json!(0)),
        ] {
            let code = Handle::from_value(&bad).unwrap_err().code();
            assert!(
                ["invalid_handle", "invalid_name"].contains(&code),
                "{bad}: {code}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_json_makes_it_panic(key in prop::sample::select(Handle::KEYS.to_vec()), text in ".{0,40}", number: i64) {
            let _ = Handle::from_value(&with(key, json!(text)));
            let _ = Handle::from_value(&with(key, json!(number)));
            let _ = Handle::from_value(&with(key, json!([number, number])));
        }
    }
}

//! What is known about a segment, as maps with atom keys.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustler::{NifMap, NifUnitEnum};
use snakepit_shm::{
    DataFormat, Pages, SegmentInfo, SegmentReader, SegmentReport, SegmentState, ShmError,
};

use crate::error::Answer;

#[derive(NifUnitEnum, Clone, Copy)]
enum StateTerm {
    Active,
    Sealed,
    Closed,
}

impl From<SegmentState> for StateTerm {
    fn from(state: SegmentState) -> Self {
        match state {
            SegmentState::Active => Self::Active,
            SegmentState::Sealed => Self::Sealed,
            SegmentState::Closed => Self::Closed,
        }
    }
}

/// A segment seen from outside. Times are microseconds since 1970, sizes bytes.
#[derive(NifMap)]
pub struct Report {
    id: String,
    namespace: String,
    size: u64,
    slots: u64,
    state: StateTerm,
    orphaned: bool,
    version: u64,
    generation: u32,
    bytes: u64,
    created_at: u64,
    last_accessed: u64,
    reader_count: u64,
    platform_handle: PlatformHandle,
}

/// What the operating system knows it by.
#[derive(NifMap)]
struct PlatformHandle {
    file: String,
    module: String,
    writer_pid: u32,
}

impl Report {
    /// Of one segment looked at by name.
    pub fn of(report: &SegmentReport) -> Self {
        let written = report
            .age
            .and_then(|age| SystemTime::now().checked_sub(age));
        Self {
            id: report.name.clone(),
            namespace: report.namespace.clone(),
            size: report.capacity as u64,
            slots: report.slots.len() as u64,
            state: report.state.into(),
            orphaned: report.orphaned,
            version: report.version,
            generation: report.generation,
            bytes: report.len as u64,
            created_at: micros(report.created_at),
            last_accessed: micros(written.unwrap_or(report.created_at)),
            reader_count: report.readers.len() as u64,
            platform_handle: PlatformHandle {
                file: report.file.clone(),
                module: report.module.clone(),
                writer_pid: report.writer.as_ref().map_or(0, |process| process.pid),
            },
        }
    }

    /// Of one segment of a list.
    pub fn of_info(info: &SegmentInfo) -> Self {
        Self {
            id: info.name.clone(),
            namespace: info.namespace.clone(),
            size: info.size as u64,
            slots: info.slots as u64,
            state: info.state.into(),
            orphaned: info.orphaned,
            version: info.version,
            generation: info.generation,
            bytes: info.len as u64,
            created_at: micros(info.created_at),
            last_accessed: micros(info.last_accessed),
            reader_count: u64::from(info.reader_count),
            platform_handle: PlatformHandle {
                file: info.file.clone(),
                module: info.module.clone(),
                writer_pid: info.writer_pid,
            },
        }
    }
}

/// How the memory under a segment is backed. Sizes are bytes.
#[derive(NifMap)]
pub struct PagesTerm {
    bytes: u64,
    resident: u64,
    huge: u64,
    huge_possible: u64,
    huge_asked: bool,
    numa_policy: Option<String>,
    nodes: Vec<(u32, u64)>,
}

impl PagesTerm {
    pub fn of(pages: &Pages) -> Self {
        Self {
            bytes: pages.bytes,
            resident: pages.resident,
            huge: pages.huge,
            huge_possible: pages.huge_possible,
            huge_asked: pages.huge_asked,
            numa_policy: pages.numa_policy.clone(),
            nodes: pages.nodes.iter().map(|on| (on.node, on.bytes)).collect(),
        }
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[derive(NifUnitEnum, Clone, Copy)]
enum FormatTerm {
    Raw,
    Numpy,
    ArrowIpc,
}

impl From<DataFormat> for FormatTerm {
    fn from(format: DataFormat) -> Self {
        match format {
            DataFormat::Raw => Self::Raw,
            DataFormat::Numpy => Self::Numpy,
            DataFormat::ArrowIpc => Self::ArrowIpc,
        }
    }
}

/// A mapping's own view: what a reader needs to know before it asks for bytes. Without a value `bytes`
/// is 0 and `format` nil; only arrays have a dtype and a shape.
#[derive(NifMap)]
pub struct Info {
    capacity: u64,
    bytes: u64,
    version: u64,
    generation: u32,
    state: StateTerm,
    format: Option<FormatTerm>,
    dtype: Option<String>,
    shape: Option<Vec<u64>>,
}

impl Info {
    /// Of the current value: all of it of one and the same, however often the writer writes.
    pub fn of_reader(reader: &SegmentReader) -> Answer<Self> {
        let mut info = Self {
            capacity: reader.capacity() as u64,
            bytes: reader.len() as u64,
            version: reader.version(),
            generation: reader.generation(),
            state: reader.state()?.into(),
            format: None,
            dtype: None,
            shape: None,
        };
        let value = match reader.info() {
            Ok(value) => value,
            // The mapping is well; there just is no value to be had now.
            Err(
                ShmError::Empty { .. }
                | ShmError::Closed { .. }
                | ShmError::Torn { .. }
                | ShmError::VersionConflict { .. },
            ) => return Ok(info),
            Err(error) => return Err(error.into()),
        };
        let descriptor = value.descriptor()?;
        info.bytes = value.len as u64;
        info.version = value.version;
        info.format = Some(descriptor.format().into());
        if descriptor.format() == DataFormat::Numpy {
            info.dtype = Some(descriptor.dtype().to_owned());
            info.shape = Some(descriptor.shape());
        }
        Ok(info)
    }
}

//! Where a segment is and how it is to be created, as a map from Elixir.

use rustler::{NifMap, NifTaggedEnum, NifUnitEnum};
use snakepit_shm::{
    HugePages, Integrity, Numa, Pool, Reserve, SegmentOptions, ShmError, Timestamps,
};

/// Every key is there; `nil` leaves the core's default.
#[derive(NifMap)]
pub struct Segment {
    pub name: String,
    namespace: String,
    dir: String,
    pub size: Option<u64>,
    pub slots: Option<u64>,
    max_readers: Option<u64>,
    integrity: Option<IntegrityTerm>,
    notify: Option<bool>,
    timestamps: Option<TimestampsTerm>,
    reserve: Option<ReserveTerm>,
    permissions: Option<u32>,
    schema_id: Option<u64>,
    prefault: Option<bool>,
    huge_pages: Option<HugePagesTerm>,
    lock_memory: Option<bool>,
    numa: Option<NumaTerm>,
    /// Whether its memory comes from the VM's pool and goes back to it, and for whom it is.
    pooled: Option<bool>,
    tenant: Option<String>,
    /// Which segment of that name is to be adopted; `nil` = whichever there is.
    pub incarnation: Option<String>,
}

#[derive(NifUnitEnum, Clone, Copy)]
enum HugePagesTerm {
    Prefer,
    Require,
}

#[derive(NifTaggedEnum)]
enum NumaTerm {
    Bind(Vec<u32>),
    Interleave(Vec<u32>),
}

#[derive(NifUnitEnum, Clone, Copy)]
enum IntegrityTerm {
    None,
    Crc32c,
}

#[derive(NifUnitEnum, Clone, Copy)]
enum TimestampsTerm {
    Off,
    Coarse,
    Precise,
}

#[derive(NifUnitEnum, Clone, Copy)]
enum ReserveTerm {
    Eager,
    Lazy,
}

impl From<HugePagesTerm> for HugePages {
    fn from(term: HugePagesTerm) -> Self {
        match term {
            HugePagesTerm::Prefer => Self::Prefer,
            HugePagesTerm::Require => Self::Require,
        }
    }
}

impl From<NumaTerm> for Numa {
    fn from(term: NumaTerm) -> Self {
        match term {
            NumaTerm::Bind(nodes) => Self::Bind(nodes),
            NumaTerm::Interleave(nodes) => Self::Interleave(nodes),
        }
    }
}

impl From<IntegrityTerm> for Integrity {
    fn from(term: IntegrityTerm) -> Self {
        match term {
            IntegrityTerm::None => Self::None,
            IntegrityTerm::Crc32c => Self::Crc32c,
        }
    }
}

impl From<TimestampsTerm> for Timestamps {
    fn from(term: TimestampsTerm) -> Self {
        match term {
            TimestampsTerm::Off => Self::Off,
            TimestampsTerm::Coarse => Self::Coarse,
            TimestampsTerm::Precise => Self::Precise,
        }
    }
}

impl From<ReserveTerm> for Reserve {
    fn from(term: ReserveTerm) -> Self {
        match term {
            ReserveTerm::Eager => Self::Eager,
            ReserveTerm::Lazy => Self::Lazy,
        }
    }
}

impl Segment {
    /// The pool that it is to be created in.
    pub fn pool(&self) -> Result<Option<Pool>, ShmError> {
        self.pooled
            .unwrap_or(false)
            .then(|| Pool::shared(&self.namespace, &self.dir))
            .transpose()
    }

    /// The core's options. Values out of range are left for the core to refuse.
    pub fn options(self) -> SegmentOptions {
        let options = SegmentOptions::new(self.name)
            .namespace(self.namespace)
            .dir(self.dir);
        let options = with(options, self.size.map(whole), SegmentOptions::size);
        let options = with(options, self.slots.map(whole), SegmentOptions::slots);
        let options = with(
            options,
            self.max_readers.map(whole),
            SegmentOptions::max_readers,
        );
        let options = with(options, self.notify, SegmentOptions::notify);
        let options = with(options, self.permissions, SegmentOptions::permissions);
        let options = with(options, self.schema_id, SegmentOptions::schema_id);
        let options = with(options, self.prefault, SegmentOptions::prefault);
        let options = with(
            options,
            self.huge_pages.map(HugePages::from),
            SegmentOptions::huge_pages,
        );
        let options = with(options, self.lock_memory, SegmentOptions::lock_memory);
        let options = with(options, self.tenant, SegmentOptions::tenant);
        let options = options.numa(self.numa.map(Numa::from));
        let options = with(
            options,
            self.reserve.map(Reserve::from),
            SegmentOptions::reserve,
        );
        let integrity = self.integrity.map(Integrity::from);
        let options = with(options, integrity, SegmentOptions::integrity);
        let timestamps = self.timestamps.map(Timestamps::from);
        with(options, timestamps, SegmentOptions::timestamps)
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn with<T>(
    options: SegmentOptions,
    value: Option<T>,
    set: impl FnOnce(SegmentOptions, T) -> SegmentOptions,
) -> SegmentOptions {
    match value {
        Some(value) => set(options, value),
        None => options,
    }
}

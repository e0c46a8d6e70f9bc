//! What every peer is measured through: put a value, take a value.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use snakepit_shm_bench::Result;

use crate::stamped::{self, Values};

/// One way of handing a value on: ours or a peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `write` and `read_into`, timestamps and notification off: what the peers' defaults are.
    Ours,
    /// The same with what a caller gets who sets nothing.
    OursDefaults,
    /// `write`, and `pin` to copy out: three slots, never lapped.
    OursPinned,
    /// `loan` and `pin`: no copy.
    OursInPlace,
    /// iceoryx2, blackboard: `loan_uninit`, `get`.
    Blackboard,
    /// iceoryx2, publish-subscribe: a loan that is copied into, a sample that is copied out of.
    PubSub,
    /// The same without copies.
    PubSubInPlace,
    /// `write_raw` and `read`, the value copied out under the guard.
    MmapSync,
    /// `write_raw`, which copies, and `read` in place.
    MmapSyncInPlace,
    /// `SeqLock` of the crate seqlock in shared memory.
    SeqLock,
    /// `shared_memory` with the `Mutex` of `raw_sync`.
    Mutex,
    /// `shared_memory` with the `RwLock` of `raw_sync`.
    RwLock,
}

impl Kind {
    /// Those that copy, ours first.
    pub const COPYING: [Self; 9] = [
        Self::Ours,
        Self::OursDefaults,
        Self::OursPinned,
        Self::Blackboard,
        Self::PubSub,
        Self::MmapSync,
        Self::SeqLock,
        Self::Mutex,
        Self::RwLock,
    ];
    /// Those that do not, ours first.
    pub const IN_PLACE: [Self; 3] = [
        Self::OursInPlace,
        Self::PubSubInPlace,
        Self::MmapSyncInPlace,
    ];

    /// The word for it in figures.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ours => "snakepit",
            Self::OursDefaults => "snakepit-defaults",
            Self::OursPinned => "snakepit-pinned",
            Self::OursInPlace => "snakepit-in-place",
            Self::Blackboard => "iceoryx2-blackboard",
            Self::PubSub => "iceoryx2-pubsub",
            Self::PubSubInPlace => "iceoryx2-pubsub-in-place",
            Self::MmapSync => "mmap-sync",
            Self::MmapSyncInPlace => "mmap-sync-in-place",
            Self::SeqLock => "seqlock",
            Self::Mutex => "shared_memory-mutex",
            Self::RwLock => "shared_memory-rwlock",
        }
    }

    /// Whether values are looked at where they lie.
    #[must_use]
    pub fn in_place(self) -> bool {
        Self::IN_PLACE.contains(&self)
    }

    /// Whether a value is taken once only, as from a queue.
    #[must_use]
    pub fn queue(self) -> bool {
        matches!(self, Self::PubSub | Self::PubSubInPlace)
    }

    /// Why it is not measured with `size` bytes, if it is not.
    #[must_use]
    pub fn refusal(self, size: usize) -> Option<String> {
        if let Err(missing) = self.built() {
            return Some(missing);
        }
        match self {
            Self::Blackboard if size > 16 << 20 => Some(
                "the value is a type of fixed size, returned by value: it would take that much stack".to_owned(),
            ),
            Self::SeqLock if size > 4 << 10 => Some(
                "its read is one volatile load of the whole type, which the compiler unfolds word by word: no larger type \
                 was compiled in ten minutes"
                    .to_owned(),
            ),
            kind if kind.in_place() && size > 16 << 20 => {
                Some("without a copy the cost does not depend on the size".to_owned())
            }
            _ => None,
        }
    }

    /// Whether the peer is part of this binary.
    fn built(self) -> std::result::Result<(), String> {
        let (there, feature) = match self {
            Self::Ours | Self::OursDefaults | Self::OursPinned | Self::OursInPlace => (true, ""),
            Self::Blackboard | Self::PubSub | Self::PubSubInPlace => {
                (cfg!(feature = "iceoryx2"), "iceoryx2")
            }
            Self::MmapSync | Self::MmapSyncInPlace => (cfg!(feature = "mmap-sync"), "mmap-sync"),
            Self::SeqLock => (cfg!(feature = "seqlock"), "seqlock"),
            Self::Mutex | Self::RwLock => (cfg!(feature = "shared-memory"), "shared_memory"),
        };
        if there {
            Ok(())
        } else {
            Err(format!("{feature} was not built"))
        }
    }
}

/// Where one of them lies: enough for another process to open the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Which way.
    pub kind: Kind,
    /// A directory of this run's own, on a memory file system.
    pub dir: PathBuf,
    /// Its name there.
    pub name: String,
    /// Bytes of a value, one of [`crate::SIZES`].
    pub size: usize,
    /// Readers at most.
    pub readers: usize,
}

/// Hands on a value.
pub trait Put {
    /// One.
    fn put(&mut self, value: &[u8]) -> Result<()>;
}

/// Gets a value.
pub trait Take {
    /// Calls `then` with the current value; `None` when there was none to be had.
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>>;
}

/// [`Put`] behind a pointer: whole batches, so that the call through it costs nothing.
pub trait Writer {
    /// So many values.
    fn write(&mut self, values: &mut Values, times: u64) -> Result<()>;
    /// One, timed.
    fn write_timed(&mut self, values: &mut Values) -> Result<Duration>;
}

impl<T: Put> Writer for T {
    #[inline(never)]
    fn write(&mut self, values: &mut Values, times: u64) -> Result<()> {
        for _ in 0..times {
            self.put(black_box(values.next()))?;
        }
        Ok(())
    }

    fn write_timed(&mut self, values: &mut Values) -> Result<Duration> {
        let value = values.next();
        let start = Instant::now();
        self.put(black_box(value))?;
        Ok(start.elapsed())
    }
}

/// [`Take`] behind a pointer.
pub trait Reader {
    /// So many attempts; how many came to a value.
    fn read(&mut self, times: u64) -> Result<u64>;
    /// One attempt, timed, whose value `see` gets. Whether there was one.
    fn read_seen(&mut self, see: &mut dyn FnMut(&[u8], Duration)) -> Result<bool>;
}

impl<T: Take> Reader for T {
    #[inline(never)]
    fn read(&mut self, times: u64) -> Result<u64> {
        let mut values = 0;
        for _ in 0..times {
            // Whoever gets a value looks at it.
            let got = self.take(|value| {
                black_box(stamped::ends(black_box(value)));
            })?;
            values += u64::from(got.is_some());
        }
        Ok(values)
    }

    fn read_seen(&mut self, see: &mut dyn FnMut(&[u8], Duration)) -> Result<bool> {
        let start = Instant::now();
        let got = self.take(|value| {
            let took = start.elapsed();
            see(black_box(value), took);
        })?;
        Ok(got.is_some())
    }
}

/// Makes it, without a value.
///
/// # Errors
/// What the peer says, or that it is not part of this binary.
pub fn writer(place: &Place) -> Result<Box<dyn Writer>> {
    match place.kind {
        Kind::Ours | Kind::OursDefaults | Kind::OursPinned => crate::ours::writer(place),
        Kind::OursInPlace => crate::ours::writer_in_place(place),
        #[cfg(feature = "iceoryx2")]
        Kind::Blackboard => crate::iox::blackboard_writer(place),
        #[cfg(feature = "iceoryx2")]
        Kind::PubSub | Kind::PubSubInPlace => crate::iox::publisher(place),
        #[cfg(feature = "mmap-sync")]
        Kind::MmapSync | Kind::MmapSyncInPlace => crate::mmapsync::writer(place),
        #[cfg(feature = "seqlock")]
        Kind::SeqLock => crate::seq::writer(place),
        #[cfg(feature = "shared-memory")]
        Kind::Mutex | Kind::RwLock => crate::locked::writer(place),
        #[allow(unreachable_patterns, reason = "reached when a peer was not built")]
        kind => Err(format!("{} is not part of this binary", kind.word()).into()),
    }
}

/// Opens it for reading.
///
/// # Errors
/// What the peer says, or that it is not part of this binary.
pub fn reader(place: &Place) -> Result<Box<dyn Reader>> {
    match place.kind {
        Kind::Ours | Kind::OursDefaults => crate::ours::reader(place),
        Kind::OursPinned => crate::ours::reader_pinned(place),
        Kind::OursInPlace => crate::ours::reader_in_place(place),
        #[cfg(feature = "iceoryx2")]
        Kind::Blackboard => crate::iox::blackboard_reader(place),
        #[cfg(feature = "iceoryx2")]
        Kind::PubSub | Kind::PubSubInPlace => crate::iox::subscriber(place),
        #[cfg(feature = "mmap-sync")]
        Kind::MmapSync | Kind::MmapSyncInPlace => crate::mmapsync::reader(place),
        #[cfg(feature = "seqlock")]
        Kind::SeqLock => crate::seq::reader(place),
        #[cfg(feature = "shared-memory")]
        Kind::Mutex | Kind::RwLock => crate::locked::reader(place),
        #[allow(unreachable_patterns, reason = "reached when a peer was not built")]
        kind => Err(format!("{} is not part of this binary", kind.word()).into()),
    }
}

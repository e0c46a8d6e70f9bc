//! Memory that is kept for the next segment (R9.4; design, `allocation_strategy`).
//!
//! A fresh page costs ten times as much as the copy into it: the kernel zeroes it and maps it, one fault
//! each. So a pool does not give the memory of a segment back when that ends. It keeps the file, pages and
//! page tables and all, and makes the next segment in it: another name, another incarnation, the next
//! generation. A handle to the old one finds nothing; a reader that is still attached keeps what
//! it reads, and the memory waits for it to go. Readers keep their mappings for a while, too
//! (`mapping::kept`), so their first touch of a recycled segment faults nothing either.
//!
//! Whoever dies: a pool's file says in its header whose it is, under a name of its own (`{ns}.pool.…`), and
//! is removed by whoever cleans up next, as a segment would be.

mod away;
mod options;
mod shared;
mod store;

pub use options::{PoolOptions, PoolStats, Strategy, Zero};

use crate::error::{Resource, Result, ShmError};
use crate::handle::Handle;
use crate::layout::{Geometry, flags};
use crate::mapping::kept;
use crate::meta::Meta;
use crate::name::Place;
use crate::options::{Reserve, SegmentOptions};
use crate::participant::linger;
use crate::platform::{self, background, fork};
use crate::retired::{Ended, Retired};
use crate::segment::{Memory, Segment};
use crate::writer::SegmentWriter;
use away::Away;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use store::{Kind, Past, Store};

/// How often somebody looks for what was given away: whether it came back, or was removed by others.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps the memory of segments that ended for those that come. Cheap to clone; the files that it keeps
/// are removed with the last clone.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{PoolOptions, SegmentOptions};
///
/// let pool = PoolOptions::new("docs", dir.path()).open().unwrap();
/// let frame = |n: u32| SegmentOptions::new(format!("frame-{n}")).namespace("docs").dir(dir.path()).size(1 << 20);
///
/// let mut first = pool.create(&frame(1)).unwrap();
/// first.write(&[1; 1 << 20]).unwrap();
/// assert!(pool.retire(first).unwrap());
///
/// let mut second = pool.create(&frame(2)).unwrap(); // the same pages: nothing to fault in
/// second.write(&[2; 1 << 20]).unwrap();
/// assert_eq!(pool.stats().reused, 1);
/// second.close().unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    state: Mutex<State>,
    /// The files are this process's; a forked child has none.
    epoch: u32,
}

#[derive(Debug)]
struct State {
    options: PoolOptions,
    store: Store,
    /// When the background will look for what is due.
    watched: Option<Instant>,
}

impl PoolOptions {
    /// Opens a pool of its own. It keeps nothing yet.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`] for the namespace.
    pub fn open(self) -> Result<Pool> {
        let place = Place::new(&self.dir, &self.namespace)?;
        Ok(Pool::of(place, self))
    }
}

impl Pool {
    fn of(place: Place, options: PoolOptions) -> Self {
        let state = State {
            options,
            store: Store::default(),
            watched: None,
        };
        Self {
            inner: Arc::new(Inner {
                place,
                state: Mutex::new(state),
                epoch: fork::epoch(),
            }),
        }
    }

    /// The pool that this process has for a namespace, made when it is first asked for. It lasts until the
    /// process ends; [`Self::drain`] before that, for what is left is removed only when somebody cleans up.
    ///
    /// # Errors
    ///
    /// [`ShmError::InvalidName`].
    pub fn shared(namespace: &str, dir: impl AsRef<Path>) -> Result<Self> {
        let place = Place::new(dir.as_ref(), namespace)?;
        Ok(shared::of(&place))
    }

    /// The pool of this process that a writer's memory would go to.
    pub fn of_writer(writer: &SegmentWriter) -> Self {
        shared::of(&writer.segment().place)
    }

    /// [`Self::drain`] of all pools that [`Self::shared`] has made, and of all else that this process has kept for
    /// what may come: for its end.
    pub fn drain_shared() -> usize {
        let bytes = shared::all().iter().map(Self::drain).sum();
        kept::forget();
        linger::forget();
        bytes
    }

    /// Changes limits and strategy from now on. Namespace and directory stay.
    pub fn configure(&self, options: PoolOptions) {
        let Some(mut state) = self.state() else {
            return;
        };
        state.options = PoolOptions {
            namespace: state.options.namespace.clone(),
            dir: state.options.dir.clone(),
            ..options
        };
        let out = state.trim();
        self.watch(&mut state);
        drop(state);
        drop(out); // files are removed without the lock
    }

    /// Creates a segment, in kept memory if there is some that it fits in. What cannot be kept afterwards
    /// (lazily reserved, bound to NUMA nodes, locked, kept from children, or readable by others, who may look without being
    /// counted) gets memory of its own, as from [`SegmentOptions::create`].
    ///
    /// # Errors
    ///
    /// Those of [`SegmentOptions::create`], and [`ShmError::InvalidOption`] for a segment of another namespace
    /// or directory than the pool's.
    pub fn create(&self, options: &SegmentOptions) -> Result<SegmentWriter> {
        if options.place()? != self.inner.place {
            return Err(ShmError::InvalidOption {
                option: "namespace",
                reason: format!("the pool is of {}", self.inner.place.namespace),
            });
        }
        let slots = options.check_create()?;
        let pooled = self.state().is_some_and(|state| state.options.enabled);
        if !pooled || !is_poolable(options) {
            return options.create();
        }
        let page = platform::page_size();
        let geometry = Geometry::new(slots, options.size, options.max_readers, page);
        let needed = geometry.file_len(page);
        let made = self.make(options, &geometry, needed);
        let writer = match made {
            // What is idle here is memory that somebody needs now.
            Err(ShmError::ResourceExhausted {
                resource: Resource::Space | Resource::AddressSpace,
                ..
            }) if self.drain() > 0 => {
                background::settle();
                self.make(options, &geometry, needed)?
            }
            made => made?,
        };
        Ok(writer)
    }

    fn make(
        &self,
        options: &SegmentOptions,
        geometry: &Geometry,
        needed: usize,
    ) -> Result<SegmentWriter> {
        let kind = Kind::of(options);
        // A name that is taken most often stays so: that costs no memory that was kept.
        let is_taken = self.inner.place.meta_path(&options.name)?;
        let is_taken = is_taken.symlink_metadata().is_ok();
        let kept = || self.take(geometry, &kind, &options.tenant);
        let memory = match (!is_taken).then(kept).flatten() {
            Some(retired) => Memory::Recycled(retired),
            None => Memory::Room(store::class_of(needed)),
        };
        // A file that was cut is shorter than its mapping.
        let mut recycled_room = match &memory {
            Memory::Recycled(retired) => Some(retired.room()),
            _ => None,
        };
        let recycled = recycled_room.is_some();
        let segment = match Segment::create_in(options, memory) {
            // Its file was removed from under us; or it is full beyond the class, but not beyond the need.
            Err(ShmError::Io { source, .. })
                if recycled && source.kind() == std::io::ErrorKind::NotFound =>
            {
                recycled_room = None;
                Segment::create_in(options, Memory::Room(store::class_of(needed)))
            }
            Err(ShmError::ResourceExhausted {
                resource: Resource::Space,
                ..
            }) if !recycled && store::class_of(needed) > needed => {
                Segment::create_in(options, Memory::Room(needed))
            }
            made => made,
        }?;
        let writer = SegmentWriter::of_new(segment);
        if let Some(mut state) = self.state() {
            let tenant = Some(options.tenant.clone());
            let past = Past { kind, tenant };
            state
                .store
                .lives(writer.segment(), past, needed, recycled_room);
        }
        Ok(writer)
    }

    fn take(&self, geometry: &Geometry, kind: &Kind, tenant: &str) -> Option<Retired> {
        let mut state = self.state()?;
        let strategy = state.options.strategy;
        let found = state.store.take(geometry, kind, strategy)?;
        let zero = match state.options.zero {
            Zero::Never => false,
            Zero::BetweenTenants => found.past.tenant.as_deref() != Some(tenant),
            Zero::Always => true,
        };
        drop(state);
        if zero {
            found.retired.wipe();
        }
        Some(found.retired)
    }

    /// Ends a segment and keeps its memory, if it is a pool's and may be kept; says whether. What somebody else
    /// [has given away](Self::give_away) goes back to that one's pool. Its name is free at once. Attached readers keep what they have and are told that it is closed, as by
    /// [`SegmentWriter::remove`]; the memory is used again when they have gone.
    ///
    /// # Errors
    ///
    /// Those of [`SegmentWriter::remove`].
    pub fn retire(&self, writer: SegmentWriter) -> Result<bool> {
        let past = self.state().map(|mut state| {
            let past = state.store.ended(writer.incarnation());
            // It was given away, and is back without having been sent.
            let expected = state.store.unexpect(writer.incarnation());
            (state.options.enabled.then_some(past), expected)
        });
        let past = past.map(|(past, expected)| {
            drop(expected); // not under the lock
            past
        });
        let segment = writer.segment();
        let is_ours =
            segment.mapping.geometry().has(flags::POOLED) && segment.place == self.inner.place;
        let past = past.flatten();
        // Also where nothing is kept here, somebody else may wait for it.
        if !is_ours {
            writer.remove()?;
            return Ok(false);
        }
        let retired = match writer.retire(past.is_some())? {
            Ended::Kept(retired) => *retired,
            Ended::Home => return Ok(true),
            Ended::Removed => return Ok(false),
        };
        let (Some(mut state), Some(past)) = (self.state(), past) else {
            return Ok(false);
        };
        let id = state.store.keep(retired, past);
        let out = state.trim();
        let kept = state.store.keeps(id);
        self.watch(&mut state);
        drop(state);
        drop(out);
        Ok(kept)
    }

    /// [`SegmentWriter::give_away`] that expects the memory back: whoever takes the segment and ends it, by
    /// [`Self::retire`] or [`Self::remove`], leaves it to this pool, where the next segment finds its pages
    /// mapped. A segment that is not of this pool is only given away.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use snakepit_shm::{PoolOptions, SegmentOptions};
    /// use std::time::Duration;
    ///
    /// let pool = PoolOptions::new("docs", dir.path()).open().unwrap();
    /// let options = SegmentOptions::new("result").namespace("docs").dir(dir.path());
    /// let mut writer = pool.create(&options).unwrap();
    /// writer.write(b"for you").unwrap();
    /// writer.seal().unwrap();
    /// pool.give_away(&mut writer, Duration::from_secs(60)).unwrap();
    /// drop(writer);
    /// assert_eq!(pool.stats().away, 1);
    /// # options.adopt().unwrap().close().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`SegmentWriter::give_away`].
    pub fn give_away(&self, writer: &mut SegmentWriter, ttl: Duration) -> Result<()> {
        let segment = writer.segment().clone();
        let live = self.state().and_then(|mut state| {
            let past = state.store.forget(writer.incarnation())?;
            state.options.enabled.then_some(past)
        });
        let away = live.and_then(|past| Away::expect(segment, past));
        // Dropped on an error: then nobody expects it.
        writer.give_away(ttl)?;
        let (Some(away), Some(mut state)) = (away, self.state()) else {
            return Ok(());
        };
        state.store.expect(away);
        let out = state.trim();
        self.watch(&mut state);
        drop(state);
        drop(out);
        Ok(())
    }

    /// Removes what is idle; says how many bytes. What readers still use goes with them, and what was given away is
    /// left to whoever has it. Where nothing else of the namespace is in use here, this process leaves it.
    pub fn drain(&self) -> usize {
        let Some(mut state) = self.state() else {
            return 0;
        };
        let out = state.store.clear();
        drop(state);
        linger::forget_in(&self.inner.place);
        out.bytes()
    }

    /// Gives memory back that no segment asked for: what is idle, and what the segments that live have
    /// beyond their need. Says how many bytes.
    ///
    /// # Errors
    ///
    /// Those of opening the files of the segments.
    pub fn defragment(&self) -> Result<usize> {
        Ok(self.drain() + self.shorten()?)
    }

    /// The second half of [`Self::defragment`]: what is idle stays.
    ///
    /// # Errors
    ///
    /// As [`Self::defragment`].
    pub fn shorten(&self) -> Result<usize> {
        match self.state() {
            Some(mut state) => state.store.shorten(),
            None => Ok(0),
        }
    }

    /// Removes a segment that another process made and nobody writes any more, and keeps its memory if it may
    /// be kept; says whether. So what a worker hands over comes back with its pages.
    ///
    /// # Errors
    ///
    /// Those of [`Handle::remove`](crate::Handle::remove).
    pub fn remove(&self, handle: &Handle) -> Result<bool> {
        let options = handle.options(&self.inner.place.dir);
        let pooled = self.state().is_some_and(|state| state.options.enabled);
        let place = options.place()?;
        let is_it = |meta: Meta| meta.incarnation == handle.token;
        if pooled && place == self.inner.place && Meta::load(&place, &handle.name).is_ok_and(is_it)
        {
            // Written, or gone, or broken: the other way says what is wrong.
            if let Ok(writer) = handle.adopt(&self.inner.place.dir) {
                return self.retire(writer);
            }
        }
        handle.remove(&self.inner.place.dir)?;
        Ok(false)
    }

    /// What it keeps and what it did.
    pub fn stats(&self) -> PoolStats {
        self.state()
            .map(|mut state| state.store.stats())
            .unwrap_or_default()
    }

    /// `None` in a forked child, whose parent may have held the lock, and whose files these are not.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        let ours = self.inner.epoch == fork::epoch();
        ours.then(|| lock(&self.inner.state))
    }

    /// Has the background come back while there is something idle.
    fn watch(&self, state: &mut State) {
        let Some(due) = state.due() else {
            return;
        };
        if state.watched.is_none_or(|watched| due < watched) {
            let ordered = come_back(due, Arc::downgrade(&self.inner));
            state.watched = ordered.then_some(due);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn come_back(due: Instant, inner: Weak<Inner>) -> bool {
    let left = due.saturating_duration_since(Instant::now());
    background::run_after(left, move || {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let pool = Pool { inner };
        let Some(mut state) = pool.state() else {
            return;
        };
        // One that was ordered for later, before the limits were changed, finds nothing to do.
        if state.watched == Some(due) {
            state.watched = None;
        }
        let out = state.trim();
        pool.watch(&mut state);
        drop(state);
        drop(out);
    })
}

impl State {
    /// Takes out what is too much or has been idle for too long.
    fn trim(&mut self) -> store::Out {
        let limits = &self.options;
        let most = if limits.enabled {
            limits.max_idle_bytes
        } else {
            0
        };
        self.store.trim(most, limits.max_idle, limits.idle_timeout)
    }

    fn due(&self) -> Option<Instant> {
        // Beyond what a clock can say: never.
        let idle = self.store.oldest();
        let idle = idle.and_then(|since| since.checked_add(self.options.idle_timeout));
        let away = self.store.is_expecting().then(|| Instant::now() + LOOK);
        [idle, away].into_iter().flatten().min()
    }
}

/// Whether the memory of such a segment can be another's afterwards. A reader that may not write the file
/// is not in the table, so nobody would know that it still looks.
fn is_poolable(options: &SegmentOptions) -> bool {
    options.permissions == 0o600
        && options.reserve == Reserve::Eager
        && options.numa.is_none()
        && !options.lock_memory
        && !options.dont_fork
}

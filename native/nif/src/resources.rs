//! Segments that an Erlang term can hold on to: written, read, or seen as a binary.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::{ArcSwapOption, Guard};
use rustler::{Binary, Encoder, Env, LocalPid, Resource, ResourceArc, Term};
use snakepit_shm::{
    Handle, Lent, Pinned, Pool, SealedView, SegmentReader, SegmentWriter, ShmError,
};

use crate::error::{Answer, Failure};
use crate::tally::{Meter, Stripe, Tallies, Tally};

/// The writer of a segment, used by any number of BEAM processes, one at a time.
pub struct WriterResource {
    name: String,
    capacity: usize,
    /// The term of the process that alone may write; 0 = any may. Set without the lock, so that this
    /// never waits; looked at under it, so that whoever has had the lock since knows of it.
    holder: AtomicU64,
    writer: Mutex<Option<SegmentWriter>>,
    /// While another OS process has the writer's place. Locked by whoever has the lock of `writer`.
    lent: Mutex<Option<Lent>>,
    written: Stripe,
    viewed: Stripe,
    tallies: Arc<Tallies>,
    value_bytes: AtomicU64,
    /// Where its memory goes when it ends.
    pool: Option<Pool>,
}

/// The term of a local pid is one word, the same in every process.
fn word(env: Env<'_>, pid: LocalPid) -> u64 {
    pid.encode(env).as_c_arg() as u64
}

#[rustler::resource_impl]
impl Resource for WriterResource {}

impl WriterResource {
    /// Takes a writer in.
    pub fn new(writer: SegmentWriter) -> ResourceArc<Self> {
        Self::pooled(writer, None)
    }

    /// Takes a writer in whose memory goes to a pool in the end.
    pub fn pooled(writer: SegmentWriter, pool: Option<Pool>) -> ResourceArc<Self> {
        ResourceArc::new(Self {
            name: writer.name().to_owned(),
            capacity: writer.capacity(),
            holder: AtomicU64::new(0),
            writer: Mutex::new(Some(writer)),
            lent: Mutex::new(None),
            written: Stripe::default(),
            viewed: Stripe::default(),
            tallies: Arc::default(),
            value_bytes: AtomicU64::new(0),
            pool,
        })
    }

    /// Runs `work` if nobody else holds the writer: a normal scheduler must never wait.
    pub fn try_with<T>(&self, work: impl FnOnce(&mut SegmentWriter) -> Answer<T>) -> Answer<T> {
        match self.writer.try_lock() {
            Ok(guard) => self.run(guard, work),
            Err(TryLockError::Poisoned(poisoned)) => self.run(poisoned.into_inner(), work),
            Err(TryLockError::WouldBlock) => Err(Failure::Dirty),
        }
    }

    /// Runs `work` when the writer is free: for dirty schedulers. A holder keeps it for one copy.
    pub fn with<T>(&self, work: impl FnOnce(&mut SegmentWriter) -> Answer<T>) -> Answer<T> {
        self.run(self.lock(), work)
    }

    /// Gives `pid` alone the right to write, unless another has it. A write that is under way goes on.
    pub fn hold(&self, env: Env<'_>, pid: LocalPid) -> Answer<()> {
        let pid = word(env, pid);
        // SeqCst, here and below: rare, and easy to be sure of.
        match self
            .holder
            .compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst)
        {
            Err(holder) if holder != pid => Err(Failure::Held(self.name.clone())),
            _ => Ok(()),
        }
    }

    /// Takes the right back from `pid`, if it has it.
    pub fn free(&self, env: Env<'_>, pid: LocalPid) {
        let pid = word(env, pid);
        let _ = self
            .holder
            .compare_exchange(pid, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether the calling process may write; to be asked under the lock.
    pub fn check_right(&self, env: Env<'_>) -> Answer<()> {
        // Acquire pairs with `hold`; the lock orders the rest.
        let holder = self.holder.load(Ordering::Acquire);
        if holder == 0 || holder == word(env, env.pid()) {
            Ok(())
        } else {
            Err(Failure::Held(self.name.clone()))
        }
    }

    /// Name of the segment, known without the writer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Longest value in bytes, known without the writer.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Counts a write of `bytes` that made the value at least `end` bytes long, or exactly that when it is `whole`.
    /// Under the writer's lock.
    pub fn wrote(&self, meter: Option<Meter>, bytes: usize, end: usize, whole: bool) {
        let before = if whole { 0 } else { self.value_bytes() };
        self.value_bytes
            .store(before.max(end as u64), Ordering::Relaxed);
        if let Some(meter) = meter {
            meter.has_written(&self.written, bytes);
        }
    }

    /// Length of the value written last, 0 before the first.
    pub fn value_bytes(&self) -> u64 {
        self.value_bytes.load(Ordering::Relaxed)
    }

    /// What has been written.
    pub fn written(&self) -> &Stripe {
        &self.written
    }

    /// What has been read by readers that count with this writer.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// What has been handed out as zero-copy binaries.
    pub fn viewed(&self) -> &Stripe {
        &self.viewed
    }

    /// Takes the writer out for good; later calls answer `closed`.
    pub fn take(&self) -> Answer<SegmentWriter> {
        self.lock().take().ok_or_else(|| self.closed())
    }

    /// Lends the writer's place to another OS process, and says which segment that is; again, when it was lent
    /// before and that one has given it back or died.
    pub fn lend(&self, env: Env<'_>) -> Answer<String> {
        let mut guard = self.lock();
        self.check_right(env)?;
        self.retake(&mut guard)?;
        let writer = guard.take().ok_or_else(|| self.closed())?;
        match writer.lend() {
            Ok(lent) => {
                let incarnation = lent.incarnation().to_owned();
                *self.lent() = Some(lent);
                Ok(incarnation)
            }
            Err(failed) => {
                let (writer, error) = *failed;
                *guard = Some(writer);
                Err(error.into())
            }
        }
    }

    /// Whether another OS process has the writer's place, or may take it; also while it is being taken back.
    /// Never waits.
    pub fn is_lent(&self) -> bool {
        match self.lent.try_lock() {
            Ok(lent) => lent.is_some(),
            Err(TryLockError::Poisoned(lent)) => lent.into_inner().is_some(),
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// Takes the writer's place back if it was lent.
    pub fn take_back(&self) -> Answer<()> {
        self.retake(&mut self.lock())
    }

    fn retake(&self, guard: &mut MutexGuard<'_, Option<SegmentWriter>>) -> Answer<()> {
        let mut place = self.lent();
        let Some(lent) = place.take() else {
            return Ok(());
        };
        match lent.take_back() {
            Ok(writer) => **guard = Some(writer),
            Err(failed) => {
                let (lent, error) = *failed;
                *place = Some(lent);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The sealed value and its handle, whoever has the writer's place.
    pub fn sealed(&self) -> Answer<SealedView> {
        let guard = self.lock();
        if let Some(writer) = guard.as_ref() {
            return Ok(writer.sealed()?);
        }
        let view = self.lent().as_ref().map(Lent::sealed);
        Ok(view.ok_or_else(|| self.closed())??)
    }

    /// [`Self::handle`] where that takes no time: the writer is here and free, and no checksum is to be computed.
    pub fn handle_now(&self) -> Answer<Handle> {
        let guard = match self.writer.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Failure::Dirty),
        };
        match guard.as_ref().filter(|writer| !writer.is_checked()) {
            Some(writer) => Ok(writer.handle()?),
            None => Err(Failure::Dirty),
        }
    }

    /// [`Self::sealed`], its handle alone.
    pub fn handle(&self) -> Answer<Handle> {
        let guard = self.lock();
        if let Some(writer) = guard.as_ref() {
            return Ok(writer.handle()?);
        }
        let handle = self.lent().as_ref().map(Lent::handle);
        Ok(handle.ok_or_else(|| self.closed())??)
    }

    /// Takes the writer out for good and removes its segment. What is lent is taken back or, while the other
    /// one has it, removed under its hands.
    pub fn discard(&self) -> Answer<()> {
        let mut guard = self.lock();
        if let Err(failure) = self.retake(&mut guard) {
            let lent = self.lent().take();
            drop(guard);
            return match lent {
                Some(lent) => Ok(lent.remove()?),
                None => Err(failure),
            };
        }
        let writer = guard.take().ok_or_else(|| self.closed())?;
        drop(guard);
        match &self.pool {
            Some(pool) => pool.retire(writer).map(|_kept| ())?,
            None => writer.remove()?,
        }
        Ok(())
    }

    fn lent(&self) -> MutexGuard<'_, Option<Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<SegmentWriter>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(
        &self,
        mut guard: MutexGuard<'_, Option<SegmentWriter>>,
        work: impl FnOnce(&mut SegmentWriter) -> Answer<T>,
    ) -> Answer<T> {
        work(guard.as_mut().ok_or_else(|| self.closed())?)
    }

    /// There is no writer: gone for good, or lent.
    fn closed(&self) -> Failure {
        if self.lent().is_some() {
            return Failure::Lent(self.name.clone());
        }
        Failure::Shm(ShmError::Closed {
            name: self.name.clone(),
        })
    }
}

/// One mapping of a segment for reading. Several resources may share one mapping, each closed on
/// its own; reads take no lock.
pub struct ReaderResource {
    name: String,
    reader: ArcSwapOption<SegmentReader>,
    /// Where this resource counts: one of `tallies`.
    tally: Arc<Tally>,
    tallies: Arc<Tallies>,
}

#[rustler::resource_impl]
impl Resource for ReaderResource {}

impl ReaderResource {
    /// Takes a reader in.
    pub fn new(reader: SegmentReader) -> ResourceArc<Self> {
        Self::counted_in(reader, Arc::default())
    }

    /// Takes in a reader of the segment that `writer` writes: what it reads is counted there, so that one reader after
    /// another adds up.
    pub fn beside(reader: SegmentReader, writer: &WriterResource) -> ResourceArc<Self> {
        Self::counted_in(reader, Arc::clone(&writer.tallies))
    }

    fn counted_in(reader: SegmentReader, tallies: Arc<Tallies>) -> ResourceArc<Self> {
        ResourceArc::new(Self {
            name: reader.name().to_owned(),
            reader: ArcSwapOption::new(Some(Arc::new(reader))),
            tally: tallies.first(),
            tallies,
        })
    }

    /// Another resource on the same mapping, closed on its own; what is read through such is counted together.
    pub fn sharing(&self) -> Answer<ResourceArc<Self>> {
        Ok(ResourceArc::new(Self {
            name: self.name.clone(),
            reader: ArcSwapOption::new(Some(self.share()?)),
            tally: self.tallies.shared(),
            tallies: Arc::clone(&self.tallies),
        }))
    }

    /// Runs a read, which answers a term and how many bytes are in it, and counts it.
    pub fn read<'a>(
        &self,
        work: impl FnOnce(&SegmentReader) -> Answer<(Term<'a>, usize)>,
    ) -> Answer<Term<'a>> {
        let meter = Meter::read();
        let (term, bytes) = self.with(work)?;
        self.has_read(meter, bytes);
        Ok(term)
    }

    /// Counts a read of so many bytes.
    #[inline]
    pub fn has_read(&self, meter: Option<Meter>, bytes: usize) {
        if let Some(meter) = meter {
            meter.has_read(&self.tally, bytes);
        }
    }

    /// What has been read by all resources of the mapping.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Runs `work` on the reader, without a lock and without touching a reference count.
    pub fn with<T>(&self, work: impl FnOnce(&SegmentReader) -> Answer<T>) -> Answer<T> {
        let guard: Guard<Option<Arc<SegmentReader>>> = self.reader.load();
        work(guard.as_ref().ok_or_else(|| self.closed())?)
    }

    /// The reader itself, to be shared or kept.
    pub fn share(&self) -> Answer<Arc<SegmentReader>> {
        self.reader.load_full().ok_or_else(|| self.closed())
    }

    /// Takes this resource's share of the mapping out for good; later calls answer `closed`.
    pub fn take(&self) -> Answer<Arc<SegmentReader>> {
        self.reader.swap(None).ok_or_else(|| self.closed())
    }

    fn closed(&self) -> Failure {
        Failure::Shm(ShmError::Closed {
            name: self.name.clone(),
        })
    }
}

/// A value that stays as it is while zero-copy binaries point into it; given back with the last of
/// them.
pub struct PinResource(Pinned);

#[rustler::resource_impl]
impl Resource for PinResource {}

impl PinResource {
    /// A binary on the mapping itself, or on the copy that had to be made.
    pub fn binary<'a>(env: Env<'a>, pinned: Pinned) -> Binary<'a> {
        ResourceArc::new(Self(pinned)).make_binary(env, |pin| &pin.0)
    }
}

/// A sealed value that zero-copy binaries point into; the mapping lives as long as one of them.
pub struct ViewResource(SealedView);

#[rustler::resource_impl]
impl Resource for ViewResource {}

impl ViewResource {
    /// A binary on the mapping itself: no byte is copied, none belongs to the BEAM's heap.
    pub fn binary<'a>(env: Env<'a>, view: SealedView) -> Binary<'a> {
        ResourceArc::new(Self(view)).make_binary(env, |view| &view.0)
    }
}

//! Subscriptions: a thread that sleeps in `wait_changed` and sends a message for what it finds.
//!
//! Changes are coalesced: a message names the newest version, however many there were since the
//! last one. A subscriber is never sent more than its credits allow (`active: true | :once | n`);
//! without credits the thread does not even wake up for changes.
//!
//! The thread ends when the subscription is stopped, the subscriber dies (the BEAM tells us), the
//! segment is sealed or closed, or reading it fails; in the last two cases after a
//! `{:closed, _, code}`.
//!
//! **Stopping.** A waker ends the waits that are under way; one that has been decided upon but has
//! not begun would sleep on. So whoever stops a thread rings until the thread has answered: the
//! `unsubscribe` call itself, or for a subscriber that died the ringer thread, for the BEAM calls
//! `down` where nothing may block.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustler::{
    Atom, Encoder, Env, LocalPid, Monitor, NifResult, OwnedEnv, Resource, ResourceArc, Term,
};
use snakepit_shm::{SegmentReader, ShmError, Waker};

use crate::atoms;
use crate::error::{self, Answer, Failure};
use crate::resources::ReaderResource;

/// A file that is cut takes the word that sleepers are woken by with it: no ring reaches them any more.
/// So they look for themselves, this seldom.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a ringer waits for an answer before it rings again.
const RING_AGAIN: Duration = Duration::from_millis(1);
/// The thread calls `wait_changed` and `send`, nothing deep.
const STACK_BYTES: usize = 256 * 1024;

/// How many messages a subscriber will still take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Credit {
    Unlimited,
    Once,
    Count(u64),
}

impl Credit {
    const NONE: Self = Self::Count(0);

    /// `true`, `false`, `:once` or a count.
    fn decode(term: Term<'_>) -> NifResult<Self> {
        if atoms::once() == term {
            Ok(Self::Once)
        } else if let Ok(active) = term.decode::<bool>() {
            Ok(if active { Self::Unlimited } else { Self::NONE })
        } else {
            term.decode::<u64>().map(Self::Count)
        }
    }

    /// What is left after one message, and whether the subscriber is told that it was the last.
    fn spent(self) -> (Self, bool) {
        match self {
            Self::Unlimited => (Self::Unlimited, false),
            Self::Once => (Self::NONE, false),
            Self::Count(n) => (Self::Count(n.saturating_sub(1)), n == 1),
        }
    }
}

struct State {
    credit: Credit,
    /// Asked to end.
    stopped: bool,
    /// Rings the thread; taken out when it has ended, and then nothing more is sent.
    waker: Option<Waker>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_credit(&self, credit: Credit) {
        self.lock().credit = credit;
        self.changed.notify_all();
    }

    /// Asks the thread to end, without waiting for it.
    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn ended(&self) {
        self.lock().waker = None;
        self.changed.notify_all();
    }

    /// Rings until the thread, which was asked to end, has done so.
    fn await_end(&self) {
        loop {
            // Rung without the lock: the thread takes it to look whether it is to go on.
            let Some(waker) = self.lock().waker.clone() else {
                return;
            };
            waker.wake();
            let state = self.lock();
            if state.waker.is_some() {
                drop(self.changed.wait_timeout(state, RING_AGAIN));
            }
        }
    }

    /// Sleeps until there is credit; `false` when the subscription has been stopped.
    fn await_credit(&self) -> bool {
        let mut state = self.lock();
        while !state.stopped && state.credit == Credit::NONE {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped
    }

    /// Takes one credit; `None` when there is none left or the subscription has been stopped.
    fn spend(&self) -> Option<Spent> {
        let mut state = self.lock();
        if state.stopped || state.credit == Credit::NONE {
            return None;
        }
        let (rest, last) = state.credit.spent();
        state.credit = rest;
        Some(Spent { last })
    }
}

struct Spent {
    last: bool,
}

/// A running subscription; the term that holds it is the reference in its messages.
pub struct Subscription(Arc<Shared>);

#[rustler::resource_impl]
impl Resource for Subscription {
    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.0.stop();
        // Nobody to ring is no harm: the thread ends at the next change, for its message fails.
        let _ = RINGER.send(Arc::clone(&self.0));
    }
}

/// Rings for subscribers that died.
static RINGER: LazyLock<Ringer> = LazyLock::new(Ringer::start);

struct Ringer(Mutex<Sender<Arc<Shared>>>);

impl Ringer {
    fn start() -> Self {
        let (sender, stopped) = mpsc::channel::<Arc<Shared>>();
        let ring = move || stopped.iter().for_each(|shared| shared.await_end());
        // Without the thread, `send` fails: see its caller.
        let _ = thread::Builder::new()
            .name("shm-ringer".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(ring);
        Self(Mutex::new(sender))
    }

    fn send(&self, stopped: Arc<Shared>) -> Result<(), mpsc::SendError<Arc<Shared>>> {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(stopped)
    }
}

/// Starts a subscription of `pid` to changes after version `since`.
#[rustler::nif]
fn subscribe<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    pid: LocalPid,
    since: u64,
    active: Term<'a>,
) -> NifResult<Answer<Term<'a>>> {
    let credit = Credit::decode(active)?;
    Ok(start(env, reader, pid, since, credit))
}

fn start<'a>(
    env: Env<'a>,
    reader: &ReaderResource,
    pid: LocalPid,
    since: u64,
    credit: Credit,
) -> Answer<Term<'a>> {
    let reader = reader.share()?;
    can_wait(&reader)?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            credit,
            stopped: false,
            waker: Some(reader.waker()),
        }),
        changed: Condvar::new(),
    });
    let subscription = ResourceArc::new(Subscription(Arc::clone(&shared)));
    let name = reader.name().to_owned();
    if env.monitor(&subscription, &pid).is_none() {
        shared.stop();
    }
    let worker = Worker {
        reader,
        pid,
        since,
        subscription: Ending(subscription.clone()),
    };
    thread::Builder::new()
        .name("shm-subscribe".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || worker.run())
        .map_err(|source| Failure::Shm(thread_error(name, source)))?;
    Ok(subscription.encode(env))
}

/// Refuses a segment that tells nobody of changes. No version is `u64::MAX`, so this never sleeps.
fn can_wait(reader: &SegmentReader) -> Answer<()> {
    match reader.wait_changed(u64::MAX, Some(Duration::ZERO)) {
        Err(error @ ShmError::Unsupported { .. }) => Err(error.into()),
        _ => Ok(()),
    }
}

fn thread_error(name: String, source: std::io::Error) -> ShmError {
    match source.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
            ShmError::ResourceExhausted {
                name: Some(name),
                resource: snakepit_shm::Resource::Threads,
                needed: 1,
                available: None,
            }
        }
        _ => ShmError::Io {
            name: Some(name),
            operation: "start a thread",
            source,
        },
    }
}

/// Sets how many messages the subscriber takes from now on.
#[rustler::nif]
fn set_active(subscription: &Subscription, active: Term<'_>) -> NifResult<Atom> {
    let credit = Credit::decode(active)?;
    subscription.0.set_credit(credit);
    Ok(rustler::types::atom::ok())
}

/// Ends a subscription; no message is sent after this has returned.
#[rustler::nif(schedule = "DirtyIo")]
fn unsubscribe(subscription: &Subscription) -> Atom {
    subscription.0.stop();
    subscription.0.await_end();
    rustler::types::atom::ok()
}

struct Worker {
    reader: Arc<SegmentReader>,
    pid: LocalPid,
    since: u64,
    /// Last, for fields are dropped in order: whoever hears of the end finds the reader given back.
    subscription: Ending,
}

/// Reports the end of its thread, however that ends, or if it never began.
struct Ending(ResourceArc<Subscription>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared().ended();
    }
}

impl Ending {
    fn shared(&self) -> &Shared {
        &self.0.0
    }
}

impl Worker {
    fn run(mut self) {
        let mut env = OwnedEnv::new();
        while self.subscription.shared().await_credit() {
            match self.reader.wait_changed(self.since, Some(LOOK_AGAIN)) {
                Ok(version) => {
                    let Some(spent) = self.subscription.shared().spend() else {
                        continue;
                    };
                    self.since = version;
                    if !self.tell_change(&mut env, version, spent) {
                        return;
                    }
                }
                // Woken, or up by itself, to look at its state.
                Err(ShmError::Timeout { .. }) => {}
                Err(error) => return self.tell_end(&mut env, &error),
            }
        }
    }

    /// `{:snakepit_shm, ref, {:changed, name, version}}`, and `{…, :passive}` after the last of a
    /// count. Whether the subscriber is still there.
    fn tell_change(&self, env: &mut OwnedEnv, version: u64, spent: Spent) -> bool {
        let told = env.send_and_clear(&self.pid, |env| {
            self.message(
                env,
                (atoms::changed(), self.reader.name(), version).encode(env),
            )
        });
        if told.is_err() || !spent.last {
            return told.is_ok();
        }
        env.send_and_clear(&self.pid, |env| {
            self.message(env, atoms::passive().encode(env))
        })
        .is_ok()
    }

    /// `{:snakepit_shm, ref, {:closed, name, code}}`; nobody is left to be told when that fails.
    fn tell_end(&self, env: &mut OwnedEnv, error: &ShmError) {
        let _ = env.send_and_clear(&self.pid, |env| {
            let code = error::code(env, error);
            self.message(env, (atoms::closed(), self.reader.name(), code).encode(env))
        });
    }

    fn message<'a>(&self, env: Env<'a>, event: Term<'a>) -> Term<'a> {
        (
            atoms::snakepit_shm(),
            self.subscription.0.encode(env),
            event,
        )
            .encode(env)
    }
}

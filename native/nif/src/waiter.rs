//! Subscriptions: messages for what the core's notifier tells. One thread sends them all; another, the core's,
//! sleeps for them all.
//!
//! Changes are coalesced: a message names the newest version, however many there were since the
//! last one. A subscriber is never sent more than its credits allow (`active: true | :once | n`);
//! without credits nobody waits for it.
//!
//! A subscription ends when it is stopped, the subscriber dies (the BEAM tells us), the segment is
//! sealed or closed, or reading it fails; in the last two cases after a `{:closed, _, code}`. One without
//! credits to which nobody has a reference any more is gone.
//!
//! **Stopping.** Messages are sent under the subscription's lock, and whoever stops it takes that: nothing is
//! sent afterwards. **Locks** are taken in this order: a subscription's, the desk's, the core's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustler::{
    Atom, Encoder, Env, LocalPid, Monitor, NifResult, OwnedEnv, Resource, ResourceArc, Term,
};
use snakepit_shm::{Notice, Notifier, SegmentReader, ShmError};

use crate::atoms;
use crate::error::{self, Answer};
use crate::resources::ReaderResource;

/// The thread sends, nothing deep.
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
    /// The version that the subscriber was told of last.
    since: u64,
    /// The wait that is under way.
    token: Option<u64>,
    /// `None` once it has ended, and then nothing more is sent.
    reader: Option<Arc<SegmentReader>>,
}

/// A subscription; the term that holds it is the reference in its messages.
pub struct Subscription {
    name: String,
    pid: LocalPid,
    state: Mutex<State>,
}

#[rustler::resource_impl]
impl Resource for Subscription {
    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.stop();
    }
}

impl Subscription {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; nothing is sent after this has returned.
    fn stop(&self) {
        let mut state = self.lock();
        let reader = state.reader.take();
        let token = state.token.take();
        drop(state);
        if let (Some(token), Some(desk)) = (token, DESK.get()) {
            desk.give_up(token);
        }
        drop(reader);
    }
}

/// Where waits are begun and their ends come in.
struct Desk {
    notifier: Notifier,
    /// Whose wait that is; keeps the subscription alive.
    waiting: Mutex<HashMap<u64, ResourceArc<Subscription>>>,
}

static DESK: OnceLock<Desk> = OnceLock::new();

impl Desk {
    /// The desk of this VM, with its thread.
    fn open(name: &str) -> Result<&'static Self, ShmError> {
        static OPENING: Mutex<()> = Mutex::new(());
        let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(desk) = DESK.get() {
            return Ok(desk);
        }
        let notifier = Notifier::new()?;
        // Begun first, for without it there is no desk; it waits until there is.
        thread::Builder::new()
            .name("shm-subscribe".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(|| DESK.wait().serve())
            .map_err(|source| thread_error(name.to_owned(), source))?;
        Ok(DESK.get_or_init(|| Self {
            notifier,
            waiting: Mutex::default(),
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, ResourceArc<Subscription>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for what the subscriber may be told of next, unless that is done already.
    fn arm(&self, subscription: &ResourceArc<Subscription>, state: &mut State) {
        if state.credit == Credit::NONE || state.token.is_some() {
            return;
        }
        let Some(reader) = &state.reader else { return };
        // Held until the entry is there, which the thread looks for.
        let mut waiting = self.waiting();
        let token = self.notifier.watch_and_tell(reader, state.since);
        waiting.insert(token, subscription.clone());
        state.token = Some(token);
    }

    fn give_up(&self, token: u64) {
        self.notifier.cancel(token);
        let subscription = self.waiting().remove(&token);
        drop(subscription);
    }

    /// The thread.
    fn serve(&self) {
        let mut env = OwnedEnv::new();
        loop {
            for notice in self.notifier.wait() {
                let subscription = self.waiting().remove(&notice.token);
                if let Some(subscription) = subscription {
                    self.tell(&mut env, &subscription, notice);
                }
            }
        }
    }

    fn tell(&self, env: &mut OwnedEnv, subscription: &ResourceArc<Subscription>, notice: Notice) {
        let mut state = subscription.lock();
        if state.token != Some(notice.token) {
            return; // stopped
        }
        state.token = None;
        match notice.outcome {
            // Made inactive meanwhile: told when it is active again.
            Ok(_) if state.credit == Credit::NONE => {}
            Ok(version) => {
                let (rest, last) = state.credit.spent();
                state.credit = rest;
                state.since = version;
                if subscription.tell_change(env, version, last) {
                    self.arm(subscription, &mut state);
                } else {
                    state.reader = None;
                }
            }
            Err(error) => {
                // Whoever hears of the end finds the reader given back.
                state.reader = None;
                subscription.tell_end(env, &error);
            }
        }
    }
}

/// What a subscriber is sent.
trait Messages {
    fn message<'a>(&self, env: Env<'a>, event: Term<'a>) -> Term<'a>;
    fn tell_change(&self, env: &mut OwnedEnv, version: u64, last: bool) -> bool;
    fn tell_end(&self, env: &mut OwnedEnv, error: &ShmError);
}

impl Messages for ResourceArc<Subscription> {
    fn message<'a>(&self, env: Env<'a>, event: Term<'a>) -> Term<'a> {
        (atoms::snakepit_shm(), self.encode(env), event).encode(env)
    }

    /// `{:snakepit_shm, ref, {:changed, name, version}}`, and `{…, :passive}` after the last of a
    /// count. Whether the subscriber is still there.
    fn tell_change(&self, env: &mut OwnedEnv, version: u64, last: bool) -> bool {
        let told = env.send_and_clear(&self.pid, |env| {
            self.message(env, (atoms::changed(), &self.name, version).encode(env))
        });
        if told.is_err() || !last {
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
            self.message(env, (atoms::closed(), &self.name, code).encode(env))
        });
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
    let desk = Desk::open(reader.name())?;
    let subscription = ResourceArc::new(Subscription {
        name: reader.name().to_owned(),
        pid,
        state: Mutex::new(State {
            credit,
            since,
            token: None,
            reader: Some(reader),
        }),
    });
    if env.monitor(&subscription, &pid).is_some() {
        desk.arm(&subscription, &mut subscription.lock());
    } else {
        subscription.stop(); // it is dead already
    }
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
fn set_active(subscription: ResourceArc<Subscription>, active: Term<'_>) -> NifResult<Atom> {
    let credit = Credit::decode(active)?;
    let mut state = subscription.lock();
    state.credit = credit;
    if let Some(desk) = DESK.get() {
        desk.arm(&subscription, &mut state);
    }
    drop(state);
    Ok(rustler::types::atom::ok())
}

/// Ends a subscription; no message is sent after this has returned.
#[rustler::nif(schedule = "DirtyIo")]
fn unsubscribe(subscription: &Subscription) -> Atom {
    subscription.stop();
    rustler::types::atom::ok()
}

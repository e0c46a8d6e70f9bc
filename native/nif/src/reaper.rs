//! The core's reaper: a thread that removes what the dead left. Its events become messages.

use std::sync::{Mutex, PoisonError};

use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, Resource, ResourceArc, Term};
use snakepit_shm::{Reaper, ReaperEvent, ShmError};

use crate::atoms;
use crate::error::{Answer, Failure};
use crate::terms::cleanup::{Report, Stats, Watch};
use crate::undertaker;

/// A running reaper, until `stop_reaper`, or until nobody has the term any more.
pub struct ReaperResource(Mutex<Option<Reaper>>);

#[rustler::resource_impl]
impl Resource for ReaperResource {}

impl ReaperResource {
    fn take(&self) -> Option<Reaper> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Runs `work` under the lock, which nobody holds for long: so `stop_reaper` always has the
    /// last word, and the thread is never joined where this is called.
    fn with<T>(&self, work: impl FnOnce(&Reaper) -> T) -> Answer<T> {
        let reaper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reaper.as_ref().map(work).ok_or_else(|| {
            Failure::Shm(ShmError::Closed {
                name: "reaper".to_owned(),
            })
        })
    }
}

impl Drop for ReaperResource {
    // Its end joins its thread, which may be in the middle of a sweep.
    fn drop(&mut self) {
        if let Some(reaper) = self.take() {
            undertaker::bury(reaper);
        }
    }
}

/// Starts a reaper that tells `pid` of what it does, by messages `{:snakepit_shm, :reaper, event}`:
/// `{:process_ended, os_pid, name}`, `{:swept, report}` or `{:failed, reason}`.
#[rustler::nif(schedule = "DirtyIo")]
fn start_reaper(watch: Watch, pid: LocalPid) -> Answer<ResourceArc<ReaperResource>> {
    undertaker::ready()?;
    let reaper = Reaper::start(watch.options(), move |event| tell(&pid, event))?;
    Ok(ResourceArc::new(ReaperResource(Mutex::new(Some(reaper)))))
}

/// Whoever was to be told may be gone; the reaper is then stopped by its destructor.
fn tell(pid: &LocalPid, event: &ReaperEvent) {
    let _ = OwnedEnv::new().send_and_clear(pid, |env| {
        (atoms::snakepit_shm(), atoms::reaper(), term(env, event)).encode(env)
    });
}

fn term<'a>(env: Env<'a>, event: &ReaperEvent) -> Term<'a> {
    match event {
        ReaperEvent::ProcessEnded { pid, name } => (atoms::process_ended(), *pid, name).encode(env),
        ReaperEvent::Swept(report) => (atoms::swept(), Report::of(report)).encode(env),
        ReaperEvent::Failed { error } => (atoms::failed(), error).encode(env),
        other => (
            atoms::failed(),
            format!("an event without a name: {other:?}"),
        )
            .encode(env),
    }
}

/// Counters of a running reaper.
#[rustler::nif]
fn reaper_stats(reaper: &ReaperResource) -> Answer<Stats> {
    reaper.with(|reaper| Stats::of(reaper.stats()))
}

/// Has it sweep as soon as possible; answers without waiting for that.
#[rustler::nif]
fn sweep_now(reaper: &ReaperResource) -> Answer<Atom> {
    reaper.with(Reaper::sweep_now)?;
    Ok(rustler::types::atom::ok())
}

/// Ends the thread, after the sweep that may be under way; a second time is fine.
#[rustler::nif(schedule = "DirtyIo")]
fn stop_reaper(reaper: &ReaperResource) -> Atom {
    drop(reaper.take());
    rustler::types::atom::ok()
}

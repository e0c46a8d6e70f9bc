//! This VM's registration in a namespace, kept while it has no segment there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustler::{Atom, Resource, ResourceArc};
use snakepit_shm::Membership;

use crate::error::Answer;
use crate::undertaker;

/// Held until `leave`, or until nobody has the term any more.
pub struct MembershipResource(Mutex<Option<Membership>>);

#[rustler::resource_impl]
impl Resource for MembershipResource {}

impl MembershipResource {
    fn take(&self) -> Option<Membership> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for MembershipResource {
    // The last to leave a namespace waits for its lock.
    fn drop(&mut self) {
        if let Some(membership) = self.take() {
            undertaker::bury(membership);
        }
    }
}

/// Registers this VM in a namespace, so that creating and attaching need not do so each time.
#[rustler::nif(schedule = "DirtyIo")]
fn join(namespace: String, dir: String) -> Answer<ResourceArc<MembershipResource>> {
    undertaker::ready()?;
    let membership = snakepit_shm::join(&namespace, dir)?;
    Ok(ResourceArc::new(MembershipResource(Mutex::new(Some(
        membership,
    )))))
}

/// Sets how long, in milliseconds, what this VM cleans up in passing waits for a takeover first.
#[rustler::nif]
fn set_grace(namespace: String, dir: String, grace: u64) -> Answer<Atom> {
    snakepit_shm::set_grace(&namespace, dir, Duration::from_millis(grace))?;
    Ok(rustler::types::atom::ok())
}

/// Ends the registration when nothing else of this VM needs it; a second time is fine.
#[rustler::nif(schedule = "DirtyIo")]
fn leave(membership: &MembershipResource) -> Atom {
    drop(membership.take());
    rustler::types::atom::ok()
}

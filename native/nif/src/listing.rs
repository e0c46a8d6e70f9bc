//! Which segments there are: once, or by a discovery that is kept, for whoever asks often.
//!
//! What is kept holds address space, and the memory of segments that were removed since. `tidy_listing`
//! gives it back in time; a call that lacks either has it given back at once and tries again.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustler::{Atom, ResourceArc};
use snakepit_shm::{Resource, SegmentDiscovery, ShmError};

use crate::error::Answer;
use crate::terms::report::Report;
use crate::undertaker;

/// Every listing that is kept. There is one of the application, and for a moment that of the next.
static KEPT: Mutex<Vec<Weak<SegmentDiscovery>>> = Mutex::new(Vec::new());

/// A discovery, until nobody has the term any more. Taken out by the destructor alone.
pub struct ListingResource(Option<Arc<SegmentDiscovery>>);

#[rustler::resource_impl]
impl rustler::Resource for ListingResource {}

impl Drop for ListingResource {
    // It ends thousands of mappings, and a watch, for which the kernel takes milliseconds.
    fn drop(&mut self) {
        if let Some(discovery) = self.0.take() {
            undertaker::bury(discovery);
        }
    }
}

/// Opens a listing; nothing is looked at yet.
#[rustler::nif(schedule = "DirtyIo")]
fn open_listing(namespace: String, dir: String) -> Answer<ResourceArc<ListingResource>> {
    undertaker::ready()?;
    let discovery = Arc::new(SegmentDiscovery::new(&namespace, dir)?);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.retain(|listing| listing.strong_count() > 0);
    kept.push(Arc::downgrade(&discovery));
    Ok(ResourceArc::new(ListingResource(Some(discovery))))
}

/// What there is, and the names of what nobody can attach to.
type Found = (Vec<Report>, Vec<String>);

/// What is there now. From the third time on it costs a microsecond a segment.
#[rustler::nif(schedule = "DirtyIo")]
fn list_kept(listing: &ListingResource) -> Answer<Found> {
    listing
        .0
        .as_deref()
        .map_or_else(|| Ok((Vec::new(), Vec::new())), look)
}

/// Gives back what is kept of segments that were removed; all that is kept, when nobody has listed
/// for `idle` milliseconds.
#[rustler::nif(schedule = "DirtyIo")]
fn tidy_listing(listing: &ListingResource, idle: u64) -> Atom {
    if let Some(discovery) = &listing.0 {
        discovery.tidy(Duration::from_millis(idle));
    }
    rustler::types::atom::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn list(namespace: String, dir: String) -> Answer<Found> {
    look(&SegmentDiscovery::new(&namespace, dir)?)
}

fn look(discovery: &SegmentDiscovery) -> Answer<Found> {
    let found = discovery.survey()?;
    let names = found.corrupted.into_iter().map(|(name, _why)| name);
    Ok((
        found.segments.iter().map(Report::of_info).collect(),
        names.collect(),
    ))
}

/// Runs `work`; when it lacks memory, mappings or descriptors, once more without what is kept here.
pub fn making_room<T>(work: impl Fn() -> Result<T, ShmError>) -> Result<T, ShmError> {
    match work() {
        Err(ShmError::ResourceExhausted {
            resource: Resource::Space | Resource::AddressSpace | Resource::Descriptors,
            ..
        }) => {
            give_back();
            work()
        }
        done => done,
    }
}

fn give_back() {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    kept.iter()
        .filter_map(Weak::upgrade)
        .for_each(|discovery| discovery.forget());
    snakepit_shm::settle();
}

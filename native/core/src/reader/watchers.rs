//! The thread that sleeps for notifiers: on the words of up to 127 segments at once (futex_waitv), for all
//! notifiers of the process; more segments take another thread. It begins with the first wait and ends when
//! there was none for a while.
//!
//! **To the writer** this is one ordinary sleeper, however many readers of this process wait for the
//! segment: announced and taken back as in `wait.rs`, by the same rules.
//!
//! **The lock.** All groups are under one lock, held for looks and never while a thread sleeps. A wait is
//! announced, looked at and noted under it; the thread loads the words to sleep on and looks again under
//! it. So a change is seen by whoever begins the wait, or it changes a word after the thread has loaded it,
//! which ends its sleep. What a wait holds of a reader is given back before its end is told: whoever hears of
//! it may close the reader.

use super::notifier::{Notice, Outbox, Watched, lock};
use super::wait::{LOOK_AGAIN, announce, may_come, newer, retract};
use super::{Bell, OBSERVER_PAUSE};
use crate::error::{Resource, Result, ShmError};
use crate::name::Place;
use crate::platform;
use crate::platform::fork::PerProcess;
use crate::platform::waitv::{self, Word};
use crate::segment::Segment;
use crate::seqlock::{self, Words};
use crate::view::Attachment;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many segments a thread waits for; one word more calls it.
const MOST_SPOTS: usize = waitv::MOST_WORDS - 1;
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 * 1024;

/// A newer version, `None` when one may come, or why none will.
pub(super) fn news(segment: &Segment, since: u64) -> Result<Option<u64>> {
    loop {
        match newer(segment, since)? {
            None if may_come(segment, since)? => return Ok(None),
            None => {}
            version => return Ok(version),
        }
    }
}

/// One wait.
#[derive(Debug)]
pub(super) struct Watch {
    pub attachment: Arc<Attachment>,
    pub bell: Arc<Bell>,
    pub since: u64,
    pub token: u64,
    pub outbox: Arc<Outbox>,
}

/// The waits for one segment. The first of them is the one that is announced to the writer.
#[derive(Debug)]
struct Spot {
    // Of the segment, which is not held: who has given up its waits may unmap it.
    incarnation: String,
    file: String,
    place: Place,
    /// Whether it can be slept on; otherwise it is looked at again and again.
    sleeps: bool,
    watches: Vec<Watch>,
}

/// Whether a segment can be slept on: an observer cannot announce itself.
fn can_sleep(segment: &Segment) -> bool {
    segment.mapping.registers() && waitv::can_wait_for_many()
}

impl Spot {
    fn new(segment: &Segment) -> Self {
        Self {
            incarnation: segment.incarnation.clone(),
            file: segment.file.clone(),
            place: segment.place.clone(),
            sleeps: can_sleep(segment),
            watches: Vec::new(),
        }
    }

    /// Whether these are waits for this segment, however often it is mapped: one that has the same in all of
    /// this is the same file.
    fn is_of(&self, segment: &Segment) -> bool {
        // The random id first: it differs from the first digit on.
        self.incarnation == segment.incarnation
            && self.file == segment.file
            && self.place == segment.place
            && self.sleeps == can_sleep(segment)
    }

    fn announced(&self) -> Option<&Watch> {
        self.watches.first().filter(|_| self.sleeps)
    }

    fn add(&mut self, watch: Watch) {
        watch.bell.watches.fetch_add(1, Ordering::Relaxed);
        self.watches.push(watch);
        if let ([first], true) = (&*self.watches, self.sleeps) {
            announce(&first.attachment, first.since);
        }
    }

    fn remove(&mut self, at: usize) -> (Arc<Outbox>, u64) {
        let watch = self.watches.remove(at);
        if at == 0 && self.sleeps {
            // Never none while somebody waits.
            if let Some(next) = self.announced() {
                announce(&next.attachment, next.since);
            }
            retract(&watch.attachment);
        }
        watch.bell.watches.fetch_sub(1, Ordering::Relaxed);
        (watch.outbox, watch.token)
    }

    /// Takes out what has ended. The word to sleep on for the rest, if it can be slept on.
    fn look(&mut self, ended: &mut Vec<(Arc<Outbox>, Notice)>) -> Option<Word> {
        loop {
            // Loaded before the versions are.
            let word = self.announced().map(|watch| {
                let mapping = &watch.attachment.segment.mapping;
                Word::new(mapping.notify(), seqlock::sleep_word(&**mapping))
            });
            let mut same_word = true;
            let mut at = 0;
            while let Some(watch) = self.watches.get(at) {
                match news(&watch.attachment.segment, watch.since).transpose() {
                    None => at += 1,
                    Some(outcome) => {
                        let (outbox, token) = self.remove(at);
                        ended.push((outbox, Notice { token, outcome }));
                        same_word &= at != 0;
                    }
                }
            }
            // The word is in the first one's mapping, which may go with it: that of the next one then.
            if same_word || self.watches.is_empty() {
                return word;
            }
        }
    }
}

/// What one thread waits for.
#[derive(Debug)]
struct Group {
    /// The word that calls the thread to look again; also tells groups apart.
    call: Arc<AtomicU32>,
    spots: Vec<Spot>,
}

impl Group {
    fn call(&self) {
        self.call.fetch_add(1, Ordering::Release);
        platform::futex_wake(&self.call);
    }

    /// Takes out what has ended, and notes the words to sleep on for the rest; how long at most.
    fn look(&mut self, words: &mut Vec<Word>, ended: &mut Vec<(Arc<Outbox>, Notice)>) -> Duration {
        let mut limit = if self.spots.is_empty() {
            IDLE
        } else {
            LOOK_AGAIN
        };
        self.spots.retain_mut(|spot| {
            let word = spot.look(ended);
            if spot.watches.is_empty() {
                return false;
            }
            match word {
                Some(word) => words.push(word),
                None => limit = OBSERVER_PAUSE,
            }
            true
        });
        limit
    }
}

/// All waits of this process.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<Vec<Group>>);

pub(super) static WATCHERS: PerProcess<Watchers> = PerProcess::new();

impl Watchers {
    /// Begins a wait, or says what is there already.
    pub(super) fn begin(&'static self, watch: Watch) -> Result<Watched> {
        let (since, token) = (watch.since, watch.token);
        let segment = watch.attachment.segment.clone();
        let mut groups = lock(&self.0);
        let known = groups.iter().enumerate().find_map(|(group, g)| {
            let spot = g.spots.iter().position(|spot| spot.is_of(&segment))?;
            Some((group, spot))
        });
        let (group, spot) = match known {
            Some((group, spot)) => (&mut groups[group], spot),
            None => {
                let group = self.group_with_room(&mut groups, &segment.name)?;
                group.spots.push(Spot::new(&segment));
                let last = group.spots.len() - 1;
                (group, last)
            }
        };
        group.spots[spot].add(watch);
        if group.spots[spot].watches.len() == 1 {
            // Otherwise the thread has its word, or is about to look.
            group.call();
        }
        let spot = &mut group.spots[spot];
        // Announced now, so that later changes end the thread's sleep; those from before are found here.
        match news(&segment, since).transpose() {
            None => Ok(Watched::Later(token)),
            Some(found) => {
                // An empty spot is taken out by the thread.
                spot.remove(spot.watches.len() - 1);
                found.map(Watched::Now)
            }
        }
    }

    fn group_with_room<'a>(
        &'static self,
        groups: &'a mut Vec<Group>,
        name: &str,
    ) -> Result<&'a mut Group> {
        let at = match groups.iter().position(|g| g.spots.len() < MOST_SPOTS) {
            Some(at) => at,
            None => {
                let call = Arc::new(AtomicU32::new(0));
                let threads = call.clone();
                std::thread::Builder::new()
                    .name("shm-notifier".to_owned())
                    .stack_size(STACK_BYTES)
                    .spawn(move || self.serve(&threads))
                    .map_err(|source| no_thread(name, source))?;
                groups.push(Group {
                    call,
                    spots: Vec::new(),
                });
                groups.len() - 1
            }
        };
        Ok(&mut groups[at])
    }

    /// Ends the waits that `which` names; whose they were.
    pub(super) fn end(&self, which: impl Fn(&Watch) -> bool) -> Vec<(Arc<Outbox>, u64)> {
        let mut ended = Vec::new();
        for group in lock(&self.0).iter_mut() {
            let mut other_word = false;
            for spot in &mut group.spots {
                while let Some(at) = spot.watches.iter().position(&which) {
                    ended.push(spot.remove(at));
                    other_word |= at == 0 && !spot.watches.is_empty();
                }
            }
            // It may be about to sleep on a word that is unmapped then. One that nobody waits for any more
            // wakes it for nothing at most, once.
            if other_word {
                group.call();
            }
        }
        ended
    }

    /// The thread of the group that `call` calls.
    fn serve(&self, call: &Arc<AtomicU32>) {
        let mut words = Vec::new();
        let mut ended = Vec::new();
        let mut rested = false;
        loop {
            words.clear();
            // Before the look: who adds something after it changes the word.
            let called = call.load(Ordering::Acquire);
            let limit = {
                let mut groups = lock(&self.0);
                let Some(at) = groups.iter().position(|g| Arc::ptr_eq(&g.call, call)) else {
                    return;
                };
                let limit = groups[at].look(&mut words, &mut ended);
                if rested && groups[at].spots.is_empty() {
                    groups.swap_remove(at);
                    return;
                }
                limit
            };
            for (outbox, notice) in ended.drain(..) {
                outbox.post(notice);
            }
            let over = waitv::futex_wait_any((call, called), &mut words, limit);
            rested = over && limit == IDLE;
        }
    }
}

fn no_thread(name: &str, source: std::io::Error) -> ShmError {
    match source.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
            ShmError::ResourceExhausted {
                name: Some(name.to_owned()),
                resource: Resource::Threads,
                needed: 1,
                available: None,
            }
        }
        _ => ShmError::from_io(name, "start a thread for", source),
    }
}

#[cfg(test)]
mod tests {
    use crate::platform::waitv;
    use crate::seqlock::Words;
    use crate::{Notifier, SegmentOptions, Watched};
    use std::sync::atomic::Ordering;

    #[test]
    fn without_the_call_for_many_words_the_thread_looks_by_itself() {
        waitv::WITHOUT_WAITV.store(true, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let options = SegmentOptions::new("it").dir(dir.path());
        let mut writer = options.create().unwrap();
        let reader = options.attach_reader().unwrap();
        let notifier = Notifier::new().unwrap();
        for round in 0..20 {
            let begun = notifier.watch(&reader, 2 * round).unwrap();
            assert!(matches!(begun, Watched::Later(_)));
            // The writer is told of nobody, for nobody sleeps on its word.
            assert_eq!(reader.mapping().waiters().load(Ordering::Relaxed), 0);
            writer.write(b"x").unwrap();
            while notifier.take().is_empty() {
                std::thread::yield_now();
            }
        }
        waitv::WITHOUT_WAITV.store(false, Ordering::Relaxed);
        reader.close().unwrap();
        writer.close().unwrap();
    }
}

//! A peer: creates, takes over, writes, patches, lends, seals, reads, waits, hands over, as its seed
//! says, and tells of every step before and after.

use crate::Place;
use crate::record::{Kind, Log, Record, Step, now};
use crate::seeded::Seeded;
use crate::value::{self, SEGMENTS};
use snakepit_shm::{
    CleanupOptions, Descriptor, Pool, PoolOptions, SegmentDiscovery, SegmentReader, SegmentState,
    SegmentWriter, ShmError,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

struct Writing {
    writer: SegmentWriter,
    tag: u64,
    /// The value as published last; empty = unknown, to be written whole.
    mirror: Vec<u8>,
    sealed: bool,
}

struct Reading {
    reader: SegmentReader,
    tag: u64,
}

struct Peer {
    place: Place,
    pool: Pool,
    uid: u32,
    rng: Seeded,
    log: Log,
    created: u64,
    writers: BTreeMap<usize, Writing>,
    readers: BTreeMap<usize, Reading>,
    discovery: SegmentDiscovery,
    buffer: Vec<u8>,
}

pub fn run(place: Place, uid: u32, seed: u64, pause_us: u64, stop: &AtomicBool) {
    let discovery = SegmentDiscovery::new(&place.namespace, &place.dir).expect("a namespace");
    let pool = PoolOptions::new(&place.namespace, &place.dir)
        .idle_timeout(Duration::from_secs(2))
        .open()
        .expect("a pool");
    let mut peer = Peer {
        discovery,
        pool,
        place,
        uid,
        rng: Seeded::new(seed),
        log: Log::new(uid),
        created: 0,
        writers: BTreeMap::new(),
        readers: BTreeMap::new(),
        buffer: vec![0; 1 << 20],
    };
    while !stop.load(Ordering::Relaxed) {
        peer.step();
        // Pace, so that the records can be followed.
        let pause = peer.rng.below(2 * pause_us as usize + 1) as u64;
        std::thread::sleep(Duration::from_micros(pause));
    }
    for seg in peer.readers.keys().copied().collect::<Vec<_>>() {
        peer.detach(seg);
    }
    for seg in peer.writers.keys().copied().collect::<Vec<_>>() {
        peer.give(seg, true);
    }
}

impl Peer {
    fn step(&mut self) {
        let seg = self.rng.below(SEGMENTS);
        let roll = self.rng.below(100);
        let held = self.any(true);
        match (roll, held) {
            (0..10, _) if self.writers.len() < 3 && !self.writers.contains_key(&seg) => {
                if self.rng.below(2) == 0 || !self.take_over(seg) {
                    self.create(seg);
                }
            }
            (10..40, Some(held)) => {
                for _ in 0..1 + self.rng.below(6) {
                    self.write(held);
                }
            }
            (40..43, Some(held)) => self.give(held, false),
            (43, Some(held)) => self.give(held, true),
            (44, Some(held)) if self.rng.below(4) == 0 => self.seal(held),
            (45..48, _) => {
                if let Some(seg) = self.any(false) {
                    self.detach(seg);
                }
            }
            (48, _) => self.clean(),
            (49, _) => self.list(),
            (50..62, _) => self.wait(seg),
            _ => {
                for _ in 0..1 + self.rng.below(4) {
                    self.read(seg);
                }
                if self.rng.below(3) == 0 {
                    self.detach(seg);
                }
            }
        }
    }

    fn any(&mut self, writing: bool) -> Option<usize> {
        let count = if writing {
            self.writers.len()
        } else {
            self.readers.len()
        };
        let at = self.rng.below(count);
        if writing {
            self.writers.keys().nth(at).copied()
        } else {
            self.readers.keys().nth(at).copied()
        }
    }

    fn about(&self, seg: usize, tag: u64) -> Record {
        Record {
            seg: seg as u32,
            tag,
            t0: now(),
            ..Record::default()
        }
    }

    // --- writing ---

    fn create(&mut self, seg: usize) {
        self.created += 1;
        let tag = u64::from(self.uid) << 32 | self.created;
        let begun = self.about(seg, tag);
        self.log.put(Kind::ClaimBegin, begun);
        let options = value::shaped(self.place.options(&value::name(seg)), seg).schema_id(tag);
        // Every other one in memory that another may have had.
        let pooled = self.rng.below(2) == 0;
        let created = if pooled {
            self.pool.create(&options)
        } else {
            options.create()
        };
        match created {
            Ok(writer) => {
                let aux = u64::from(writer.generation());
                self.log.put(Kind::Claimed, Record { aux, ..begun });
                let (mirror, sealed) = (Vec::new(), false);
                let held = Writing {
                    writer,
                    tag,
                    mirror,
                    sealed,
                };
                self.writers.insert(seg, held);
            }
            Err(error) => self.log.error(Step::Create, &error, begun),
        }
    }

    /// Returns whether there was a segment.
    fn take_over(&mut self, seg: usize) -> bool {
        if !self.attach(seg) {
            return false;
        }
        let Some(tag) = self.readers.get(&seg).map(|r| r.tag) else {
            return false;
        };
        let begun = self.about(seg, tag);
        self.log.put(Kind::ClaimBegin, Record { aux: 1, ..begun });
        let options = self.place.options(&value::name(seg)).schema_id(tag);
        match options.attach_writer() {
            Ok(writer) => {
                let (version, aux) = (writer.current_version(), u64::from(writer.generation()));
                self.log.put(
                    Kind::Claimed,
                    Record {
                        version,
                        aux,
                        ..begun
                    },
                );
                // Nobody else writes now: what is read is what a patch builds on.
                let mirror = self.read(seg).unwrap_or_default();
                let held = Writing {
                    writer,
                    tag,
                    mirror,
                    sealed: false,
                };
                self.writers.insert(seg, held);
            }
            Err(error) => {
                self.log.error(Step::Claim, &error, begun);
                // An old incarnation: the name has moved on, or will.
                if matches!(
                    error.code(),
                    "schema_mismatch" | "not_found" | "closed" | "sealed"
                ) {
                    self.detach(seg);
                }
            }
        }
        true
    }

    fn write(&mut self, seg: usize) {
        let Some(held) = self.writers.get_mut(&seg) else {
            return;
        };
        if held.sealed {
            if self.rng.below(4) == 0 {
                self.give(seg, true);
            }
            return;
        }
        let (tag, uid) = (held.tag, self.uid);
        let version = held.writer.current_version() + 2;
        let how = self.rng.below(3);
        let patch = how == 0 && !held.mirror.is_empty();
        let mut change = None;
        if patch {
            change = Some(value::patch(&mut self.rng, seg, &mut held.mirror));
        } else {
            held.mirror = value::whole(&mut self.rng, seg, tag, version, uid);
        }
        let intent = Record {
            seg: seg as u32,
            tag,
            version,
            len: held.mirror.len() as u32,
            crc: crc32fast::hash(&held.mirror),
            aux: how as u64,
            t0: now(),
            ..Record::default()
        };
        self.log.put(Kind::Intent, intent);
        let written = match change {
            Some((offset, data)) => held.writer.write_at(offset, &data),
            None if how == 1 && held.writer.slots() > 1 => lend(&mut held.writer, &held.mirror),
            None => held.writer.write(&held.mirror),
        };
        match written {
            Ok(found) if found != version => {
                self.log.put(
                    Kind::Bad,
                    Record {
                        aux: 100,
                        version: found,
                        ..intent
                    },
                );
            }
            Ok(_) => self.log.put(Kind::Published, intent),
            Err(error) => {
                held.mirror.clear();
                self.log.error(Step::Write, &error, intent);
            }
        }
    }

    fn seal(&mut self, seg: usize) {
        let Some(tag) = self.writers.get(&seg).filter(|h| !h.sealed).map(|h| h.tag) else {
            return;
        };
        let begun = self.about(seg, tag);
        self.log.put(Kind::SealBegin, begun);
        let Some(held) = self.writers.get_mut(&seg) else {
            return;
        };
        match held.writer.seal() {
            Ok(()) => {
                held.sealed = true;
                self.log.put(Kind::Sealed, begun);
            }
            Err(error) => self.log.error(Step::Seal, &error, begun),
        }
    }

    fn give(&mut self, seg: usize, close: bool) {
        let Some(held) = self.writers.remove(&seg) else {
            return;
        };
        let how = if close { self.rng.below(2) + 1 } else { 0 };
        let begun = Record {
            aux: how as u64,
            ..self.about(seg, held.tag)
        };
        self.log.put(Kind::GiveBegin, begun);
        let given = match how {
            0 => held.writer.release(),
            1 => held.writer.close(),
            // Removed by others meanwhile: then it is gone, as it was to be.
            _ => match self.pool.retire(held.writer) {
                Ok(_) | Err(ShmError::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = given {
            self.log.error(Step::Give, &error, begun);
        }
        self.log.put(Kind::Given, begun);
    }

    // --- reading ---

    /// Returns whether this peer is attached.
    fn attach(&mut self, seg: usize) -> bool {
        if self.readers.contains_key(&seg) {
            return true;
        }
        let begun = self.about(seg, 0);
        self.log.put(Kind::AttachBegin, begun);
        match self.place.options(&value::name(seg)).attach_reader() {
            Ok(reader) => {
                let tag = reader.schema_id();
                self.log.put(Kind::Attached, Record { tag, ..begun });
                self.readers.insert(seg, Reading { reader, tag });
                true
            }
            Err(error) => {
                self.log.error(Step::Attach, &error, begun);
                false
            }
        }
    }

    fn detach(&mut self, seg: usize) {
        let Some(held) = self.readers.remove(&seg) else {
            return;
        };
        let begun = self.about(seg, held.tag);
        self.log.put(Kind::DetachBegin, begun);
        if let Err(error) = held.reader.close() {
            self.log.error(Step::Detach, &error, begun);
        }
        self.log.put(Kind::Detached, begun);
    }

    fn read(&mut self, seg: usize) -> Option<Vec<u8>> {
        if !self.attach(seg) {
            return None;
        }
        let tag = self.readers.get(&seg)?.tag;
        let begun = self.about(seg, tag);
        let sealed = self.rng.below(2) == 0;
        let held = self.readers.get(&seg)?;
        let (version, value) = match held.reader.sealed() {
            Ok(view) if sealed => (view.version(), view.to_vec()),
            _ => match held.reader.read_into(&mut self.buffer) {
                Ok(info) => (info.version, self.buffer[..info.len].to_vec()),
                Err(error) => {
                    self.log.error(Step::Read, &error, begun);
                    return None;
                }
            },
        };
        let t1 = now();
        let read = Record {
            version,
            len: value.len() as u32,
            crc: crc32fast::hash(&value),
            t1,
            ..begun
        };
        match value::fault(&value, seg, tag) {
            0 => self.log.put(Kind::Read, read),
            aux => self.log.put(Kind::Bad, Record { aux, ..read }),
        }
        // So that what has ended is left by all, and its name becomes free.
        if held.reader.state().is_ok_and(|s| s != SegmentState::Active) {
            self.detach(seg);
        }
        Some(value)
    }

    fn wait(&mut self, seg: usize) {
        if !self.attach(seg) {
            return;
        }
        let Some(held) = self.readers.get(&seg) else {
            return;
        };
        let since = held.reader.last_version();
        let begun = Record {
            aux: since,
            ..self.about(seg, held.tag)
        };
        let patience = Duration::from_millis(1 + self.rng.below(40) as u64);
        match held.reader.wait_changed(since, Some(patience)) {
            Ok(version) => self.log.put(Kind::Waited, Record { version, ..begun }),
            Err(error) => {
                self.log.error(Step::Wait, &error, begun);
                if matches!(error, ShmError::Closed { .. } | ShmError::Sealed { .. }) {
                    self.detach(seg);
                }
            }
        }
    }

    // --- looking ---

    fn list(&mut self) {
        let begun = self.about(0, 0);
        if let Err(error) = self.discovery.list() {
            self.log.error(Step::Look, &error, begun);
        }
    }

    fn clean(&mut self) {
        let begun = self.about(0, 0);
        let options = CleanupOptions::new(&self.place.namespace, &self.place.dir)
            .grace(Duration::from_millis(500))
            .pattern("s-*");
        if let Err(error) = options.run() {
            self.log.error(Step::Look, &error, begun);
        }
    }
}

/// Fills a slot in place, piece by piece, so that a kill may find it half full.
fn lend(writer: &mut SegmentWriter, value: &[u8]) -> Result<u64, ShmError> {
    let mut loan = writer.loan()?;
    for (to, from) in loan.as_mut_slice().chunks_mut(4096).zip(value.chunks(4096)) {
        to[..from.len()].copy_from_slice(from);
    }
    loan.publish(value.len(), &Descriptor::RAW)
}

//! One segment, as a list sees it.

use crate::error::{Result, ShmError};
use crate::inspect::{SegmentInfo, since_1970};
use crate::layout::publish_word;
use crate::mapping::{Access, Mapping, SlotWord};
use crate::meta::Meta;
use crate::name::Place;
use crate::participant::Participant;
use crate::platform;
use crate::reclaim;
use crate::segment::{corrupted, read_geometry};
use crate::seqlock::{self, Words};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// What is kept of a segment: its metadata, and a mapping to look at its header without a system call.
pub(super) struct Known {
    pub(super) meta: Meta,
    pub(super) mapping: Mapping,
}

impl Known {
    pub(super) fn open(place: &Place, name: &str) -> Result<Self> {
        let meta = Meta::load(place, name)?;
        let file =
            platform::open_existing(&meta.path(place), false).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => corrupted(name, "its file is missing"),
                _ => ShmError::from_io(name, "open", e),
            })?;
        let geometry = read_geometry(name, &file)?;
        if geometry.created_ns != meta.created_ns {
            return Err(corrupted(
                name,
                "metadata and segment do not belong together",
            ));
        }
        let mapping = Mapping::new(name, &file, geometry, Access::Observer)?;
        Ok(Self { meta, mapping })
    }

    pub(super) fn info(
        &self,
        pids: &mut HashMap<u64, u32>,
        living: &mut HashMap<u64, bool>,
        participant: Option<&Arc<Participant>>,
    ) -> Result<SegmentInfo> {
        let (meta, mapping) = (&self.meta, &self.mapping);
        let broken = |reason| corrupted(&meta.name, reason);
        let (version, slot) = seqlock::latest(mapping);
        if slot >= mapping.slots() || version % 2 != 0 {
            return Err(broken("its publish word names no slot"));
        }
        let state = mapping.state().ok_or_else(|| broken("its state is none"))?;
        if mapping.header_line() != mapping.geometry().encode() {
            return Err(broken("its header was overwritten"));
        }
        let slots = mapping.slots_now();
        let get = |word| slots.word(slot, word).load(Ordering::Relaxed);
        let (len, at) = (get(SlotWord::Len), get(SlotWord::Timestamp));
        let whole = version != 0 && mapping.seq(slot).load(Ordering::Acquire) == version;
        if mapping.lost() {
            return Err(ShmError::Truncated {
                name: meta.name.clone(),
            });
        }
        let key = mapping.writer_key().load(Ordering::Relaxed);
        // Whoever cannot look into the table condemns nobody.
        let is_alive = |key| {
            let look = || participant.is_none_or(|p| p.is_alive(key));
            *living.entry(key).or_insert_with(look)
        };
        let since = mapping.orphaned_since();
        let created_at = since_1970(mapping.geometry().created_ns);
        Ok(SegmentInfo {
            name: meta.name.clone(),
            size: mapping.geometry().capacity,
            writer_pid: pid_of(key, pids, participant),
            created_at,
            last_accessed: if whole && at != 0 {
                let age = platform::monotonic_ns().saturating_sub(at);
                SystemTime::now()
                    .checked_sub(Duration::from_nanos(age))
                    .unwrap_or(created_at)
            } else {
                created_at
            },
            reader_count: reclaim::readers(mapping) as u32,
            namespace: meta.namespace.clone(),
            module: meta.module.clone(),
            file: meta.file.clone(),
            slots: mapping.slots(),
            version: version.min(publish_word::MAX_VERSION),
            generation: mapping.generation().load(Ordering::Relaxed),
            state,
            len: if whole { len as usize } else { 0 },
            orphaned: reclaim::is_orphan(state, key, mapping.lender_now(), since, is_alive),
        })
    }
}

/// Who has this key; 0 when that cannot be told, which is asked again the next time.
fn pid_of(key: u64, pids: &mut HashMap<u64, u32>, participant: Option<&Arc<Participant>>) -> u32 {
    if let Some(pid) = pids.get(&key) {
        return *pid;
    }
    let Some(process) = participant.and_then(|p| p.describe(key)) else {
        return 0;
    };
    pids.insert(key, process.pid);
    process.pid
}

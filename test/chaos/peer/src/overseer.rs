//! The overseer: a reaper with a short grace, and a look at everything from outside, several times a
//! second, as a line of JSON.

use crate::Place;
use crate::record::now;
use serde_json::{Value, json};
use snakepit_shm::{CleanupOptions, Reaper, ReaperEvent, ReaperOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(200);

pub fn run(place: &Place, grace_ms: u64, stop: &AtomicBool) {
    let (tell, told) = channel();
    let options = ReaperOptions::new(&place.namespace, &place.dir)
        .grace(Duration::from_millis(grace_ms))
        .interval(Duration::from_millis(100));
    let reaper = Reaper::start(options, move |event| {
        let _ = tell.send(describe(event));
    })
    .expect("a reaper");
    let mut late = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let line = look(place, &reaper, &told, late);
        if writeln!(std::io::stdout(), "{line}").is_err() {
            return;
        }
        let asleep = Instant::now();
        std::thread::sleep(EVERY);
        // How long this process was kept from running: the reaper beside it was too.
        late = asleep.elapsed().saturating_sub(EVERY);
    }
}

fn describe(event: &ReaperEvent) -> Value {
    match event {
        ReaperEvent::ProcessEnded { pid, .. } => json!({ "t": now(), "ended": pid }),
        ReaperEvent::Swept(report) => json!({ "t": now(), "swept": report }),
        ReaperEvent::Failed { error } => json!({ "t": now(), "failed": error }),
        _ => json!({ "t": now() }),
    }
}

fn look(place: &Place, reaper: &Reaper, told: &Receiver<Value>, late: Duration) -> Value {
    let t0 = now();
    let mut files: Vec<String> = std::fs::read_dir(&place.dir)
        .map(|dir| {
            dir.filter_map(|f| f.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    files.sort();
    let prefix = format!("{}_", place.namespace);
    let names = files
        .iter()
        .filter_map(|f| f.strip_prefix(&prefix)?.strip_suffix(".meta"));
    let segs: Vec<Value> = names.map(|name| inspect(place, name)).collect();
    let stats = reaper.stats();
    let kept = kept(place, &files);
    json!({
        "t0": t0,
        "t1": now(),
        "late_ms": late.as_millis() as u64,
        "files": files,
        "kept": kept,
        "segs": segs,
        "events": told.try_iter().collect::<Vec<_>>(),
        "reaper": { "deaths": stats.deaths, "sweeps": stats.sweeps, "removed": stats.removed },
    })
}

/// Files that the pools of living processes keep.
fn kept(place: &Place, files: &[String]) -> Vec<String> {
    let prefix = format!("{}.pool.", place.namespace);
    let mut kept: Vec<String> = files.to_vec();
    kept.retain(|file| file.starts_with(&prefix));
    if !kept.is_empty() {
        let look = CleanupOptions::new(&place.namespace, &place.dir).dry_run(true);
        if let Ok(report) = look.run() {
            kept.retain(|file| report.removed.iter().all(|item| item.name != *file));
        }
    }
    kept
}

fn inspect(place: &Place, name: &str) -> Value {
    let t0 = now();
    match place.options(name).inspect() {
        Ok(report) => json!({
            "name": name,
            "t0": t0,
            "t1": now(),
            "file": report.file,
            "tag": report.schema_id,
            "state": report.state,
            "version": report.version,
            "writer": report.writer.as_ref().map(|w| w.pid),
            "writer_alive": report.writer_alive,
            "waiters": report.waiters,
            "readers": report.readers.iter().filter_map(|r| Some(r.process.as_ref()?.pid)).collect::<Vec<_>>(),
            // Entries whose process is not to be named any more: it has died.
            "unnamed": report.readers.iter().filter(|r| r.process.is_none()).map(|r| r.entry).collect::<Vec<_>>(),
        }),
        Err(error) => json!({
            "name": name, "t0": t0, "t1": now(), "error": error.code(), "message": error.to_string(),
        }),
    }
}

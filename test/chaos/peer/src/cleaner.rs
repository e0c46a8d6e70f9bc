//! Cleans up some rounds, as one of several at once, and says what it did in a line of JSON.

use crate::Place;
use crate::record::now;
use serde_json::json;
use snakepit_shm::CleanupOptions;
use std::time::Duration;

pub fn run(place: &Place, rounds: u64, grace_ms: u64, purge: bool) {
    let options = CleanupOptions::new(&place.namespace, &place.dir)
        .grace(Duration::from_millis(grace_ms))
        .corrupted(purge);
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let t0 = now();
        match options.run() {
            Ok(report) => removed.extend(report.removed.into_iter().map(
                |item| json!({ "t0": t0, "t1": now(), "name": item.name, "reason": item.reason }),
            )),
            Err(error) => {
                errors.push(json!({ "code": error.code(), "message": error.to_string() }))
            }
        }
    }
    println!("{}", json!({ "removed": removed, "errors": errors }));
}

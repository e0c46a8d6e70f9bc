//! Uses a segment that somebody is going to cut or scribble on: whatever it finds, it answers with a
//! named error and lives. Each kind of answer is told once, as a line of JSON.

use crate::Place;
use serde_json::json;
use snakepit_shm::Integrity;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn run(place: &Place, name: &str, write: bool, stop: &AtomicBool) {
    let options = place
        .options(name)
        .size(65_536)
        .slots(3)
        .integrity(Integrity::Crc32c);
    let mut answers: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut told = Vec::new();
    if write {
        let mut writer = options.create().expect("a victim");
        let value = vec![7; 60_000];
        writer.write(&value).expect("a first value");
        loop_until(stop, || {
            let answer = writer.write(&value).map_or_else(|e| e.code(), |_| "ok");
            tell(&mut answers, &mut told, answer);
        });
        let _ = writer.close();
    } else {
        let mut reader = options.attach_reader().expect("the victim");
        loop_until(stop, || {
            let answer = match reader.read() {
                // The checksum would have said so.
                Ok(value) if value.len() == 60_000 && value.iter().all(|b| *b == 7) => "ok",
                Ok(_) => "damaged value",
                Err(error) => error.code(),
            };
            tell(&mut answers, &mut told, answer);
        });
        let _ = reader.close();
    }
    println!("{}", json!({ "counts": answers }));
}

fn loop_until(stop: &AtomicBool, mut step: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        step();
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tell(
    answers: &mut BTreeMap<&'static str, u64>,
    told: &mut Vec<&'static str>,
    answer: &'static str,
) {
    *answers.entry(answer).or_default() += 1;
    if !told.contains(&answer) {
        told.push(answer);
        let _ = writeln!(std::io::stdout(), "{}", json!({ "answer": answer }));
    }
}

//! What the choice among the copy loops rests on: each of them beside `memcpy`, by size and by how the
//! target lies. Prints a table of ratios to `memcpy`, smaller is faster.
//!
//! ```text
//! cargo run --release -p snakepit-shm-bench --bin copies [ROUNDS]
//! ```
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use snakepit_shm_bench::pair::median;
use snakepit_shm_bench::segment::human;
use snakepit_shm_bench::{Result, pin};

const SIZES: [usize; 11] = [
    128,
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    100_000_000,
];
/// Where the target begins, in a cache line: as a slot or a page, and as a binary or a `bytes` object.
const STARTS: [usize; 2] = [0, 24];
/// Nanoseconds that one batch takes, about.
const BATCH: usize = 300_000;

type Copy = fn(&mut [u8], &[u8]);

fn memcpy(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(black_box(from));
}

fn main() -> Result<()> {
    if let Some(cpu) = pin::allowed()?.last() {
        pin::to(*cpu)?;
    }
    let rounds = match std::env::args().nth(1) {
        Some(word) => word.parse()?,
        None => 31,
    };
    let mut loops: Vec<(&str, Copy)> = vec![("memcpy", memcpy)];
    loops.extend(snakepit_shm::measured_copies());
    print!("{:>8} {:>5} {:>12}", "size", "at", "memcpy ns");
    for (name, _) in &loops[1..] {
        print!(" {name:>16}");
    }
    println!();
    let most = SIZES.iter().max().copied().unwrap_or(0);
    let source = vec![7u8; most + 128];
    let mut target = vec![1u8; most + 128];
    for size in SIZES {
        for start in STARTS {
            let (from, to) = (line(&source), line(&target) + start);
            let row = measure(
                &loops,
                &source[from..from + size],
                &mut target[to..to + size],
                rounds,
            );
            print!("{:>8} {start:>5} {:>12.1}", human(size), row[0]);
            for ns in &row[1..] {
                print!(" {:>16.2}", ns / row[0]);
            }
            println!();
        }
    }
    Ok(())
}

/// Where the first whole cache line of a buffer begins.
fn line(buffer: &[u8]) -> usize {
    buffer.as_ptr().align_offset(64)
}

/// Nanoseconds of one copy by each, measured in turns.
fn measure(loops: &[(&str, Copy)], from: &[u8], to: &mut [u8], rounds: usize) -> Vec<f64> {
    let times = (BATCH * 20 / from.len().max(200)).max(1);
    let mut taken = vec![Vec::new(); loops.len()];
    for _ in 0..rounds {
        for ((_, copy), taken) in loops.iter().zip(&mut taken) {
            copy(to, from);
            let started = Instant::now();
            for _ in 0..times {
                copy(black_box(&mut *to), black_box(from));
            }
            taken.push(started.elapsed().as_nanos() as f64 / times as f64);
        }
    }
    taken.iter().map(|taken| median(taken)).collect()
}

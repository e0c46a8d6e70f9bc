//! What one message between two cores costs on this machine, now.
//!
//! Two threads, each pinned to one of the CPUs, throw a counter to and fro
//! through one plain atomic in private memory. It has no protocol and no
//! segment in it: it is the bare price of moving a cache line from core to
//! core, which is the same between threads and between processes. On virtual
//! machines it moves several-fold within a minute, which is why it is probed
//! just before each two-core figure and printed with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::{Result, pair::median, pin};

const ROUNDS: u64 = 2_000;
const BATCHES: usize = 7;

/// An atomic that shares its cache line (and the line next to it, which the
/// hardware fetches along) with nothing.
#[repr(align(128))]
struct Alone(AtomicU64);

/// The one-way core-to-core hop between two CPUs in nanoseconds: half a
/// round trip, the median of several batches. Takes a few milliseconds.
///
/// # Errors
/// When a thread cannot be pinned.
pub fn probe(a: usize, b: usize) -> Result<f64> {
    let ball = Alone(AtomicU64::new(0));
    // Even: a's turn. A thread that could not be pinned plays on, so that the
    // other one is not left waiting; its error is reported at the end.
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            let pinned = pin::to(b);
            for turn in 0..ROUNDS * BATCHES as u64 {
                receive_and_answer(&ball.0, 2 * turn + 1);
            }
            pinned
        });
        let forth = scope.spawn(|| {
            let pinned = pin::to(a);
            let mut hops = Vec::with_capacity(BATCHES);
            for batch in 0..BATCHES as u64 {
                let start = Instant::now();
                for turn in batch * ROUNDS..(batch + 1) * ROUNDS {
                    receive_and_answer(&ball.0, 2 * turn);
                }
                hops.push(start.elapsed().as_nanos() as f64 / (2 * ROUNDS) as f64);
            }
            pinned.map(|()| hops)
        });
        let hops = forth.join().map_err(|_| "the probing thread panicked")??;
        back.join().map_err(|_| "the probed thread panicked")??;
        Ok(median(&hops))
    })
}

fn receive_and_answer(ball: &AtomicU64, turn: u64) {
    let mut spins = 0_u32;
    while ball.load(Ordering::Acquire) != turn {
        // Longer than any hop: the other side is not running, so let it.
        spins += 1;
        if spins.is_multiple_of(1 << 14) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
    ball.store(turn + 1, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_takes_time_and_the_caller_stays_unpinned() {
        let before = pin::allowed().unwrap();
        let (a, b) = (before[0], before[before.len() - 1]);
        assert!(probe(a, b).unwrap() > 0.0);
        assert_eq!(pin::allowed().unwrap(), before);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error_not_a_hang() {
        assert!(probe(pin::allowed().unwrap()[0], 1023).is_err());
    }
}

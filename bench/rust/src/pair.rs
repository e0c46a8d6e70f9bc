//! Ours and its yardsticks, timed alternately.

use std::time::{Duration, Instant};

/// Batches that one sample is cut into: ours and the yardsticks take turns
/// this often, so that a disturbance of the machine falls on all of them.
const TURNS: u64 = 6;

/// One thing to time: runs itself as many times as it is told.
pub type Run<'a> = &'a mut dyn FnMut(u64);

/// The mean time of one iteration, in nanoseconds, of ours and of every
/// yardstick, measured together.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Ours.
    pub ours: f64,
    /// The yardsticks, in the order in which they were given.
    pub yards: Vec<f64>,
}

/// Times about `iterations` iterations of `ours` and of every yardstick in
/// alternating batches. Each batch begins with one iteration off the clock,
/// which brings its buffers back into the cache. Returns the sample and the
/// time that `ours` would have taken for exactly `iterations`.
pub fn sample(iterations: u64, ours: Run<'_>, yards: &mut [Run<'_>]) -> (Sample, Duration) {
    let turns = TURNS.min(iterations).max(1);
    let batch = iterations.div_ceil(turns);
    let mut ours_ns = 0.0;
    let mut yards_ns = vec![0.0; yards.len()];
    for turn in 0..turns {
        if turn % 2 == 0 {
            ours_ns += timed(batch, ours);
        }
        for (yard, sum) in yards.iter_mut().zip(&mut yards_ns) {
            *sum += timed(batch, *yard);
        }
        if turn % 2 == 1 {
            ours_ns += timed(batch, ours);
        }
    }
    let each = (turns * batch) as f64;
    let sample = Sample {
        ours: ours_ns / each,
        yards: yards_ns.iter().map(|ns| ns / each).collect(),
    };
    let took = Duration::from_nanos((sample.ours * iterations as f64).round() as u64);
    (sample, took)
}

fn timed(batch: u64, run: Run<'_>) -> f64 {
    run(1);
    let start = Instant::now();
    run(batch);
    start.elapsed().as_nanos() as f64
}

/// The middle value; of an even number, the mean of the two in the middle.
/// Zero for none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// What a set of samples comes to beside one of the yardsticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Median of ours, nanoseconds.
    pub ours: f64,
    /// Median of the yardstick, nanoseconds.
    pub yard: f64,
    /// Median of the samples' own ratios, ours to the yardstick: not quite
    /// the quotient of the other two, and steadier.
    pub ratio: f64,
}

/// Summarises `samples` beside yardstick number `yard`; `None` without any.
#[must_use]
pub fn verdict(samples: &[Sample], yard: usize) -> Option<Verdict> {
    let pick =
        |f: &dyn Fn(&Sample) -> Option<f64>| samples.iter().filter_map(f).collect::<Vec<_>>();
    let ours = pick(&|s| Some(s.ours));
    let yards = pick(&|s| s.yards.get(yard).copied());
    let ratios = pick(&|s| s.yards.get(yard).map(|y| s.ours / y));
    (!ratios.is_empty()).then(|| Verdict {
        ours: median(&ours),
        yard: median(&yards),
        ratio: median(&ratios),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_runs_equally_often() {
        let (mut ours, mut first, mut second) = (0, 0, 0);
        let (sample, _) = sample(
            100,
            &mut |n| ours += n,
            &mut [&mut |n| first += n, &mut |n| second += n],
        );
        assert!(ours >= 100);
        assert_eq!((ours, ours), (first, second));
        assert_eq!(sample.yards.len(), 2);
    }

    #[test]
    fn one_iteration_is_timed_once() {
        let mut ours = 0;
        sample(1, &mut |n| ours += n, &mut []);
        assert_eq!(ours, 2, "one off the clock and one on it");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_ratio_is_taken_within_a_sample() {
        // The machine was three times slower during the second sample: the
        // ratio does not notice.
        let samples = [
            Sample {
                ours: 10.0,
                yards: vec![20.0],
            },
            Sample {
                ours: 30.0,
                yards: vec![60.0],
            },
        ];
        assert_eq!(
            verdict(&samples, 0),
            Some(Verdict {
                ours: 20.0,
                yard: 40.0,
                ratio: 0.5
            })
        );
        assert_eq!(verdict(&samples, 1), None);
        assert_eq!(verdict(&[], 0), None);
    }
}

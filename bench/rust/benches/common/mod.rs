//! Criterion drives the sampling; every one of its samples is a pair (see
//! `snakepit_shm_bench::pair`), so its own statistics are of ours and the
//! ratio to the yardsticks comes from the same samples.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use snakepit_shm::{SegmentReader, ShmError};
use snakepit_shm_bench::figure::{Figure, Figures};
use snakepit_shm_bench::pair::{Run, Sample, sample, verdict};
use snakepit_shm_bench::segment::human;

/// One run of a criterion bench and the figures it gives.
pub struct Session {
    criterion: Criterion,
    figures: Figures,
    section: &'static str,
    samples: usize,
}

/// What is measured.
pub struct Subject {
    /// Within the section, `/`-separated: stable.
    pub id: String,
    /// For people.
    pub name: String,
    /// Bytes of the value.
    pub size: usize,
    /// The hop probed just before, for two-core figures.
    pub hop_ns: Option<f64>,
}

impl Session {
    /// Reads criterion's own command line. With `SNAKEPIT_BENCH_QUICK` set, a
    /// short run whose figures are only indicative.
    pub fn new(section: &'static str) -> Self {
        let quick = std::env::var_os("SNAKEPIT_BENCH_QUICK").is_some();
        let (samples, warm_up, measure) = if quick {
            (10, 60, 200)
        } else {
            (31, 250, 1000)
        };
        let criterion = Criterion::default()
            .sample_size(samples)
            .warm_up_time(Duration::from_millis(warm_up))
            .measurement_time(Duration::from_millis(measure))
            .configure_from_args();
        Self {
            criterion,
            figures: Figures::of(section),
            section,
            samples,
        }
    }

    /// Measures `ours` beside every one of `yards`, one figure each (the
    /// first yardstick's figure has the subject's id, the others have their
    /// own name behind it). `conflicts` says afterwards how many of ours
    /// ended in a conflict: times are then an obtained value's. Returns the
    /// figures, if it came to any, for a remark on the last one.
    pub fn pair(
        &mut self,
        subject: &Subject,
        ours: Run<'_>,
        yards: &mut [(&str, Run<'_>)],
        outcome: &dyn Fn() -> Outcome,
    ) -> Option<&mut Figures> {
        let names: Vec<String> = yards.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut runs: Vec<Run<'_>> = yards
            .iter_mut()
            .map(|(_, run)| &mut **run as Run<'_>)
            .collect();
        let mut taken: Vec<Sample> = Vec::new();
        let mut group = self.criterion.benchmark_group(self.section);
        group
            .sampling_mode(SamplingMode::Flat)
            .throughput(Throughput::Bytes(subject.size as u64));
        group.bench_function(&subject.id, |bencher| {
            bencher.iter_custom(|iterations| {
                let (sample, took) = sample(iterations, ours, &mut runs);
                taken.push(sample);
                took
            });
        });
        group.finish();
        // Criterion's warm-up came first. A filter, --list and --test leave
        // fewer samples than a measurement has: no figure then.
        let start = taken.len().checked_sub(self.samples)?;
        for (yard, name) in names.iter().enumerate() {
            self.figure(subject, &taken[start..], yard, name, outcome());
        }
        Some(&mut self.figures)
    }

    fn figure(
        &mut self,
        subject: &Subject,
        taken: &[Sample],
        yard: usize,
        name: &str,
        outcome: Outcome,
    ) {
        let Some(found) = verdict(taken, yard) else {
            return;
        };
        let id = format!("{}/{}", self.section, subject.id);
        let id = if yard == 0 {
            id
        } else {
            format!("{id}/{}", name.replace(' ', "-"))
        };
        let attempts = outcome.attempts_per_value();
        let mut figure = Figure::nanoseconds(id, found.ours * attempts.unwrap_or(1.0))
            .named(subject.name.clone())
            .size(subject.size)
            .beside(name, found.yard);
        figure.ratio = attempts.map(|attempts| found.ratio * attempts);
        figure.hop_ns = subject.hop_ns;
        figure.note = outcome.note();
        let ratio = figure
            .ratio
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let hop = subject
            .hop_ns
            .map_or_else(String::new, |ns| format!(", hop {ns:.0} ns"));
        println!(
            "    {} {}: ours {:.1} ns, {name} {:.1} ns, ratio {ratio}{hop} {}",
            subject.name,
            human(subject.size),
            figure.ours,
            found.yard,
            figure.note
        );
        self.figures.push(figure);
    }

    /// Criterion's summary, and the figures handed on.
    pub fn finish(self) -> snakepit_shm_bench::Result<()> {
        self.criterion.final_summary();
        self.figures.save()
    }
}

/// How the timed calls ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// With a value.
    pub values: u64,
    /// With `VersionConflict`.
    pub conflicts: u64,
}

impl Outcome {
    /// `None` when no call ended with a value.
    fn attempts_per_value(self) -> Option<f64> {
        match (self.values, self.conflicts) {
            (_, 0) => Some(1.0),
            (0, _) => None,
            (values, conflicts) => Some((values + conflicts) as f64 / values as f64),
        }
    }

    fn note(self) -> String {
        match (self.values, self.conflicts) {
            (_, 0) => String::new(),
            (0, _) => "the time of an attempt: every read ended in VersionConflict".to_owned(),
            (values, conflicts) => {
                let share = 100.0 * conflicts as f64 / (values + conflicts) as f64;
                format!("{share:.2} % of reads ended in VersionConflict; counted in")
            }
        }
    }
}

/// Reads `times` times into `buffer`.
#[inline(never)]
pub fn read(reader: &SegmentReader, buffer: &mut [u8], times: u64, outcome: &mut Outcome) {
    for _ in 0..times {
        match reader.read_into(black_box(&mut *buffer)) {
            Ok(info) => {
                // What a caller needs to use the bytes.
                black_box((info.version, info.len));
                outcome.values += 1;
            }
            Err(ShmError::VersionConflict { .. }) => outcome.conflicts += 1,
            Err(other) => panic!("a read failed: {other}"),
        }
    }
    black_box(buffer);
}

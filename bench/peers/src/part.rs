//! What a section hands on.

use std::path::PathBuf;

use serde::Serialize;
use snakepit_shm_bench::Result;
use snakepit_shm_bench::figure::Figure;
use snakepit_shm_bench::segment::human;

/// What was not measured, and why.
#[derive(Serialize)]
struct Skipped {
    what: String,
    reason: String,
}

/// The figures of a section and what is missing among them.
pub struct Part {
    section: String,
    figures: Vec<Figure>,
    skipped: Vec<Skipped>,
}

impl Part {
    /// Nothing yet.
    pub fn of(section: &str) -> Self {
        Self {
            section: section.to_owned(),
            figures: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Its name.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// One more figure, also printed.
    pub fn push(&mut self, figure: Figure) {
        let size = figure
            .size
            .map_or_else(String::new, |bytes| human(bytes as usize));
        let (peer, value) = figure
            .yardstick
            .as_ref()
            .map_or((String::new(), 0.0), |y| (y.name.clone(), y.value));
        let ratio = figure
            .ratio
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<58} {size:>8}  ours {:>14.1}  {peer} {value:.1}  ratio {ratio}  {}",
            figure.id, figure.ours, figure.note
        );
        self.figures.push(figure);
    }

    /// Something that was not measured.
    pub fn skip(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        let (what, reason) = (what.into(), reason.into());
        println!("{what}: not measured: {reason}");
        self.skipped.push(Skipped { what, reason });
    }

    /// Writes both files, if anybody asked for them.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn save(&self) -> Result<()> {
        let Some(parts) = std::env::var_os("SNAKEPIT_BENCH_PARTS").map(PathBuf::from) else {
            return Ok(());
        };
        let figures = parts.join(format!("{}.json", self.section));
        std::fs::write(figures, serde_json::to_string_pretty(&self.figures)?)?;
        let skipped = parts.join(format!("{}.skipped.json", self.section));
        std::fs::write(skipped, serde_json::to_string_pretty(&self.skipped)?)?;
        Ok(())
    }
}

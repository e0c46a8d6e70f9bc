//! One measured number beside its yardstick, and the file it is handed on in.
//!
//! The Elixir and Python benches write the same files; `bench/README.md` has
//! the fields.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;

/// The sections of a run, in the order of the table.
const SECTIONS: [&str; 10] = [
    "one-thread",
    "two-processes",
    "pace",
    "scale",
    "pinned",
    "lifecycle",
    "pages",
    "torn",
    "beam",
    "python",
];

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds an operation; less is better.
    Ns,
    /// A number of things.
    Count,
    /// How many a second; more is better.
    #[serde(rename = "per_second")]
    PerSecond,
}

/// What a figure is compared with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Yardstick {
    /// Its name.
    pub name: String,
    /// Its value, in the figure's unit.
    pub value: f64,
}

/// One measured number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Stable, `/`-separated; `bench/targets.json` refers to it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Bytes of the value, where it has a size.
    #[serde(default)]
    pub size: Option<u64>,
    /// The number.
    pub ours: f64,
    /// What it counts.
    pub unit: Unit,
    /// What it is compared with, in the same run.
    #[serde(default)]
    pub yardstick: Option<Yardstick>,
    /// Ours to the yardstick, the median over alternating samples.
    #[serde(default)]
    pub ratio: Option<f64>,
    /// The bare one-way core-to-core hop probed just before, nanoseconds.
    #[serde(default)]
    pub hop_ns: Option<f64>,
    /// Whatever else a reader of the figure should know.
    #[serde(default)]
    pub note: String,
}

impl Figure {
    /// A time for one operation.
    #[must_use]
    pub fn nanoseconds(id: impl Into<String>, ns: f64) -> Self {
        Self::new(id.into(), ns, Unit::Ns)
    }

    /// A number of things.
    #[must_use]
    pub fn count(id: impl Into<String>, count: u64) -> Self {
        Self::new(id.into(), count as f64, Unit::Count)
    }

    fn new(id: String, ours: f64, unit: Unit) -> Self {
        let name = id.clone();
        Self {
            id,
            name,
            size: None,
            ours,
            unit,
            yardstick: None,
            ratio: None,
            hop_ns: None,
            note: String::new(),
        }
    }

    /// With a name for people.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// Of values of `bytes` bytes.
    #[must_use]
    pub fn size(self, bytes: usize) -> Self {
        Self {
            size: Some(bytes as u64),
            ..self
        }
    }

    /// Beside a yardstick; the ratio is the quotient.
    #[must_use]
    pub fn beside(self, name: impl Into<String>, value: f64) -> Self {
        let ratio = (value > 0.0).then(|| self.ours / value);
        Self {
            yardstick: Some(Yardstick {
                name: name.into(),
                value,
            }),
            ratio,
            ..self
        }
    }

    /// With the ratio that was measured sample by sample.
    #[must_use]
    pub fn ratio(self, ratio: f64) -> Self {
        Self {
            ratio: Some(ratio),
            ..self
        }
    }

    /// With the core-to-core hop probed just before.
    #[must_use]
    pub fn hop(self, ns: f64) -> Self {
        Self {
            hop_ns: Some(ns),
            ..self
        }
    }

    /// With a remark.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }
}

/// The figures of one section of the bench.
pub struct Figures {
    section: &'static str,
    figures: Vec<Figure>,
}

impl Figures {
    /// None yet.
    #[must_use]
    pub fn of(section: &'static str) -> Self {
        Self {
            section,
            figures: Vec::new(),
        }
    }

    /// One more.
    pub fn push(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds a remark to the last one, for what is known only afterwards.
    pub fn remark(&mut self, text: &str) {
        if let Some(Figure { note, .. }) = self.figures.last_mut() {
            let separator = if note.is_empty() { "" } else { "; " };
            *note = format!("{note}{separator}{text}");
        }
    }

    /// Hands them on: writes `{section}.json` into the directory that
    /// `$SNAKEPIT_BENCH_PARTS` names. Without that variable (a bench run by
    /// hand), or without figures (a bench run with a filter or as a test),
    /// they were only printed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let Some(parts) = std::env::var_os("SNAKEPIT_BENCH_PARTS").map(PathBuf::from) else {
            return Ok(());
        };
        if self.figures.is_empty() {
            return Ok(());
        }
        let path = parts.join(format!("{}.json", self.section));
        let text = serde_json::to_string_pretty(&self.figures)?;
        std::fs::write(&path, text)
            .map_err(|e| format!("cannot write {}: {e}", path.display()).into())
    }
}

/// Reads what every section of a run handed on.
///
/// # Errors
/// When a file is not a list of figures.
pub fn load(parts: &Path) -> Result<Vec<Figure>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in
        std::fs::read_dir(parts).map_err(|e| format!("cannot read {}: {e}", parts.display()))?
    {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    // A section of an unknown name comes last.
    let place = |path: &PathBuf| {
        SECTIONS
            .iter()
            .position(|&section| path.file_stem().is_some_and(|stem| stem == section))
    };
    paths.sort_by_key(|path| (place(path).unwrap_or(SECTIONS.len()), path.clone()));
    let mut figures = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        let part: Vec<Figure> =
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        figures.extend(part);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_back_as_they_were_saved() {
        let dir = tempfile::tempdir().unwrap();
        let figure = Figure::nanoseconds("a/b", 3.0)
            .named("a")
            .size(64)
            .beside("memcpy", 2.0)
            .hop(60.0)
            .note("n");
        std::fs::write(
            dir.path().join("x.json"),
            serde_json::to_string(&[&figure]).unwrap(),
        )
        .unwrap();
        std::fs::write(dir.path().join("other.txt"), "no figures").unwrap();
        let back = load(dir.path()).unwrap();
        assert_eq!(
            serde_json::to_value(&back[0]).unwrap(),
            serde_json::to_value(&figure).unwrap()
        );
        assert_eq!(back[0].ratio, Some(1.5));
        assert_eq!(back.len(), 1);
    }

    #[test]
    fn a_figure_with_a_misspelt_field_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("x.json"),
            r#"[{"id":"a","name":"a","ours":1,"unit":"ns","yardstik":null}]"#,
        )
        .unwrap();
        assert!(
            load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("yardstik")
        );
    }
}

//! Puts the figures beside the targets: the final table and its JSON.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::figure::{Figure, Unit, load};
use crate::segment::human;

/// One promise of DESIGN 9, for one or more figures.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The figures that it is made for; `*` stands for one step of an id.
    pub ids: Vec<String>,
    /// The promise in words.
    pub text: String,
    /// What is bounded.
    pub of: Of,
    /// Bounded from above.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Bounded from below.
    #[serde(default)]
    pub at_least: Option<f64>,
}

/// The number of a figure that a target bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// The measured number itself.
    Ours,
    /// Its ratio to the yardstick.
    Ratio,
}

/// A figure, judged.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub figure: Figure,
    /// What was promised, in words; several promises are joined by `;`.
    pub target: Option<String>,
    /// Whether every promise is kept; `None` where nothing was promised.
    pub met: Option<bool>,
}

/// Where and how the figures came about.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// The processor, as the kernel names it.
    pub cpu: String,
    /// CPUs that could be used.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// The commit that was measured.
    pub commit: String,
    /// Whether it was the short run, whose figures are only indicative.
    pub quick: bool,
    /// Sections that failed, and so are missing here.
    pub failed: Vec<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    run: &'a Run,
    rows: &'a [Row],
    not_measured: &'a [String],
}

/// Judges every figure; also returns the promises that nothing was measured
/// for.
#[must_use]
pub fn judge(figures: Vec<Figure>, targets: &[Target]) -> (Vec<Row>, Vec<String>) {
    let absent = targets
        .iter()
        .flat_map(|target| target.ids.iter().map(move |id| (id, target)))
        .filter(|(id, _)| !figures.iter().any(|figure| matches(id, &figure.id)))
        .map(|(id, target)| format!("{id}: {}", target.text))
        .collect();
    let rows = figures
        .into_iter()
        .map(|figure| row(figure, targets))
        .collect();
    (rows, absent)
}

fn row(figure: Figure, targets: &[Target]) -> Row {
    let own: Vec<&Target> = targets
        .iter()
        .filter(|t| t.ids.iter().any(|id| matches(id, &figure.id)))
        .collect();
    if own.is_empty() {
        return Row {
            figure,
            target: None,
            met: None,
        };
    }
    let text = own
        .iter()
        .map(|t| t.text.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    let met = own.iter().all(|target| kept(&figure, target));
    Row {
        figure,
        target: Some(text),
        met: Some(met),
    }
}

/// A promise about a number that was not measured is not kept.
fn kept(figure: &Figure, target: &Target) -> bool {
    let number = match target.of {
        Of::Ours => Some(figure.ours),
        Of::Ratio => figure.ratio,
    };
    number.is_some_and(|n| {
        target.at_most.is_none_or(|most| n <= most)
            && target.at_least.is_none_or(|least| n >= least)
    })
}

fn matches(pattern: &str, id: &str) -> bool {
    let (mut pattern, mut id) = (pattern.split('/'), id.split('/'));
    loop {
        match (pattern.next(), id.next()) {
            (None, None) => return true,
            (Some(p), Some(i)) if p == "*" || p == i => {}
            _ => return false,
        }
    }
}

/// The table, as Markdown with aligned columns, which reads as well in a
/// terminal.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![
        [
            "what",
            "size",
            "ours",
            "yardstick",
            "",
            "ratio",
            "hop",
            "target",
            "met",
            "note",
        ]
        .map(String::from),
    ];
    cells.extend(rows.iter().map(|row| {
        let figure = &row.figure;
        let yardstick = figure.yardstick.as_ref();
        [
            figure.name.clone(),
            figure
                .size
                .map_or_else(String::new, |size| human(size as usize)),
            amount(figure.ours, figure.unit),
            yardstick.map_or_else(String::new, |y| amount(y.value, figure.unit)),
            yardstick.map_or_else(String::new, |y| y.name.clone()),
            figure.ratio.map_or_else(String::new, |ratio| {
                if ratio < 0.01 {
                    format!("{ratio:.1e}")
                } else {
                    format!("{ratio:.2}")
                }
            }),
            figure
                .hop_ns
                .map_or_else(String::new, |ns| format!("{ns:.0} ns")),
            row.target.clone().unwrap_or_default(),
            row.met
                .map_or("", |met| if met { "yes" } else { "no" })
                .to_owned(),
            figure.note.clone(),
        ]
    }));
    let width = |column: usize| {
        cells
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..10).map(width).collect();
    let mut text = String::new();
    for (i, row) in cells.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if i == 0 {
            for &width in &widths {
                let _ = write!(text, "|{:-<1$}", "", width + 2);
            }
            text.push_str("|\n");
        }
    }
    text
}

fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value:.0}"),
        Unit::PerSecond => format!("{:.2} M/s", value / 1e6),
        Unit::Ns if value < 100.0 => format!("{value:.1} ns"),
        Unit::Ns if value < 10_000.0 => format!("{value:.0} ns"),
        Unit::Ns if value < 1e7 => format!("{:.1} µs", value / 1e3),
        Unit::Ns => format!("{:.1} ms", value / 1e6),
    }
}

/// Reads the parts of a run and the targets, prints the table and writes
/// `latest.json` and `latest.md` into `results`, if given.
///
/// # Errors
/// When nothing was measured or a file cannot be read or written.
pub fn write(parts: &Path, targets: &Path, results: Option<&Path>, run: &Run) -> Result<()> {
    let targets: Vec<Target> = serde_json::from_str(&std::fs::read_to_string(targets)?)
        .map_err(|e| format!("{}: {e}", targets.display()))?;
    let figures = load(parts)?;
    if figures.is_empty() {
        return Err("nothing was measured".into());
    }
    let (rows, mut not_measured) = judge(figures, &targets);
    if results.is_none() {
        // A run of some sections: the others were not asked for.
        not_measured.clear();
    }
    let table = table(&rows);
    let summary = summary(&rows, &not_measured, run);
    println!("{table}\n{summary}");
    let Some(results) = results else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(&Report {
        run,
        rows: &rows,
        not_measured: &not_measured,
    })?;
    std::fs::write(results.join("latest.json"), json + "\n")?;
    std::fs::write(
        results.join("latest.md"),
        format!("# Measured beside DESIGN 9\n\n{summary}\n{table}"),
    )?;
    Ok(())
}

fn summary(rows: &[Row], not_measured: &[String], run: &Run) -> String {
    let count = |met| rows.iter().filter(|row| row.met == Some(met)).count();
    let mut text = format!(
        "{} of {} promised figures met. {}, {} CPUs, Linux {}; commit {}, {}{}.\n",
        count(true),
        count(true) + count(false),
        run.cpu,
        run.cpus,
        run.kernel,
        run.commit,
        run.date,
        if run.quick {
            "; a short run, only indicative"
        } else {
            ""
        },
    );
    text.push_str(
        "Times are medians; a ratio is the median over samples in which ours and the yardstick alternated. \
         `hop`: one-way core-to-core hop of a bare atomic, probed just before.\n",
    );
    for failed in &run.failed {
        let _ = writeln!(
            text,
            "FAILED: {failed}; what it measured is missing or incomplete."
        );
    }
    for target in not_measured {
        let _ = writeln!(text, "Not measured: {target}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets() -> Vec<Target> {
        serde_json::from_str(
            r#"[{"ids": ["core/*/64"], "text": "<= 6 ns", "of": "ours", "at_most": 6},
                {"ids": ["core/read/64"], "text": "<= 2 x", "of": "ratio", "at_most": 2},
                {"ids": ["torn/reads"], "text": ">= 10", "of": "ours", "at_least": 10}]"#,
        )
        .unwrap()
    }

    #[test]
    fn every_promise_about_a_figure_must_hold() {
        let read = |ns, yard| Figure::nanoseconds("core/read/64", ns).beside("memcpy", yard);
        let met = |figure| judge(vec![figure], &targets()).0[0].met;
        assert_eq!(met(read(5.0, 4.0)), Some(true));
        assert_eq!(met(read(7.0, 4.0)), Some(false), "too slow");
        assert_eq!(met(read(5.0, 2.0)), Some(false), "the ratio is too high");
        assert_eq!(
            met(Figure::nanoseconds("core/read/64", 5.0)),
            Some(false),
            "no ratio"
        );
        assert_eq!(met(Figure::nanoseconds("core/write/64", 5.0)), Some(true));
        assert_eq!(met(Figure::nanoseconds("core/write/64/idle", 5.0)), None);
        assert_eq!(met(Figure::count("torn/reads", 9)), Some(false));
        assert_eq!(met(Figure::count("torn/reads", 10)), Some(true));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let (_, absent) = judge(vec![Figure::nanoseconds("core/read/64", 1.0)], &targets());
        assert_eq!(absent, ["torn/reads: >= 10"]);
    }

    #[test]
    fn the_table_has_every_column_and_lines_up() {
        let (rows, _) = judge(
            vec![
                Figure::nanoseconds("core/read/64", 5.0)
                    .size(64)
                    .beside("memcpy", 4.0),
            ],
            &targets(),
        );
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[2].contains("5.0 ns") && lines[2].contains("1.25") && lines[2].contains("yes"),
            "{table}"
        );
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() == lines[0].chars().count()),
            "{table}"
        );
    }

    #[test]
    fn the_projects_own_targets_are_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets.json");
        let targets: Vec<Target> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(
                target.at_most.is_some() || target.at_least.is_some(),
                "{}",
                target.text
            );
        }
    }
}

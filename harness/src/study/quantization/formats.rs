//! Energy, carbon and answers by format.

use serde::Serialize;
use wattle_policy::{Grid, Profile, carbon};

use super::{Answered, Format, Page, STORED, SWEEP};
use crate::error::Result;
use crate::study::plot::{self, Titles};
use crate::table::{Table, percent};
use crate::tasks::{self, LabelScores, Task};

/// One task in one format.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub task: String,
    pub format: &'static str,
    bits: u32,
    weight_bytes: u64,
    /// Of the proxy, per problem.
    joules: f64,
    carbon_mg: f64,
    /// Against the stored weights.
    pub joules_of_stored: f64,
    accuracy: f64,
    #[serde(flatten)]
    labels: Option<LabelScores>,
    /// Answers that differ from those with the stored weights.
    drift: f64,
    /// Mean change of the log-probability of what was said, without its sign.
    logprob_shift: f64,
}

/// A task's lines, one per format.
pub(super) fn compare(
    task: &Task,
    answered: &[(Format, Answered)],
    profile: &Profile,
    grid: &Grid,
) -> Vec<Line> {
    let n = task.problems.len().max(1) as f64;
    let said = |answered: &Answered| -> Vec<String> {
        answered.texts.iter().map(|text| tasks::answer(text).to_owned()).collect()
    };
    let Some((_, reference)) = answered.iter().find(|(format, _)| format.name == STORED.name) else {
        return Vec::new();
    };
    let (stored, stored_j) = (said(reference), reference.joules(profile) / n);
    let line = |(format, answered): &(Format, Answered)| {
        let (said, joules) = (said(answered), answered.joules(profile) / n);
        let right =
            task.problems.iter().zip(&answered.texts).filter(|(problem, text)| problem.is_answered_by(text));
        let pairs: Vec<(&str, &str)> = task
            .problems
            .iter()
            .zip(&said)
            .map(|(problem, said)| (problem.answer.trim(), said.as_str()))
            .collect();
        Line {
            task: task.name.clone(),
            format: format.name,
            bits: format.bits,
            weight_bytes: answered.weight_bytes,
            joules,
            carbon_mg: carbon::operational_mg(joules, grid.mg_per_wh),
            joules_of_stored: joules / stored_j,
            accuracy: right.count() as f64 / n,
            labels: task.labels().map(|labels| LabelScores::new(&labels, &pairs)),
            drift: said.iter().zip(&stored).filter(|(now, then)| now != then).count() as f64 / n,
            logprob_shift: shift(&answered.logprobs, &reference.logprobs),
        }
    };
    answered.iter().map(line).collect()
}

/// Mean distance.
fn shift(now: &[f64], then: &[f64]) -> f64 {
    let sum: f64 = now.iter().zip(then).map(|(now, then)| (now - then).abs()).sum();
    sum / now.len().max(1) as f64
}

/// Bars of energy, and of accuracy and drift.
pub(super) fn plots(page: &mut Page, lines: &[Line]) -> Result<()> {
    let formats: Vec<String> = SWEEP.iter().map(|format| format.name.to_owned()).collect();
    let mut tasks: Vec<&str> = lines.iter().map(|line| line.task.as_str()).collect();
    tasks.dedup();
    let bars = |pick: fn(&Line) -> f64| {
        let of = |task: &&str| {
            let own = lines.iter().filter(|line| line.task == *task);
            ((*task).to_owned(), own.map(|line| [pick(line), 0.0]).collect::<Vec<_>>())
        };
        tasks.iter().map(of).collect::<Vec<_>>()
    };
    let titles = |title, y| Titles { title, x: "weights", y };
    let energy = titles("Energy against stored weights (carbon is the same ratio)", "ratio");
    page.plot("Energy and carbon", plot::bars(energy, &formats, &bars(|line| line.joules_of_stored))?);
    page.plot("Accuracy", plot::bars(titles("Accuracy", "share"), &formats, &bars(|line| line.accuracy))?);
    page.plot(
        "Drift",
        plot::bars(titles("Answers that changed", "share"), &formats, &bars(|line| line.drift))?,
    );
    Ok(())
}

pub(super) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "task",
        "weights",
        "bits",
        "KiB",
        "mJ/problem",
        "of f16",
        "mg CO2e",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "drift",
        "Δ log p",
    ]);
    for line in lines {
        let label = |pick: fn(&LabelScores) -> f64| {
            line.labels.as_ref().map(|l| percent(pick(l))).unwrap_or_default()
        };
        table.row([
            line.task.clone(),
            line.format.to_owned(),
            line.bits.to_string(),
            (line.weight_bytes >> 10).to_string(),
            format!("{:.4}", line.joules * 1e3),
            format!("{:.3}", line.joules_of_stored),
            format!("{:.6}", line.carbon_mg),
            percent(line.accuracy),
            label(|l| l.precision),
            label(|l| l.recall),
            label(|l| l.f1),
            percent(line.drift),
            format!("{:.5}", line.logprob_shift),
        ]);
    }
    table
}

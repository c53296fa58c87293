//! What quantization, caching and batching do, each by itself.

use serde::Serialize;
use wattle_engine::{Precision, RanStep};
use wattle_policy::{Profile, RowShape};

use super::{BATCH, FOUR_BITS, Page, STORED, Shipped};
use crate::error::Result;
use crate::table::Table;

/// Problems that it asks: without a cache every token costs a prompt.
const PROBLEMS: usize = 16;

/// One combination of the ablation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ablated {
    format: &'static str,
    cache: bool,
    batch: usize,
    /// Per problem.
    joules: f64,
}

/// All eight combinations on the task with steps. Formats and batches are run; what ran is priced as it is and as it
/// would be without a cache.
pub(super) fn run(shipped: &Shipped, profile: &Profile) -> Result<Vec<Ablated>> {
    let Some(task) = shipped.tasks.iter().find(|task| task.labels().is_none()) else { return Ok(Vec::new()) };
    let problems = &task.problems[..PROBLEMS.min(task.problems.len())];
    let mut all = Vec::new();
    for format in [STORED, FOUR_BITS] {
        for batch in [BATCH, 1] {
            let mut answered = shipped.answer(task, problems, format.kept, Precision::Exact, batch)?;
            for cache in [true, false] {
                if !cache {
                    answered.steps.iter_mut().for_each(without_cache);
                }
                let joules = answered.joules(profile) / problems.len().max(1) as f64;
                all.push(Ablated { format: format.name, cache, batch, joules });
            }
        }
    }
    Ok(all)
}

/// The step as it would be without a cache of keys and values: a sequence's one new row brings all rows before it.
fn without_cache(step: &mut RanStep) {
    let rows = std::mem::take(&mut step.shape.rows);
    for row in &rows {
        let alone = rows.iter().filter(|other| other.sequence == row.sequence).count() == 1;
        let before = if alone { row.position } else { 0 };
        let earlier = (0..before).map(|position| RowShape { position, sampled: false, ..*row });
        step.shape.rows.extend(earlier);
        step.shape.rows.push(*row);
    }
}

/// Adds both tables.
pub(super) fn tables(page: &mut Page, all: &[Ablated]) {
    let caption = "Ablation: stored weights or 4 bits, batches of 8 or 1, and what ran priced with a cache of keys and \
                   values or without";
    page.table(caption, combinations(all));
    page.table("Effect of each change by itself, over the four combinations of the others", effects(all));
}

fn combinations(all: &[Ablated]) -> Table {
    let mut table = Table::new(["weights", "cache", "batch", "mJ/problem"]);
    for line in all {
        let cache = if line.cache { "yes" } else { "no" };
        let joules = format!("{:.4}", line.joules * 1e3);
        table.row([line.format.to_owned(), cache.to_owned(), line.batch.to_string(), joules]);
    }
    table
}

/// What each change multiplies energy by: mean (geometric), least and most over the others' combinations.
fn effects(all: &[Ablated]) -> Table {
    let mut table = Table::new(["change", "energy ×", "least", "most"]);
    type With = fn(&Ablated) -> bool;
    let changes: [(&str, With); 3] = [
        ("4 bits for 16", |line| line.format == FOUR_BITS.name),
        ("a cache of keys and values", |line| line.cache),
        ("batches of 8", |line| line.batch > 1),
    ];
    for (index, (name, with)) in changes.iter().enumerate() {
        let others = |line: &Ablated| {
            let flags = changes.map(|(_, with)| with(line));
            flags
                .into_iter()
                .enumerate()
                .filter(|(i, _)| *i != index)
                .map(|(_, flag)| flag)
                .collect::<Vec<_>>()
        };
        let ratio = |on: &Ablated| {
            let off = all.iter().find(|off| !with(off) && others(off) == others(on))?;
            Some(on.joules / off.joules)
        };
        let ratios: Vec<f64> = all.iter().filter(|line| with(line)).filter_map(ratio).collect();
        let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
        let ends = [f64::min as fn(f64, f64) -> f64, f64::max].map(|end| ratios.iter().copied().reduce(end));
        let [least, most] = ends.map(|end| format!("{:.3}", end.unwrap_or(1.0)));
        table.row([(*name).to_owned(), format!("{mean:.3}"), least, most]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattle_policy::StepShape;

    #[test]
    fn without_a_cache_a_lone_row_brings_all_rows_before_it() {
        let mut decode = RanStep { shape: StepShape::decode(2, 3), adapted: false };
        without_cache(&mut decode);
        let rows: Vec<_> =
            decode.shape.rows.iter().map(|row| (row.sequence, row.position, row.sampled)).collect();
        let one = |s| [(s, 0, false), (s, 1, false), (s, 2, false), (s, 3, true)];
        assert_eq!(rows, [one(0), one(1)].concat());
        let mut prompt = RanStep { shape: StepShape::prefill(4, 0), adapted: false };
        let before = prompt.clone();
        without_cache(&mut prompt);
        assert_eq!(prompt, before);
    }

    #[test]
    fn effects_are_taken_with_everything_else_alike() {
        let mut all = Vec::new();
        for (format, f) in [("f16", 1.0), ("q4_0", 0.5)] {
            for (batch, b) in [(8, 1.0), (1, 3.0)] {
                for (cache, c) in [(true, 1.0), (false, 10.0)] {
                    all.push(Ablated { format, cache, batch, joules: f * b * c });
                }
            }
        }
        let table = effects(&all);
        let column: Vec<&str> = table.rows()[1..].iter().map(|row| row[1].as_str()).collect();
        assert_eq!(column, ["0.500", "0.100", "0.333"]);
    }
}

//! What the kernels of a step take, by the device's own clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use wattle_engine::backend::{Backend, Step};
use wattle_engine::cache::tables;
use wattle_engine::plan::Plan;
use wattle_policy::{CostSource, OpCost, StepShape};

use super::ceilings::Ceilings;
use crate::error::Result;
use crate::table::{Table, percent};

/// Steps that are counted, after some that are not.
const STEPS: u32 = 8;
const WARM_UP: u32 = 2;

/// Ops of the same name in all layers, in one step.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    /// The model's shape.
    pub shape: String,
    /// `decode` or `prompt`.
    pub test: &'static str,
    pub rows: usize,
    /// Rank of the adapter that all rows name; 0 for none.
    pub rank: u32,
    /// The ops' name, with `*` for the layer.
    pub op: String,
    pub kernel: &'static str,
    /// Launches in a step.
    pub launches: f64,
    /// In a step.
    pub seconds: f64,
    /// Compulsory DRAM bytes of a step.
    pub bytes: u64,
    pub bytes_per_second: f64,
    /// Of what the device reads when it reads as much as the whole step.
    pub read_share: f64,
    pub multiply_adds_per_second: f64,
    /// Of what the device multiplies and adds in f32.
    pub arithmetic_share: f64,
}

impl Line {
    fn same_step(&self, other: &Self) -> bool {
        let step = |line: &Self| (line.test, line.rows, line.rank);
        self.shape == other.shape && step(self) == step(other)
    }
}

/// A step that is timed.
pub(super) struct Timed<'a> {
    pub shape: &'a str,
    pub test: &'static str,
    pub rank: u32,
    pub plan: Arc<Plan>,
    pub step: StepShape,
}

impl Timed<'_> {
    /// Times it; nothing where the device has no timestamps.
    pub fn lines(&self, backend: &mut dyn Backend, ceilings: &mut Ceilings) -> Result<Vec<Line>> {
        let handle = backend.prepare(&self.plan)?;
        let step = Step::of(&self.step);
        for (sequence, table) in tables(&self.step) {
            backend.set_pages(sequence, &table)?;
        }
        backend.set_timing(true);
        for count in [WARM_UP, STEPS] {
            backend.take_timings();
            for _ in 0..count {
                let ticket = backend.submit(handle, &step)?;
                backend.collect(ticket)?;
            }
        }
        let timings = backend.take_timings();
        backend.set_timing(false);
        // Several plans of a backend have ops of the same name; only this one's ran.
        let costs: BTreeMap<&str, OpCost> = (0..)
            .zip(&self.plan.ops)
            .map(|(op, o)| (o.name.as_str(), self.plan.cost(op, &self.step)))
            .collect();
        let total: u64 = costs.values().map(OpCost::dram_bytes).sum();
        let mut sums: BTreeMap<(String, &'static str), (f64, u64, OpCost)> = BTreeMap::new();
        for timing in &timings {
            let sum = sums.entry((without_layer(&timing.op), timing.kernel)).or_default();
            sum.0 += timing.seconds;
            sum.1 += timing.launches;
            sum.2 += costs.get(timing.op.as_str()).copied().unwrap_or_default();
        }
        let read = ceilings.read(total)?;
        let line = |((op, kernel), (seconds, launches, cost)): ((String, _), (f64, u64, OpCost))| {
            let (seconds, launches) = (seconds / f64::from(STEPS), launches as f64 / f64::from(STEPS));
            let bytes_per_second = cost.dram_bytes() as f64 / seconds;
            let multiply_adds_per_second = (cost.flops + cost.lora_flops) as f64 / 2.0 / seconds;
            Line {
                shape: self.shape.to_owned(),
                test: self.test,
                rows: self.step.rows.len(),
                rank: self.rank,
                op,
                kernel,
                launches,
                seconds,
                bytes: cost.dram_bytes(),
                bytes_per_second,
                read_share: bytes_per_second / read,
                multiply_adds_per_second,
                arithmetic_share: multiply_adds_per_second / ceilings.multiply_adds,
            }
        };
        let mut lines: Vec<Line> = sums.into_iter().map(line).collect();
        lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(lines)
    }
}

/// `layers.7.o` → `layers.*.o`.
fn without_layer(op: &str) -> String {
    let parts = op.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// What a step of these ops takes: its launches and seconds.
fn total<'a>(lines: impl Iterator<Item = &'a Line>) -> (f64, f64) {
    lines.fold((0.0, 0.0), |(launches, seconds), line| (launches + line.launches, seconds + line.seconds))
}

/// The steps of all shapes.
pub(super) fn steps(lines: &[Line]) -> Table {
    let mut table = Table::new(["shape", "step", "rank", "launches", "time"]);
    for step in lines.chunk_by(Line::same_step) {
        let (launches, seconds) = total(step.iter());
        let Some(line) = step.first() else { continue };
        table.row([
            line.shape.clone(),
            format!("{} of {}", line.test, line.rows),
            line.rank.to_string(),
            format!("{launches:.0}"),
            format!("{:.1} us", seconds * 1e6),
        ]);
    }
    table
}

/// The ops that take at least a hundredth of their step.
pub(super) fn ops(lines: &[Line]) -> Table {
    let header = [
        "step",
        "rank",
        "op",
        "kernel",
        "launches",
        "time",
        "of step",
        "GB/s",
        "of reading",
        "GMAC/s",
        "of arithmetic",
    ];
    let mut table = Table::new(header);
    for step in lines.chunk_by(Line::same_step) {
        let (_, seconds) = total(step.iter());
        for line in step.iter().filter(|line| line.seconds >= 0.01 * seconds) {
            table.row([
                format!("{} of {}", line.test, line.rows),
                line.rank.to_string(),
                line.op.clone(),
                line.kernel.to_owned(),
                format!("{:.0}", line.launches),
                format!("{:.1} us", line.seconds * 1e6),
                percent(line.seconds / seconds),
                format!("{:.1}", line.bytes_per_second / 1e9),
                percent(line.read_share),
                format!("{:.1}", line.multiply_adds_per_second / 1e9),
                percent(line.arithmetic_share),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_one() {
        assert_eq!(without_layer("layers.12.q+k+v"), "layers.*.q+k+v");
        assert_eq!(without_layer("head"), "head");
    }

    #[test]
    fn a_step_has_the_rows_of_its_shape() {
        let step = Step::of(&StepShape::prefill(3, 2).with_adapter(4));
        assert_eq!(step.rows.iter().map(|row| row.position).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(step.rows.iter().all(|row| row.slot == 0 && row.lora == [u32::MAX; 4]));
        assert_eq!(step.samples.iter().map(|sample| sample.row).collect::<Vec<_>>(), [2]);
    }
}

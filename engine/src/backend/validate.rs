//! Checks of plans, steps and doors, the same for every backend: what passes here cannot make a kernel read or write
//! outside its operands.

use std::collections::HashMap;

use wattle_shaders::{FROM_STATE, GENERATED, LONG_ROPE, NO_INDEX};

use super::{Capacity, Doors, Step};
use crate::adapter::Factors;
use crate::error::{Error, Result};
use crate::plan::{Extent, Op, OpKind, Plan, Site};
use crate::request::Sampling;

/// What a step of a plan must stay within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Of the backend.
    pub capacity: Capacity,
    /// Tokens are below this.
    pub vocab: usize,
    /// Positions are below this: the context, or less where a position table is shorter.
    pub positions: usize,
    /// Adapter slots are below this; `None` where the plan has no LoRA and ignores them.
    pub slots: Option<usize>,
    /// Whether rows may ask for the long factor set.
    pub long_rope: bool,
}

impl StepLimits {
    /// The limits of a plan on a backend of this capacity.
    pub fn of(plan: &Plan, capacity: Capacity) -> Self {
        let table = |kind: &OpKind| match kind {
            OpKind::AddPosition { table, offset } => Some(table.rows.saturating_sub(*offset as usize)),
            _ => None,
        };
        let tables = plan.ops.iter().filter_map(|op| table(&op.kind));
        Self {
            capacity,
            vocab: plan.vocab,
            positions: tables.fold(capacity.context, usize::min),
            slots: sites(plan).map(|site| site.capacity.slots).min(),
            long_rope: plan.rope.as_ref().is_none_or(|rope| rope.sets() > 1),
        }
    }

    /// Whether a step fits.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first field that does not.
    pub fn check(&self, step: &Step) -> Result<()> {
        let Capacity { rows, samples, sequences, .. } = self.capacity;
        below("step.rows", step.rows.len(), rows + 1)?;
        below("step.samples", step.samples.len(), samples + 1)?;
        let mut last = HashMap::new();
        let generated = step.generated();
        for (i, row) in step.rows.iter().enumerate() {
            let name = |field: &str| format!("step.rows[{i}].{field}");
            if row.flags & FROM_STATE == 0 {
                below(name("token"), row.token as usize, self.vocab)?;
            }
            below(name("position"), row.position as usize, self.positions)?;
            below(name("sequence"), row.sequence as usize, sequences)?;
            if let (Some(slots), true) = (self.slots, row.slot != NO_INDEX) {
                below(name("slot"), row.slot as usize, slots)?;
            }
            if i >= generated && row.flags & GENERATED != 0 {
                return Err(Error::value(name("flags"), "GENERATED, behind a row of a prompt"));
            }
            if row.flags & LONG_ROPE != 0 && !self.long_rope {
                return Err(Error::value(name("flags"), "LONG_ROPE, but the model has no long factors"));
            }
            if last.insert(row.sequence, row.position).is_some_and(|last| last >= row.position) {
                return Err(Error::value(name("position"), "not above the sequence's row before it"));
            }
        }
        self.samples(step)
    }

    fn samples(&self, step: &Step) -> Result<()> {
        for (i, sample) in step.samples.iter().enumerate() {
            let name = |field: &str| format!("step.samples[{i}].{field}");
            below(name("row"), sample.row as usize, step.rows.len())?;
            if i > 0 && step.samples[i - 1].row >= sample.row {
                return Err(Error::value(name("row"), "not above the sample before it"));
            }
            if sample.sequence != step.rows[sample.row as usize].sequence {
                return Err(Error::value(name("sequence"), "not the sequence of its row"));
            }
            // 0 is greedy.
            let cold = if sample.temperature == 0.0 { 0.0 } else { Sampling::LEAST_TEMPERATURE };
            let numbers = [
                ("temperature", sample.temperature, cold),
                ("top_p", sample.top_p, 0.0),
                ("penalty", sample.penalty, Sampling::LEAST_PENALTY),
            ];
            for (field, value, least) in numbers {
                if !value.is_finite() || value < least {
                    return Err(Error::value(
                        name(field),
                        format!("{value}, expected a number from {least} on"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether tokens that count as seen are tokens of the model.
pub fn seen(tokens: &[u32], vocab: usize) -> Result<()> {
    let largest = tokens.iter().max().copied();
    largest.map_or(Ok(()), |token| below("seen token", token as usize, vocab))
}

/// Whether `value` is below `end`.
pub fn below(name: impl ToString, value: usize, end: usize) -> Result<()> {
    if value < end {
        return Ok(());
    }
    Err(Error::value(name, format!("{value}, expected less than {end}")))
}

/// Whether doors fit a plan and a step: the range, sizes and tensors of the imports, and that taps are written.
///
/// # Errors
/// [`Error::Value`] that names the tensor.
pub fn doors(plan: &Plan, step: &Step, doors: &Doors) -> Result<()> {
    let Some(ops) = plan.ops.get(doors.range.clone()) else {
        let reason = format!("{:?}, but the plan has {} ops", doors.range, plan.ops.len());
        return Err(Error::value("doors.range", reason));
    };
    let name = |id: crate::plan::TensorId| plan.tensors.get(id.0 as usize).map_or("?", |t| t.name.as_str());
    let needed = plan.live_in(doors.range.clone());
    for &id in &needed {
        if !doors.import.iter().any(|(given, _)| *given == id) {
            return Err(Error::value(
                format!("doors.import {}", name(id)),
                "missing, but the range reads it",
            ));
        }
    }
    for (id, values) in &doors.import {
        let field = format!("doors.import {}", name(*id));
        if !needed.contains(id) {
            return Err(Error::value(field, "not a tensor that the range reads and does not write"));
        }
        let tensor = plan.tensor(*id);
        let lines = lines(tensor.extent, step);
        if values.len() != lines * tensor.width {
            let reason = format!("{} elements, expected {lines} × {}", values.len(), tensor.width);
            return Err(Error::value(field, reason));
        }
    }
    for id in &doors.taps {
        if !ops.iter().any(|op| op.outputs().any(|output| output == *id)) {
            return Err(Error::value(format!("doors.taps {}", name(*id)), "no op of the range writes it"));
        }
    }
    Ok(())
}

/// Rows that a tensor of this extent has in a step.
pub fn lines(extent: Extent, step: &Step) -> usize {
    match extent {
        Extent::Rows => step.rows.len(),
        Extent::Samples => step.samples.len(),
    }
}

/// The LoRA sites of a plan.
pub fn sites(plan: &Plan) -> impl Iterator<Item = &Site> {
    plan.ops.iter().flat_map(Op::sites).map(|site| &**site)
}

/// Whether a slot's factors fit the sites of a plan (places that the plan has not are ignored).
///
/// # Errors
/// [`Error::Value`] that names the slot or the factors.
pub fn factors(plan: &Plan, slot: usize, factors: &Factors) -> Result<()> {
    for site in sites(plan) {
        below("slot", slot, site.capacity.slots)?;
        for target in &site.targets {
            let place = crate::adapter::Place { layer: site.layer, target: target.target };
            let Some(pair) = factors.pairs().get(&place) else { continue };
            let name = format!("factors of {:?} in layer {}", place.target, place.layer);
            below(format!("{name}: rank"), pair.rank, site.capacity.rank + 1)?;
            let sizes = (pair.cols, pair.rows, pair.a.len(), pair.b.len());
            if sizes != (site.cols, target.rows, pair.rank * site.cols, pair.rank * target.rows) {
                let reason = format!(
                    "made for {} inputs and {} outputs, the model has {} and {}",
                    pair.cols, pair.rows, site.cols, target.rows
                );
                return Err(Error::value(name, reason));
            }
        }
    }
    Ok(())
}

//! What holds bit for bit within one backend (DESIGN idea 6): a row alone is the row in a batch, and a masked row is
//! the same row without an adapter.

use std::sync::Arc;

use wattle_engine::backend::Step;
use wattle_engine::cache::pages_for;
use wattle_engine::model::Matrix;
use wattle_engine::plan::{Extent, Op, OpKind, TensorId};
use wattle_engine::{FROM_STATE, NO_INDEX, Row};

use crate::case::{Act, Case, Make, Seen};
use crate::compare::Failure;

impl Case {
    /// Checks row invariance and masks. Cases of several acts, or with rows from the state, are not looked at: what
    /// their rows give depends on earlier acts.
    ///
    /// # Errors
    /// A [`Failure`] that names the first difference.
    pub fn check_exact(&self, make: Make) -> Result<(), Failure> {
        let [Act::Run { step, import, .. }] = self.acts.as_slice() else { return Ok(()) };
        if step.rows.iter().any(|row| row.flags & FROM_STATE != 0) {
            return Ok(());
        }
        let whole = self.answers(make)?;
        let n = step.rows.len();
        if n > 1 {
            // Of many rows a dozen or so, from every part of a tile.
            for index in (0..n).step_by(1 + n / 13) {
                let (step, import) = self.one_row(step, import, index);
                self.same_line(&whole, &self.with(step, import).answers(make)?, index)?;
            }
        }
        self.check_pages(&whole, make)?;
        if let Some(sorted) = self.in_order() {
            let what = "columns in another order and inputs sorted beforehand differ";
            self.same(what, &whole, &sorted.answers(make)?)?;
        }
        self.check_masks(make)
    }

    /// Other pages, and pages that are not shared, make no difference.
    fn check_pages(&self, whole: &[Seen], make: Make) -> Result<(), Failure> {
        let each = pages_for(self.capacity.context) as u32;
        let sequences = 0..self.tables().len() as u32;
        let tables = sequences.map(|sequence| (sequence * each..(sequence + 1) * each).collect()).collect();
        let moved = Self { tables: Some(tables), ..self.clone() };
        self.same("other pages make a difference", whole, &moved.answers(make)?)
    }

    /// Masked rows are rows without a slot, are rows with an empty slot.
    fn check_masks(&self, make: Make) -> Result<(), Failure> {
        if self.slots.is_empty() {
            return Ok(());
        }
        for every in [1, 2] {
            let changed = |change: fn(&mut Row)| {
                let mut case = self.clone();
                if let [Act::Run { step, .. }] = case.acts.as_mut_slice() {
                    step.rows.iter_mut().step_by(every).for_each(change);
                }
                case
            };
            let masked = changed(|row| row.lora = [0; 4]).answers(make)?;
            let without = changed(|row| row.slot = NO_INDEX).answers(make)?;
            self.same("masked rows and rows without a slot differ", &masked, &without)?;
            if every == 1 {
                let mut empty = changed(|row| row.lora = [u32::MAX; 4]);
                empty.slots = vec![None; self.slots.len()];
                self.same("masked rows and empty slots differ", &masked, &empty.answers(make)?)?;
            }
        }
        Ok(())
    }

    /// Where the op's matrices have columns in another order than its inputs: the same without an order, on inputs that
    /// were brought into it.
    fn in_order(&self) -> Option<Self> {
        let order = self.plan.ops.first()?.kind.order()?.inputs();
        let (mut case, mut plan) = (self.clone(), (*self.plan).clone());
        let without =
            |matrix: &mut Arc<Matrix>| *matrix = Arc::new(Matrix { order: None, ..(**matrix).clone() });
        match &mut plan.ops.first_mut()?.kind {
            OpKind::Project(project) => without(&mut project.weight),
            OpKind::GateUp(gate_up) => [&mut gate_up.gate, &mut gate_up.up].into_iter().for_each(without),
            _ => return None,
        }
        case.plan = Arc::new(plan);
        let [Act::Run { import, .. }] = case.acts.as_mut_slice() else { return None };
        let x = &mut import.first_mut()?.1;
        let sorted = |line: &[f32]| order.iter().map(|&input| line[input as usize]).collect::<Vec<_>>();
        *x = x.chunks(order.len()).flat_map(sorted).collect();
        Some(case)
    }

    fn answers(&self, make: Make) -> Result<Vec<Seen>, Failure> {
        self.run(make(self)).map_err(|error| self.failure(error.to_string()))
    }

    fn failure(&self, what: String) -> Failure {
        Failure { case: self.name.clone(), what }
    }

    fn with(&self, step: Step, import: Vec<(TensorId, Vec<f32>)>) -> Self {
        let act = Act::Run { range: 0..self.plan.ops.len(), step, import };
        Self { acts: vec![act], plan: Arc::clone(&self.plan), ..self.clone() }
    }

    /// The step with only row `index`, and its lines of what is imported.
    fn one_row(
        &self,
        step: &Step,
        import: &[(TensorId, Vec<f32>)],
        index: usize,
    ) -> (Step, Vec<(TensorId, Vec<f32>)>) {
        let sample = step.samples.iter().position(|sample| sample.row as usize == index);
        let samples = sample.map(|sample| wattle_engine::Sample { row: 0, ..step.samples[sample] });
        let line = |(id, values): &(TensorId, Vec<f32>)| {
            let tensor = self.plan.tensor(*id);
            let line = if tensor.extent == Extent::Rows { Some(index) } else { sample };
            let values = line.map_or(&[][..], |line| &values[line * tensor.width..][..tensor.width]);
            (*id, values.to_vec())
        };
        let alone = Step { rows: vec![step.rows[index]], samples: samples.into_iter().collect() };
        (alone, import.iter().map(line).collect())
    }

    /// Whether what row `index` gave alone are its lines of the whole. The cache's other positions are the same as
    /// before in both, so only the row's own is looked at.
    fn same_line(&self, whole: &[Seen], alone: &[Seen], index: usize) -> Result<(), Failure> {
        let [Act::Run { step, .. }] = self.acts.as_slice() else { return Ok(()) };
        let row = step.rows[index];
        let sample = step.samples.iter().position(|sample| sample.row as usize == index);
        let outputs: Vec<_> = self.plan.ops.iter().flat_map(Op::outputs).collect();
        for (at, (whole, alone)) in whole.iter().zip(alone).enumerate() {
            let (Seen::Floats(name, whole), Seen::Floats(_, alone)) = (whole, alone) else { continue };
            let (width, lines) = match outputs.get(at).map(|&id| self.plan.tensor(id)) {
                Some(tensor) if tensor.extent == Extent::Rows => (tensor.width, Some((index, 0))),
                Some(tensor) => (tensor.width, sample.map(|sample| (sample, 0))),
                None => {
                    // Keys and values follow the outputs, two for each entry of `kv`.
                    let own = self.kv[(at - outputs.len()) / 2].1 == row.sequence;
                    (self.plan.kv.width(), own.then_some((row.position as usize, row.position as usize)))
                }
            };
            let Some((in_whole, in_alone)) = lines else { continue };
            let part = |values: &[f32], line: usize| values[line * width..][..width].to_vec();
            if !same_bits(&part(whole, in_whole), &part(alone, in_alone)) {
                return Err(self.failure(format!("row {index} alone and in the batch differ in {name}")));
            }
        }
        Ok(())
    }

    fn same(&self, what: &str, one: &[Seen], other: &[Seen]) -> Result<(), Failure> {
        let same = |(one, other): (&Seen, &Seen)| match (one, other) {
            (Seen::Floats(_, one), Seen::Floats(_, other)) => same_bits(one, other),
            (one, other) => one == other,
        };
        if one.iter().zip(other).all(same) { Ok(()) } else { Err(self.failure(what.into())) }
    }
}

/// Bit for bit the same; NaN (left alone) is the same as any NaN.
fn same_bits(one: &[f32], other: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    one.len() == other.len() && one.iter().zip(other).all(same)
}

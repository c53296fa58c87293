//! Single ops of a plan, repeated while a counter counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_engine::backend::{Backend, Capacity, Doors, PlanHandle, Step, create};
use wattle_engine::cache::pages_for;
use wattle_engine::model::{Dtype, Model};
use wattle_engine::plan::{LoraCapacity, Plan};
use wattle_engine::{BackendChoice, EngineOptions, Row, Sample, compile};
use wattle_policy::{CostSource, StepShape};

use crate::common::Common;
use crate::error::Result;
use crate::fit::Measured;
use crate::meters::{EnergyCounter, Window};
use crate::progress::Progress;

/// Positions in the cache before the step.
const DEPTH: u32 = 64;

/// What the machine draws when nothing runs.
pub(crate) fn idle(counter: &mut dyn EnergyCounter) -> Result<Window> {
    let mut sleep = || {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    };
    Ok(Window::amplify(counter, &mut clock(), &mut sleep)?.0)
}

/// Seconds since now.
fn clock() -> impl FnMut() -> f64 {
    let start = Instant::now();
    move || start.elapsed().as_secs_f64()
}

/// One window for every kernel of a shape's plan and every number of rows.
pub(crate) fn of_shape(
    shape: &str,
    rows: &[u32],
    common: &Common,
    counter: &mut dyn EnergyCounter,
    idle: &Window,
) -> Result<Vec<Measured>> {
    let model = common.quantized(Model::random(shape, Dtype::Bf16, 0)?)?;
    let most = rows.iter().copied().max().unwrap_or(1) as usize;
    let options = EngineOptions { sequences: most, rows: most, ..common.engine_options() };
    let Alone { mut backend, handle, plan } = Alone::new(&model, &options)?;
    let ops = ops(&plan);
    let progress = Progress::bar(shape.to_owned(), ops.len() * rows.len());
    let mut windows = Vec::new();
    for &rows in rows {
        let (step, shape) = (step(rows), StepShape::decode(rows, DEPTH));
        for &index in &ops {
            let doors =
                Doors { range: index..index + 1, import: imports(&plan, index, rows), taps: Vec::new() };
            let mut work = || Ok(backend.run(handle, &step, &doors).map(drop)?);
            let (window, rate) = Window::amplify(counter, &mut clock(), &mut work)?;
            let op = &plan.ops[index];
            let cost = plan.cost(index, &shape);
            windows.push(Measured::new(op.kind.kernel(), &cost, 1.0 / rate, window.joules_each(idle, rate)));
            progress.step();
        }
    }
    Ok(windows)
}

/// The plan of a model without LoRA, on a backend of its own: its pages are nobody else's.
struct Alone {
    backend: Box<dyn Backend>,
    handle: PlanHandle,
    plan: Arc<Plan>,
}

impl Alone {
    /// With room for a token at [`DEPTH`] of every sequence.
    fn new(model: &Model, options: &EngineOptions) -> Result<Self> {
        let (sequences, rows, context) = (options.sequences, options.rows, DEPTH as usize + 1);
        let pages = sequences * pages_for(context);
        let mut backend = create(options, Capacity { sequences, context, pages, rows, samples: rows })?;
        let choice = if backend.kind() == "cpu" { BackendChoice::Cpu } else { BackendChoice::Gpu };
        let options = EngineOptions { backend: choice, ..options.clone() };
        let plan = Arc::new(compile(model, &options, LoraCapacity::default()).0);
        Ok(Self { handle: backend.prepare(&plan)?, backend, plan })
    }
}

/// The first op of every kernel and output width: layers are alike.
fn ops(plan: &Plan) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let width = |index: usize| plan.ops[index].output.map_or(0, |id| plan.tensor(id).width);
    (0..plan.ops.len()).filter(|&index| seen.insert((plan.ops[index].kind.kernel(), width(index)))).collect()
}

/// Ones for every tensor that the op reads.
fn imports(plan: &Plan, index: usize, rows: u32) -> Vec<(wattle_engine::plan::TensorId, Vec<f32>)> {
    let ones = |id| {
        let tensor = plan.tensor(id);
        (id, vec![1.0; rows as usize * tensor.width])
    };
    plan.live_in(index..index + 1).into_iter().map(ones).collect()
}

/// One token of so many sequences, all sampled.
fn step(rows: u32) -> Step {
    let sample =
        |row| Sample { row, sequence: row, top_p: 1.0, penalty: 1.0, ..bytemuck::Zeroable::zeroed() };
    Step {
        rows: (0..rows).map(|sequence| Row::prompt(0, DEPTH, sequence)).collect(),
        samples: (0..rows).map(sample).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_a_plan_runs_by_itself() {
        let model = Model::random("tiny", Dtype::Bf16, 0).unwrap();
        let options =
            EngineOptions { backend: BackendChoice::Cpu, sequences: 3, rows: 3, ..EngineOptions::default() };
        let Alone { mut backend, handle, plan } = Alone::new(&model, &options).unwrap();
        let ops = ops(&plan);
        let kernels: BTreeSet<_> = ops.iter().map(|&index| plan.ops[index].kind.kernel()).collect();
        let all: BTreeSet<_> = plan.ops.iter().map(|op| op.kind.kernel()).collect();
        assert_eq!(kernels, all);
        for index in ops {
            let doors = Doors { range: index..index + 1, import: imports(&plan, index, 3), taps: Vec::new() };
            backend
                .run(handle, &step(3), &doors)
                .map(drop)
                .unwrap_or_else(|error| panic!("{}: {error}", plan.ops[index].name));
        }
    }
}

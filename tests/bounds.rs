//! Fast precision in whole models: what every op of a step makes of what it was given, against exact arithmetic on the
//! dequantized weights. What rounding may change of an output follows from the weights and the inputs; of how errors
//! grow from op to op nothing is said.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{Expected, MODELS, backend, fixtures, options, twins};
use wattle_engine::backend::{Backend, Capacity, Doors, PlanHandle, Step};
use wattle_engine::model::{Activation, Model, Quant};
use wattle_engine::plan::{
    self, FuseOptions, GateUp, LoraCapacity, Norm, Op, OpKind, Plan, Project, TensorId,
};
use wattle_engine::{BackendChoice, EngineOptions, GENERATED, Precision, Row, Sample};
use wattle_tests::products;

const CAPACITY: Capacity = Capacity { sequences: 2, context: 64, pages: 2, rows: 32, samples: 32 };

/// What sums of f32 in another order, and functions that are approximated, change of a tensor's largest element: kernels
/// are within 8e-6 of their twins (tests/kernels).
const ORDER: f64 = 2e-5;

/// Values of tensors.
type Values = HashMap<TensorId, Vec<f32>>;

/// How much faster than its argument a function grows, at most (GELU: 1.129, SiLU: 1.0998).
fn slope(function: Option<Activation>) -> f64 {
    match function {
        None | Some(Activation::Relu) => 1.0,
        Some(Activation::Gelu | Activation::GeluTanh) => 1.13,
        Some(Activation::Silu) => 1.1,
    }
}

/// norm(x) as projections have it, that have their norm in them: x / rms(x) g.
fn normed(norm: &Norm, width: usize, x: &[f32]) -> Vec<f32> {
    let ones = vec![1.0; width];
    let g = norm.weights.weight.as_ref().map_or(&ones, |g| &g.values);
    let line = |x: &[f32]| -> Vec<f32> {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = 1.0 / (squares / width as f64 + f64::from(norm.eps)).sqrt();
        x.iter().zip(g).map(|(&x, &g)| (f64::from(x) * scale * f64::from(g)) as f32).collect()
    };
    x.chunks(width).flat_map(line).collect()
}

/// By how much f(W x + b) + r may be off for the rounding of x.
fn of_project(project: &Project, x: &[f32]) -> Vec<f64> {
    let normed = project.norm.as_ref().map(|norm| normed(norm, project.weight.cols, x));
    let bounds = products(&project.weight, normed.as_deref().unwrap_or(x));
    bounds.into_iter().map(|(_, bound)| slope(project.activation) * bound).collect()
}

/// By how much f(G x + b) (U x + c) may be off.
fn of_gate_up(op: &GateUp, x: &[f32]) -> Vec<f64> {
    let biases = [&op.gate_bias, &op.up_bias].map(|bias| match bias {
        Some(bias) => bias.values.clone(),
        None => vec![0.0; op.gate.rows],
    });
    let both = products(&op.gate, x).into_iter().zip(products(&op.up, x)).enumerate();
    both.map(|(index, ((g, of_g), (u, of_u)))| {
        let [g, u] = [(g, &biases[0]), (u, &biases[1])]
            .map(|(sum, bias)| (sum + f64::from(bias[index % op.gate.rows])).abs());
        // Every function here is at most its argument's size.
        slope(Some(op.function)) * of_g * (u + of_u) + g * of_u
    })
    .collect()
}

/// The same of an op; `None` where nothing is rounded.
fn rounding(op: &Op, x: &[f32]) -> Option<Vec<f64>> {
    match &op.kind {
        OpKind::Project(project) => Some(of_project(project, x)),
        OpKind::GateUp(gate_up) => Some(of_gate_up(gate_up, x)),
        _ => None,
    }
}

/// A prompt of sequence 1, and then one generated row of it beside a prompt of sequence 0; every row is sampled.
fn steps(name: &str) -> [Step; 2] {
    let ids = Expected::read(&fixtures().join("models").join(name)).ids("ids").expect("ids");
    let rows = |sequence| ids.iter().zip(0..).map(move |(&token, at)| Row::prompt(token, at, sequence));
    let next = Row { flags: GENERATED, ..Row::prompt(ids[1], ids.len() as u32, 1) };
    let second = [next].into_iter().chain(rows(0).take(5));
    [rows(1).collect(), second.collect()].map(|rows: Vec<Row>| {
        let draw = Sample { top_p: 1.0, penalty: 1.0, ..bytemuck::Zeroable::zeroed() };
        let of = |row: u32, sequence| Sample { row, sequence, ..draw };
        let samples = (0..).zip(&rows).map(|(at, row)| of(at, row.sequence)).collect();
        Step { rows, samples }
    })
}

/// A backend with a plan.
struct Ready<'b> {
    backend: &'b mut dyn Backend,
    plan: PlanHandle,
}

impl Ready<'_> {
    fn run(&mut self, step: &Step, doors: &Doors) -> Values {
        self.backend.run(self.plan, step, doors).expect("it runs")
    }
}

/// Checks every op of a step; the largest share of a bound of rounding.
fn check(what: &str, plan: &Plan, step: &Step, [fast, twins]: &mut [Ready; 2]) -> f64 {
    let end = plan.find_op("sample").expect("a last op");
    let taps = plan.ops[..end].iter().flat_map(Op::outputs).collect();
    let seen = fast.run(step, &Doors { range: 0..end, import: Vec::new(), taps });
    let mut largest = 0.0_f64;
    for (index, op) in plan.ops[..end].iter().enumerate() {
        let import = plan.live_in(index..index + 1).into_iter().map(|id| (id, seen[&id].clone())).collect();
        let taps = op.outputs().collect();
        let exact = twins.run(step, &Doors { range: index..index + 1, import, taps });
        let rounding = op.inputs.first().and_then(|x| rounding(op, &seen[x]));
        for (id, expected) in &exact {
            let size = expected.iter().fold(0.0_f64, |most, &x| most.max(f64::from(x.abs())));
            for (at, (&expected, &got)) in expected.iter().zip(&seen[id]).enumerate() {
                let error = (f64::from(got) - f64::from(expected)).abs();
                let rounded = rounding.as_ref().map_or(0.0, |bounds| bounds[at]);
                let bound = rounded + ORDER * size;
                let op = &op.name;
                // Written so that NaN fails.
                assert!(
                    error <= bound,
                    "{what}: {op} [{at}] is {got}, exactly {expected}, within {bound:.1e}"
                );
                largest = largest.max(if rounded > 0.0 { error / bound } else { 0.0 });
            }
        }
    }
    largest
}

/// Checks a model in both steps, by a plan, on a backend; says how close to their bounds errors come.
fn check_model(name: &str, quant: Quant, fuse: Option<FuseOptions>, backend: &mut dyn Backend) {
    let model = Model::load(&fixtures().join("models").join(name)).expect("the fixture loads");
    let model = model.quantized(quant).expect("finite weights");
    let plain = plan::build(&model.spec, &model.weights, LoraCapacity::default());
    let plan = Arc::new(fuse.map_or(plain.clone(), |options| plan::fuse(&plain, options)));
    let kind = if fuse.is_some() { "fused" } else { "plain" };
    let what = format!("{name} {quant:?} on {}, {kind}", backend.device());
    let mut twins = twins(CAPACITY);
    let ready = |backend: &mut dyn Backend| backend.prepare(&plan).expect("the plan fits");
    let plans = [ready(backend), ready(&mut twins)];
    let mut both = [Ready { backend, plan: plans[0] }, Ready { backend: &mut twins, plan: plans[1] }];
    for step in steps(name) {
        let share = check(&what, &plan, &step, &mut both);
        println!("{what}, {} rows: {share:.2} of a bound", step.rows.len());
        assert!(share > 1e-3, "{what}: was anything rounded?");
    }
}

/// A backend in fast precision, where there is one.
fn fast(choice: BackendChoice) -> Option<Box<dyn Backend>> {
    backend(&EngineOptions { precision: Precision::Fast, ..options(choice) }, CAPACITY)
}

#[test]
fn every_op_of_a_whole_model_keeps_its_bound_in_fast_precision() {
    for name in MODELS {
        for quant in Quant::ALL {
            for fuse in [None, Some(FuseOptions::CPU)] {
                check_model(name, quant, fuse, &mut *fast(BackendChoice::Cpu).expect("the CPU is there"));
            }
        }
    }
}

#[test]
fn so_it_does_on_a_gpu() {
    // Each model in one format: a software GPU is slow.
    for (name, quant) in MODELS.into_iter().zip(Quant::ALL.into_iter().cycle()) {
        let Some(mut backend) = fast(BackendChoice::Gpu) else { return };
        check_model(name, quant, Some(FuseOptions::gpu(1 << 20)), &mut *backend);
    }
}

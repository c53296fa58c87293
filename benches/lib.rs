//! What all kernel benches share: a model of a known shape, its plans, and one op of them at a time.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use wattle_engine::backend::{self, Backend, Capacity, Doors, Step};
use wattle_engine::model::{Dtype, Model};
use wattle_engine::plan::{self, Extent, FuseOptions, LoraCapacity, Plan};
use wattle_engine::{BackendChoice, EngineOptions, LayerMask, Row, Sample};
use wattle_policy::{CostSource, RowShape, StepShape};

/// The model whose ops are timed: small enough that random weights are made in a second.
const SHAPE: &str = "gpt2";
/// The shape for kernels that GPT-2 has no use for (rotation, gated MLP).
const GATED_SHAPE: &str = "qwen2.5-0.5b";
/// Rank of the adapter slot that LoRA kernels are timed with.
const RANK: usize = 16;

/// What one measurement of a kernel runs on.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Rows of the step.
    pub rows: u32,
    /// Position of the first row; the rows before it are in the cache.
    pub depth: u32,
}

/// One row, as in decoding, at the start of a sequence.
pub const DECODE: Rows = Rows { rows: 1, depth: 0 };
/// Eight rows of eight sequences.
pub const EIGHT: Rows = Rows { rows: 8, depth: 0 };
/// A chunk of a prompt.
pub const PREFILL: Rows = Rows { rows: 128, depth: 0 };

/// Times the first op that runs `kernel`, on the CPU, and on a GPU if there is a real one. Throughput is the op's
/// compulsory DRAM bytes.
pub fn bench_kernel(c: &mut Criterion, kernel: &str, measured: &[Rows]) {
    let mut group = c.benchmark_group(kernel);
    for mut bench in benches(kernel) {
        for &rows in measured {
            let (step, shape) = step(rows);
            group.throughput(Throughput::Bytes(bench.plan.cost(bench.op, &shape).dram_bytes()));
            let id = BenchmarkId::new(bench.name.clone(), format!("{}r@{}", rows.rows, rows.depth));
            let doors = bench.doors(&step);
            group.bench_function(id, |b| b.iter_custom(|iterations| bench.time(&step, &doors, iterations)));
        }
    }
    group.finish();
}

/// A kernel on a backend.
struct Bench {
    name: String,
    backend: Box<dyn Backend>,
    handle: backend::PlanHandle,
    plan: Arc<Plan>,
    op: usize,
}

impl Bench {
    /// The op alone, on zeros.
    fn doors(&self, step: &Step) -> Doors {
        let range = self.op..self.op + 1;
        let zeros = |id| {
            let tensor = self.plan.tensor(id);
            let lines = if tensor.extent == Extent::Rows { step.rows.len() } else { step.samples.len() };
            (id, vec![0.0; lines * tensor.width])
        };
        let import = self.plan.live_in(range.clone()).into_iter().map(zeros).collect();
        Doors { range, import, taps: Vec::new() }
    }

    /// What the op itself took, as the backend timed it: without importing its inputs.
    fn time(&mut self, step: &Step, doors: &Doors, iterations: u64) -> Duration {
        self.backend.take_timings();
        for _ in 0..iterations {
            let ran = self.backend.run(self.handle, step, doors);
            assert!(ran.is_ok(), "what is timed must work: {:?}", ran.err());
        }
        Duration::from_secs_f64(self.backend.take_timings().iter().map(|timing| timing.seconds).sum())
    }
}

/// The kernel on every backend that is worth timing: a software GPU is not.
fn benches(kernel: &str) -> Vec<Bench> {
    let shape = if matches!(kernel, "rope" | "rope_kv" | "gate_up") { GATED_SHAPE } else { SHAPE };
    let Ok(model) = Model::random(shape, Dtype::F16, 1) else { return Vec::new() };
    let lora = LoraCapacity { slots: 1, rank: RANK, outside: kernel == "lora_embed" };
    let plain = plan::build(&model.spec, &model.weights, lora);
    let fused = plan::fuse(&plain, FuseOptions { lora_epilogue: true });
    let plan = Arc::new(if matches!(kernel, "rope_kv" | "gate_up" | "project") { fused } else { plain });
    let Some(op) = plan.ops.iter().position(|op| op.kind.kernel() == kernel) else { return Vec::new() };
    let capacity = Capacity { sequences: 8, context: 1024, rows: 128, samples: 128 };
    [BackendChoice::Cpu, BackendChoice::Auto]
        .into_iter()
        .filter_map(|backend| {
            let options = EngineOptions { backend, ..EngineOptions::default() };
            let mut created = backend::create(&options, capacity).ok()?;
            if backend == BackendChoice::Auto && created.kind() == "cpu" {
                return None;
            }
            created.set_timing(true);
            let handle = created.prepare(&plan).ok()?;
            let name = format!("{shape}/{}/{}", plan.ops[op].name, created.kind());
            Some(Bench { name, backend: created, handle, plan: Arc::clone(&plan), op })
        })
        .collect()
}

/// Rows of one sequence (or, up to eight, of one each), every one sampled and on the adapter.
fn step(Rows { rows, depth }: Rows) -> (Step, StepShape) {
    let (mut step, mut shape) = (Step::default(), StepShape::default());
    for i in 0..rows {
        let (sequence, position) = if rows <= 8 { (i, depth) } else { (0, depth + i) };
        let lora = LayerMask::ALL;
        step.rows.push(Row { slot: 0, lora: lora.words(), ..Row::prompt(i, position, sequence) });
        step.samples.push(Sample {
            row: i,
            sequence,
            top_p: 1.0,
            penalty: 1.0,
            ..bytemuck::Zeroable::zeroed()
        });
        shape.rows.push(RowShape {
            token: i,
            sequence,
            position,
            sampled: true,
            slot: Some(0),
            lora: lora.0,
        });
    }
    shape.ranks = vec![RANK as u32];
    (step, shape)
}

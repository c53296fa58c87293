//! What all kernel benches share: cases, one op of a plan at a time, and how far from the machine's limits it is.

mod case;
mod ceilings;
mod device;
mod report;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use wattle_engine::backend::{Backend, Capacity, Doors, PlanHandle, Step};
use wattle_engine::cache::{pages_for, tables};
use wattle_engine::plan::{Extent, Plan};
use wattle_policy::CostSource;

pub use case::{Case, DENSE, GATED, QUANTIZED};
pub use report::finish;

use device::Kind;
use report::Line;

/// `WATTLE_BENCH_FULL=1`: every format with every number of columns, and more models, however long it takes.
static FULL: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("WATTLE_BENCH_FULL").is_some_and(|value| value == "1"));
/// The kernels that are measured on more models then: what bounds them depends on a model's sizes most.
const SHAPED: [&str; 3] = ["project", "gate_up", "attend"];
/// What all kernels together may take otherwise: with the whole steps, `cargo bench` stays under 15 minutes.
const LIMIT: Duration = Duration::from_secs(13 * 60);
/// When the first kernel began.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Times every op of one layer, and outside the layers, that runs `kernel`: on the CPU, and on a GPU if there is a
/// real one, by its own clock. Throughput is the op's compulsory DRAM bytes. A case for which there is no time left is
/// named in the report.
pub fn bench_kernel(c: &mut Criterion, kernel: &'static str, cases: &[Case]) {
    let mut group = c.benchmark_group(kernel);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    let others = Case::others().filter(|_| *FULL && SHAPED.contains(&kernel));
    for case in cases.iter().copied().chain(others) {
        for kind in [Kind::Cpu, Kind::Gpu].into_iter().filter(|kind| kind.is_there()) {
            if !*FULL && STARTED.elapsed() > LIMIT {
                report::leave_out(format!("{kernel}/{}/{}/{}", case.model(), kind.name(), case.rows_name()));
                continue;
            }
            let Some(plan) = case.plan(kernel, kind.choice()) else { continue };
            if let Some(mut runner) = Runner::new(&case, kind, &plan) {
                for op in (0..plan.ops.len()).filter(|&op| plan.ops[op].kind.kernel() == kernel) {
                    runner.bench(&mut group, kernel, &case, op);
                }
            }
        }
    }
    group.finish();
}

/// A plan on a backend.
struct Runner {
    backend: Box<dyn Backend>,
    handle: PlanHandle,
    plan: Arc<Plan>,
}

impl Runner {
    /// `None` where there is no such device (a software GPU is none: timing it says nothing), it has no clock, or
    /// cannot run the plan.
    fn new(case: &Case, kind: Kind, plan: &Arc<Plan>) -> Option<Self> {
        let (context, rows) = (case.context(), case.rows as usize);
        let sequences = case.sequences();
        let pages = sequences * pages_for(context);
        let capacity = Capacity { sequences, context, pages, rows, samples: rows };
        let mut backend = device::backend(kind, case.precision(), capacity)?;
        backend.set_timing(true);
        let handle = backend.prepare(plan).ok()?;
        for (sequence, table) in tables(&case.step()) {
            backend.set_pages(sequence, &table).ok()?;
        }
        if case.rank > 0 {
            backend.set_slot(0, Some(Arc::new(case.factors()))).ok()?;
        }
        Some(Self { backend, handle, plan: Arc::clone(plan) })
    }

    /// Times one op.
    fn bench(&mut self, group: &mut BenchmarkGroup<WallTime>, kernel: &'static str, case: &Case, op: usize) {
        let shape = case.step();
        let step = Step::of(&shape);
        let cost = self.plan.cost(op, &shape);
        group.throughput(Throughput::Bytes(cost.dram_bytes()));
        let name = &self.plan.ops[op].name;
        let id =
            BenchmarkId::new(format!("{}/{name}/{}", case.model(), self.backend.kind()), case.rows_name());
        let doors = self.doors(op, &step);
        let mut seconds = Vec::new();
        group.bench_function(id, |b| {
            b.iter_custom(|iterations| {
                let time = self.time(&step, &doors, iterations);
                seconds.push(time.as_secs_f64() / iterations as f64);
                time
            });
        });
        if let Some(line) =
            Line::new(kernel, case, &self.plan.ops[op].name, self.backend.kind(), cost, seconds)
        {
            report::add(line);
        }
    }

    /// The op alone, on zeros.
    fn doors(&self, op: usize, step: &Step) -> Doors {
        let range = op..op + 1;
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

//! Plans: what fusing leaves of them, their doors, and that fused and plain compute the same.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Expected, backend, error, fixtures, options, twins};
use wattle_engine::adapter::{Adapter, Factors};
use wattle_engine::backend::{Backend, Capacity, Doors, Step};
use wattle_engine::model::{Model, Quant};
use wattle_engine::plan::{self, FactorType, FuseOptions, LoraCapacity, Plan};
use wattle_engine::{BackendChoice, CpuKernels, EngineOptions, KvType, LayerMask, Row, Sample};
use wattle_policy::{CostSource, OpCost, Prefix, RowShape, StepShape};

const FUSE: FuseOptions = FuseOptions::CPU;
const GPU: FuseOptions = FuseOptions::gpu(1 << 20);
const LORA: LoraCapacity = LoraCapacity { slots: 1, rank: 16, outside: true };

fn dir(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn load(name: &str) -> Model {
    Model::load(&dir(name)).expect("the fixture loads")
}

fn ops(plan: &Plan) -> Vec<&str> {
    plan.ops.iter().map(|op| op.name.as_str()).collect()
}

fn layer(plan: &Plan) -> Vec<&str> {
    ops(plan).into_iter().filter_map(|name| name.strip_prefix("layers.1.")).collect()
}

#[test]
fn a_fused_llama_layer_is_seven_launches_with_and_without_adapters() {
    for name in ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "phi3"] {
        let model = load(name);
        let fused = plan::fuse(&plan::build(&model.spec, &model.weights, LORA), GPU);
        let launches = ["qkv", "rope_kv", "attend", "o", "mlp_norm", "gate_up", "down"];
        assert_eq!(layer(&fused), launches, "{name}");
        assert_eq!(layer(&fused.without_lora()), launches, "{name}");
    }
}

#[test]
fn what_a_launch_cannot_carry_has_its_own() {
    let model = load("llama");
    let plain = plan::build(&model.spec, &model.weights, LORA);
    // For a CPU, nothing is carried.
    let cpu = plan::fuse(&plain, FUSE);
    let base = ["attn_norm", "qkv", "rope_kv", "attend", "o", "mlp_norm", "gate_up", "down"];
    assert_eq!(layer(&cpu.without_lora()), base);
    assert_eq!(layer(&cpu).len(), base.len() + 4, "{:?}", layer(&cpu));
    // Where no pool fits a binding, the norm exists for A x alone.
    let tiny = plan::fuse(&plain, FuseOptions::gpu(16));
    assert_eq!(layer(&tiny).len(), base.len() + 4, "{:?}", layer(&tiny));
    assert_eq!(layer(&tiny.without_lora()), base[1..]);
    // Layer norms stay launches, and carry; an MLP without a gate does not.
    let model = load("gpt2-prefix");
    let fused = plan::fuse(&plan::build(&model.spec, &model.weights, LORA), GPU);
    let base = ["attn_norm", "qkv", "rope_kv", "attend", "o", "mlp_norm", "up", "down"];
    assert_eq!(layer(&fused.without_lora()), base);
    assert_eq!(layer(&fused).len(), base.len() + 1, "{:?}", layer(&fused));
}

#[test]
fn the_base_plan_is_the_adapted_one_without_lora() {
    for name in ["llama", "gpt2-prefix", "opt-350m", "qwen3", "phi3"] {
        let model = load(name);
        let plain = plan::build(&model.spec, &model.weights, LORA);
        let base = plan::build(&model.spec, &model.weights, LoraCapacity::default());
        assert_eq!(ops(&plain.without_lora()), ops(&base), "{name}");
        for options in [FUSE, GPU] {
            let fused = plan::fuse(&plain, options).without_lora();
            assert_eq!(ops(&fused), ops(&plan::fuse(&base, options)), "{name}");
            assert!(fused.ops.len() < base.ops.len());
        }
    }
}

#[test]
fn every_op_reads_only_what_earlier_ones_wrote() {
    for name in ["llama", "gpt2-prefix", "opt-350m", "qwen3", "phi3"] {
        let model = load(name);
        let plain = plan::build(&model.spec, &model.weights, LORA);
        let [cpu, gpu] = [FUSE, GPU].map(|options| plan::fuse(&plain, options));
        for plan in [cpu.without_lora(), cpu, gpu.without_lora(), gpu, plain] {
            let mut written = vec![false; plan.tensors.len()];
            for op in &plan.ops {
                assert!(op.inputs.iter().all(|id| written[id.0 as usize]), "{name}: {}", op.name);
                for id in op.outputs() {
                    assert!(
                        !std::mem::replace(&mut written[id.0 as usize], true),
                        "{name}: {} twice",
                        op.name
                    );
                }
            }
            assert!(written.iter().all(|&w| w), "{name}: a tensor that nobody writes");
        }
    }
}

#[test]
fn pools_of_another_capacity_change_nothing_but_sizes() {
    let model = load("llama");
    let plan = plan::fuse(&plan::build(&model.spec, &model.weights, LORA), GPU);
    let bigger = plan.with_lora_capacity(LoraCapacity { slots: 3, rank: 32, ..LORA });
    assert_eq!(ops(&plan), ops(&bigger));
    // Six times the factors, and three times the table.
    let pools = bigger.max_b_pool_bytes() as f64 / plan.max_b_pool_bytes() as f64;
    assert!((5.9..=6.0).contains(&pools), "{pools}");
    let t = plan.find("layers.0.qkv.lora_down").expect("a tensor");
    assert_eq!((plan.tensor(t).width, bigger.tensor(t).width), (3 * 16, 3 * 32));
    // A partial sum per head.
    let t = plan.find("layers.0.o.lora_down").expect("a tensor");
    let heads = plan.kv.heads;
    assert_eq!((plan.tensor(t).width, bigger.tensor(t).width), (heads * 16, heads * 32));
}

/// A backend of each kind that is there.
fn backends(capacity: Capacity) -> Vec<Box<dyn Backend>> {
    let cpu = options(BackendChoice::Cpu);
    let plain = EngineOptions { cpu_kernels: CpuKernels::Plain, ..cpu.clone() };
    [plain, cpu, options(BackendChoice::Gpu)]
        .iter()
        .filter_map(|options| backend(options, capacity))
        .collect()
}

const CAPACITY: Capacity = Capacity { sequences: 2, context: 32, pages: 2, rows: 24, samples: 24 };

/// The fixture's ids as a prompt of sequence 1 on slot 0, every row sampled; every third row without LoRA.
fn step(name: &str) -> Step {
    let ids = Expected::read(&dir(name)).ids("ids").expect("ids");
    let mut step = Step::default();
    for (position, &token) in ids.iter().enumerate() {
        let lora = if position % 3 == 0 { LayerMask::NONE } else { LayerMask::ALL }.words();
        step.rows.push(Row { slot: 0, lora, ..Row::prompt(token, position as u32, 1) });
        let sample = Sample {
            row: position as u32,
            sequence: 1,
            top_p: 1.0,
            penalty: 1.0,
            ..bytemuck::Zeroable::zeroed()
        };
        step.samples.push(sample);
    }
    step
}

/// Every backend with every plan.
fn both(plans: &[Arc<Plan>]) -> impl Iterator<Item = (Box<dyn Backend>, &Arc<Plan>)> {
    plans.iter().flat_map(|plan| backends(CAPACITY).into_iter().map(move |backend| (backend, plan)))
}

#[test]
fn plain_and_fused_plans_compute_the_same_tensors() {
    for (name, adapter) in [
        ("llama", Some("all-linear")),
        ("gpt2-prefix", Some("c-attn-c-proj-c-fc")),
        ("phi3", Some("fused")),
        ("qwen3", Some("all-linear")),
        ("opt-350m", Some("fc-out")),
        ("llama-bias", Some("all-linear")),
        ("mistral", None),
    ] {
        let model = load(name);
        let plain = Arc::new(plan::build(&model.spec, &model.weights, LORA));
        let fused = [FUSE, GPU].map(|options| Arc::new(plan::fuse(&plain, options)));
        for (mut backend, fused) in both(&fused) {
            if let Some(adapter) = adapter {
                let adapter =
                    Adapter::load(&dir(name).join("adapters").join(adapter), &model.spec).expect("loads");
                backend.set_slot(0, Some(adapter.factors)).expect("a slot");
            }
            let mut run = |plan: &Arc<Plan>| {
                let handle = backend.prepare(plan).expect("the plan fits");
                let taps = fused.tensors.iter().filter(|t| !t.name.ends_with("lora_down"));
                let taps: Vec<_> = taps.filter_map(|t| plan.find(&t.name)).collect();
                let end = plan.find_op("sample").expect("a last op");
                let doors = Doors { range: 0..end, import: Vec::new(), taps };
                let tapped = backend.run(handle, &step(name), &doors).expect("it runs");
                tapped.into_iter().map(|(id, values)| (plan.tensor(id).name.clone(), values)).collect()
            };
            let (expected, actual): (std::collections::BTreeMap<_, _>, std::collections::BTreeMap<_, _>) =
                (run(&plain), run(fused));
            let mut compared = 0;
            for (tensor, values) in &expected {
                let difference = error(&actual[tensor], values);
                // Both are within 1e-4 of the oracle (tests/models.rs); here only the order of sums differs.
                assert!(difference < 2e-5, "{name} {tensor} on {}: {difference:.1e}", backend.device());
                compared += 1;
            }
            assert!(compared > 8, "only {compared} tensors have the same name");
        }
    }
}

#[test]
fn a_plan_run_in_two_ranges_gives_the_same_bits() {
    let model = load("llama");
    let plan = Arc::new(plan::fuse(&plan::build(&model.spec, &model.weights, LORA), GPU).without_lora());
    let end = plan.find_op("sample").expect("a last op");
    let logits = plan.find("head").expect("logits");
    for mut backend in backends(CAPACITY) {
        let handle = backend.prepare(&plan).expect("the plan fits");
        let mut run = |range: std::ops::Range<usize>, import, taps| {
            let doors = Doors { range, import, taps };
            backend.run(handle, &step("llama"), &doors).expect("it runs")
        };
        let whole = run(0..end, Vec::new(), vec![logits]).remove(&logits).expect("a tap");
        for middle in [1, 5, 9, end - 1] {
            let border = plan.live_in(middle..end);
            let first = run(0..middle, Vec::new(), border.clone());
            let import = border.iter().map(|id| (*id, first[id].clone())).collect();
            let second = run(middle..end, import, vec![logits]).remove(&logits).expect("a tap");
            assert!(second == whole, "split at {middle} on {}", backend.device());
        }
    }
}

#[test]
fn exported_kv_can_be_imported_into_another_sequence() {
    let model = load("llama");
    let plan = Arc::new(plan::build(&model.spec, &model.weights, LoraCapacity::default()));
    let width = plan.kv.width();
    for mut backend in backends(CAPACITY) {
        let handle = backend.prepare(&plan).expect("the plan fits");
        let end = plan.find_op("sample").expect("a last op");
        let doors = Doors { range: 0..end, ..Doors::default() };
        backend.run(handle, &step("llama"), &doors).expect("it runs");
        let kv = backend.export_kv(1, 1, 24).expect("an export");
        assert!(kv.iter().all(|half| half.len() == 24 * width && half.iter().all(|x| x.is_finite())));
        backend.import_kv(1, 0, &kv).expect("an import");
        assert_eq!(backend.export_kv(1, 0, 24).expect("an export"), kv);
        backend.copy_page(1, 0).expect("a copy");
        let copied = backend.export_kv(0, 0, 10).expect("an export");
        assert_eq!(copied[0], backend.export_kv(0, 1, 10).expect("an export")[0]);
    }
}

#[test]
fn costs_add_up() {
    let model = load("llama");
    let plan = plan::fuse(&plan::build(&model.spec, &model.weights, LORA), FUSE);
    let total =
        |plan: &Plan, shape: &StepShape| -> OpCost { (0..plan.ops.len()).map(|i| plan.cost(i, shape)).sum() };
    let base = plan.without_lora();
    let one = StepShape::decode(1, 10);
    assert_eq!(total(&base, &one).launches, base.ops.len() as u64);
    // Weights are read once for eight rows, activations and KV eight times.
    let eight = total(&base, &StepShape::decode(8, 10));
    let embed_row = (model.weights.embed.cols * 4) as u64;
    assert_eq!(eight.weight_bytes, total(&base, &one).weight_bytes + 7 * embed_row);
    assert_eq!(eight.kv_read_bytes, 8 * total(&base, &one).kv_read_bytes);
    // Masked off, LoRA costs nothing.
    let off = total(&plan, &one);
    assert_eq!((off.lora_bytes, off.lora_flops), (0, 0));
    let on = total(&plan, &one.clone().with_adapter(8));
    assert!(on.lora_bytes > 0 && on.weight_bytes == off.weight_bytes);
    assert_eq!(plan.cost(usize::MAX, &one), OpCost::default());
}

/// The shape of [`step`], with the ranks of slot 0.
fn shape(step: &Step, rank: u32) -> StepShape {
    let row = |(index, row): (usize, &Row)| RowShape {
        token: row.token,
        sequence: row.sequence,
        position: row.position,
        sampled: step.samples.iter().any(|sample| sample.row as usize == index),
        slot: (row.slot != wattle_engine::NO_INDEX).then_some(row.slot),
        lora: LayerMask::from_words(row.lora).0,
    };
    StepShape {
        rows: step.rows.iter().enumerate().map(row).collect(),
        ranks: vec![rank],
        ..StepShape::default()
    }
}

#[test]
fn costs_are_what_counting_views_of_the_twins_count() {
    // Plans are priced for the adapter, which may have factors in some places only. Every second one keeps them as f16.
    let cases = [
        ("llama", Some("all-linear"), None),
        ("llama", Some("all-linear"), Some(Quant::Q4_1)),
        ("llama-sharded", None, None),
        ("gpt2-prefix", Some("c-attn-c-proj-c-fc"), None),
        ("gpt2-prefix", None, Some(Quant::Int4)),
        ("phi3", Some("fused"), None),
        ("phi3", Some("fused"), Some(Quant::Q8_0)),
        ("qwen3", Some("all-linear"), None),
        ("opt-350m", None, None),
        ("mistral", Some("all-linear"), None),
        ("llama", Some("q-v"), None),
        ("llama", Some("exclude-regex"), Some(Quant::Q4_0)),
        ("llama", Some("layers-1"), None),
        ("gpt2-prefix", Some("c-attn"), None),
        ("opt-350m", Some("q-v"), None),
        ("phi3", Some("qkv"), None),
    ];
    for (index, (name, adapter, quant)) in cases.into_iter().enumerate() {
        let dense = load(name);
        let model = quant.map_or(Ok(dense.clone()), |quant| dense.quantized(quant)).expect("finite weights");
        let plain = plan::build(&model.spec, &model.weights, LoraCapacity { outside: false, ..LORA })
            .with_factors(FactorType::ALL[index % 2]);
        let mut backend = twins(CAPACITY);
        let (mut rank, mut factors) = (0, Factors::default());
        if let Some(adapter) = adapter {
            let adapter =
                Adapter::load(&dir(name).join("adapters").join(adapter), &model.spec).expect("loads");
            rank = adapter.rank() as u32;
            factors = Factors::clone(&adapter.factors);
            backend.set_slot(0, Some(adapter.factors)).expect("a slot");
        }
        let [cpu, gpu] = [FUSE, GPU].map(|options| plan::fuse(&plain, options));
        for plan in [cpu.without_lora(), cpu, gpu.without_lora(), gpu, plain.clone()] {
            let plan = Arc::new(plan);
            let handle = backend.prepare(&plan).expect("the plan fits");
            let mut step = step(name);
            step.samples.retain(|sample| sample.row % 5 == 4);
            let doors = Doors { range: 0..plan.ops.len(), ..Doors::default() };
            let counted = backend.count(handle, &step, &doors).expect("it runs");
            let (shape, priced) = (shape(&step, rank), plan.priced_for(&factors));
            for (index, counted) in counted.into_iter().enumerate() {
                let cost = priced.cost(index, &shape);
                let bytes = OpCost { flops: 0, lora_flops: 0, launches: 0, ..cost };
                assert_eq!(bytes, counted, "{name} {adapter:?} {quant:?}: {}", plan.ops[index].name);
            }
        }
    }
}

/// As what keys and values are stored as, with a page that two sequences share.
#[test]
fn shared_positions_cost_their_bytes_once() {
    let model = load("llama");
    for store in [KvType::F32, KvType::F16, KvType::Q8] {
        let plain = plan::build(&model.spec, &model.weights, LoraCapacity::default()).with_kv(store);
        let plan = Arc::new(plan::fuse(&plain, FUSE));
        let mut backend = twins(CAPACITY);
        let handle = backend.prepare(&plan).expect("the plan fits");
        backend.set_pages(1, &[0]).expect("a table");
        let rows =
            [(0, 7), (0, 8), (1, 9), (0, 10), (1, 11)].map(|(sequence, p)| Row::prompt(p, p, sequence));
        let step = Step { rows: rows.into(), samples: Vec::new() };
        let counted = backend.count(handle, &step, &Doors { range: 0..plan.ops.len(), ..Doors::default() });
        let apart = shape(&step, 0);
        let shared = StepShape { prefixes: [(1, Prefix { of: 0, positions: 32 })].into(), ..apart.clone() };
        for (index, counted) in counted.expect("it runs").into_iter().enumerate() {
            let cost = plan.cost(index, &shared);
            let bytes = OpCost { flops: 0, lora_flops: 0, launches: 0, ..cost };
            assert_eq!(bytes, counted, "{store:?}: {}", plan.ops[index].name);
            if plan.ops[index].kind.kernel() == "attend" {
                let position = 2 * plan.kv.position_bytes() as u64;
                assert_eq!(cost.kv_read_bytes, 12 * position);
                assert_eq!(plan.cost(index, &apart).kv_read_bytes, (11 + 12) * position);
            }
        }
    }
}

#[test]
fn an_op_has_lora_of_one_layer_only() {
    // What an op costs depends on one layer's mask: simulated devices add up layers by this. A norm behind a layer may
    // carry what the next one needs (opt-350m).
    for name in ["llama", "gpt2-prefix", "opt-350m", "phi3"] {
        let model = load(name);
        let plain = plan::build(&model.spec, &model.weights, LORA);
        for plan in [plan::fuse(&plain, FUSE), plan::fuse(&plain, GPU), plain] {
            for (index, op) in plan.ops.iter().enumerate() {
                let layer = plan.mask_layer(index).unwrap_or(wattle_engine::OUTSIDE_LAYERS);
                assert!(op.sites().all(|site| site.layer == layer), "{name}: {}", op.name);
            }
            assert!(plan.ops.iter().any(|op| op.sites().next().is_some()));
        }
    }
}

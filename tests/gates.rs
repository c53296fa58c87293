//! Gates: decisions that the device takes between two launches of a step, and the launches behind them obey.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::{Expected, engine, fixtures, options};
use safetensors::tensor::{Dtype, TensorView};
use wattle_engine::adapter::Adapter;
use wattle_engine::backend::{self, Capacity, Doors, Step};
use wattle_engine::cache::pages_for;
use wattle_engine::model::Model;
use wattle_engine::plan::{LoraCapacity, OpKind, Plan, TensorId};
use wattle_engine::{
    BackendChoice, Control, Engine, EngineOptions, Feature, GATED, GENERATED, Gate, LayerMask, Lora,
    PlanKind, Request, Row, Sample, compile,
};

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn ids() -> Vec<u32> {
    Expected::read(&model("llama")).ids("ids").expect("ids")
}

/// Runs a check on the CPU, and on the GPU where there is one.
fn on_both(check: impl Fn(&EngineOptions)) {
    common::on_both(&model("llama"), check);
}

/// The model `llama` with all layers gated, and its adapter of all linear layers.
fn gated(least: f32, options: &EngineOptions) -> (Engine, Lora) {
    let spec = Model::load(&model("llama")).expect("a model").spec;
    let gate = Gate::above(spec.width, 0..spec.layers as u32, Feature::Length, least);
    let options = EngineOptions { gate: Some(Arc::new(gate)), ..options.clone() };
    let mut engine = engine(&model("llama"), options).expect("the backend was there a moment ago");
    let id = engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
    (engine, Lora { gated: true, ..Lora::new(id) })
}

#[test]
fn an_open_gate_changes_no_bit_and_a_closed_one_is_a_mask() {
    on_both(|options| {
        for plan in [PlanKind::Fused, PlanKind::Plain] {
            let options = EngineOptions { plan, ..options.clone() };
            let (mut open, lora) = gated(-1.0, &options);
            let with = open.logits(&ids(), &lora).expect("logits");
            let without = open.logits(&ids(), &Lora { gated: false, ..lora }).expect("logits");
            assert!(with == without, "open, on {:?}", options.backend);
            let (mut closed, lora) = gated(1e9, &options);
            let with = closed.logits(&ids(), &lora).expect("logits");
            let layers = 0..closed.spec().layers;
            let none = LayerMask(!LayerMask::of(layers).0);
            let masked = Lora { layers: none, gated: false, ..lora };
            assert!(
                with == closed.logits(&ids(), &masked).expect("logits"),
                "closed, on {:?}",
                options.backend
            );
            assert!(with != without, "LoRA acts where it is on");
        }
    });
}

/// A step of all ids on slot 0, every row sampled.
fn step(masks: &[LayerMask], flags: u32) -> Step {
    let row = |(position, (token, mask)): (usize, (u32, &LayerMask))| {
        let row = Row::prompt(token, position as u32, 0);
        Row { slot: 0, lora: mask.words(), flags, ..row }
    };
    let rows: Vec<Row> = ids().into_iter().zip(masks).enumerate().map(row).collect();
    let sample = |row| Sample { row, top_p: 1.0, penalty: 1.0, ..bytemuck::Zeroable::zeroed() };
    Step { samples: (0..rows.len() as u32).map(sample).collect(), rows }
}

/// Runs a plan up to the logits; what these tensors hold.
fn taps(
    options: &EngineOptions,
    plan: &Plan,
    adapter: &Adapter,
    step: &Step,
    names: &[&str],
) -> HashMap<TensorId, Vec<f32>> {
    let rows = step.rows.len();
    let capacity = Capacity { sequences: 1, context: rows, pages: pages_for(rows), rows, samples: rows };
    let mut backend = backend::create(options, capacity).expect("a backend");
    let plan = Arc::new(plan.clone());
    let handle = backend.prepare(&plan).expect("a plan");
    backend.set_slot(0, Some(Arc::clone(&adapter.factors))).expect("a slot");
    let taps = names.iter().map(|name| plan.find(name).expect("a tensor of the plan")).collect();
    let end = plan.find_op("sample").expect("the plan samples");
    backend.run(handle, step, &Doors { range: 0..end, import: Vec::new(), taps }).expect("a run")
}

#[test]
fn rows_obey_their_own_scores() {
    on_both(|options| {
        let llama = Model::load(&model("llama")).expect("a model");
        let adapter =
            Adapter::load(&model("llama").join("adapters/all-linear"), &llama.spec).expect("an adapter");
        let (_, adapted) = compile(&llama, options, LoraCapacity { slots: 1, rank: 16, outside: false });
        let all = vec![LayerMask::ALL; ids().len()];
        let gate = |least| Gate::above(llama.spec.width, [1], Feature::Length, least);
        // What enters layer 1, and a threshold between the two lengths in the middle.
        let probe = adapted.with_gate(&gate(0.0));
        let op = probe.ops.iter().find(|op| matches!(op.kind, OpKind::Gate(_))).expect("a gate");
        let x = probe.tensor(op.inputs[0]).name.clone();
        let states =
            taps(options, &probe, &adapter, &step(&all, 0), &[&x]).into_values().next().expect("a tap");
        let length = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let lengths: Vec<f64> = states.chunks(llama.spec.width).map(length).collect();
        let mut sorted = lengths.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let least = (sorted[middle - 1] + sorted[middle]) / 2.0;
        assert!(sorted[middle] - sorted[middle - 1] > 1e-4, "too near to tell: {sorted:?}");
        let masks: Vec<_> = lengths
            .iter()
            .map(|&length| if length > least { LayerMask::ALL } else { LayerMask(!LayerMask::of([1]).0) })
            .collect();
        let plan = adapted.with_gate(&gate(least as f32));
        let head =
            |plan: &Plan, step: &Step| taps(options, plan, &adapter, step, &["head"]).into_values().next();
        let decided = head(&plan, &step(&all, GATED));
        assert!(decided == head(&adapted, &step(&masks, 0)), "on {:?}", options.backend);
        assert!(decided != head(&adapted, &step(&all, 0)), "some rows were closed");
        assert!(head(&plan, &step(&all, GENERATED)) == head(&adapted, &step(&all, GENERATED)), "not gated");
    });
}

#[test]
fn gated_requests_are_the_same_in_a_batch_and_tell_what_was_closed() {
    on_both(|options| {
        let (mut engine, lora) = gated(1e9, options);
        let request = |lora, n: usize| Request { ignore_eos: true, lora, ..Request::new(&ids()[..n], 6) };
        let requests = [
            request(lora, 5),
            request(Lora { gated: false, ..lora }, 9),
            request(Lora::BASE, 3),
            request(lora, 7),
        ];
        let together = engine.generate_all(&requests).expect("generations");
        let layers = engine.spec().layers as u64;
        for (request, together) in requests.iter().zip(&together) {
            let alone = engine.generate(request).expect("a generation");
            assert_eq!(alone.paths, together.paths, "on {:?}", options.backend);
            let closed = if request.lora.gated { 6 * layers } else { 0 };
            assert_eq!([&alone, together].map(|g| g.report.lora_layers_closed), [closed; 2]);
        }
    });
}

#[test]
fn a_gate_is_one_launch_for_a_layer_and_none_for_others() {
    let Some(_) = engine(&model("llama"), options(BackendChoice::Gpu)) else { return };
    let (mut engine, lora) = gated(1e9, &options(BackendChoice::Gpu));
    let layers = engine.spec().layers as u64;
    let mut launches = |lora| {
        let before = engine.backend().counters();
        let request = Request { lora, ignore_eos: true, ..Request::new(&ids()[..8], 4) };
        engine.generate(&request).expect("a generation");
        let after = engine.backend().counters();
        (after.launches - before.launches) / (after.steps - before.steps)
    };
    let ungated = launches(Lora { gated: false, ..lora });
    assert_eq!(launches(lora), ungated + layers);
}

/// A tensor's name, and the shape that it gets; `None` leaves it out.
type Change<'a> = (&'a str, Option<Vec<usize>>);

/// A gate of layer 1 in a file, with some of its tensors changed.
fn file(dir: &std::path::Path, width: usize, changes: &[Change]) -> PathBuf {
    let mut shapes: Vec<(String, Vec<usize>)> = [
        ("center", vec![width]),
        ("scale", vec![width]),
        ("up.weight", vec![3, 4]),
        ("up.bias", vec![3]),
        ("down.weight", vec![3]),
        ("down.bias", vec![1]),
        ("threshold", vec![1]),
    ]
    .map(|(part, shape)| (format!("layers.1.{part}"), shape))
    .into();
    for (name, shape) in changes {
        shapes.retain(|(known, _)| known != name);
        shapes.extend(shape.clone().map(|shape| ((*name).to_owned(), shape)));
    }
    let bytes = |shape: &[usize]| 0.25_f32.to_le_bytes().repeat(shape.iter().product());
    let data: Vec<_> = shapes.iter().map(|(_, shape)| bytes(shape)).collect();
    let views = shapes.iter().zip(&data).map(|((name, shape), data)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor"))
    });
    let path = dir.join("gate.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("a file");
    path
}

#[test]
fn gate_files_are_read_and_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let width = Model::load(&model("llama")).expect("a model").spec.width;
    let open = |path: PathBuf| {
        let gate = Some(Arc::new(Gate::load(path)?));
        Engine::load(model("llama"), EngineOptions { gate, ..options(BackendChoice::Cpu) })
    };
    let mut engine = open(file(dir.path(), width, &[])).expect("an engine");
    let id = engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
    let request = Request::new(&ids()[..4], 2).with_lora(Lora { gated: true, ..Lora::new(id) });
    engine.generate(&request).expect("a generation");
    let cases: [(&[Change], usize, &str); 6] = [
        (&[("layers.1.up.bias", None)], width, "layers.1.up.bias: missing"),
        (&[("layers.1.up.weight", Some(vec![300, 4]))], width, "layers.1.up.weight: 300 units"),
        (&[("layers.1.up.weight", Some(vec![3, 5]))], width, "layers.1.up.weight: has shape [3, 5]"),
        (&[("layers.1.bias", Some(vec![1]))], width, "layers.1.bias: is no tensor of a gate"),
        (&[("layers.99.center", Some(vec![width]))], width, "layers.99"),
        (&[], width + 1, "layers.1: made for another width"),
    ];
    for (changes, width, expected) in cases {
        let error = open(file(dir.path(), width, changes)).err().expect(expected).to_string();
        assert!(error.contains("gate.safetensors") && error.contains(expected), "{error}");
    }
}

#[test]
fn without_a_gate_nothing_can_be_gated() {
    let mut engine = engine(&model("llama"), options(BackendChoice::Cpu)).expect("a CPU");
    let id = engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
    let lora = Lora { gated: true, ..Lora::new(id) };
    let request = Request { ignore_eos: true, ..Request::new(&ids()[..4], 4) };
    let error = engine.generate(&request.clone().with_lora(lora)).expect_err("no gate").to_string();
    assert!(error.contains("gated: the engine has no gate"), "{error}");
    let switched = engine.stream(&request, |_| Control::Switch(lora)).expect_err("no gate").to_string();
    assert!(switched.contains("the engine has no gate"), "{switched}");
}

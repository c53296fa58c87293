//! Models quantized at load: against exact arithmetic on the dequantized weights, and what must not change a bit.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Expected, MODELS, adapter, engine, error, fixtures, options};
use wattle_engine::adapter::Adapter;
use wattle_engine::model::{Linear, Matrix, Model, Quant, Weights};
use wattle_engine::{
    BackendChoice, CpuKernels, Engine, EngineOptions, Error, Lora, PlanKind, Precision, Request,
};

fn dir(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn ids(name: &str) -> Vec<u32> {
    Expected::read(&dir(name)).ids("ids").expect("ids")
}

fn dense(matrix: &Arc<Matrix>) -> Arc<Matrix> {
    let rows = (0..matrix.rows).flat_map(|row| matrix.row(row).expect("a row"));
    let values: Vec<f32> = rows.collect();
    Arc::new(Matrix::from_f32(&matrix.name, matrix.rows, matrix.cols, &values).expect("a matrix"))
}

/// The model with its quantized elements as f32.
fn dequantized(model: &Model) -> Model {
    let linear = |linear: &mut Linear| linear.weight = dense(&linear.weight);
    let mut model = model.clone();
    let Weights { embed, project_in, project_out, layers, head, .. } = &mut model.weights;
    *embed = dense(embed);
    linear(head);
    project_in.iter_mut().chain(project_out).for_each(linear);
    for layer in layers {
        let linears =
            [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o, &mut layer.up, &mut layer.down];
        linears.into_iter().chain(&mut layer.gate).for_each(linear);
    }
    model
}

fn logits(model: Model, ids: &[u32], adapter: Option<&Adapter>, options: EngineOptions) -> Option<Vec<f32>> {
    let gpu = options.backend == BackendChoice::Gpu;
    match Engine::from_model(model, options) {
        Ok(mut engine) => {
            let id = adapter.map(|adapter| engine.add_adapter(adapter.clone()).expect("room"));
            Some(engine.logits(ids, &id.map_or(Lora::BASE, Lora::new)).expect("logits"))
        }
        Err(Error::Device { reason, .. }) if gpu && !common::gpu_required() => {
            println!("skipped: needs a GPU adapter, and there is none ({reason})");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn exact_precision_is_exact_on_the_dequantized_weights() {
    let (cpu, gpu) = (options(BackendChoice::Cpu), options(BackendChoice::Gpu));
    for (index, name) in MODELS.into_iter().enumerate() {
        for (at, quant) in Quant::ALL.into_iter().enumerate() {
            let model =
                Model::load(&dir(name)).expect("the fixture loads").quantized(quant).expect("quantizes");
            let plain = EngineOptions { cpu_kernels: CpuKernels::Plain, ..cpu.clone() };
            let ids = &ids(name);
            let expected = logits(dequantized(&model), ids, None, plain).expect("the CPU is there");
            let mut ways = vec![cpu.clone(), EngineOptions { plan: PlanKind::Plain, ..cpu.clone() }];
            // Each model in some formats, each format on some models: a software GPU is slow.
            if (index + at).is_multiple_of(3) {
                let mut small = gpu.clone();
                small.limits.binding = 4096;
                ways.extend([gpu.clone(), small]);
            }
            for way in ways {
                let what = format!("{name} {quant:?} on {:?}, {:?}", way.backend, way.plan);
                let Some(got) = logits(model.clone(), ids, None, way) else { continue };
                let error = error(&got, &expected);
                assert!(error <= 1e-4, "{what}: error {error:.2e}");
            }
        }
    }
}

/// Every model in one format, every published checkpoint in its own.
fn stored() -> Vec<(PathBuf, Model)> {
    let made =
        MODELS.into_iter().zip(Quant::ALL.into_iter().cycle()).map(|(name, quant)| (dir(name), Some(quant)));
    let published = std::fs::read_dir(fixtures().join("models-published")).expect("a folder");
    let mut published: Vec<PathBuf> = published.map(|entry| entry.expect("an entry").path()).collect();
    published.sort();
    let model = |(dir, quant): (PathBuf, Option<Quant>)| {
        let model = Model::load(&dir).expect("the fixture loads");
        let model = quant.map_or(Ok(model.clone()), |quant| model.quantized(quant));
        (dir, model.expect("quantizes"))
    };
    made.chain(published.into_iter().map(|dir| (dir, None))).map(model).collect()
}

#[test]
fn adapters_on_quantized_weights_are_exact_on_the_dequantized_ones() {
    let (cpu, gpu) = (options(BackendChoice::Cpu), options(BackendChoice::Gpu));
    for (index, (dir, model)) in stored().into_iter().enumerate() {
        let ids = Expected::read(&dir).ids("ids").expect("ids");
        let (whole, adapter) = (dequantized(&model), adapter(&model, 1 + index % 5, index));
        let plain = EngineOptions { cpu_kernels: CpuKernels::Plain, ..cpu.clone() };
        let expected = logits(whole.clone(), &ids, Some(&adapter), plain.clone()).expect("the CPU is there");
        let base = logits(whole, &ids, None, plain).expect("the CPU is there");
        let moved = error(&base, &expected);
        assert!(moved > 1e-2, "{}: the adapter moves logits by {moved:.1e}", dir.display());
        // A software GPU is slow.
        for way in [&cpu, &gpu].into_iter().take(1 + usize::from(index % 3 == 0)) {
            let Some(got) = logits(model.clone(), &ids, Some(&adapter), way.clone()) else { continue };
            let error = error(&got, &expected);
            assert!(error <= 1e-4, "{} on {:?}: error {error:.2e}", dir.display(), way.backend);
        }
    }
}

/// An engine in fast precision.
fn fast(name: &str, quant: Quant, more: impl Fn(&mut EngineOptions)) -> Engine {
    let mut options =
        EngineOptions { quant: Some(quant), precision: Precision::Fast, ..options(BackendChoice::Cpu) };
    more(&mut options);
    engine(&dir(name), options).expect("the CPU is there")
}

#[test]
fn fast_precision_depends_on_neither_chunks_nor_threads_nor_neighbours() {
    for (name, quant) in MODELS.into_iter().zip(Quant::ALL.into_iter().cycle()) {
        let whole = fast(name, quant, |_| {}).logits(&ids(name), &Lora::BASE).expect("logits");
        for (rows, threads) in [(1, 1), (3, 2), (7, 3), (256, 1)] {
            let mut other = fast(name, quant, |options| {
                (options.rows, options.threads) = (rows, Some(threads));
            });
            let logits = other.logits(&ids(name), &Lora::BASE).expect("logits");
            assert!(logits == whole, "{name} {quant:?} in chunks of {rows} with {threads} threads");
        }
        // Paths beside each other are the paths alone.
        let request = |paths| Request { paths, ignore_eos: true, ..Request::new(ids(name)[..4].to_vec(), 8) };
        let alone = fast(name, quant, |_| {}).generate(&request(1)).expect("a generation");
        let together = fast(name, quant, |_| {}).generate(&request(4)).expect("a generation");
        for path in &together.paths {
            assert_eq!(path.token_ids, alone.paths[0].token_ids, "{name} {quant:?}");
            assert_eq!(path.logprobs, alone.paths[0].logprobs, "{name} {quant:?}");
        }
    }
}

#[test]
fn fast_prompts_on_a_gpu_depend_on_no_chunks_and_stay_close_to_exact() {
    let gpu = options(BackendChoice::Gpu);
    for (name, quant) in [("llama", Quant::Q4_0), ("gpt2-prefix", Quant::Q8_0), ("qwen3", Quant::Q4_1)] {
        let run = |precision, rows| {
            let options = EngineOptions { quant: Some(quant), precision, rows, ..gpu.clone() };
            engine(&dir(name), options).map(|mut e| e.logits(&ids(name), &Lora::BASE).expect("logits"))
        };
        let (Some(exact), Some(fast)) = (run(Precision::Exact, 256), run(Precision::Fast, 256)) else {
            return;
        };
        let error = error(&fast, &exact);
        println!("{name} {quant:?}: {error:.1e}");
        // As on the CPU, see below; kernels keep a derived bound (tests/gpu.rs).
        assert!(error > 0.0 && error < 0.1, "{name} {quant:?}: {error:.1e}");
        assert!(run(Precision::Fast, 3).as_ref() == Some(&fast), "{name} {quant:?} in chunks of 3");
    }
}

#[test]
fn fast_precision_stays_close_to_exact() {
    for (name, quant) in MODELS.into_iter().zip(Quant::ALL.into_iter().cycle()) {
        let exact = fast(name, quant, |options| options.precision = Precision::Exact);
        let exact = { exact }.logits(&ids(name), &Lora::BASE).expect("logits");
        let fast = fast(name, quant, |_| {}).logits(&ids(name), &Lora::BASE).expect("logits");
        let error = error(&fast, &exact);
        println!("{name} {quant:?}: {error:.1e}");
        // Every op keeps its derived bound (tests/bounds.rs); of how errors grow from op to op it is known only that 8
        // bits round each input by 0.4 % of its block's largest, and that something was rounded.
        assert!(error > 0.0 && error < 0.1, "{name} {quant:?}: {error:.1e}");
    }
}

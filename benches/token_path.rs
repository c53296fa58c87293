//! Whole steps with sampling, as generation runs them: `cargo bench -p wattle-benches --bench token_path`.
#![allow(missing_docs, reason = "a bench has no public items")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wattle_engine::model::{Dtype, Model};
use wattle_engine::{BackendChoice, Engine, EngineOptions, Request};

/// Tokens per iteration and path.
const NEW_TOKENS: usize = 8;

fn token_path(c: &mut Criterion) {
    let mut group = c.benchmark_group("token_path");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for backend in [BackendChoice::Cpu, BackendChoice::Auto] {
        let Some(mut engine) = engine(backend) else { continue };
        let kind = engine.backend().kind();
        for paths in [1, 4, 8] {
            let request = Request { paths, ignore_eos: true, ..Request::new(vec![1], NEW_TOKENS) };
            assert!(engine.generate(&request).is_ok(), "what is timed must work");
            group.throughput(Throughput::Elements(u64::from(paths) * NEW_TOKENS as u64));
            group.bench_function(BenchmarkId::new(format!("decode/gpt2/{kind}"), paths), |b| {
                b.iter(|| engine.generate(&request));
            });
        }
        let prompt: Vec<u32> = (0..256).collect();
        group.throughput(Throughput::Elements(prompt.len() as u64));
        group.bench_function(BenchmarkId::new(format!("prompt/gpt2/{kind}"), prompt.len()), |b| {
            let request = Request { ignore_eos: true, ..Request::new(prompt.clone(), 1) };
            b.iter(|| engine.generate(&request));
        });
    }
    group.finish();
}

/// An engine on random weights of GPT-2's shape; `None` where `Auto` found no real GPU.
fn engine(backend: BackendChoice) -> Option<Engine> {
    let model = Model::random("gpt2", Dtype::F16, 1).ok()?;
    let options = EngineOptions { backend, ..EngineOptions::default() };
    let mut engine = Engine::from_model(model, options).ok()?;
    let found = backend == BackendChoice::Cpu || engine.backend().kind() == "gpu";
    found.then_some(engine)
}

criterion_group!(benches, token_path);
criterion_main!(benches);

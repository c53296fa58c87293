//! The promises of the token path: rows do not notice each other, masks are exact, little is read back.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Expected, engine, error, fixtures, options};
use wattle_engine::adapter::Adapter;
use wattle_engine::{
    ActiveFrom, BackendChoice, Control, Engine, EngineOptions, Finish, LayerMask, Lora, Precision, Request,
    Sampling,
};
use wattle_policy::{CostSource, OpCost, StepShape};

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// Runs a check on the CPU, and on the GPU where there is one.
fn on_both(check: impl Fn(&EngineOptions)) {
    common::on_both(&model("llama"), check);
}

/// The same, in exact precision and in fast, which keeps factors as f16.
fn in_each_precision(check: impl Fn(&EngineOptions)) {
    on_both(|options| {
        for precision in [Precision::Exact, Precision::Fast] {
            check(&EngineOptions { precision, ..options.clone() });
        }
    });
}

fn open(name: &str, options: &EngineOptions) -> Engine {
    engine(&model(name), options.clone()).expect("the backend was there a moment ago")
}

fn ids(name: &str) -> Vec<u32> {
    Expected::read(&model(name)).ids("ids").expect("ids")
}

#[test]
fn engines_can_be_sent_to_another_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Engine>();
}

#[test]
fn a_prompt_in_chunks_gives_the_same_bits() {
    on_both(|options| {
        for name in ["llama", "gpt2-prefix", "qwen3", "phi3", "mistral", "opt-350m"] {
            let whole = open(name, options).logits(&ids(name), &Lora::BASE).expect("logits");
            for rows in [1, 3, 7] {
                let mut chunked = open(name, &EngineOptions { rows, ..options.clone() });
                let logits = chunked.logits(&ids(name), &Lora::BASE).expect("logits");
                assert!(logits == whole, "{name} on {:?} in chunks of {rows}", options.backend);
            }
        }
    });
}

#[test]
fn decoding_token_by_token_agrees_with_the_whole() {
    on_both(|options| {
        for name in ["llama", "gpt2-prefix", "qwen2"] {
            let mut engine = open(name, options);
            let prompt = ids(name)[..5].to_vec();
            let request = Request { ignore_eos: true, ..Request::new(prompt.clone(), 10) };
            let path = engine.generate(&request).expect("a generation").paths.remove(0);
            let all: Vec<u32> = prompt.iter().chain(&path.token_ids).copied().collect();
            let logits = engine.logits(&all, &Lora::BASE).expect("logits");
            let vocab = engine.spec().vocab;
            for (index, (&token, &logprob)) in path.token_ids.iter().zip(&path.logprobs).enumerate() {
                let row = &logits[(prompt.len() - 1 + index) * vocab..][..vocab];
                let max = row.iter().fold(f32::MIN, |m, &x| m.max(x));
                let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
                let expected = f64::from(row[token as usize] - max) - sum.ln();
                let scale = row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                let difference = (f64::from(logprob) - expected).abs();
                assert!(
                    difference <= f64::from(2e-4 * scale),
                    "{name} token {index}: {logprob} not {expected}"
                );
            }
        }
    });
}

/// The adapter `all-linear` with the factors of all layers but 0 poisoned, and without them.
fn poisoned(engine: &Engine) -> [Adapter; 2] {
    let dir = model("llama").join("adapters/all-linear");
    let whole = Adapter::load(&dir, engine.spec()).expect("the adapter loads");
    let mut nan = (*whole.factors).clone();
    let mut without = nan.clone();
    without.pairs_mut().retain(|place, _| place.layer == 0);
    for pair in nan.pairs_mut().iter_mut().filter(|(place, _)| place.layer != 0).map(|(_, pair)| pair) {
        pair.a.fill(f32::NAN);
        pair.b.fill(f32::NAN);
    }
    [nan, without].map(|factors| Adapter { factors: Arc::new(factors), ..whole.clone() })
}

#[test]
fn a_masked_layer_equals_an_absent_one_even_when_its_factors_are_nan() {
    in_each_precision(|options| {
        let mut engine = open("llama", options);
        let [nan, without] = poisoned(&engine);
        let (nan, without) =
            (engine.add_adapter(nan).expect("a slot"), engine.add_adapter(without).expect("a slot"));
        let only_0 = |adapter| Lora { layers: LayerMask::of([0]), ..Lora::new(adapter) };
        let masked = engine.logits(&ids("llama"), &only_0(nan)).expect("logits");
        let absent = engine.logits(&ids("llama"), &only_0(without)).expect("logits");
        assert!(masked.iter().all(|x| x.is_finite()));
        assert!(masked == absent, "on {:?}, {:?}", options.backend, options.precision);
        let unmasked = engine.logits(&ids("llama"), &Lora::new(nan)).expect("logits");
        assert!(unmasked.iter().any(|x| x.is_nan()), "the factors were used after all");
    });
}

#[test]
fn with_every_mask_off_the_bases_launches_run_on_the_bases_bytes() {
    on_both(|options| {
        let mut engine = open("llama", &EngineOptions { timing: true, ..options.clone() });
        let adapter =
            engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
        let masked = Lora { layers: LayerMask::NONE, ..Lora::new(adapter) };
        let request = Request { ignore_eos: true, paths: 2, ..Request::new(&ids("llama")[..6], 5) };
        let [base, masked, on] = [Lora::BASE, masked, Lora::new(adapter)].map(|lora| {
            let before = engine.backend().counters();
            let generation = engine.generate(&request.clone().with_lora(lora)).expect("a generation");
            let after = engine.backend().counters();
            let ops: Vec<_> =
                generation.report.timings.into_iter().map(|t| (t.op, t.kernel, t.launches)).collect();
            let tokens: Vec<_> = generation.paths.into_iter().map(|path| path.token_ids).collect();
            (tokens, ops, after.launches - before.launches, after.readback_bytes - before.readback_bytes)
        });
        assert_eq!(masked, base, "on {:?}", options.backend);
        assert!(!base.1.is_empty() && on.2 >= base.2);
        assert_ne!(on.0, base.0, "LoRA acts where it is on");
        // What these ops move, as the plan tells it: of a row with a mask off no more than of one without an adapter.
        let shape = StepShape::decode(2, 7);
        let mut masked = shape.clone().with_adapter(4);
        masked.rows.iter_mut().for_each(|row| row.lora = 0);
        let cost = |shape: &StepShape| -> OpCost {
            (0..engine.plan().ops.len()).map(|op| engine.plan().cost(op, shape)).sum()
        };
        assert_eq!(cost(&masked), cost(&shape));
    });
}

#[test]
fn a_request_does_not_notice_its_neighbours() {
    in_each_precision(|options| {
        let mut engine = open("llama", options);
        let adapter = engine.load_adapter(model("llama").join("adapters/q-v"), 1.0).expect("an adapter");
        let rank_16 = engine.load_adapter(model("llama").join("adapters/rank-16"), 1.0).expect("an adapter");
        let sampled = Sampling { temperature: 0.9, top_k: 50, top_p: 0.95, seed: 7, ..Sampling::GREEDY };
        let all = ids("llama");
        let request = |n: usize, lora: Lora, paths| {
            let sampling = Sampling { seed: n as u64, ..sampled };
            Request { lora, sampling, paths, ignore_eos: true, ..Request::new(&all[..n], 6) }
        };
        let generated = Lora { from: ActiveFrom::Generated, ..Lora::new(rank_16) };
        let requests = [
            request(3, Lora::new(adapter), 1),
            request(17, Lora::new(rank_16), 3),
            request(9, generated, 2),
            request(11, Lora { layers: LayerMask::of([1]), ..Lora::new(adapter) }, 1),
        ];
        let together = engine.generate_all(&requests).expect("generations");
        for (request, together) in requests.iter().zip(&together) {
            let alone = engine.generate(request).expect("a generation");
            assert_eq!(alone.paths, together.paths, "on {:?}, {:?}", options.backend, options.precision);
        }
        let mut narrow = open("llama", &EngineOptions { sequences: 1, rows: 4, ..options.clone() });
        let same = narrow.load_adapter(model("llama").join("adapters/rank-16"), 1.0).expect("an adapter");
        let request = Request { lora: Lora::new(same), ..requests[1].clone() };
        assert_eq!(narrow.generate(&request).expect("a generation").paths, together[1].paths);
    });
}

#[test]
fn a_draw_repeats_and_its_seed_and_path_matter() {
    on_both(|options| {
        let mut engine = open("llama", options);
        let sampling = Sampling { temperature: 1.5, seed: 3, ..Sampling::GREEDY };
        let request =
            Request { sampling, paths: 3, ignore_eos: true, ..Request::new(&ids("llama")[..4], 16) };
        let first = engine.generate(&request).expect("a generation");
        assert_eq!(first.paths, engine.generate(&request).expect("a generation").paths);
        assert_ne!(first.paths[0].token_ids, first.paths[1].token_ids);
        let other = Request { sampling: Sampling { seed: 4, ..sampling }, ..request };
        assert_ne!(
            first.paths[0].token_ids,
            engine.generate(&other).expect("a generation").paths[0].token_ids
        );
    });
}

#[test]
fn paths_do_not_see_what_others_drew() {
    on_both(|options| {
        let mut engine = open("llama", options);
        let sampling = Sampling { penalty: 1.5, ..Sampling::GREEDY };
        for prompt in [1, 2, 5] {
            let request = Request { sampling, ignore_eos: true, ..Request::new(&ids("llama")[..prompt], 6) };
            let alone = engine.generate(&request).expect("a generation");
            let several = engine.generate(&Request { paths: 3, ..request }).expect("a generation");
            for path in &several.paths {
                assert_eq!(path.token_ids, alone.paths[0].token_ids, "{prompt} on {:?}", options.backend);
            }
        }
    });
}

#[test]
fn an_adapter_switched_on_half_way_continues_on_the_base_cache() {
    on_both(|options| {
        let mut engine = open("llama", options);
        let adapter =
            engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
        let base = Request { ignore_eos: true, ..Request::new(&ids("llama")[..6], 12) };
        let mut seen = 0;
        let switched = engine
            .stream(&base, |_| {
                seen += 1;
                if seen == 4 { Control::Switch(Lora::new(adapter)) } else { Control::Continue }
            })
            .expect("a generation");
        let tokens = &switched.paths[0].token_ids;
        // The switch takes effect at the next row that was not started: at once, or one step later on a GPU.
        let from = |position| Lora { from: ActiveFrom::Position(position), ..Lora::new(adapter) };
        let candidates =
            [9, 10, 11].map(|p| engine.generate(&base.clone().with_lora(from(p))).expect("a generation"));
        assert!(
            candidates.iter().any(|c| &c.paths[0].token_ids == tokens),
            "on {:?}: {tokens:?}",
            options.backend
        );
        assert_ne!(tokens, &engine.generate(&base).expect("a generation").paths[0].token_ids);
    });
}

#[test]
fn one_submit_and_sixteen_bytes_per_sample_and_nothing_on_the_host() {
    let Some(mut engine) = engine(&model("llama"), options(BackendChoice::Gpu)) else { return };
    let request = Request { ignore_eos: true, paths: 3, ..Request::new(&ids("llama")[..8], 10) };
    let before = engine.backend().counters();
    let generation = engine.generate(&request).expect("a generation");
    let after = engine.backend().counters();
    let steps = after.steps - before.steps;
    assert!(steps >= 10);
    assert_eq!((after.submits - before.submits, after.passes - before.passes), (steps, steps));
    assert!(engine.pages().copied >= 2, "copies of pages go with a step");
    assert_eq!(after.host_ops, 0);
    // Every step but the first is written and submitted while the one before it runs.
    assert_eq!(after.ahead - before.ahead, steps - 1);
    let (tokens, read) = (generation.report.new_tokens as u64, after.readback_bytes - before.readback_bytes);
    // A step that was already under way when its path ended is read back too.
    assert!(read >= 8 * tokens && read <= 16 * (tokens + 3), "{read} bytes for {tokens} tokens");
}

#[test]
fn a_llama_layer_is_seven_launches_on_a_gpu_and_an_adapter_adds_none() {
    let Some(mut engine) = engine(&model("llama"), options(BackendChoice::Gpu)) else { return };
    let adapter = engine.load_adapter(model("llama").join("adapters/all-linear"), 1.0).expect("an adapter");
    let layers = engine.spec().layers as u64;
    for lora in [Lora::BASE, Lora::new(adapter)] {
        let before = engine.backend().counters();
        let request = Request { lora, ignore_eos: true, ..Request::new(&ids("llama")[..8], 4) };
        engine.generate(&request).expect("a generation");
        let after = engine.backend().counters();
        let steps = after.steps - before.steps;
        // And embed, select, norm, head and sample.
        assert_eq!(after.launches - before.launches, steps * (7 * layers + 5), "{lora:?}");
    }
}

#[test]
fn stopping_from_outside_and_at_the_context_end() {
    on_both(|options| {
        let mut engine = open("gpt2-prefix", options);
        let request = Request { ignore_eos: true, ..Request::new(&ids("gpt2-prefix")[..4], 10) };
        let mut count = 0;
        let observer = |_: &wattle_engine::Event<'_>| {
            count += 1;
            if count == 3 { Control::Stop } else { Control::Continue }
        };
        let stopped = engine.stream(&request, observer).expect("a generation").paths.remove(0);
        assert_eq!((stopped.token_ids.len(), stopped.finish), (3, Finish::Stop));
        let long = Request { max_new_tokens: usize::MAX, ..request };
        let path = engine.generate(&long).expect("a generation").paths.remove(0);
        assert_eq!((path.token_ids.len() + 4, path.finish), (engine.spec().context, Finish::Length));
    });
}

#[test]
fn unusable_requests_are_refused_by_name_and_leave_the_engine_usable() {
    on_both(|options| {
        let mut engine = open("llama", options);
        let good = Request::new(&ids("llama")[..4], 2);
        let context = engine.spec().context;
        let refused = [
            (Request::new(vec![], 1), "prompt"),
            (Request::new(vec![173], 1), "token id: 173"),
            (Request::new(vec![1; context + 1], 1), "context"),
            (Request { paths: 0, ..good.clone() }, "paths"),
            (Request { stop: vec!["x".into()], ..good.clone() }, "tokenizer"),
            (
                Request { sampling: Sampling { temperature: f32::NAN, ..Sampling::GREEDY }, ..good.clone() },
                "temperature",
            ),
            (Request { sampling: Sampling { top_p: 0.0, ..Sampling::GREEDY }, ..good.clone() }, "top-p"),
            // By these, logits would become infinite.
            (
                Request { sampling: Sampling { penalty: 1e-40, ..Sampling::GREEDY }, ..good.clone() },
                "penalty",
            ),
            (
                Request { sampling: Sampling { temperature: 1e-38, ..Sampling::GREEDY }, ..good.clone() },
                "temperature",
            ),
        ];
        let before = engine.generate(&good).expect("a generation").paths;
        for (request, word) in refused {
            let error = engine.generate(&request).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(engine.generate(&good).expect("a generation").paths, before);
    });
}

#[test]
fn the_cache_grows_when_a_request_needs_more_room() {
    on_both(|options| {
        let mut small = open("llama", &EngineOptions { context: 4, ..options.clone() });
        let logits = small.logits(&ids("llama"), &Lora::BASE).expect("logits");
        let expected = Expected::read(&model("llama")).floats("logits").expect("logits");
        assert!(error(&logits, &expected) < 1e-4);
    });
}

#[test]
fn steps_are_kept_as_they_ran_and_taken_once() {
    on_both(|options| {
        let mut engine = open("llama", &EngineOptions { keep_steps: true, ..options.clone() });
        let adapter = model("llama").join("adapters/q-v");
        let adapter = engine.load_adapter(adapter, 1.0).expect("an adapter");
        let lora = Lora { layers: LayerMask::of([1]), from: ActiveFrom::Generated, ..Lora::new(adapter) };
        let request = Request { lora, ignore_eos: true, ..Request::new(ids("llama")[..3].to_vec(), 4) };
        engine.generate(&request).expect("a generation");
        let steps = engine.take_steps();
        assert!(engine.take_steps().is_empty());
        // The prompt without LoRA, then tokens with it: a GPU may have begun one more than was wanted.
        let rows: Vec<usize> = steps.iter().map(|step| step.shape.rows.len()).collect();
        assert_eq!(rows[..4], [3, 1, 1, 1]);
        let (prompt, decode) = (&steps[0], &steps[1]);
        assert_eq!((prompt.adapted, decode.adapted), (false, true));
        assert!(prompt.shape.rows.iter().all(|row| row.lora == 0 && row.slot == Some(0)));
        let sampled: Vec<bool> = prompt.shape.rows.iter().map(|row| row.sampled).collect();
        assert_eq!(sampled, [false, false, true]);
        let row = decode.shape.rows[0];
        assert_eq!((row.lora, row.position, row.sampled), (1 << 1, 3, true));
        assert_eq!(decode.shape.ranks, [4]);
    });
}

//! Rows of different adapters in one step, each against transformers + PEFT with its own adapter.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Expected, engine, fixtures, options};
use wattle_engine::{BackendChoice, EngineOptions, Lora, Request};

/// Log-probabilities in exact precision, of the largest |logit|: a logit, and the sum over all, may each be off by as much
/// as logits may (`tests/models.rs`).
const TOLERANCE: f32 = 2e-4;

/// A request, and what PEFT gives for it.
struct Case {
    what: String,
    request: Request,
    tokens: Vec<u32>,
    /// Of the first token, with what it may be off by, where the oracle's logits are there.
    logprob: Option<(f32, f32)>,
}

/// The greedy continuation, and the next token behind some beginnings of a text; of an aLoRA, whose place in a text depends
/// on all of it, behind the whole text alone.
fn cases(what: &str, dir: &Path, lora: Lora) -> Vec<Case> {
    let expected = Expected::read(dir);
    let mut cases = Vec::new();
    if let (Some(prompt), Some(tokens)) = (expected.ids("prompt_ids"), expected.ids("greedy_ids")) {
        let request = Request { ignore_eos: true, lora, ..Request::new(prompt, tokens.len()) };
        cases.push(Case { what: format!("{what}, greedy"), request, tokens, logprob: None });
    }
    let (Some(ids), Some(logits)) = (expected.ids("ids"), expected.floats("logits")) else { return cases };
    let (vocab, largest) = (logits.len() / ids.len(), logits.iter().fold(0.0_f32, |max, x| max.max(x.abs())));
    let whole = what.starts_with("alora");
    for length in [1, ids.len() / 3, ids.len() / 2 + 1, ids.len()].into_iter().skip(if whole { 3 } else { 0 })
    {
        let row = &logits[(length - 1) * vocab..][..vocab];
        let best = (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary");
        let second = row.iter().enumerate().filter(|&(token, _)| token != best).map(|(_, x)| *x);
        let margin = row[best] - second.fold(f32::NEG_INFINITY, f32::max);
        // What the oracle itself is undecided about is no test.
        if margin < 10.0 * TOLERANCE * largest {
            continue;
        }
        let sum: f64 = row.iter().map(|&x| f64::from(x - row[best]).exp()).sum();
        let request = Request { ignore_eos: true, lora, ..Request::new(&ids[..length], 1) };
        cases.push(Case {
            what: format!("{what}, behind {length} tokens"),
            request,
            tokens: vec![best as u32],
            logprob: Some((-sum.ln() as f32, TOLERANCE * largest)),
        });
    }
    cases
}

/// Runs the base and all adapters of a fixture at once.
fn check(name: &str, options: EngineOptions) {
    let dir = fixtures().join("models").join(name);
    let adapters = dir.join("adapters");
    let mut names: Vec<_> = std::fs::read_dir(&adapters)
        .expect("adapters")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    let sequences = 4 * (names.len() + 1);
    let options = EngineOptions { sequences, rows: sequences, keep_steps: true, ..options };
    let Some(mut engine) = engine(&dir, options.clone()) else { return };
    let mut all = cases("base", &dir, Lora::BASE);
    for name in &names {
        let id = engine.load_adapter(adapters.join(name), 1.0).expect("an adapter");
        all.extend(cases(name, &adapters.join(name), Lora::new(id)));
    }
    assert!(all.len() > 2 * names.len(), "only {} cases of {} adapters", all.len(), names.len());
    let requests: Vec<Request> = all.iter().map(|case| case.request.clone()).collect();
    let generations = engine.generate_all(&requests).expect("generations");
    for (case, generation) in all.iter().zip(&generations) {
        let (path, what) = (&generation.paths[0], format!("{name}, {} on {:?}", case.what, options.backend));
        assert_eq!(path.token_ids, case.tokens, "{what}");
        if let Some((logprob, tolerance)) = case.logprob {
            let off = (path.logprobs[0] - logprob).abs();
            assert!(off <= tolerance, "{what}: a log-probability is off by {off:e}, more than {tolerance:e}");
        }
    }
    let slots = |step: &wattle_engine::RanStep| {
        step.shape.rows.iter().map(|row| row.slot).collect::<BTreeSet<_>>().len()
    };
    let most = engine.take_steps().iter().map(slots).max();
    assert_eq!(most, Some(names.len() + 1), "the base and every adapter have rows in the same step");
}

#[test]
fn every_row_is_what_peft_gives_for_its_own_adapter() {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        for name in ["llama", "gpt2-prefix", "opt-125m"] {
            check(name, options(backend));
        }
    }
}

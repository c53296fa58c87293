//! Parallel paths that vote, and budgets that end in an answer, on the shipped model.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;

use common::{engine, options};
use wattle_engine::{
    ActiveFrom, BackendChoice, Closing, Control, Engine, EngineOptions, Finish, Lora, Request, Sampling,
    VoteRule,
};

fn sprout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/sprout")
}

/// The shipped model with its adapter, and a word problem.
fn open(backend: BackendChoice) -> Option<(Engine, Request)> {
    let options = EngineOptions { sequences: 3, context: 128, ..options(backend) };
    let mut engine = engine(&sprout(), options)?;
    let id = engine.load_adapter(sprout().join("reason"), 1.0).expect("the adapter");
    let text = "Tom has 40 cups. On Monday Ann gives Tom 12 cups. How many cups does Tom have now?";
    let lora = Lora { from: ActiveFrom::Generated, ..Lora::new(id) };
    let request = Request::new(engine.encode(text).expect("ids"), 48).with_lora(lora);
    Some((engine, request))
}

fn rule(early: bool) -> Option<VoteRule> {
    Some(VoteRule { marker: "Answer:".into(), early })
}

#[test]
fn paths_vote_and_a_decided_vote_spares_the_rest() {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        let Some((mut engine, request)) = open(backend) else { continue };
        // Low enough that most paths agree, whatever they agree on.
        let sampling = Sampling { temperature: 0.3, seed: 5, ..Sampling::GREEDY };
        let request = Request { sampling, paths: 7, vote: rule(false), ..request };
        let whole = engine.generate(&request).expect("a generation");
        let tally = whole.vote.expect("a vote");
        let counts = || tally.answers.iter().map(|answer| answer.paths.len());
        let winner = tally.winner().expect("an answer");
        assert_eq!(Some(winner.paths.len()), counts().max(), "{tally:?}");
        assert!(counts().sum::<usize>() + tally.without as usize == 7 && tally.spared == 0, "{tally:?}");
        let early = engine.generate(&Request { vote: rule(true), ..request }).expect("a generation");
        let decided = early.vote.expect("a vote");
        assert_eq!(decided.winner().map(|answer| &answer.text), Some(&winner.text), "{decided:?}");
        assert!(decided.spared > 0 && early.report.new_tokens < whole.report.new_tokens);
        assert_eq!(early.paths.len(), 7);
        for (path, whole) in early.paths.iter().zip(&whole.paths) {
            assert!(whole.token_ids.starts_with(&path.token_ids), "what was said is the same");
            assert!(path.token_ids == whole.token_ids || path.finish == Finish::Stop);
        }
    }
}

#[test]
fn a_hard_budget_ends_in_the_closing_prompt_and_an_answer() {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        let Some((mut engine, request)) = open(backend) else { continue };
        let free = engine.generate(&request).expect("a generation").paths.remove(0);
        assert!(free.token_ids.len() > 12 && free.forced.is_empty(), "{free:?}");
        let tokenizer = engine.tokenizer().expect("a tokenizer");
        let closing = Closing { ids: tokenizer.encode(" Answer:", false).expect("ids"), answer_tokens: 3 };
        let forced = closing.ids.clone();
        let budget = 4 + closing.tokens();
        let request = Request { max_new_tokens: budget, closing: Some(closing), ..request };
        let mut seen = Vec::new();
        let generation = engine
            .stream(&request, |event| {
                seen.push(event.token);
                Control::Continue
            })
            .expect("a generation");
        let path = &generation.paths[0];
        assert_eq!((&path.token_ids, path.forced.clone()), (&seen, 4..4 + forced.len()));
        assert_eq!(path.token_ids[..4], free.token_ids[..4], "until then nothing is different");
        assert_eq!(path.token_ids[path.forced.clone()], forced);
        assert!(path.token_ids.len() > path.forced.end && path.token_ids.len() <= budget);
        assert!(path.text.as_deref().is_some_and(|text| text.contains(" Answer:")), "{path:?}");
        assert!(path.logprobs[path.forced.clone()].iter().all(|&logprob| logprob == 0.0));
        assert!(path.logprob() < 0.0 && path.mean_logprob() > path.logprob());
        // What follows the closing prompt is what follows the same tokens in a prompt.
        let lora = Lora { from: ActiveFrom::Position(request.ids.len()), ..request.lora };
        let ids: Vec<u32> = request.ids.iter().chain(&path.token_ids[..path.forced.end]).copied().collect();
        let same = Request { lora, max_new_tokens: 3, closing: None, ids, ..request.clone() };
        let same = engine.generate(&same).expect("a generation").paths.remove(0);
        assert_eq!(path.token_ids[path.forced.end..], same.token_ids);
        let tight = Request { max_new_tokens: budget - 4, ..request };
        let error = engine.generate(&tight).expect_err("no token of its own").to_string();
        assert!(error.contains("closing prompt"), "{error}");
    }
}

#[test]
fn votes_need_a_tokenizer() {
    let dir = common::fixtures().join("models/llama");
    let mut engine = engine(&dir, options(BackendChoice::Cpu)).expect("the CPU is always there");
    let error = engine.generate(&Request { vote: rule(true), ..Request::new(vec![1], 1) }).expect_err("none");
    assert!(error.to_string().contains("vote"), "{error}");
}

#[test]
fn a_path_that_is_ended_early_has_all_that_was_told_and_nothing_else() {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        let Some((mut engine, request)) = open(backend) else { continue };
        let whole = engine.generate(&request).expect("a generation").paths.remove(0);
        let mut end = |request: &Request, at: usize, with: Control| {
            let mut told = Vec::new();
            let generation = engine.stream(request, |event| {
                told.push(event.token);
                if told.len() == at { with } else { Control::Continue }
            });
            let path = generation.expect("a generation").paths.remove(0);
            assert_eq!(path.token_ids, told, "{with:?}");
            assert_eq!(path.logprobs.len(), told.len());
            path
        };
        let plain = [Control::Stop, Control::Cancel].map(|with| end(&request, 6, with));
        let text = plain[0].text.clone().expect("a text");
        let held = text.chars().last().expect("a character").to_string() + "\u{1}";
        let stop = Request { stop: vec![held], ..request.clone() };
        for with in [Control::Stop, Control::Cancel] {
            assert_eq!(end(&stop, 6, with).text.as_ref(), Some(&text), "what was held back is not lost");
        }
        // The closing prompt comes with the sixth token.
        let closing = Closing { ids: whole.token_ids[..3].to_vec(), answer_tokens: 2 };
        let closed = Request { max_new_tokens: 6 + closing.tokens(), closing: Some(closing), ..stop };
        for (with, finish) in [(Control::Stop, Finish::Stop), (Control::Cancel, Finish::Cancelled)] {
            let path = end(&closed, 6, with);
            assert_eq!((path.forced.len(), path.text.as_ref(), path.finish), (0, Some(&text), finish));
            let path = end(&closed, 7, with);
            assert_eq!((path.forced, path.finish), (6..7, finish));
        }
        // One that comes to its own end keeps that.
        let short = Request { max_new_tokens: 6, ..request };
        assert_eq!(end(&short, 6, Control::Cancel).finish, Finish::Length);
    }
}

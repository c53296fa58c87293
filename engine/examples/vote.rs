//! Several paths from one prompt vote on the answer; as soon as the vote is decided the others end. A path that runs
//! out of tokens is made to say what it has.
//!
//! `cargo run --release -p wattle-engine --example vote`

use wattle_engine::{ActiveFrom, Closing, Engine, EngineOptions, Lora, Request, Result, Sampling, VoteRule};

/// The model that ships with the project.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sprout");

fn main() -> Result<()> {
    let options = EngineOptions { sequences: 8, ..EngineOptions::default() };
    let mut engine = Engine::load(MODEL, options)?;
    let reason = engine.load_adapter(format!("{MODEL}/reason"), 1.0)?;
    let problem = "Tom has 40 cups. On Monday he sells 9 of them. On Tuesday Ann gives Tom 12 cups.";
    let prompt = engine.encode(&format!("{problem} How many cups does Tom have now?"))?;

    let closing = match engine.tokenizer() {
        Some(tokenizer) => Some(Closing { ids: tokenizer.encode(" Answer:", false)?, answer_tokens: 4 }),
        None => None,
    };
    let request = Request {
        // Hot enough that the paths disagree.
        sampling: Sampling { temperature: 1.3, seed: 1, ..Sampling::GREEDY },
        paths: 8,
        vote: Some(VoteRule { marker: "Answer:".into(), early: true }),
        closing,
        ..Request::new(prompt, 40)
    }
    .with_lora(Lora { from: ActiveFrom::Generated, ..Lora::new(reason) });

    let generation = engine.generate(&request)?;
    for (index, path) in generation.paths.iter().enumerate() {
        let text = path.text.as_deref().unwrap_or("(no tokenizer)");
        println!("{index}: {text} ({:?}, mean log-probability {:.2})", path.finish, path.mean_logprob());
    }
    let tally = generation.vote.unwrap_or_default();
    for answer in &tally.answers {
        println!("{} votes for {}", answer.paths.len(), answer.text);
    }
    println!("{} paths ended early", tally.spared);
    Ok(())
}

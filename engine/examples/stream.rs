//! Prints text as it comes, and stops after the first sentence.
//!
//! `cargo run --release -p wattle-engine --example stream`

use std::io::Write;

use wattle_engine::{Control, Engine, EngineOptions, Request, Result, Sampling};

/// The model that ships with the project.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sprout");

fn main() -> Result<()> {
    let mut engine = Engine::load(MODEL, EngineOptions::default())?;
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: 7, ..Sampling::GREEDY };
    let request = Request { sampling, ..Request::new(engine.encode("Tom has 40 cups.")?, 40) };
    let generation = engine.stream(&request, |event| {
        print!("{}", event.text);
        // A terminal that is gone is no reason to go on.
        let shown = std::io::stdout().flush();
        if shown.is_err() || event.text.ends_with('.') { Control::Stop } else { Control::Continue }
    })?;
    let report = &generation.report;
    println!("\n({} tokens, the first after {:.1?})", report.new_tokens, report.first_token);
    Ok(())
}

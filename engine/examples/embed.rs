//! The least that a program needs: load a model and an adapter, ask, print.
//!
//! `cargo run --release -p wattle-engine --example embed`

use wattle_engine::{ActiveFrom, Engine, EngineOptions, Lora, Request, Result};

/// The model that ships with the project.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sprout");

fn main() -> Result<()> {
    let mut engine = Engine::load(MODEL, EngineOptions::default())?;
    let reason = engine.load_adapter(format!("{MODEL}/reason"), 1.0)?;
    let prompt = engine
        .encode("Tom has 40 cups. On Monday Ann gives Tom 12 cups. How many cups does Tom have now?")?;

    let base = Request::new(prompt, 48);
    // This adapter was trained to be off while the prompt is read.
    let adapted = base.clone().with_lora(Lora { from: ActiveFrom::Generated, ..Lora::new(reason) });
    // Both run in one batch: every row names its adapter, or none.
    for generation in engine.generate_all(&[base, adapted])? {
        for path in &generation.paths {
            println!("{}", path.text.as_deref().unwrap_or("(no tokenizer)"));
        }
    }
    Ok(())
}

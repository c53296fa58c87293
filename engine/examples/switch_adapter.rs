//! Begins with the base and goes on with an adapter, half-way through an answer: nothing is encoded again.
//!
//! `cargo run --release -p wattle-engine --example switch_adapter`

use wattle_engine::{Control, Engine, EngineOptions, LayerMask, Lora, Request, Result};

/// The model that ships with the project.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sprout");

fn main() -> Result<()> {
    let mut engine = Engine::load(MODEL, EngineOptions::default())?;
    let reason = engine.load_adapter(format!("{MODEL}/reason"), 1.0)?;
    let problem = "Tom has 40 cups. On Monday he sells 9 of them. On Tuesday Ann gives Tom 12 cups.";
    let prompt = engine.encode(&format!("{problem} How many cups does Tom have now?"))?;

    // The base writes the first token; then the adapter takes over, in the first half of the layers only.
    let half = LayerMask::of(0..engine.spec().layers / 2);
    let mut tokens = 0;
    let generation = engine.stream(&Request::new(prompt, 48), |_| {
        tokens += 1;
        if tokens == 1 {
            Control::Switch(Lora { layers: half, ..Lora::new(reason) })
        } else {
            Control::Continue
        }
    })?;
    let report = &generation.report;
    for path in &generation.paths {
        println!("{}", path.text.as_deref().unwrap_or("(no tokenizer)"));
    }
    println!(
        "LoRA ran in {} token-layers; {} were skipped",
        report.lora_layers_run, report.lora_layers_skipped
    );
    Ok(())
}

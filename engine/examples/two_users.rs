//! Two users on two threads, each with an adapter, served by one engine: their rows run in the same steps. One of them
//! loses patience.
//!
//! `cargo run --release -p wattle-engine --example two_users`

use std::thread;

use wattle_engine::{
    ActiveFrom, AdapterRoom, Client, Engine, EngineOptions, Lora, Request, Result, Service, ServiceOptions,
};

/// The model that ships with the project.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sprout");

/// Loads an adapter while the other user's request may be running, and asks.
fn user(client: &Client, scale: f32, problem: &str, patience: usize) -> Result<String> {
    let adapter = client.load_adapter(format!("{MODEL}/reason"), scale)?;
    let lora = Lora { from: ActiveFrom::Generated, ..Lora::new(adapter) };
    let request = Request::new(client.encode(problem)?, 48).with_lora(lora);
    // Dropping the iterator ends the request.
    let text = client.submit(request)?.take(patience).map(|token| token.text).collect();
    client.remove_adapter(adapter)?;
    Ok(text)
}

fn main() -> Result<()> {
    // Slots for both adapters are there from the beginning, so that loading one makes nobody wait.
    let adapters = AdapterRoom { slots: Some(2), rank: 16, bytes: None };
    let engine = Engine::load(MODEL, EngineOptions { adapters, ..EngineOptions::default() })?;
    let service = Service::start(engine, ServiceOptions::default())?;
    let problem = "Tom has 40 cups. On Monday Ann gives Tom 12 cups. How many cups does Tom have now?";
    let users = [(1.0, usize::MAX), (0.5, 6)].map(|(scale, patience)| {
        let client = service.client();
        thread::spawn(move || user(&client, scale, problem, patience))
    });
    for (number, user) in users.into_iter().enumerate() {
        match user.join() {
            Ok(text) => println!("user {number}:{}", text?),
            Err(_) => println!("user {number} panicked; the engine did not notice"),
        }
    }
    Ok(())
}

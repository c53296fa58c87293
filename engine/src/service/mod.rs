//! An engine on a thread of its own, for programs with many users: requests come from any thread at any time, join and
//! leave while others run, and are answered as they come.

mod beside;
mod client;
mod metrics;
mod places;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::cache::PageStats;
use crate::engine::Engine;
use crate::error::{Error, Result};
pub use client::{Client, Token, Tokens};
use worker::{Command, Worker};

/// How a service is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Requests that may wait for their first path to begin, at least one; more are refused ([`Error::Busy`]).
    pub queue: usize,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self { queue: 256 }
    }
}

/// How much a service has to do, after its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceLoad {
    /// Requests of which no path has begun, without those that came during the step and are taken before the next.
    pub queued: usize,
    /// Requests that have not ended, those included.
    pub requests: usize,
    /// Paths that run.
    pub paths: usize,
    /// Adapters that have an id.
    pub adapters: usize,
    /// Adapter slots of the device.
    pub slots: usize,
    /// Slots that running paths hold.
    pub slots_held: usize,
    /// Pages of KV memory.
    pub pages: PageStats,
    /// Steps so far.
    pub steps: u64,
    /// Prompt positions so far that were taken from a cache instead of being run.
    pub shared_positions: u64,
    /// How often running requests encoded again what they had, because the device was made anew.
    pub restarts: u64,
}

/// Owns the thread that owns the engine. Dropping it cancels what runs and waits for the thread.
///
/// It tells the facade of the crate `metrics`:
///
/// | name | kind | is |
/// |---|---|---|
/// | `wattle_queued_requests`, `wattle_running_paths` | gauge | after the last step |
/// | `wattle_adapters_loaded`, `wattle_adapter_slots`, `wattle_adapter_slots_held` | gauge | residency |
/// | `wattle_step_rows`, `wattle_step_samples` | histogram | rows and samples of a step |
/// | `wattle_requests_total` (label `outcome`: `ok`, `cancelled`, `deadline`, `error`, `refused`, `busy`) | counter | requests that ended; wrong ones; those that found the queue full |
/// | `wattle_new_tokens_total`, `wattle_prompt_tokens_total` | counter | of requests that ended |
/// | `wattle_shared_positions_total` | counter | prompt positions that were taken from a cache and not run |
/// | `wattle_queue_seconds`, `wattle_first_token_seconds` | histogram | from submission |
/// | `wattle_adapter_loads_total`, `wattle_adapter_evictions_total` | counter | adapters put into slots, and out again |
/// | `wattle_pages`, `wattle_pages_used`, `wattle_pages_cached` | gauge | pages of KV memory: all, those of paths, those kept for their content |
/// | `wattle_pages_copied_total`, `wattle_pages_evicted_total` | counter | shared pages that were copied to be written, cached pages that gave way |
/// | `wattle_device_restarts_total` | counter | devices that were made anew while requests ran |
///
/// ```
/// use wattle_engine::{BackendChoice, Engine, EngineOptions, Request, Service, ServiceOptions};
///
/// # fn main() -> wattle_engine::Result<()> {
/// let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::default() };
/// let service = Service::start(Engine::load("../models/sprout", options)?, ServiceOptions::default())?;
/// let client = service.client();
/// let user = std::thread::spawn(move || -> wattle_engine::Result<String> {
///     let prompt = client.encode("Tom has 40 cups.")?;
///     let mut tokens = client.submit(Request::new(prompt, 8))?;
///     let text: String = tokens.by_ref().map(|token| token.text).collect();
///     assert_eq!(tokens.wait()?.paths[0].text.as_deref(), Some(&text[..]));
///     Ok(text)
/// });
/// assert!(user.join().is_ok_and(|text| text.is_ok_and(|text| !text.is_empty())));
/// # Ok(())
/// # }
/// ```
pub struct Service {
    client: Client,
    thread: Option<JoinHandle<Option<Engine>>>,
}

impl Service {
    /// Gives the engine to a new thread.
    ///
    /// # Errors
    /// [`Error::Value`] for a queue without places, [`Error::Stopped`] when the system starts no thread.
    pub fn start(engine: Engine, options: ServiceOptions) -> Result<Self> {
        if options.queue == 0 {
            return Err(Error::value("queue", "0 places, expected at least one: no request could begin"));
        }
        let (sender, commands) = mpsc::channel();
        let client = Client::new(&engine, options, sender);
        let load = client.shared_load();
        let work = move || {
            let mut worker = Worker::new(engine, commands, load);
            // A panic here is a mistake in the engine. Who waits for an answer is told: the worker's end hangs up on all.
            catch_unwind(AssertUnwindSafe(|| worker.run())).ok().map(|()| worker.into_engine())
        };
        let thread = std::thread::Builder::new().name("wattle-engine".into()).spawn(work);
        let thread = thread.map_err(|error| Error::Stopped(format!("no thread for the engine: {error}")))?;
        Ok(Self { client, thread: Some(thread) })
    }

    /// A handle for submitting requests; it can be cloned and sent to other threads.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Cancels what runs, ends the thread and gives the engine back; `None` if the thread had panicked.
    pub fn stop(mut self) -> Option<Engine> {
        self.end()
    }

    fn end(&mut self) -> Option<Engine> {
        let thread = self.thread.take()?;
        self.client.send(Command::Stop).ok();
        thread.join().ok().flatten()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

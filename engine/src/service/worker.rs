//! The thread that owns the engine.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::ServiceLoad;
use super::client::{Callback, Token};
use super::metrics;
use super::places::Place;
use crate::engine::{Engine, Ready};
use crate::error::{Error, Result};
use crate::generation::{Control, Event, Generation};
use crate::request::{AdapterId, Request};
use crate::schedule::Scheduler;

/// Commands that are obeyed between two steps: who asks for much must not keep those who run from running.
const COMMANDS: usize = 64;

/// What clients ask for.
pub(super) enum Command {
    Submit(Box<Submission>),
    Cancel(u64),
    Change(Box<Change>),
    Stop,
}

/// A request, and where its answers go.
pub(super) struct Submission {
    pub ticket: u64,
    pub request: Request,
    pub callback: Option<Callback>,
    pub sender: mpsc::Sender<Message>,
    pub place: Place,
    pub at: Instant,
}

/// A change to the adapters.
pub(super) enum Change {
    Add(Ready, mpsc::Sender<Result<AdapterId>>),
    Replace(AdapterId, Ready, mpsc::Sender<Result<()>>),
    Remove(AdapterId, mpsc::Sender<Result<()>>),
}

/// What goes back.
pub(super) enum Message {
    Token(Token),
    Done(Result<Generation>),
}

/// A request that the scheduler has.
struct Entry {
    ticket: u64,
    callback: Option<Callback>,
    sender: mpsc::Sender<Message>,
    /// Held until the first path begins.
    place: Option<Place>,
    panicked: bool,
}

/// The engine with its scheduler and the requests in it.
pub(super) struct Worker {
    engine: Engine,
    scheduler: Scheduler,
    commands: mpsc::Receiver<Command>,
    /// By the scheduler's numbers.
    entries: BTreeMap<u64, Entry>,
    load: Arc<Mutex<ServiceLoad>>,
    published: metrics::Published,
    started: Instant,
}

impl Worker {
    pub fn new(engine: Engine, commands: mpsc::Receiver<Command>, load: Arc<Mutex<ServiceLoad>>) -> Self {
        let scheduler = engine.scheduler();
        let (entries, published, started) = (BTreeMap::new(), metrics::Published::default(), Instant::now());
        Self { engine, scheduler, commands, entries, load, published, started }
    }

    pub fn into_engine(self) -> Engine {
        self.engine
    }

    /// Commands and steps in turn, until told to stop or until no client is left and nothing runs.
    pub fn run(&mut self) {
        while self.obey() {
            if !self.scheduler.is_idle() {
                self.step();
            }
            self.answer();
        }
        let stopped = || Error::Stopped("the service was stopped".into());
        self.scheduler.fail_all(stopped, &mut self.engine.host());
        self.answer();
    }

    /// Does what was asked for by now, but no more than one change to the adapters, and waits for something to do where
    /// there is nothing; `false`: the end.
    fn obey(&mut self) -> bool {
        for turn in 0..COMMANDS {
            let waits = turn == 0 && self.scheduler.is_idle();
            let command =
                if waits { self.commands.recv().map_err(Into::into) } else { self.commands.try_recv() };
            let command = match command {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return true,
                // Nobody is left to ask; what runs still has its listeners.
                Err(TryRecvError::Disconnected) => return !self.scheduler.is_idle(),
            };
            let changes = matches!(command, Command::Change(_));
            if !self.command(command) {
                return false;
            }
            if changes {
                break;
            }
        }
        true
    }

    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Cancel(ticket) => {
                let found = self.entries.iter().find(|(_, entry)| entry.ticket == ticket);
                if let Some((&job, _)) = found {
                    self.scheduler.cancel(job, &mut self.engine.host());
                }
            }
            Command::Change(change) => self.change(*change),
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { ticket, request, callback, sender, place, at } = submission;
        match self.engine.submit(&mut self.scheduler, &request, at.saturating_duration_since(self.started)) {
            Ok(job) => {
                tracing::debug!(job, prompt = request.ids.len(), paths = request.paths, "request submitted");
                let place = Some(place);
                self.entries.insert(job, Entry { ticket, callback, sender, place, panicked: false });
            }
            Err(error) => {
                metrics::refused();
                // Here and below: a client that is gone needs no answer.
                let _ = sender.send(Message::Done(Err(error)));
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Add(ready, reply) => {
                let _ = reply.send(self.engine.add_ready(ready));
            }
            Change::Replace(id, ready, reply) => {
                let _ = reply.send(self.engine.replace_ready(id, ready));
            }
            Change::Remove(id, reply) => {
                let _ = reply.send(self.engine.remove_adapter(id));
            }
        }
    }

    /// One step; where even a device that was made anew fails, all requests fail.
    fn step(&mut self) {
        let Self { engine, scheduler, entries, started, .. } = self;
        let now = || started.elapsed();
        let mut observer = |event: &Event<'_>| {
            let entry = entries.get_mut(&(event.request as u64));
            entry.map_or(Control::Cancel, |entry| entry.tell(event))
        };
        if let Err(error) = engine.step(scheduler, &now, &mut observer) {
            tracing::error!(%error, "all requests fail");
            let reason = error.to_string();
            let device = engine.backend().device().to_owned();
            let failed = || match &error {
                Error::Device { reason, .. } => Error::device(&device, reason),
                _ => Error::device(&device, &reason),
            };
            scheduler.fail_all(failed, &mut engine.host());
        }
    }

    /// Hands out results, frees places in the queue, and publishes the load.
    fn answer(&mut self) {
        for done in self.scheduler.take_done() {
            let Some(entry) = self.entries.remove(&done.job) else { continue };
            let panicked = || Err(Error::value("callback", "it panicked: its request was cancelled"));
            let result = if entry.panicked { panicked() } else { done.result };
            metrics::done(&result);
            tracing::debug!(job = done.job, ok = result.is_ok(), "request ended");
            let _ = entry.sender.send(Message::Done(result));
        }
        for (&job, entry) in &mut self.entries {
            if !self.scheduler.is_queued(job) {
                entry.place = None;
            }
        }
        let (load, (adapters, [slots, slots_held])) = (self.scheduler.load(), self.engine.adapter_slots());
        let public = ServiceLoad {
            queued: load.queued,
            requests: load.requests,
            paths: load.running,
            adapters,
            slots,
            slots_held,
            pages: self.engine.pages(),
            steps: load.steps,
            shared_positions: load.shared_positions,
            restarts: load.restarts,
        };
        self.published.update(&public, &load, self.engine.adapter_counts());
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = public;
    }
}

impl Entry {
    /// Hands a token to the callback or to the stream.
    fn tell(&mut self, event: &Event<'_>) -> Control {
        let Some(callback) = &mut self.callback else {
            let Event { path, token, logprob, text, finish, .. } = *event;
            let token = Token { path, token, logprob, text: text.to_owned(), finish };
            return self.sender.send(Message::Token(token)).map_or(Control::Cancel, |()| Control::Continue);
        };
        let control = catch_unwind(AssertUnwindSafe(|| callback(event)));
        control.unwrap_or_else(|_| {
            self.panicked = true;
            Control::Cancel
        })
    }
}

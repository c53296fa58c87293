//! The thread that owns the engine.

use std::collections::{BTreeMap, VecDeque};
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

/// Requests that are taken between two steps: who asks for much must not keep those who run from running.
const REQUESTS: usize = 64;

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

/// What takes the time of a step and waits for its turn, in the order in which it came: requests before the removal of
/// their adapter.
enum Task {
    Submit(Box<Submission>),
    Change(Box<Change>),
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
    tasks: VecDeque<Task>,
    /// By the scheduler's numbers.
    entries: BTreeMap<u64, Entry>,
    load: Arc<Mutex<ServiceLoad>>,
    published: metrics::Published,
    started: Instant,
}

impl Worker {
    pub fn new(engine: Engine, commands: mpsc::Receiver<Command>, load: Arc<Mutex<ServiceLoad>>) -> Self {
        let scheduler = engine.scheduler();
        let published = metrics::Published::after(engine.adapter_counts(), engine.pages());
        let (entries, started) = (BTreeMap::new(), Instant::now());
        Self { engine, scheduler, commands, tasks: VecDeque::new(), entries, load, published, started }
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

    /// Does what was asked for by now: cancels at once, of the rest no more than some requests and one change to the
    /// adapters. Waits for something to do where there is nothing; `false`: the end.
    fn obey(&mut self) -> bool {
        let mut waits = self.has_nothing_to_do();
        loop {
            let command =
                if waits { self.commands.recv().map_err(Into::into) } else { self.commands.try_recv() };
            waits = false;
            match command {
                Ok(Command::Submit(submission)) => self.tasks.push_back(Task::Submit(submission)),
                Ok(Command::Change(change)) => self.tasks.push_back(Task::Change(change)),
                Ok(Command::Cancel(ticket)) => self.cancel(ticket),
                Ok(Command::Stop) => return false,
                Err(TryRecvError::Empty) => break,
                // Nobody is left to ask; what runs still has its listeners.
                Err(TryRecvError::Disconnected) if self.has_nothing_to_do() => return false,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        for _ in 0..REQUESTS {
            match self.tasks.pop_front() {
                Some(Task::Submit(submission)) => self.submit(*submission, true),
                Some(Task::Change(change)) => {
                    self.change(*change);
                    break;
                }
                None => break,
            }
        }
        true
    }

    fn has_nothing_to_do(&self) -> bool {
        self.scheduler.is_idle() && self.tasks.is_empty()
    }

    fn cancel(&mut self, ticket: u64) {
        let waits = |task: &Task| matches!(task, Task::Submit(submission) if submission.ticket == ticket);
        if let Some(at) = self.tasks.iter().position(waits)
            && let Some(Task::Submit(submission)) = self.tasks.remove(at)
        {
            self.submit(*submission, false);
        }
        let found = self.entries.iter().find(|(_, entry)| entry.ticket == ticket);
        if let Some((&job, _)) = found {
            self.scheduler.cancel(job, &mut self.engine.host());
        }
    }

    /// Takes a request; one that is to run, and whose time is not over, gets room made for it.
    fn submit(&mut self, submission: Submission, runs: bool) {
        let Submission { ticket, request, callback, sender, place, at } = submission;
        let over = request.deadline.is_some_and(|time| at.elapsed() >= time);
        let at = at.saturating_duration_since(self.started);
        let taken = if runs && !over {
            self.engine.submit(&mut self.scheduler, &request, at)
        } else {
            self.engine.checked(&request).map(|order| self.scheduler.submit(order, at))
        };
        match taken {
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
        callback.tell(event).unwrap_or_else(|| {
            self.panicked = true;
            Control::Cancel
        })
    }
}

//! A request in the scheduler, from submission to its last path's end.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::generation::{Finish, Generation, Path, Report};
use crate::request::Request;
use crate::schedule::loras::Choice;
use crate::schedule::order::Candidate;
use crate::schedule::sequence::{PathLimits, Sequence};
use crate::vote::Ballot;

/// A request that was checked.
pub(crate) struct Order {
    pub request: Arc<Request>,
    pub lora: Choice,
    pub limits: PathLimits,
}

impl Order {
    /// Positions that a path of it may need: none where it ends before its first token.
    pub fn positions(&self) -> usize {
        let positions = self.limits.tokens(&self.request);
        if positions > self.request.ids.len() { positions } else { 0 }
    }
}

/// A request with what it has given so far.
pub(crate) struct Job {
    pub order: Order,
    pub submitted: Duration,
    /// Paths from this one on wait for a sequence.
    pub next_path: u32,
    pub running: usize,
    pub overtaken: u32,
    /// What the scheduler had released when there was last no room for it.
    pub waits_since: Option<u64>,
    paths: Vec<Option<Path>>,
    ballot: Option<Ballot>,
    report: Report,
    last_token: Duration,
}

impl Job {
    pub fn new(order: Order, now: Duration) -> Self {
        let request = &order.request;
        Self {
            submitted: now,
            next_path: 0,
            running: 0,
            overtaken: 0,
            waits_since: None,
            paths: vec![None; request.paths as usize],
            ballot: request.vote.clone().map(|rule| Ballot::new(rule, request.paths)),
            report: Report { prompt_tokens: request.ids.len(), ..Report::default() },
            last_token: Duration::ZERO,
            order,
        }
    }

    pub fn has_waiting(&self) -> bool {
        self.next_path < self.order.request.paths
    }

    pub fn candidate(&self, job: u64) -> Option<Candidate> {
        let (priority, running, overtaken) = (self.order.request.priority, self.running, self.overtaken);
        self.has_waiting().then_some(Candidate { job, priority, running, overtaken })
    }

    /// When it has to have ended.
    pub fn deadline(&self) -> Option<Duration> {
        self.order.request.deadline.map(|time| self.submitted.saturating_add(time))
    }

    /// So many positions of a path's prompt came from a cache.
    pub fn cached(&mut self, positions: usize) {
        self.report.cached_tokens += positions;
    }

    /// A path begins.
    pub fn begin(&mut self, now: Duration) {
        if self.next_path == 0 {
            self.report.queued = now.saturating_sub(self.submitted);
        }
        self.next_path += 1;
        self.running += 1;
    }

    /// Takes a path's result. `voted`: the path ended by itself.
    pub fn take(&mut self, sequence: Sequence, finish: Finish, voted: bool) {
        let since = |at: Option<Duration>| at.map(|at| at.saturating_sub(self.submitted));
        let report = &mut self.report;
        report.lora_layers_run += sequence.lora_layers[0];
        report.lora_layers_skipped += sequence.lora_layers[1];
        report.lora_layers_closed += sequence.closed;
        if let Some(first) = since(sequence.first_token) {
            report.first_token =
                if report.first_token.is_zero() { first } else { first.min(report.first_token) };
        }
        self.last_token = self.last_token.max(since(sequence.last_token).unwrap_or_default());
        let index = sequence.path;
        let path = sequence.finish(finish);
        self.report.new_tokens += path.token_ids.len();
        if let (Some(ballot), true) = (&mut self.ballot, voted) {
            ballot.cast(index, &path);
        }
        self.set(index, path);
        self.running -= 1;
    }

    /// Whether the votes of the paths that have not ended cannot change the winner.
    pub fn is_decided(&self) -> bool {
        self.ballot.as_ref().is_some_and(Ballot::is_decided)
    }

    /// A path does not vote because it was ended from outside.
    pub fn abstain(&mut self, spared: bool) {
        if let Some(ballot) = &mut self.ballot {
            ballot.abstain(spared);
        }
    }

    /// The paths that have not begun never will.
    pub fn close(&mut self, finish: Finish, spared: bool) {
        let has_text = self.order.limits.tokenizer.is_some();
        for path in self.next_path..self.order.request.paths {
            let text = has_text.then(String::new);
            let empty = Path { token_ids: Vec::new(), logprobs: Vec::new(), forced: 0..0, text, finish };
            self.set(path, empty);
            self.abstain(spared);
        }
        self.next_path = self.order.request.paths;
    }

    /// Whether all paths have ended.
    pub fn is_done(&self) -> bool {
        self.running == 0 && !self.has_waiting()
    }

    fn set(&mut self, path: u32, result: Path) {
        if let Some(place) = self.paths.get_mut(path as usize) {
            *place = Some(result);
        }
    }

    /// What it gave; call when it is done.
    pub fn finish(self) -> Generation {
        let mut report = self.report;
        report.decode = self.last_token.saturating_sub(report.first_token);
        let paths = self.paths.into_iter().flatten().collect();
        Generation { paths, vote: self.ballot.map(Ballot::tally), report }
    }
}

/// A request that has ended.
pub(crate) struct Done {
    pub job: u64,
    pub result: Result<Generation, Error>,
}

//! The loop that turns requests into steps.

use std::collections::VecDeque;
use std::time::Instant;

use crate::backend::{Step, Ticket};
use crate::error::Result;
use crate::request::{Control, Event, Finish, Generation, Lora, Path, Report, Request};
use crate::runtime::Runtime;
use crate::schedule::sequence::{PathLimits, ResolvedLora, Sequence};

/// A request that was checked, with everything looked up.
pub(crate) struct Job<'a> {
    /// Its index in the caller's list.
    pub index: usize,
    pub request: &'a Request,
    pub limits: PathLimits<'a>,
    pub eos: Vec<u32>,
}

/// A path that waits for a free sequence.
struct Waiting {
    job: usize,
    path: u32,
}

/// A step that was submitted: whose samples it has, in order, by serial number of the sequence.
struct InFlight {
    ticket: Ticket,
    draws: Vec<u64>,
}

/// What a job has given so far.
struct Outcome {
    paths: Vec<Option<Path>>,
    report: Report,
    last_token: Option<Instant>,
}

/// Jobs on their way to their ends.
pub(crate) struct Batch<'a> {
    jobs: Vec<Job<'a>>,
    outcomes: Vec<Outcome>,
    waiting: VecDeque<Waiting>,
    running: Vec<(u64, Sequence<'a>)>,
    free: Vec<u32>,
    in_flight: VecDeque<InFlight>,
    serial: u64,
    started: Instant,
    layers: usize,
}

/// Looks up what a caller switched to.
pub(crate) type Resolve<'r> = &'r dyn Fn(&Lora) -> Option<ResolvedLora>;
/// Sees every token.
pub(crate) type Observer<'o> = &'o mut dyn FnMut(&Event<'_>) -> Control;

impl<'a> Batch<'a> {
    pub fn new(jobs: Vec<Job<'a>>, sequences: usize, layers: usize) -> Self {
        let mut waiting = VecDeque::new();
        for (job, entry) in jobs.iter().enumerate() {
            waiting.extend((0..entry.request.paths).map(|path| Waiting { job, path }));
        }
        let outcome = |job: &Job| Outcome {
            paths: vec![None; job.request.paths as usize],
            report: Report { prompt_tokens: job.request.ids.len(), ..Report::default() },
            last_token: None,
        };
        Self {
            outcomes: jobs.iter().map(outcome).collect(),
            jobs,
            waiting,
            running: Vec::new(),
            free: (0..sequences as u32).rev().collect(),
            in_flight: VecDeque::new(),
            serial: 0,
            started: Instant::now(),
            layers,
        }
    }

    /// Runs to the end, or to the first error; then no step is under way.
    pub fn run(&mut self, runtime: &mut Runtime, resolve: Resolve, observer: Observer) -> Result<()> {
        let result = self.steps(runtime, resolve, observer);
        for step in self.in_flight.drain(..) {
            // Only after an error: it is the first one that the caller should see.
            let _ = runtime.collect(step.ticket);
        }
        result
    }

    /// Admit → rows → submit → collect → deliver, with `depth` steps under way.
    fn steps(&mut self, runtime: &mut Runtime, resolve: Resolve, observer: Observer) -> Result<()> {
        // While the device runs a step the host writes the next; the CPU backend runs steps as they are submitted.
        let depth = if runtime.backend.kind() == "gpu" { 2 } else { 1 };
        loop {
            self.admit(runtime)?;
            let (step, draws) = self.rows(depth, runtime.capacity.rows, runtime.capacity.samples);
            if !step.rows.is_empty() {
                let ticket = runtime.submit(&step)?;
                self.in_flight.push_back(InFlight { ticket, draws });
                self.copy_prompts(runtime)?;
                if self.in_flight.len() < depth {
                    continue;
                }
            }
            let Some(InFlight { ticket, draws }) = self.in_flight.pop_front() else { break };
            let sampled = runtime.collect(ticket)?;
            for (serial, sampled) in draws.into_iter().zip(sampled) {
                self.deliver(serial, sampled, resolve, observer)?;
            }
        }
        Ok(())
    }

    /// Gives free sequences to waiting paths.
    fn admit(&mut self, runtime: &mut Runtime) -> Result<()> {
        while let (false, Some(&id)) = (self.waiting.is_empty(), self.free.last()) {
            let Some(Waiting { job, path }) = self.waiting.pop_front() else { break };
            let entry = &self.jobs[job];
            let mut sequence = Sequence::new(job, path, id, entry.request, &entry.limits);
            if sequence.is_full() {
                self.outcomes[job].paths[path as usize] = Some(sequence.finish(Finish::Length).0);
                continue;
            }
            self.free.pop();
            runtime.backend.reset_sequence(id)?;
            // Later paths take the prompt from the first one, if that one is still at it.
            let first = self.running.iter().find(|(_, s)| s.request == job && s.path == 0);
            sequence.waits_for_copy = first.is_some_and(|(_, first)| first.before_copy() > 0);
            self.running.push((self.serial, sequence));
            self.serial += 1;
        }
        Ok(())
    }

    /// The rows of the next step: draws first, so that nobody waits for a long prompt.
    fn rows(&mut self, depth: usize, max_rows: usize, max_samples: usize) -> (Step, Vec<u64>) {
        let (mut step, mut draws) = (Step::default(), Vec::new());
        let mut wanted: Vec<(bool, usize, usize)> = Vec::new();
        let waiting = self.running.iter().filter(|(_, s)| s.waits_for_copy);
        let copied: Vec<usize> = waiting.map(|(_, s)| s.request).collect();
        for (index, (_, sequence)) in self.running.iter_mut().enumerate() {
            let mut count = sequence.rows_wanted(depth);
            if sequence.path == 0 && copied.contains(&sequence.request) {
                count = count.min(sequence.before_copy());
            }
            wanted.push((sequence.in_prompt(), count, index));
        }
        wanted.retain(|&(_, count, _)| count > 0);
        wanted.sort_by_key(|&(in_prompt, count, index)| (in_prompt, count > 1, index));
        for (_, count, index) in wanted {
            let room = max_rows - step.rows.len();
            if room == 0 || step.samples.len() == max_samples {
                break;
            }
            let (serial, sequence) = &mut self.running[index];
            if sequence.push_rows(count.min(room), self.layers, &mut step.rows, &mut step.samples) {
                draws.push(*serial);
            }
        }
        (step, draws)
    }

    /// Paths that wait for their prompt get it as soon as the first path has run it.
    fn copy_prompts(&mut self, runtime: &mut Runtime) -> Result<()> {
        let sources: Vec<(usize, u32, usize)> = self
            .running
            .iter()
            .filter_map(|(_, s)| Some((s.request, s.id, (s.path == 0).then(|| s.copyable())??)))
            .collect();
        for (request, from, positions) in sources {
            for (_, path) in self.running.iter_mut().filter(|(_, s)| s.request == request && s.waits_for_copy)
            {
                runtime.backend.copy_sequence(from, path.id, positions)?;
                path.copied();
            }
        }
        Ok(())
    }

    /// Hands a token to its path and to the observer; ends the path where it ends.
    fn deliver(
        &mut self,
        serial: u64,
        sampled: wattle_shaders::Sampled,
        resolve: Resolve,
        observer: Observer,
    ) -> Result<()> {
        // A step may have been ahead of a path that ended meanwhile.
        let Some(at) = self.running.iter().position(|(s, _)| *s == serial) else { return Ok(()) };
        let sequence = &mut self.running[at].1;
        let job = &self.jobs[sequence.request];
        if sampled.invalid != 0 {
            let reason =
                "the model computed a value that is not finite; its weights or the adapter's are damaged";
            return Err(crate::Error::value("logits", reason));
        }
        let (text, mut finish) = sequence.accept(sampled, &job.eos);
        let (token, logprob, path) = (sampled.token, sampled.logprob, sequence.path);
        let event = Event { request: job.index, path, token, logprob, text: &text };
        match observer(&event) {
            Control::Continue => {}
            Control::Stop => finish = finish.or(Some(Finish::Stop)),
            Control::Switch(lora) => match resolve(&lora) {
                Some(lora) => sequence.lora = lora,
                None => return Err(crate::Error::value("adapter", "no adapter of this id is loaded")),
            },
        }
        if let Some(finish) = finish {
            self.end(at, finish, observer);
        }
        Ok(())
    }

    fn end(&mut self, at: usize, finish: Finish, observer: Observer) {
        let (_, sequence) = self.running.remove(at);
        let (job, path, id) = (sequence.request, sequence.path, sequence.id);
        let outcome = &mut self.outcomes[job];
        let report = &mut outcome.report;
        report.lora_layers_run += sequence.lora_layers[0];
        report.lora_layers_skipped += sequence.lora_layers[1];
        let first = sequence.first_token.map(|at| at - self.started);
        if report.first_token.is_zero() || first.is_some_and(|first| first < report.first_token) {
            report.first_token = first.unwrap_or_default();
        }
        outcome.last_token = outcome.last_token.max(sequence.last_token);
        let (result, rest) = sequence.finish(finish);
        report.new_tokens += result.token_ids.len();
        if let (false, Some(&token)) = (rest.is_empty(), result.token_ids.last()) {
            let logprob = result.logprobs.last().copied().unwrap_or(0.0);
            // The token was seen already: only its held-back text is new, so what the observer wants is moot.
            let _ = observer(&Event { request: self.jobs[job].index, path, token, logprob, text: &rest });
        }
        outcome.paths[path as usize] = Some(result);
        self.free.push(id);
    }

    /// The results, in the order of the jobs.
    pub fn finish(self) -> Vec<Generation> {
        let started = self.started;
        let generation = |outcome: Outcome| {
            let mut report = outcome.report;
            let total = outcome.last_token.map(|at| at - started).unwrap_or_default();
            report.decode = total.saturating_sub(report.first_token);
            Generation { paths: outcome.paths.into_iter().flatten().collect(), report }
        };
        self.outcomes.into_iter().map(generation).collect()
    }
}

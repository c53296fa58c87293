//! The shipped model's answers in one format, and what they cost.

use std::path::PathBuf;

use wattle_engine::model::Model;
use wattle_engine::{ActiveFrom, BackendChoice, Engine, EngineOptions, Lora, Precision, RanStep, Request};
use wattle_policy::Profile;

use super::Kept;
use crate::energy::{Energy, Plans};
use crate::error::Result;
use crate::prompt::expected_tokens;
use crate::shipped;
use crate::simulated::weight_bytes;
use crate::tasks::{self, Problem, Task};

const MAX_NEW: usize = 64;

/// The shipped model, its adapter and its tasks.
pub(super) struct Shipped {
    model: Model,
    adapter: PathBuf,
    pub tasks: Vec<Task>,
    /// Only its tokenizer is used.
    tokenizer: Engine,
}

/// Answers and what they cost.
pub(super) struct Answered {
    pub texts: Vec<String>,
    /// Their tokens.
    pub ids: Vec<Vec<u32>>,
    /// Of each text.
    pub logprobs: Vec<f64>,
    pub steps: Vec<RanStep>,
    plans: Plans,
    tokens: usize,
    pub weight_bytes: u64,
}

impl Shipped {
    /// The shipped model with `problems` of each of its tasks.
    pub fn open(problems: usize) -> Result<Self> {
        let dir = shipped::model()?;
        let thinned = |file: &PathBuf| -> Result<Task> {
            let mut task = Task::read(file)?;
            let every = (task.problems.len() / problems.max(1)).max(1);
            task.problems = task.problems.into_iter().step_by(every).take(problems).collect();
            Ok(task)
        };
        let tasks = tasks::shipped_files(&dir)?.iter().map(thinned).collect::<Result<_>>()?;
        let options = EngineOptions { backend: BackendChoice::Cpu, context: 16, ..EngineOptions::default() };
        let tokenizer = Engine::load(&dir, options)?;
        Ok(Self { model: Model::load(&dir)?, adapter: shipped::adapter(&dir), tasks, tokenizer })
    }

    /// An engine for a task with the model in one format; tasks with steps have the adapter on what is generated.
    pub fn engine(
        &self,
        task: &Task,
        kept: Kept,
        precision: Precision,
        batch: usize,
    ) -> Result<(Engine, Lora)> {
        let longest = task.problems.iter().map(|problem| expected_tokens(&problem.prompt)).max().unwrap_or(0);
        let options = EngineOptions {
            backend: BackendChoice::Cpu,
            precision,
            sequences: batch,
            context: longest + MAX_NEW,
            keep_steps: true,
            ..EngineOptions::default()
        };
        let mut engine = Engine::from_model(kept.model(&self.model)?, options)?;
        let mut lora = Lora::BASE;
        if task.labels().is_none() {
            let adapter = engine.load_adapter(&self.adapter, 1.0)?;
            lora = Lora { from: ActiveFrom::Generated, ..Lora::new(adapter) };
        }
        Ok((engine, lora))
    }

    /// Text → token ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text)?)
    }

    /// Runs problems of a task.
    pub fn answer(
        &self,
        task: &Task,
        problems: &[Problem],
        kept: Kept,
        precision: Precision,
        batch: usize,
    ) -> Result<Answered> {
        let (mut engine, lora) = self.engine(task, kept, precision, batch)?;
        let request = |problem: &Problem| -> Result<Request> {
            Ok(Request::new(self.encode(&problem.prompt)?, MAX_NEW).with_lora(lora))
        };
        let requests: Vec<Request> = problems.iter().map(request).collect::<Result<_>>()?;
        let generations = engine.generate_all(&requests)?;
        let text = |ids: &[u32]| -> Result<String> {
            let tokenizer = self.tokenizer.tokenizer();
            Ok(tokenizer
                .map(|t| t.decode(ids, true))
                .transpose()
                .map_err(wattle_engine::Error::from)?
                .unwrap_or_default())
        };
        let paths = || generations.iter().filter_map(|generation| generation.paths.first());
        let texts = paths().map(|path| text(&path.token_ids)).collect::<Result<_>>()?;
        let ids = paths().map(|path| path.token_ids.clone()).collect();
        let logprobs = paths().map(|path| path.logprob()).collect();
        let tokens = generations.iter().map(|generation| generation.report.new_tokens).sum();
        let (steps, plans) = (engine.take_steps(), Plans::new(&engine, lora.adapter));
        let weight_bytes = weight_bytes(engine.weights());
        Ok(Answered { texts, ids, logprobs, steps, plans, tokens, weight_bytes })
    }
}

impl Answered {
    /// What everything that ran costs on a device \[J\].
    pub fn joules(&self, profile: &Profile) -> f64 {
        Energy::new(&self.steps, &self.plans, &[], self.tokens, profile).joules
    }
}

//! Tokens per second of a shape: base, adapters of several ranks, masks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_engine::EngineOptions;
use wattle_engine::model::{Model, Quant};
use wattle_engine::plan::Plan;
use wattle_policy::{CostSource, OpCost, StepShape};

use super::budget::Budget;
use super::ceilings::Ceilings;
use super::energy::{self, Energy};
use super::kernels::{self, Timed};
use crate::commands::bench::record::Line;
use crate::commands::bench::runner::{Runner, Settings, Test};
use crate::error::{Error, Result};
use crate::fit;
use crate::layers::Layers;

/// What is measured of every shape.
pub(super) struct Scope {
    pub quant: Quant,
    /// Without adapters, and of how many paths.
    pub settings: Settings,
    pub paths: Vec<u32>,
    /// Of adapters; the first is also measured masked.
    pub ranks: Vec<u32>,
    /// Rows of the prompt whose kernels are timed.
    pub chunk: u32,
    /// What a line takes where nothing is known yet.
    pub line: Duration,
    /// What loading takes where nothing is known yet.
    pub load: Duration,
}

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    pub lines: Vec<Line>,
    pub kernels: Vec<kernels::Line>,
    pub energy: Vec<energy::Line>,
    /// The same as work and its joules, for a fit.
    pub windows: Vec<fit::Measured>,
}

/// Measures a shape.
pub(super) struct Bench<'a> {
    pub shape: &'a str,
    pub scope: &'a Scope,
    pub ceilings: &'a mut Ceilings,
    pub budget: &'a mut Budget,
    /// Where joules are wanted, and can be counted.
    pub energy: Option<&'a mut Energy>,
    pub measured: Measured,
}

impl Bench<'_> {
    /// Measures all that fits the budget. What fails is left out with its reason, and does not end the run.
    pub fn run(&mut self, options: &EngineOptions) {
        let what = format!("{} (all of it)", self.shape);
        if !self.budget.has(self.scope.load + self.scope.line, &what) {
            return;
        }
        let runner = self.load(options);
        let Some(mut runner) = self.noted(&what, runner) else { return };
        self.rank(&mut runner, 0, &Layers::All);
        for (index, &rank) in self.scope.ranks.iter().enumerate() {
            let what = self.name(rank, "");
            if !self.budget.has(self.scope.load + self.scope.line, &what) {
                continue;
            }
            let set = runner.set_rank(rank);
            if self.noted(&what, set).is_none() {
                continue;
            }
            self.rank(&mut runner, rank, &Layers::All);
            if index == 0 {
                self.rank(&mut runner, rank, &Layers::None);
            }
        }
    }

    fn load(&self, options: &EngineOptions) -> Result<Runner> {
        let model = Model::random_quantized(self.shape, self.scope.quant, 1)?;
        let sequences = self.scope.paths.iter().max().map_or(1, |&paths| paths as usize);
        let (named, settings) = ((self.shape.to_owned(), model), self.scope.settings.clone());
        let mut runner = Runner::new(named, options.clone(), settings, sequences)?;
        match runner.gpu() {
            Some(_) => Ok(runner),
            None => {
                Err(Error::value("--backend", "the model runs on the CPU, not on the GPU that was found"))
            }
        }
    }

    /// All tests of adapters of a rank (0: of the base), active in these layers.
    fn rank(&mut self, runner: &mut Runner, rank: u32, layers: &Layers) {
        let adapters = u32::from(rank > 0);
        let masked = *layers == Layers::None;
        runner.settings.lora_layers = layers.clone();
        let decode = self.scope.paths.iter().map(|&paths| Test { adapters, paths: Some(paths) });
        let prompt = (!masked).then_some(Test { adapters, paths: None });
        let tests: Vec<Test> = decode.chain(prompt).collect();
        let mut needed = self.scope.line;
        for test in &tests {
            let name =
                self.name(rank, &format!("{}{}", describe(test), if masked { ", masked" } else { "" }));
            if !self.budget.has(needed, &name) {
                continue;
            }
            let started = Instant::now();
            runner.settings.limit = self.scope.settings.limit.min(self.budget.left() / 2);
            let line = self.line(runner, test);
            if let Some(line) = self.noted(&name, line) {
                self.measured.lines.push(line);
            }
            needed = started.elapsed();
        }
        if masked {
            return;
        }
        self.kernels(runner, rank);
        self.joules(runner, rank, &tests);
    }

    fn line(&mut self, runner: &mut Runner, test: &Test) -> Result<Line> {
        let mut line = runner.line(test, || ())?;
        let mut read = |bytes| self.ceilings.read(bytes);
        line.bandwidth_share = runner.bandwidth_share(test, line.tokens_per_second, &mut read)?;
        Ok(line)
    }

    /// The kernels of the fewest paths, of the most, and of a prompt.
    fn kernels(&mut self, runner: &mut Runner, rank: u32) {
        let paths = [self.scope.paths.iter().min(), self.scope.paths.iter().max()];
        let steps = paths.map(|paths| paths.copied()).into_iter().chain([None]);
        for paths in steps {
            let test = Test { adapters: u32::from(rank > 0), paths };
            let name = self.name(rank, &format!("kernels of a {}", describe(&test)));
            if !self.budget.has(self.scope.line, &name) {
                continue;
            }
            let timed = self.step(runner, &Test { paths, ..test }, rank);
            let test = if paths.is_some() { "decode" } else { "prompt" };
            let lines = timed.and_then(|(plan, step)| {
                let timed = Timed { shape: self.shape, test, rank, plan, step };
                timed.lines(runner.engine.backend(), self.ceilings)
            });
            let lines = self.noted(&name, lines);
            self.measured.kernels.extend(lines.into_iter().flatten());
        }
    }

    /// A step of a test as a window of the proxy: what it costs, how long it takes, and its joules.
    fn window(&self, runner: &Runner, test: &Test, line: &energy::Line) -> Result<fit::Measured> {
        let (plan, step) = self.step(runner, test, line.rank)?;
        let cost: OpCost = (0..plan.ops.len()).map(|op| plan.cost(op, &step)).sum();
        let rows = step.rows.len() as f64;
        let name = format!("{} {} {}", line.shape, describe(test), line.rank);
        let joules = rows * line.joules_per_token_above_idle;
        Ok(fit::Measured::new(&name, &cost, rows / line.tokens_per_second, joules))
    }

    /// A step of a test, with the plan that it runs.
    fn step(&self, runner: &Runner, test: &Test, rank: u32) -> Result<(Arc<Plan>, StepShape)> {
        match test.paths {
            Some(paths) => runner.decode_step(test.adapters, paths),
            None => Ok(self.prompt_step(runner, rank)),
        }
    }

    /// A chunk of a prompt.
    fn prompt_step(&self, runner: &Runner, rank: u32) -> (Arc<Plan>, StepShape) {
        let step = StepShape::prefill(self.scope.chunk, 0);
        match runner.engine.adapted_plan().filter(|_| rank > 0) {
            Some(plan) => (Arc::clone(plan), step.with_adapter(rank)),
            None => (Arc::clone(runner.engine.plan()), step),
        }
    }

    /// Joules of the fewest paths, of the most, and of a prompt.
    fn joules(&mut self, runner: &mut Runner, rank: u32, tests: &[Test]) {
        if rank > self.scope.ranks.first().copied().unwrap_or(0) {
            return;
        }
        let Some(energy) = self.energy.take() else { return };
        self.joules_by(energy, runner, rank, tests);
        self.energy = Some(energy);
    }

    fn joules_by(&mut self, energy: &mut Energy, runner: &mut Runner, rank: u32, tests: &[Test]) {
        let ends = [self.scope.paths.iter().min(), self.scope.paths.iter().max()].map(|paths| paths.copied());
        let chosen: Vec<Test> =
            tests.iter().filter(|test| test.paths.is_none() || ends.contains(&test.paths)).copied().collect();
        let window = energy.window() * (chosen.len() as u32 + 1);
        let what = self.name(rank, "joules");
        if !self.budget.has(window, &what) {
            return;
        }
        let idle = energy.idle();
        let Some(idle) = self.noted(&what, idle) else { return };
        for test in &chosen {
            let line = energy.line(self.shape, runner, test, idle);
            let Some(line) = self.noted(&what, line) else { continue };
            let window = self.window(runner, test, &line);
            let window = self.noted(&what, window);
            self.measured.windows.extend(window);
            self.measured.energy.push(line);
        }
    }

    /// The value; an error is noted as the reason why `what` was left out.
    fn noted<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.budget.leave_out(what, error)).ok()
    }

    fn name(&self, rank: u32, test: &str) -> String {
        let rank = if rank > 0 { format!(" with rank {rank}") } else { String::new() };
        format!("{}{rank} {test}", self.shape).trim_end().to_owned()
    }
}

fn describe(test: &Test) -> String {
    test.paths.map_or_else(|| "prompt".to_owned(), |paths| format!("decode of {paths}"))
}

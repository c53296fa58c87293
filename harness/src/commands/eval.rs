//! `wattle eval`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use wattle_engine::{Control, Engine, EngineOptions, Generation, Lora, Request};
use wattle_policy::{Profile, Tier};

use super::write_json;
use crate::common::Common;
use crate::energy::{Energy, Plans, ProfileArgs};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::prompt::expected_tokens;
use crate::report::quant_name;
use crate::session::{Session, Source};
use crate::table::{Table, percent};
use crate::tasks::{self, LabelScores, Problem, Task};

/// Problems that run at the same time.
const SEQUENCES: usize = 64;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lines of {"prompt", "answer"}; can be given several times [default: the model's own tasks]
    #[arg(long, value_name = "FILE.jsonl")]
    task: Vec<PathBuf>,
    /// New tokens per problem at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    #[command(flatten)]
    energy: ProfileArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One task on the base or on the adapter.
#[derive(Debug, Serialize)]
struct Run {
    task: String,
    /// `None` is the base.
    adapter: Option<String>,
    quant: String,
    lora_layers: String,
    /// Right answers, 0 to 1.
    accuracy: f64,
    problems: usize,
    /// New tokens of all problems.
    tokens: usize,
    seconds: f64,
    /// Of the proxy.
    joules: f64,
    tier: Tier,
    /// LoRA's share of the joules, 0 to 1.
    lora_share: f64,
    /// What masks saved \[J\].
    saved_joules: f64,
    #[serde(flatten)]
    labels: Option<LabelScores>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    by_steps: Vec<StepScore>,
}

/// The problems of one number of steps.
#[derive(Debug, Serialize)]
struct StepScore {
    steps: u32,
    accuracy: f64,
    problems: usize,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let source = Source::find(common)?;
    let files =
        if args.task.is_empty() { tasks::shipped_files(&source.model)?.to_vec() } else { args.task.clone() };
    let tasks: Vec<Task> = files.iter().map(|file| Task::read(file)).collect::<Result<_>>()?;
    let prompts = tasks.iter().flat_map(|task| &task.problems).map(|problem| &problem.prompt);
    let longest = prompts.map(|prompt| expected_tokens(prompt)).max().unwrap_or(0);
    let options = EngineOptions {
        sequences: SEQUENCES,
        context: longest.saturating_add(args.max_new_tokens),
        timing: true,
        keep_steps: true,
        ..common.engine_options()
    };
    let mut session = Session::open(&source, common, options)?;
    let profile = args.energy.find(&mut session.engine)?;
    let mut modes = vec![(Lora::BASE, None)];
    modes.extend(source.adapter_name().map(|name| (session.lora, Some(name))));
    let mut runs = Vec::new();
    for task in &tasks {
        for (lora, adapter) in &modes {
            runs.push(run_task(task, *lora, adapter.clone(), &mut session.engine, args, common, &profile)?);
        }
    }
    if args.json {
        return write_json(&serde_json::json!({ "runs": runs }), out);
    }
    Ok(table(&runs).write(out)?)
}

/// Runs all problems of a task, many at a time, greedily.
fn run_task(
    task: &Task,
    lora: Lora,
    adapter: Option<String>,
    engine: &mut Engine,
    args: &Args,
    common: &Common,
    profile: &Profile,
) -> Result<Run> {
    let progress = Progress::bar(
        format!("{}, {}", task.name, adapter.as_deref().unwrap_or("base")),
        task.problems.len(),
    );
    let started = Instant::now();
    let request = |(index, problem): (usize, &Problem)| -> Result<Request> {
        let request = Request::new(engine.encode(&problem.prompt)?, args.max_new_tokens).with_lora(lora);
        let wrong = |error| Error::value(format!("{}: problem {}", task.name, index + 1), error);
        engine.check(&request).map_err(wrong)?;
        Ok(request)
    };
    let requests: Vec<Request> = task.problems.iter().enumerate().map(request).collect::<Result<_>>()?;
    let mut begun = vec![false; requests.len()];
    let generations = engine.stream_all(&requests, |event| {
        if !std::mem::replace(&mut begun[event.request], true) {
            progress.step();
        }
        Control::Continue
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let texts: Vec<&str> = generations.iter().map(text).collect();
    let right: Vec<bool> =
        task.problems.iter().zip(&texts).map(|(problem, text)| problem.is_answered_by(text)).collect();
    let tokens = generations.iter().map(|generation| generation.report.new_tokens).sum();
    // Timings are those of all requests, and each generation has a copy.
    let timings = generations.first().map(|generation| generation.report.timings.as_slice());
    let (steps, plans) = (engine.take_steps(), Plans::new(engine, lora.adapter));
    let energy = Energy::new(&steps, &plans, timings.unwrap_or_default(), tokens, profile);
    let lora_layers = if adapter.is_some() { common.lora_layers.to_string() } else { "none".to_owned() };
    Ok(Run {
        task: task.name.clone(),
        adapter,
        quant: quant_name(engine.plan()),
        lora_layers,
        accuracy: share(right.iter().copied()),
        problems: right.len(),
        tokens,
        seconds,
        joules: energy.joules,
        tier: energy.tier,
        lora_share: energy.lora_share,
        saved_joules: energy.saved.joules,
        labels: task.labels().map(|labels| LabelScores::new(&labels, &pairs(task, &texts))),
        by_steps: by_steps(task, &right),
    })
}

/// What a model said; nothing where there is no tokenizer, but then there were no ids either.
fn text(generation: &Generation) -> &str {
    generation.paths.first().and_then(|path| path.text.as_deref()).unwrap_or_default()
}

/// The right label and what was said, for each problem.
fn pairs<'a>(task: &'a Task, texts: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    task.problems
        .iter()
        .zip(texts)
        .map(|(problem, text)| (problem.answer.trim(), tasks::answer(text)))
        .collect()
}

/// Accuracy by number of steps, where the task has steps.
fn by_steps(task: &Task, right: &[bool]) -> Vec<StepScore> {
    let mut groups: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
    for (problem, &right) in task.problems.iter().zip(right) {
        groups.entry(problem.steps.unwrap_or(0)).or_default().push(right);
    }
    groups.remove(&0);
    let score = |(steps, right): (u32, Vec<bool>)| StepScore {
        steps,
        accuracy: share(right.iter().copied()),
        problems: right.len(),
    };
    groups.into_iter().map(score).collect()
}

/// Of so many, how many hold; 0 to 1.
fn share(all: impl ExactSizeIterator<Item = bool>) -> f64 {
    let n = all.len().max(1);
    all.filter(|holds| *holds).count() as f64 / n as f64
}

/// The table for a reader.
fn table(runs: &[Run]) -> Table {
    let mut table = Table::new([
        "task",
        "adapter",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "problems",
        "tokens",
        "seconds",
        "joules",
        "tier",
    ]);
    for run in runs {
        let score = |pick: fn(&LabelScores) -> f64| {
            run.labels.as_ref().map(|scores| percent(pick(scores))).unwrap_or_default()
        };
        let adapter = run.adapter.clone().unwrap_or_else(|| "base".to_owned());
        let seconds = format!("{:.1}", run.seconds);
        table.row([
            run.task.clone(),
            adapter.clone(),
            percent(run.accuracy),
            score(|s| s.precision),
            score(|s| s.recall),
            score(|s| s.f1),
            run.problems.to_string(),
            run.tokens.to_string(),
            seconds,
            format!("{:.2}", run.joules),
            run.tier.letter().to_owned(),
        ]);
        for step in &run.by_steps {
            let none = String::new;
            let name = format!("  {} steps", step.steps);
            table.row([
                name,
                adapter.clone(),
                percent(step.accuracy),
                none(),
                none(),
                none(),
                step.problems.to_string(),
                none(),
                none(),
                none(),
                none(),
            ]);
        }
    }
    table
}

//! `wattle generate`.

use std::io::{self, Write};

use serde::Serialize;
use wattle_engine::{
    Answer, Closing, Control, Engine, EngineOptions, Finish, Generation, Path, Report as GenerationReport,
    Request, Sampling, Tally, VoteRule,
};

use super::write_json;
use crate::common::Common;
use crate::energy::{Energy, Plans, ProfileArgs};
use crate::error::{Error, Result};
use crate::meters;
use crate::policy::PolicyArgs;
use crate::progress::Progress;
use crate::prompt::{Prompt, TextArgs, token_id};
use crate::report::Report;
use crate::session::{Session, Source};
use crate::tasks::{self, Problem};

/// Paths that decode together; more wait for one to end.
const MAX_SEQUENCES: usize = 64;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// The prompt as token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', value_parser = token_id, conflicts_with_all = ["text", "chat"])]
    ids: Option<Vec<u32>>,
    /// Put the prompt into the model's chat template, as what the user says
    #[arg(long, requires = "text")]
    chat: bool,
    /// Continuations of the prompt, decoded together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    paths: u32,
    /// New tokens per path at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    energy: ProfileArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    /// A text that ends a path when it appears; can be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How tokens are drawn: greedily, unless one of the first three is given.
#[derive(Debug, clap::Args)]
struct SamplingArgs {
    /// Take the most probable token (what happens anyway without temperature, top-k and top-p)
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    greedy: bool,
    /// Divide the logits by this; 0 is greedy [default: 1 with top-k or top-p]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Draw from the smallest set of most probable tokens that reaches this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Fixes every draw, on the same backend, device and build
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Divide positive logits of tokens seen so far, and multiply negative ones, by this
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
}

/// How paths are brought to an answer.
#[derive(Debug, clap::Args)]
struct BudgetArgs {
    /// Let the paths vote: the answer is what most of them say after the marker
    #[arg(long)]
    vote: bool,
    /// What an answer follows in a path's text; its last occurrence counts
    #[arg(long, value_name = "TEXT", default_value = tasks::MARK, requires = "vote", allow_hyphen_values = true)]
    vote_marker: String,
    /// Let all paths go on to their ends, also when the vote is decided
    #[arg(long, requires = "vote")]
    vote_all: bool,
    /// What a path is made to say when only the room for this and the answer is left of --max-new-tokens
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    closing: Option<String>,
    /// Tokens for the answer after --closing
    #[arg(long, value_name = "N", default_value_t = 16, requires = "closing")]
    closing_tokens: usize,
}

impl BudgetArgs {
    fn vote(&self) -> Option<VoteRule> {
        self.vote.then(|| VoteRule { marker: self.vote_marker.clone(), early: !self.vote_all })
    }

    fn closing(&self, engine: &Engine) -> Result<Option<Closing>> {
        let Some(text) = &self.closing else { return Ok(None) };
        let missing = || Error::value("--closing", "the model's directory has no tokenizer");
        let ids = engine.tokenizer().ok_or_else(missing)?.encode(text, false)?;
        Ok(Some(Closing { ids, answer_tokens: self.closing_tokens }))
    }
}

impl SamplingArgs {
    fn sampling(&self) -> Sampling {
        let draws = self.top_k.is_some() || self.top_p.is_some();
        Sampling {
            temperature: self.temperature.unwrap_or(if draws { 1.0 } else { 0.0 }),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let source = Source::find(common)?;
    let (prompt, example) = prompt(args, &source)?;
    let options = EngineOptions {
        sequences: (args.paths as usize).min(MAX_SEQUENCES),
        context: prompt.expected_tokens().saturating_add(args.max_new_tokens),
        timing: true,
        keep_steps: true,
        ..common.engine_options()
    };
    let mut session = Session::open(&source, common, options)?;
    let profile = args.energy.find(&mut session.engine)?;
    let ids = prompt.encode(&session.engine)?;
    let steering = args.policy.steer(&mut session, &source)?;
    let request = Request {
        lora: session.lora,
        sampling: args.sampling.sampling(),
        paths: args.paths,
        closing: args.budget.closing(&session.engine)?,
        vote: args.budget.vote(),
        ignore_eos: args.ignore_eos,
        stop: args.stop.clone(),
        ..Request::new(ids, args.max_new_tokens)
    };
    session.engine.check(&request)?;
    if let Some(example) = example.as_ref().filter(|_| !args.json) {
        writeln!(out, "{}", example.prompt)?;
        out.flush()?;
    }
    let live = args.paths == 1 && !args.json && session.engine.tokenizer().is_some();
    let mut counter = meters::Total::begin(meters::Device::of(&mut session.engine));
    let generation = stream(&mut session, &request, live.then_some(&mut *out))?;
    let counted = counter.as_mut().and_then(meters::Total::end);
    let steps = session.engine.take_steps();
    let plans = Plans::new(&session.engine, session.lora.adapter);
    let GenerationReport { timings, new_tokens, .. } = &generation.report;
    let energy = Energy::new(&steps, &plans, timings, *new_tokens, &profile);
    let policy = steering.map(|steering| steering.report()).transpose()?;
    let report = Report { policy, ..Report::new(&generation, &mut session.engine, energy, counted) };
    if args.json {
        return write_json(&GenerationJson::new(&generation, &report), out);
    }
    if live {
        writeln!(out)?;
    } else {
        write_paths(&generation.paths, out)?;
    }
    if let Some(tally) = &generation.vote {
        write_vote(tally, out)?;
    }
    if let Some(example) = &example {
        writeln!(out, "(the answer on file is {})", example.answer)?;
    }
    writeln!(out)?;
    Ok(report.write(out)?)
}

/// The prompt; without one, an example of the shipped model's tasks, which is returned too.
fn prompt(args: &Args, source: &Source) -> Result<(Prompt, Option<Problem>)> {
    if let Some(ids) = &args.ids {
        return Ok((Prompt::Ids(ids.clone()), None));
    }
    match args.text.text()? {
        Some(text) if args.chat => Ok((Prompt::Chat(text), None)),
        Some(text) => Ok((Prompt::Text(text), None)),
        None if source.shipped => {
            let example = tasks::example(&source.model)?;
            Ok((Prompt::Text(example.prompt.clone()), Some(example)))
        }
        None => Err(Error::value(
            "--prompt",
            "not given; with --model one of --prompt, --prompt-file, --ids is needed",
        )),
    }
}

/// Generates. New text is shown as it comes, or else progress.
fn stream(session: &mut Session, request: &Request, mut shown: Option<&mut dyn Write>) -> Result<Generation> {
    let tokens = request.max_new_tokens.saturating_mul(request.paths as usize);
    let progress = shown.is_none().then(|| Progress::bar("tokens", tokens));
    let mut written = Ok(());
    let generation = session.engine.stream(request, |event| {
        progress.iter().for_each(Progress::step);
        if let Some(out) = &mut shown {
            written = out.write_all(event.text.as_bytes()).and_then(|()| out.flush());
        }
        if written.is_ok() { Control::Continue } else { Control::Stop }
    })?;
    written?;
    Ok(generation)
}

/// Prints finished paths: their text, or their ids where there is no tokenizer.
fn write_paths(paths: &[Path], out: &mut dyn Write) -> io::Result<()> {
    for (index, path) in paths.iter().enumerate() {
        if paths.len() > 1 {
            writeln!(out, "path {index}, log-probability {:.2}:", path.logprob())?;
        }
        match &path.text {
            Some(text) => writeln!(out, "{text}")?,
            None => writeln!(out, "{}", super::join_ids(&path.token_ids))?,
        }
    }
    Ok(())
}

/// Prints how the paths voted.
fn write_vote(tally: &Tally, out: &mut dyn Write) -> io::Result<()> {
    let votes = |answer: &Answer| format!("{:?} {}×", answer.text, answer.paths.len());
    let votes: Vec<String> = tally.answers.iter().map(votes).collect();
    let (without, spared) = (tally.without, tally.spared);
    let none = "no path gave an answer".to_owned();
    let votes = if votes.is_empty() { none } else { votes.join(", ") };
    writeln!(out, "vote     {votes} ({without} without an answer, {spared} ended early)")
}

/// What `--json` prints of one path.
#[derive(Serialize)]
struct PathJson<'a> {
    token_ids: &'a [u32],
    text: Option<&'a str>,
    finish: Finish,
}

impl<'a> PathJson<'a> {
    fn new(path: &'a Path) -> Self {
        Self { token_ids: &path.token_ids, text: path.text.as_deref(), finish: path.finish }
    }
}

/// What `--json` prints of an answer.
#[derive(Serialize)]
struct AnswerJson<'a> {
    text: &'a str,
    paths: &'a [u32],
    mean_logprob: f64,
}

/// What `--json` prints of a vote.
#[derive(Serialize)]
struct VoteJson<'a> {
    winner: Option<&'a str>,
    answers: Vec<AnswerJson<'a>>,
    without: u32,
    spared: u32,
}

impl<'a> VoteJson<'a> {
    fn new(tally: &'a Tally) -> Self {
        let answer =
            |a: &'a Answer| AnswerJson { text: &a.text, paths: &a.paths, mean_logprob: a.mean_logprob };
        Self {
            winner: tally.winner().map(|winner| winner.text.as_str()),
            answers: tally.answers.iter().map(answer).collect(),
            without: tally.without,
            spared: tally.spared,
        }
    }
}

/// What `--json` prints: path 0's fields, all paths, the report.
#[derive(Serialize)]
struct GenerationJson<'a> {
    #[serde(flatten)]
    first: Option<PathJson<'a>>,
    paths: Vec<PathJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vote: Option<VoteJson<'a>>,
    report: &'a Report,
}

impl<'a> GenerationJson<'a> {
    fn new(generation: &'a Generation, report: &'a Report) -> Self {
        let paths = || generation.paths.iter().map(PathJson::new);
        let vote = generation.vote.as_ref().map(VoteJson::new);
        Self { first: paths().next(), paths: paths().collect(), vote, report }
    }
}

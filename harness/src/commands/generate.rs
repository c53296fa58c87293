//! `wattle generate`.

use std::io::{self, Write};

use serde::Serialize;
use wattle_engine::{
    Control, EngineOptions, Finish, Generation, Path, Report as GenerationReport, Request, Sampling,
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
    let decision = args.policy.decide(&mut session, &source, ids.len(), args.max_new_tokens)?;
    let request = Request {
        lora: session.lora,
        sampling: args.sampling.sampling(),
        paths: args.paths,
        ignore_eos: args.ignore_eos,
        stop: args.stop.clone(),
        ..Request::new(ids, args.max_new_tokens)
    };
    if let Some(example) = example.as_ref().filter(|_| !args.json) {
        writeln!(out, "{}", example.prompt)?;
        out.flush()?;
    }
    let live = args.paths == 1 && !args.json && session.engine.tokenizer().is_some();
    let mut counter = meters::Total::begin();
    let generation = stream(&mut session, &request, live.then_some(&mut *out))?;
    let counted = counter.as_mut().and_then(meters::Total::end);
    let steps = session.engine.take_steps();
    let plans = Plans::new(&session.engine, session.lora.adapter);
    let GenerationReport { timings, new_tokens, .. } = &generation.report;
    let energy = Energy::new(&steps, &plans, timings, *new_tokens, &profile);
    let report =
        Report { policy: decision, ..Report::new(&generation, &mut session.engine, energy, counted) };
    if args.json {
        return write_json(&Answer::new(&generation, &report), out);
    }
    if live {
        writeln!(out)?;
    } else {
        write_paths(&generation.paths, out)?;
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
            writeln!(out, "path {index}:")?;
        }
        match &path.text {
            Some(text) => writeln!(out, "{text}")?,
            None => writeln!(out, "{}", super::join_ids(&path.token_ids))?,
        }
    }
    Ok(())
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

/// What `--json` prints: path 0's fields, all paths, the report.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    first: Option<PathJson<'a>>,
    paths: Vec<PathJson<'a>>,
    report: &'a Report,
}

impl<'a> Answer<'a> {
    fn new(generation: &'a Generation, report: &'a Report) -> Self {
        let paths = || generation.paths.iter().map(PathJson::new);
        Self { first: paths().next(), paths: paths().collect(), report }
    }
}

//! `wattle bench`.

mod load;
mod loading;
pub(super) mod record;
pub(super) mod runner;
mod serving;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use wattle_engine::EngineOptions;
use wattle_engine::model::{Dtype, Model};

use record::{Change, Line, Record, write_csv};
use runner::{Runner, Settings, Test};

use super::write_json;
use crate::bandwidth;
use crate::common::Common;
use crate::error::{Error, Result};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::report::Bytes;
use crate::session::Source;
use crate::table::{Table, percent};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Prompt tokens; 0 skips the prompt test
    #[arg(short, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// New tokens per path; 0 skips the decode test
    #[arg(short, value_name = "N", default_value_t = 128)]
    new: usize,
    /// Repetitions, after one that is not counted
    #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Paths that decode together
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,4,8", value_parser = clap::value_parser!(u32).range(1..=1024))]
    paths: Vec<u32>,
    /// Adapters that the paths take in turn; 0 is the base
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "0,1", value_parser = clap::value_parser!(u32).range(0..=64))]
    adapters: Vec<u32>,
    /// Rank of the adapters: random, not zero, on all linear layers
    #[arg(long, value_name = "R", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Positions in the cache before decoding begins
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Tests with adapters take turns with the base: prints their speed as a multiple of the base's, with a 95 %
    /// interval (for `--lora-layers none` it should contain 1)
    #[arg(long)]
    paired: bool,
    /// Measures loading --model instead, beside reading the same files, both with a warm page cache
    #[arg(long, conflicts_with_all = ["shape", "compare", "profile", "paired"])]
    load: bool,
    /// Measures serving instead: a prompt that is known already, paths and adapters together, a switch of adapters in
    /// the middle, and the scheduler's own time, each beside what it is compared to
    #[arg(long, conflicts_with_all = ["load", "compare", "profile", "paired"])]
    serving: bool,
    /// Writes a flamegraph of what the processor did while tests ran (Unix, built with the feature `profile`)
    #[arg(long, value_name = "FILE.svg")]
    profile: Option<PathBuf>,
    /// Random weights (bf16) of a known model's shape instead of --model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// First measures which tiles of prompts and of matrix-vector kernels suit this GPU best, unless that is known, and
    /// keeps it for all commands
    #[arg(long)]
    autotune: bool,
    /// How results are printed
    #[arg(short, value_enum, default_value_t)]
    output: Output,
    /// Says what became slower or faster than in a file that `-o csv` wrote
    #[arg(long, value_name = "RECORD", conflicts_with = "output")]
    compare: Option<PathBuf>,
}

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Md,
    Json,
    Csv,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    if !common.adapter.is_empty() {
        let reason =
            "adapters are measured with random numbers: say how many by --adapters, and their --rank";
        return Err(Error::value("--adapter", reason));
    }
    if common.gate.is_some() {
        return Err(Error::value("--gate", "speeds are measured without gates"));
    }
    if args.load {
        return load::run(args, common, out);
    }
    if args.serving {
        return serving::run(args, common, out);
    }
    let record = args.compare.as_deref().map(Record::read).transpose()?;
    let mut bench = open(args, common)?;
    let profile = args.profile.as_deref().map(Profile::start).transpose()?;
    let tests: Vec<Test> = args.adapters.iter().flat_map(|&adapters| tests(args, adapters)).collect();
    let progress = Progress::bar("bench", tests.len() * (args.repetitions as usize + 1));
    let mut lines = Vec::new();
    for test in &tests {
        lines.push(bench.line(test, || progress.step())?);
    }
    drop(progress);
    profile.map_or(Ok(()), Profile::write)?;
    // Afterwards, because its buffers would count as memory that decoding needs.
    let (gpu, threads) = (bench.gpu(), common.thread_count());
    let mut read = |bytes| match &gpu {
        Some(name) => bandwidth::read_on(name, bytes),
        None => bandwidth::read(bytes, threads),
    };
    for (line, test) in lines.iter_mut().zip(&tests) {
        line.bandwidth_share = bench.bandwidth_share(test, line.tokens_per_second, &mut read)?;
    }
    match args.output {
        Output::Json => write_json(&lines, out),
        Output::Csv => write_csv(&lines, out),
        Output::Md => write_table(&lines, record.as_ref(), out),
    }
}

/// The table, and what became of a record's lines.
fn write_table(lines: &[Line], record: Option<&Record>, out: &mut dyn Write) -> Result<()> {
    let mut table = table(lines);
    let changes = record.map(|record| record.changes(lines)).unwrap_or_default();
    if record.is_some() {
        table.column("against record", changes.iter().map(Change::to_string));
    }
    table.write(out)?;
    match record {
        Some(record) if changes.iter().all(|change| *change == Change::Unknown) => Err(record.unlike()),
        _ => Ok(()),
    }
}

/// The speed as a multiple of the base's, and its interval.
fn of_base(line: &Line) -> String {
    match (line.of_base, line.of_base_low, line.of_base_high) {
        (Some(ratio), Some(low), Some(high)) => format!("{ratio:.4} ({low:.4} to {high:.4})"),
        (Some(ratio), ..) => format!("{ratio:.4}"),
        _ => String::new(),
    }
}

fn tests(args: &Args, adapters: u32) -> Vec<Test> {
    let prompt = (args.prompt > 0).then_some(Test { adapters, paths: None });
    let decode = args.paths.iter().filter(|_| args.new > 0);
    prompt.into_iter().chain(decode.map(|&paths| Test { adapters, paths: Some(paths) })).collect()
}

/// Loads the model.
fn open(args: &Args, common: &Common) -> Result<Runner> {
    let _progress = Progress::spinner("loading");
    let (name, model) = match &args.shape {
        Some(shape) => (shape.clone(), Model::random(shape, Dtype::Bf16, 0)?),
        None => {
            let dir = Source::find(common)?.model;
            (dir.display().to_string(), Model::load(&dir)?)
        }
    };
    let settings = Settings {
        prompt: args.prompt,
        new: args.new,
        repetitions: args.repetitions,
        depth: args.depth,
        rank: args.rank,
        lora_layers: common.lora_layers.clone(),
        threads: common.thread_count(),
        paired: args.paired,
        limit: Duration::MAX,
    };
    let sequences = args.paths.iter().max().map_or(1, |&paths| paths as usize);
    let options = EngineOptions { autotune: args.autotune, ..common.engine_options() };
    Runner::new((name, model), options, settings, sequences)
}

/// The table for a reader.
pub(super) fn table(lines: &[Line]) -> Table {
    let header =
        ["test", "paths", "adapters", "rank", "layers", "tokens/s", "spread", "bandwidth", "peak memory"];
    let mut table = Table::new(header);
    for line in lines {
        table.row([
            format!("{} {}", line.test, line.tokens),
            line.paths.to_string(),
            line.adapters.to_string(),
            line.rank.to_string(),
            line.lora_layers.clone(),
            format!("{:.1}", line.tokens_per_second),
            percent(line.spread),
            line.bandwidth_share.map(percent).unwrap_or_default(),
            line.peak_bytes.map(|bytes| Bytes(bytes).to_string()).unwrap_or_default(),
        ]);
    }
    if lines.iter().any(|line| line.of_base.is_some()) {
        table.column("of base", lines.iter().map(of_base));
    }
    table
}

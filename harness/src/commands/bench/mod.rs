//! `wattle bench`.

mod record;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use wattle_engine::model::{Dtype, Model, Weights};
use wattle_engine::{AdapterId, Control, Engine, EngineOptions, Lora, Request};
use wattle_policy::{CostSource, OpCost, StepShape};

use record::{Change, Line, Record, write_csv};

use super::write_json;
use crate::bandwidth;
use crate::common::{Common, Name};
use crate::error::{Error, Result};
use crate::meter::{Meter, median_and_spread};
use crate::progress::Progress;
use crate::random_adapter::{Random, random_adapter};
use crate::report::{Bytes, peak_bytes};
use crate::session::Source;
use crate::table::Table;

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
    /// Random weights (bf16) of a known model's shape instead of --model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// First measures which tiles suit this GPU best, unless that is known, and keeps it for all commands
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
    let record = args.compare.as_deref().map(Record::read).transpose()?;
    let mut bench = Bench::open(args, common)?;
    let tests: Vec<Test> = args.adapters.iter().flat_map(|&adapters| tests(args, adapters)).collect();
    let progress = Progress::bar("bench", tests.len() * (args.repetitions as usize + 1));
    let mut lines = Vec::new();
    for test in &tests {
        lines.push(bench.line(test, &progress)?);
    }
    drop(progress);
    // Afterwards, because its buffers would count as memory that decoding needs.
    for (line, test) in lines.iter_mut().zip(&tests) {
        line.bandwidth_share = bench.bandwidth_share(test, line.tokens_per_second)?;
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

/// What one line measures.
struct Test {
    adapters: u32,
    /// `None` is the prompt test: one prompt, whatever the paths.
    paths: Option<u32>,
}

fn tests(args: &Args, adapters: u32) -> Vec<Test> {
    let prompt = (args.prompt > 0).then_some(Test { adapters, paths: None });
    let decode = args.paths.iter().filter(|_| args.new > 0);
    prompt.into_iter().chain(decode.map(|&paths| Test { adapters, paths: Some(paths) })).collect()
}

/// An engine, and what is measured with it.
struct Bench<'a> {
    args: &'a Args,
    common: &'a Common,
    engine: Engine,
    weights: Weights,
    adapters: Vec<AdapterId>,
}

impl<'a> Bench<'a> {
    fn open(args: &'a Args, common: &'a Common) -> Result<Self> {
        let _progress = Progress::spinner("loading");
        let model = match &args.shape {
            Some(shape) => Model::random(shape, Dtype::Bf16, 0)?,
            None => Model::load(&Source::find(common)?.model)?,
        };
        let options = EngineOptions { autotune: args.autotune, ..common.engine_options() };
        let model = common.quantized(model)?;
        common.lora_layers.mask(model.spec.layers)?;
        let longest =
            args.prompt.saturating_add(1).max(args.depth.saturating_add(args.new).saturating_add(3));
        if longest > model.spec.context {
            let reason =
                format!("{longest} positions are more than the model's context of {}", model.spec.context);
            return Err(Error::value("-p, -n, --depth", reason));
        }
        let sequences = args.paths.iter().max().map_or(1, |&paths| paths as usize);
        let options = EngineOptions { sequences, context: longest, ..options };
        let weights = model.weights.clone();
        Ok(Self { args, common, engine: Engine::from_model(model, options)?, weights, adapters: Vec::new() })
    }

    /// Measures one line.
    fn line(&mut self, test: &Test, progress: &Progress) -> Result<Line> {
        while self.adapters.len() < test.adapters as usize {
            let seed = self.adapters.len() as u64;
            let adapter = random_adapter(&self.weights, self.args.rank as usize, seed);
            self.adapters.push(self.engine.add_adapter(adapter)?);
        }
        let mut rates = Vec::new();
        for repetition in 0..=self.args.repetitions {
            let rate = match test.paths {
                None => self.prompt_rate(test.adapters)?,
                Some(paths) => self.decode_rate(test.adapters, paths)?,
            };
            // The first run pays for what is made once.
            rates.extend((repetition > 0).then_some(rate));
            progress.step();
        }
        let (tokens_per_second, spread) = median_and_spread(rates);
        let adapted = test.adapters > 0;
        let backend = self.engine.backend();
        Ok(Line {
            test: if test.paths.is_some() { "decode" } else { "prompt" }.to_owned(),
            tokens: if test.paths.is_some() { self.args.new } else { self.args.prompt },
            paths: test.paths.unwrap_or(1),
            adapters: test.adapters,
            rank: if adapted { self.args.rank } else { 0 },
            lora_layers: if adapted { self.common.lora_layers.to_string() } else { "none".to_owned() },
            backend: backend.kind().to_owned(),
            device: backend.device().to_owned(),
            quant: Name(self.common.quant).to_string(),
            threads: self.common.thread_count(),
            tokens_per_second,
            spread,
            bandwidth_share: None,
            peak_bytes: peak_bytes(),
        })
    }

    /// The adapter of a path.
    fn lora(&self, adapters: u32, path: u32) -> Result<Lora> {
        let layers = self.common.lora_layers.mask(self.engine.spec().layers)?;
        let adapter = path.checked_rem(adapters).and_then(|index| self.adapters.get(index as usize));
        Ok(adapter.map_or(Lora::BASE, |&id| Lora { layers, ..Lora::new(id) }))
    }

    /// Tokens that mean nothing.
    fn ids(&self, count: usize) -> Vec<u32> {
        let (mut random, vocab) = (Random(1), self.engine.spec().vocab as u64);
        (0..count).map(|_| (random.next() % vocab) as u32).collect()
    }

    /// Prompt tokens per second, until the first new token.
    fn prompt_rate(&mut self, adapters: u32) -> Result<f64> {
        let request = Request::new(self.ids(self.args.prompt), 1).with_lora(self.lora(adapters, 0)?);
        Ok(self.engine.generate(&request)?.report.prompt_rate())
    }

    /// New tokens per second of all paths, while all are decoding.
    fn decode_rate(&mut self, adapters: u32, paths: u32) -> Result<f64> {
        // Two more than are counted: a path's first token comes from the prompt, and paths start one step apart.
        let (ids, limit) = (self.ids(self.args.depth + 1), self.args.new + 2);
        let loras: Vec<Lora> = (0..paths).map(|path| self.lora(adapters, path)).collect::<Result<_>>()?;
        let request = Request { paths, ignore_eos: true, lora: loras[0], ..Request::new(ids, limit) };
        let mut meter = Meter::new(paths as usize, limit);
        self.engine.stream(&request, |event| {
            let first = meter.token(event.path as usize, Instant::now());
            if first { Control::Switch(loras[event.path as usize]) } else { Control::Continue }
        })?;
        Ok(meter.rate())
    }

    /// DRAM bytes that decoding moves in a second, as a share of what the memory gives for a buffer as big as what
    /// one step moves.
    fn bandwidth_share(&mut self, test: &Test, rate: f64) -> Result<Option<f64>> {
        let (adapters, Some(paths)) = (test.adapters, test.paths) else { return Ok(None) };
        if self.engine.backend().kind() != "cpu" {
            return Ok(None);
        }
        let middle = (self.args.depth + self.args.new / 2) as u32;
        let mut shape = StepShape::decode(paths, middle);
        for (row, path) in shape.rows.iter_mut().zip(0..) {
            let lora = self.lora(adapters, path)?;
            (row.slot, row.lora) = (path.checked_rem(adapters), lora.layers.0);
        }
        shape.ranks = vec![self.args.rank; adapters as usize];
        let active = shape.rows.iter().any(|row| row.slot.is_some() && row.lora != 0);
        let plan = self.engine.adapted_plan().filter(|_| active).unwrap_or_else(|| self.engine.plan());
        let cost: OpCost = (0..plan.ops.len()).map(|op| plan.cost(op, &shape)).sum();
        let steps = rate / f64::from(paths);
        let bandwidth = bandwidth::read(cost.dram_bytes(), self.common.thread_count())?;
        Ok(Some(cost.dram_bytes() as f64 * steps / bandwidth))
    }
}

/// The table for a reader.
fn table(lines: &[Line]) -> Table {
    let header =
        ["test", "paths", "adapters", "rank", "layers", "tokens/s", "spread", "bandwidth", "peak memory"];
    let mut table = Table::new(header);
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
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
    table
}

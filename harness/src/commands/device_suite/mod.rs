//! `wattle device-suite`: everything that is measured on a GPU, in one run and within a time, after the proof that its
//! kernels are right there. Needs no file but the program.

mod budget;
mod ceilings;
mod energy;
mod kernels;
mod prove;
mod records;
mod speed;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use wattle_engine::model::{Dtype, Model, Quant};
use wattle_engine::{BackendChoice, EngineOptions};

use budget::Budget;
use ceilings::{Ceilings, LARGE};
use energy::Energy;
use records::Records;
use speed::{Bench, Measured, Scope};

use super::bench;
use super::bench::runner::Settings;
use crate::common::{Backend, Common, Precision};
use crate::devices::{self, Gpu};
use crate::error::{Error, Result};
use crate::fit::{self, Fit};
use crate::layers::Layers;
use crate::progress::Progress;

/// Shapes in the order in which they are measured.
const SHAPES: &str = "mistral-7b,qwen2.5-0.5b,gpt2,llama-3.2-1b,phi-3-mini,opt-125m,distilgpt2,llama-3-8b";
/// The first so many are also measured in joules.
const JOULES: usize = 2;

/// Arguments of `device-suite`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory for the records; made if it is not there, and nothing in it is overwritten
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seconds to stay within: what does not fit is named
    #[arg(long, value_name = "SECONDS", default_value_t = 440, value_parser = clap::value_parser!(u32).range(1..=86400))]
    budget: u32,
    /// Shapes of the random models, in this order [default: those of well-known models, one of 7B first]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    shape: Vec<String>,
    /// One case of each kernel and a tiny model: tries the command, says nothing about the device
    #[arg(long)]
    quick: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let mut suite = Suite::new(args, common)?;
    suite.prove(out)?;
    let mut ceilings = {
        let _progress = Progress::spinner("measuring the device's limits");
        Ceilings::open()?
    };
    suite.describe(&mut ceilings, out)?;
    let mut energy = suite.energy(&ceilings);
    for (index, shape) in suite.shapes.clone().iter().enumerate() {
        let energy = energy.as_mut().filter(|_| index < JOULES);
        suite.shape(shape, &mut ceilings, energy, out)?;
    }
    suite.finish(&ceilings, out)
}

/// One run.
struct Suite<'a> {
    args: &'a Args,
    options: EngineOptions,
    scope: Scope,
    shapes: Vec<String>,
    budget: Budget,
    records: Records,
    /// What README.md says about the run.
    facts: Vec<String>,
    /// All tables.
    tables: Vec<u8>,
    kernels: Vec<kernels::Line>,
    joules: Vec<energy::Line>,
    windows: Vec<fit::Measured>,
}

impl<'a> Suite<'a> {
    fn new(args: &'a Args, common: &Common) -> Result<Self> {
        let budget = Budget::new(Duration::from_secs(u64::from(args.budget)));
        let gpu = device(common.backend)?;
        let shapes = match (args.shape.is_empty(), args.quick) {
            (false, _) => args.shape.clone(),
            (true, true) => vec!["tiny".to_owned()],
            (true, false) => SHAPES.split(',').map(str::to_owned).collect(),
        };
        let known: Vec<_> = wattle_engine::model::shapes().collect();
        if let Some(unknown) = shapes.iter().find(|shape| !known.contains(&shape.as_str())) {
            let reason = format!("{unknown:?} is not known; accepted: {}", known.join(", "));
            return Err(Error::value("--shape", reason));
        }
        let precision = match common.precision {
            Some(Precision::Exact) => wattle_engine::Precision::Exact,
            Some(Precision::Fast) | None => wattle_engine::Precision::Fast,
        };
        let quant = Option::<Quant>::from(common.quant).unwrap_or(Quant::Q4_0);
        // The weights are made quantized.
        let options =
            EngineOptions { backend: BackendChoice::Gpu, quant: None, precision, ..common.engine_options() };
        let records = Records::open(&args.out)?;
        let command: Vec<_> = std::env::args().skip(1).collect();
        let facts = vec![
            format!(
                "{} ({}, {}{})",
                gpu.name,
                gpu.api,
                gpu.driver,
                if gpu.software { ", software" } else { "" }
            ),
            format!("`wattle {}` (version {})", command.join(" "), env!("CARGO_PKG_VERSION")),
        ];
        let scope = scope(args.quick, quant, common.thread_count());
        let (tables, kernels, joules, windows) = Default::default();
        Ok(Self { args, options, scope, shapes, budget, records, facts, tables, kernels, joules, windows })
    }

    /// Stops the run unless the kernels are right on this device, and rows do not notice each other.
    fn prove(&mut self, out: &mut dyn Write) -> Result<()> {
        let _progress = Progress::spinner("checking all kernels");
        let [checked, all] = prove::kernels(&self.options, self.args.quick)?;
        if checked < all {
            self.budget.leave_out(&format!("{} kernel cases", all - checked), "--quick");
        }
        let mut rows = prove::rows("tiny, dense", Model::random("tiny", Dtype::F32, 1)?, &self.options)?;
        let shapes: &[String] = if self.args.quick { &[] } else { &self.shapes };
        for shape in shapes {
            let model = prove::first_layer(Model::random_quantized(shape, self.scope.quant, 1)?);
            rows += prove::rows(&format!("{shape}, {}", self.scope.quant.name()), model, &self.options)?;
        }
        let fact = format!(
            "proven first: {checked} of {all} kernel cases are their plain twins, with rows and masks exact (in fast precision, prompts and factors within their bounds); {rows} rows of {} \
             plans are the same bit for bit beside 0, 1, 2, 4 and 7 other sequences",
            1 + shapes.len()
        );
        self.fact(fact, out)
    }

    /// What the device can do.
    fn describe(&mut self, ceilings: &mut Ceilings, out: &mut dyn Write) -> Result<()> {
        let footprint = if self.args.quick { 1 << 20 } else { LARGE };
        let (read, footprint) = (ceilings.read(footprint)? / 1e9, footprint >> 20);
        let multiply = ceilings.multiply_adds / 1e12;
        let info = ceilings.info();
        let timestamps = if info.timestamps { "" } else { ", no timestamps: kernels are not timed" };
        let subgroups = info
            .subgroups
            .map_or_else(|| "no subgroups".to_owned(), |(low, high)| format!("subgroups of {low} to {high}"));
        let fact = format!(
            "reads {read:.1} GB/s (of {footprint} MiB), multiplies and adds {multiply:.3} T/s in f32; {subgroups}{timestamps}"
        );
        self.fact(fact, out)
    }

    /// The energy counter, if there is one; else the reason is noted.
    fn energy(&mut self, ceilings: &Ceilings) -> Option<Energy> {
        if self.args.quick {
            self.budget.leave_out("joules", "--quick");
            return None;
        }
        let info = ceilings.info();
        let energy = Energy::open(&info.pci, &info.name, Duration::from_secs(6));
        energy.map_err(|reason| self.budget.leave_out("joules", reason)).ok()
    }

    fn shape(
        &mut self,
        shape: &str,
        ceilings: &mut Ceilings,
        energy: Option<&mut Energy>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let measured = {
            let _progress = Progress::spinner(format!("measuring {shape}"));
            let (scope, budget, measured) = (&self.scope, &mut self.budget, Measured::default());
            let mut bench = Bench { shape, scope, ceilings, budget, energy, measured };
            bench.run(&self.options);
            bench.measured
        };
        let quant = self.scope.quant.name();
        // Written at once, so that a run that is cut off leaves what it had.
        self.records.csv(shape, &format!("speed of {shape} in {quant}"), &measured.lines)?;
        if !measured.lines.is_empty() {
            let mut text = format!("{shape}, {quant}:\n\n").into_bytes();
            bench::table(&measured.lines).write(&mut text)?;
            self.table(&text, out)?;
        }
        self.kernels.extend(measured.kernels);
        self.joules.extend(measured.energy);
        self.windows.extend(measured.windows);
        Ok(())
    }

    /// Writes what all shapes have together.
    fn finish(&mut self, ceilings: &Ceilings, out: &mut dyn Write) -> Result<()> {
        self.records.csv("kernels", "what the kernels of a step take, by timestamps", &self.kernels)?;
        self.records.csv("joules", "what the board takes, by NVML's counter", &self.joules)?;
        if let Some(first) = self.kernels.first().map(|line| line.shape.clone()) {
            let mut text = b"Steps, by timestamps:\n\n".to_vec();
            kernels::steps(&self.kernels).write(&mut text)?;
            self.table(&text, out)?;
            let lines: Vec<_> = self.kernels.iter().filter(|line| line.shape == first).cloned().collect();
            let mut text = format!("Ops of {first} that take 1 % of a step or more:\n\n").into_bytes();
            kernels::ops(&lines).write(&mut text)?;
            self.table(&text, out)?;
        }
        if !self.joules.is_empty() {
            let mut text = b"Joules, by NVML's counter of the whole board:\n\n".to_vec();
            energy::table(&self.joules).write(&mut text)?;
            self.table(&text, out)?;
            self.fit(out)?;
        }
        for left_out in self.budget.left_out().to_vec() {
            self.fact(format!("left out: {left_out}"), out)?;
        }
        let tables = String::from_utf8_lossy(&self.tables);
        self.records.readme(&ceilings.info().name, &self.facts, &tables)
    }

    /// Fits the proxy to the steps whose joules were counted, and holds each out in turn.
    fn fit(&mut self, out: &mut dyn Write) -> Result<()> {
        self.records.csv("windows", "steps and their joules above idle, for `energy fit`", &self.windows)?;
        let fit = Fit::of(&self.windows.iter().collect::<Vec<_>>());
        match fit.and_then(|fit| Ok((fit, fit::validate(&self.windows)?))) {
            Ok((fit, validation)) => {
                let mut text = format!("The proxy fitted to these steps: {fit}.\n\n").into_bytes();
                validation.table().write(&mut text)?;
                self.table(&text, out)
            }
            Err(error) => {
                self.budget.leave_out("the proxy's fit", error);
                Ok(())
            }
        }
    }

    /// Notes and prints one line.
    fn fact(&mut self, fact: String, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{fact}")?;
        out.flush()?;
        self.facts.push(fact);
        Ok(())
    }

    /// Notes and prints a table.
    fn table(&mut self, text: &[u8], out: &mut dyn Write) -> Result<()> {
        out.write_all(b"\n")?;
        out.write_all(text)?;
        out.flush()?;
        self.tables.extend_from_slice(text);
        self.tables.push(b'\n');
        Ok(())
    }
}

/// The GPU that the suite runs on: a software one only where `--backend gpu` asks for it.
fn device(backend: Backend) -> Result<Gpu> {
    let gpu = devices::gpus().into_iter().next();
    match (backend, gpu) {
        (Backend::Cpu, _) => {
            Err(Error::value("--backend", "cpu; the suite measures GPUs: accepted are auto and gpu"))
        }
        (_, None) => Err(Error::value("--backend", "no GPU was found (Vulkan, Metal or DX12)")),
        (Backend::Auto, Some(gpu)) if gpu.software => {
            let reason = format!("only a software GPU was found ({}); --backend gpu takes it", gpu.name);
            Err(Error::value("--backend", reason))
        }
        (_, Some(gpu)) => Ok(gpu),
    }
}

/// What is measured of every shape.
fn scope(quick: bool, quant: Quant, threads: usize) -> Scope {
    let settings = Settings {
        prompt: if quick { 5 } else { 512 },
        new: if quick { 4 } else { 64 },
        repetitions: if quick { 1 } else { 5 },
        depth: 0,
        rank: 0,
        lora_layers: Layers::All,
        threads,
        paired: true,
        limit: Duration::from_secs(10),
    };
    let seconds = |quick_seconds, seconds| Duration::from_secs(if quick { quick_seconds } else { seconds });
    Scope {
        quant,
        settings,
        paths: if quick { vec![1, 2] } else { vec![1, 8, 4] },
        ranks: if quick { vec![2] } else { vec![16, 64] },
        chunk: if quick { 5 } else { 256 },
        line: seconds(0, 4),
        load: seconds(0, 10),
    }
}

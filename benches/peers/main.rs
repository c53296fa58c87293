//! wattle beside llama.cpp: the same random weights, threads and bytes, in two processes that take turns.
//!
//! ```text
//! RUSTFLAGS="-C metadata=target-cpu=native" cargo bench -p wattle-benches --features peers --bench peers \
//!     --target-dir target/peers -- --shape qwen2.5-0.5b
//! ```
//!
//! The flag makes llama.cpp's build script build it for this processor; wattle stays as it is shipped. (cmake, clang
//! and a C++ compiler must be there.) Each process loads its model once and then waits; a round asks one, then the
//! other, for the same measurement. Before anything is timed both compute the logits of a short prompt, and what they
//! differ by is printed: it is the same model.
#![allow(missing_docs, reason = "a bench has no public items")]

mod gguf;
mod llama;
mod ours;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use clap::Parser;
use serde::{Deserialize, Serialize};
use wattle_engine::model::{Dtype, Model, Quant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One of the engines.
trait Side {
    /// Logits after the last of some tokens.
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>>;
    /// Seconds until a prompt's first new token.
    fn prompt(&mut self, ids: &[u32]) -> Result<f64>;
    /// Seconds of a step in which `paths` sequences get a token each, on average over `new` steps.
    fn decode(&mut self, id: u32, new: usize, paths: usize) -> Result<f64>;
}

/// Compares wattle with llama.cpp.
#[derive(Parser)]
struct Args {
    /// Shape of a known model
    #[arg(long, default_value = "qwen2.5-0.5b")]
    shape: String,
    /// How projections are quantized: q4_0, q4_1 or q8_0; embedding and head are q8_0
    #[arg(long, default_value = "q4_0")]
    quant: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prompt tokens
    #[arg(short, default_value_t = 512)]
    prompt: usize,
    /// Steps of a decode measurement
    #[arg(short, default_value_t = 64)]
    new: usize,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,4,8")]
    paths: Vec<usize>,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Appends the results to this CSV file
    #[arg(long)]
    record: Option<PathBuf>,
    /// What a process of this bench is to be: `llama` or `wattle`
    #[arg(long, hide = true)]
    side: Option<String>,
    /// The GGUF file
    #[arg(long, hide = true)]
    file: Option<PathBuf>,
    /// Cargo passes it to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn quant(&self) -> Result<(Quant, gguf::Type)> {
        match self.quant.as_str() {
            "q4_0" => Ok((Quant::Q4_0, gguf::Type::Q4_0)),
            "q4_1" => Ok((Quant::Q4_1, gguf::Type::Q4_1)),
            "q8_0" => Ok((Quant::Q8_0, gguf::Type::Q8_0)),
            other => Err(format!("--quant {other}; expected q4_0, q4_1 or q8_0").into()),
        }
    }

    fn model(&self) -> Result<Model> {
        Ok(Model::random(&self.shape, Dtype::Bf16, 1)?.quantized(self.quant()?.0)?)
    }

    fn context(&self) -> usize {
        (self.prompt + 2).max(self.new + 4)
    }

    fn sequences(&self) -> usize {
        self.paths.iter().copied().max().unwrap_or(1)
    }

    fn prompt_ids(&self) -> Vec<u32> {
        (0..self.prompt as u32).map(|i| i * 31 % 1000).collect()
    }
}

/// Columns of a record.
const HEADER: &str = "shape,quant,threads,test,wattle_tokens_per_second,llama_cpp_tokens_per_second,ratio,ratio_min,ratio_max,\
                      wattle_weight_bytes,llama_cpp_weight_bytes,wattle_instructions,llama_cpp_system";

/// How far the bytes of both sides' weights may be apart.
const MOST_BYTES_APART: f64 = 0.01;

/// What both sides ran with, for the record.
struct Setting {
    /// Of the weights: wattle's and llama.cpp's.
    bytes: [usize; 2],
    /// What llama.cpp was built for and uses.
    system: String,
}

/// What the parent asks for, and a process answers with a line of numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Ask {
    Logits,
    Prompt,
    Decode { paths: usize },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.side.as_deref() {
        Some("llama") => {
            let file = args.file.as_deref().ok_or("--side llama needs --file")?;
            llama::with(file, args.threads, args.context(), args.sequences(), |side| answer(&args, side))
        }
        Some(_) => answer(
            &args,
            &mut ours::Ours::new(args.model()?, args.threads, args.context(), args.sequences())?,
        ),
        None => compare(&args),
    }
}

/// Answers until the parent is gone.
fn answer(args: &Args, side: &mut dyn Side) -> Result<()> {
    let (ids, mut out) = (args.prompt_ids(), std::io::stdout());
    for line in std::io::stdin().lines() {
        let numbers = match serde_json::from_str(&line?)? {
            Ask::Logits => side.logits(&ids[..ids.len().min(16)])?.into_iter().map(f64::from).collect(),
            Ask::Prompt => vec![side.prompt(&ids)?],
            Ask::Decode { paths } => vec![side.decode(7, args.new, paths)?],
        };
        writeln!(out, "{}", serde_json::to_string(&numbers)?)?;
        out.flush()?;
    }
    Ok(())
}

/// A process that answers.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(side: &str, file: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(["--side", side, "--file"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or("no pipe")?;
        Ok(Self { child, out: BufReader::new(out) })
    }

    fn ask(&mut self, ask: &Ask) -> Result<Vec<f64>> {
        let stdin = self.child.stdin.as_mut().ok_or("no pipe")?;
        writeln!(stdin, "{}", serde_json::to_string(ask)?)?;
        stdin.flush()?;
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| format!("a process gave no answer to {ask:?}").into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Without its input it ends by itself; if it hangs, it must not outlive the bench.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compare(args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.gguf");
    let model = args.model()?;
    let theirs = gguf::write(&model, args.quant()?.1, &file)?;
    let ours = bytes(&model);
    drop(model);
    let more = theirs as f64 / ours as f64 - 1.0;
    let weights = format!("{ours} bytes of weights, llama.cpp {theirs} ({:+.2} %)", more * 100.0);
    println!("{} {}: {weights}", args.shape, args.quant);
    if more.abs() > MOST_BYTES_APART {
        return Err(format!("{weights}: more than 1 % apart is no comparison").into());
    }
    let setting = Setting { bytes: [ours, theirs], system: llama::system_info() };
    println!("llama.cpp: {}", setting.system);
    println!("wattle: {}", wattle_kernels_cpu::fast::instruction_set());
    let mut sides = [Process::start("wattle", &file)?, Process::start("llama", &file)?];
    let [a, b] = [sides[0].ask(&Ask::Logits)?, sides[1].ask(&Ask::Logits)?];
    let largest = b.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("logits differ by {:.2} % of the largest", difference / largest * 100.0);
    let mut asks = vec![Ask::Prompt];
    asks.extend(args.paths.iter().map(|&paths| Ask::Decode { paths }));
    println!("| test | wattle tok/s | llama.cpp tok/s | ratio | of rounds |");
    println!("|---|---:|---:|---:|---|");
    for ask in &asks {
        let line = Line::measure(args, ask, &mut sides)?;
        println!("{}", line.markdown());
        if let Some(record) = &args.record {
            line.append(args, &setting, record)?;
        }
    }
    Ok(())
}

/// Bytes of all matrices.
fn bytes(model: &Model) -> usize {
    let weights = &model.weights;
    let layers = weights.layers.iter().flat_map(|layer| {
        let linears = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.up, &layer.down];
        linears.into_iter().chain(&layer.gate).map(|linear| &linear.weight)
    });
    let head = Some(&weights.head.weight).filter(|head| !Arc::ptr_eq(head, &weights.embed));
    let outside = [Some(&weights.embed), weights.positions.as_ref(), head];
    layers.chain(outside.into_iter().flatten()).map(|matrix| matrix.bytes()).sum()
}

/// What the rounds of one measurement gave.
struct Line {
    test: String,
    /// Medians \[tokens/s\].
    rates: [f64; 2],
    /// Median, smallest and largest of the rounds' ratios.
    ratios: [f64; 3],
}

impl Line {
    fn measure(args: &Args, ask: &Ask, sides: &mut [Process; 2]) -> Result<Self> {
        let (test, tokens) = match ask {
            Ask::Decode { paths } => (format!("decode {} x {paths}", args.new), *paths),
            _ => (format!("prompt {}", args.prompt), args.prompt),
        };
        let (mut times, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
        for round in 0..=args.rounds {
            let mut seconds = [0.0; 2];
            // Who begins changes from round to round.
            for turn in 0..2 {
                let side = (round + turn) % 2;
                seconds[side] = sides[side].ask(ask)?.first().copied().ok_or("no number")?;
            }
            // The first round pays for what is made once.
            if round > 0 {
                times.iter_mut().zip(seconds).for_each(|(times, seconds)| times.push(seconds));
                ratios.push(seconds[1] / seconds[0]);
            }
        }
        let rates = times.map(|mut times| tokens as f64 / middle(&mut times));
        let median = middle(&mut ratios);
        let ends = [ratios.first(), ratios.last()].map(|end| end.copied().unwrap_or(f64::NAN));
        Ok(Self { test, rates, ratios: [median, ends[0], ends[1]] })
    }

    fn markdown(&self) -> String {
        let ([ours, theirs], [median, low, high]) = (self.rates, self.ratios);
        format!("| {} | {ours:.1} | {theirs:.1} | {median:.2} | {low:.2} to {high:.2} |", self.test)
    }

    /// A line of what was measured, and with what on both sides.
    fn append(&self, args: &Args, setting: &Setting, record: &Path) -> Result<()> {
        let before = std::fs::read_to_string(record).unwrap_or_default();
        if before.lines().next().is_some_and(|first| first != HEADER) {
            return Err(format!("{}: its columns are others than {HEADER}", record.display()).into());
        }
        let mut file = std::fs::File::options().create(true).append(true).open(record)?;
        if before.is_empty() {
            writeln!(file, "{HEADER}")?;
        }
        let ([ours, theirs], [median, low, high]) = (self.rates, self.ratios);
        let Args { shape, quant, threads, .. } = args;
        let (Setting { bytes: [our_bytes, their_bytes], system }, set) =
            (setting, wattle_kernels_cpu::fast::instruction_set());
        Ok(writeln!(
            file,
            "{shape},{quant},{threads},{},{ours:.2},{theirs:.2},{median:.3},{low:.3},{high:.3},{our_bytes},{their_bytes},{set},\
             \"{}\"",
            self.test,
            system.replace('"', "'")
        )?)
    }
}

/// The median; sorts the values.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

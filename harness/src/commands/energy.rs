//! `wattle energy`.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::write_json;
use crate::common::Common;
use crate::energy::profile;
use crate::error::{Error, Result};
use crate::files::read;
use crate::fit::{Fit, Measured, validate};
use crate::meters;
use crate::windows;

/// The longest file of windows that is read \[bytes\].
const MAX_LENGTH: u64 = 64 << 20;

/// Arguments of `energy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print which energy counter this machine lets us read
    Meter,
    /// Repeat single ops of a model's plan, each for at least 5 s, and write what the counter said
    Measure(MeasureArgs),
    /// Fit the proxy's coefficients to measured windows, and hold kernels out to see how well they foretell
    Fit(FitArgs),
}

/// Arguments of `energy measure`.
#[derive(Debug, clap::Args)]
struct MeasureArgs {
    /// Shapes whose ops are measured, with weights as --quant says
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', default_value = "distilgpt2,qwen2.5-0.5b")]
    shapes: Vec<String>,
    /// Rows of the steps: decode with one path and with several, and chunks of prompts
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,8,64", value_parser = clap::value_parser!(u32).range(1..=256))]
    rows: Vec<u32>,
    /// Where the windows go
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
}

/// Arguments of `energy fit`.
#[derive(Debug, clap::Args)]
struct FitArgs {
    /// JSON: [{"kernel", "flops", "dram_bytes", "on_chip_bytes", "launches", "seconds", "joules"}], each of one repetition
    /// of a window of at least 5 s, without idle power; or the same as columns of a .csv, as `device-suite` writes it
    #[arg(value_name = "WINDOWS.json|.csv")]
    windows: PathBuf,
    /// The profile whose other figures are kept
    #[arg(long, value_name = "NAME|FILE", default_value = "server")]
    profile: String,
    /// Power of the idle machine in the windows' measurement [W]
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    idle: f64,
    /// The year of the measurement
    #[arg(long, value_name = "YEAR")]
    year: u32,
    /// Where the calibrated profile goes
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    match &args.action {
        Action::Meter => match meters::find(meters::Device::Cpu) {
            Ok(counter) => Ok(writeln!(out, "{} (tier A where windows are long enough)", counter.name())?),
            Err(error) => {
                Ok(writeln!(out, "{error}; reports are of the proxy (tier C, or B with a fitted profile)")?)
            }
        },
        Action::Measure(args) => measure(args, common, out),
        Action::Fit(args) => fit(args, out),
    }
}

fn measure(args: &MeasureArgs, common: &Common, out: &mut dyn Write) -> Result<()> {
    let mut counter = meters::find(meters::Device::Cpu)?;
    let idle = windows::idle(&mut *counter)?;
    let mut all = Vec::new();
    for shape in &args.shapes {
        all.extend(windows::of_shape(shape, &args.rows, common, &mut *counter, &idle)?);
    }
    let text = serde_json::to_string_pretty(&all).map_err(|error| Error::file(&args.out, error))?;
    std::fs::write(&args.out, text + "\n").map_err(|error| Error::file(&args.out, error))?;
    Ok(writeln!(out, "{} windows by {}; idle {:.2} W", all.len(), counter.name(), idle.watts())?)
}

fn fit(args: &FitArgs, out: &mut dyn Write) -> Result<()> {
    let file = &args.windows;
    let windows = windows_of(file)?;
    let fit = Fit::of(&windows.iter().collect::<Vec<_>>())?;
    let validation = validate(&windows)?;
    if let Some(to) = &args.out {
        let how = format!("fitted to {} windows of {}", windows.len(), file.display());
        let text =
            profile(&args.profile)?.calibrated(&fit.coefficients, args.idle + fit.active_w, args.year, &how);
        std::fs::write(to, text + "\n").map_err(|error| Error::file(to, error))?;
    }
    if args.json {
        return write_json(&serde_json::json!({ "fit": fit, "held_out": validation }), out);
    }
    writeln!(out, "{fit}\n")?;
    Ok(validation.table().write(out)?)
}

/// Windows from JSON, or from what `device-suite` writes.
fn windows_of(file: &Path) -> Result<Vec<Measured>> {
    let data = read(file, MAX_LENGTH)?;
    if file.extension().is_some_and(|ending| ending == "csv") {
        let lines = csv::Reader::from_reader(data.as_slice()).into_deserialize();
        return lines.collect::<std::result::Result<_, _>>().map_err(|error| Error::file(file, error));
    }
    serde_json::from_slice(&data).map_err(|error| Error::file(file, error))
}

//! One file per command.

mod bench;
#[cfg(feature = "gpu")]
mod device_suite;
mod devices;
mod energy;
mod eval;
mod generate;
mod kernels;
mod logits;
mod plan;
mod policy;
mod quantize;
mod soak;
mod tokenize;

use std::io::Write;

use crate::common::Common;
use crate::error::Result;

pub(crate) use policy::{MeasureArgs, rows_table};
#[cfg(feature = "training")]
pub(crate) use policy::{Scenario, TrainArgs, write_rows};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt; without one, solve a word problem with the shipped model and adapter
    Generate(Box<generate::Args>),
    /// Write the logits after each position of a prompt to a safetensors file
    Logits(logits::Args),
    /// Print the token ids of a text
    Tokenize(tokenize::Args),
    /// Print the ops that a model is compiled to, and what they cost in a step
    Plan(plan::Args),
    /// List the kernels, or check them against their plain twins
    Kernels(kernels::Args),
    /// Print the devices that were found, and what they can do
    Devices(devices::Args),
    /// Run tasks with and without the adapter, and count right answers
    Eval(eval::Args),
    /// Say what counts energy here, and fit the proxy's coefficients to what was counted
    Energy(energy::Args),
    /// Write a quantized copy of a model directory, which is read as it lies
    Quantize(quantize::Args),
    /// Train, show and score policies that pick LoRA layers, on simulated devices
    Policy(policy::Args),
    /// Run random requests, adapters, cancels and faults at once, and compare every result with the request's alone
    Soak(soak::Args),
    /// Study policies, energy and carbon: JSON, a table and an HTML page with plots
    Study(crate::study::Args),
    /// Measure prompt and decode speed
    Bench(bench::Args),
    /// Prove all kernels right on a GPU, then measure what it can do and write records
    #[cfg(feature = "gpu")]
    DeviceSuite(device_suite::Args),
}

impl Command {
    /// Runs it; results go to `out`.
    pub fn run(&self, common: &Common, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::Generate(args) => generate::run(args, common, out),
            Self::Logits(args) => logits::run(args, common),
            Self::Tokenize(args) => tokenize::run(args, common, out),
            Self::Plan(args) => plan::run(args, common, out),
            Self::Kernels(args) => kernels::run(args, common, out),
            Self::Devices(args) => devices::run(args, common, out),
            Self::Eval(args) => eval::run(args, common, out),
            Self::Energy(args) => energy::run(args, common, out),
            Self::Quantize(args) => quantize::run(args, common, out),
            Self::Policy(args) => policy::run(args, common, out),
            Self::Soak(args) => soak::run(args, common, out),
            Self::Study(args) => crate::study::run(args, out),
            Self::Bench(args) => bench::run(args, common, out),
            #[cfg(feature = "gpu")]
            Self::DeviceSuite(args) => device_suite::run(args, common, out),
        }
    }
}

/// Writes one JSON value on one line.
pub(crate) fn write_json(value: &impl serde::Serialize, out: &mut dyn Write) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Token ids as `--ids` takes them.
fn join_ids(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

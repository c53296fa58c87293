//! The command line of wattle, and its measuring side.
//!
//! [`run`] is the whole program: `main` only passes the arguments on. A command is one file under `commands/` with its
//! arguments as a struct and a `run` that writes results, and nothing else, to the writer that it is given.

pub mod bandwidth;
mod commands;
mod common;
mod devices;
mod energy;
mod error;
mod files;
mod fit;
mod fresh;
mod layers;
mod measure;
mod meter;
mod meters;
mod policy;
mod profile;
mod progress;
mod prompt;
mod random_adapter;
mod report;
mod scores;
mod session;
mod shipped;
mod simulated;
mod soak;
mod study;
mod table;
mod tasks;
#[cfg(feature = "training")]
mod train;
#[cfg(feature = "training")]
mod training;
mod windows;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use error::{Error, Result};

/// Runs LoRA-adapted language models on the device in front of you and says what every kernel cost.
#[derive(Debug, Parser)]
#[command(name = "wattle", version)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
    #[command(flatten)]
    common: common::Common,
}

/// Runs one command line (the program's name first): results go to stdout, one message per error to stderr.
///
/// The status is 0, 1 after an error, 2 after wrong usage. A reader that went away is no error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(message) => {
            // Help and usage errors; when not even these can be printed there is nobody left to tell.
            let _ = message.print();
            return ExitCode::from(message.exit_code() as u8);
        }
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let result = cli.command.run(&cli.common, &mut out);
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

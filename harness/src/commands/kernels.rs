//! `wattle kernels`.

use std::io::Write;

use crate::common::Common;
use crate::error::Result;

/// Arguments of `kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

/// What to do with kernels.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print the names of all kernels
    List,
}

/// Runs it.
pub(crate) fn run(args: &Args, _common: &Common, out: &mut dyn Write) -> Result<()> {
    match args.action {
        Action::List => NAMES.iter().try_for_each(|name| Ok(writeln!(out, "{name}")?)),
    }
}

macro_rules! names {
    ($($name:ident),*) => {
        /// All kernels, as the one list names them.
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
wattle_shaders::for_each_kernel!(names);

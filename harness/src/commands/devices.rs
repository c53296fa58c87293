//! `wattle devices`.

use std::io::Write;

use crate::bandwidth;
use crate::common::Common;
use crate::error::Result;
use crate::progress::Progress;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Bytes that are read to measure memory: more than caches hold.
const FOOTPRINT: u64 = 512 << 20;

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let threads = common.thread_count();
    let rate = {
        let _progress = Progress::spinner("reading memory");
        bandwidth::read(FOOTPRINT, threads)?
    };
    let _ = (args, rate, out);
    Ok(())
}

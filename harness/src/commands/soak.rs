//! `wattle soak`.

use std::io::Write;

use super::write_json;
use crate::common::Common;
use crate::error::{Error, Result};
use crate::soak::soak;

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Random requests to run
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    requests: u32,
    /// Fixes what is asked for (not when: threads run as they like)
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs it; an error unless every request gave what it gives alone, and nothing leaked.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let outcome = soak(args.requests as usize, args.seed, common)?;
    if args.json {
        write_json(&outcome, out)?;
    } else {
        let (all, done, cut, no) = (outcome.requests, outcome.completed, outcome.cancelled, outcome.rejected);
        writeln!(out, "requests {all}: {done} completed, {cut} cancelled, {no} rejected")?;
        for (event, count) in &outcome.events {
            writeln!(out, "  {event:<20} {count:>9}")?;
        }
        let (pages, slots) = (outcome.leaked_pages, outcome.leaked_slots);
        writeln!(out, "mismatches {}, leaked pages {pages}, leaked slots {slots}", outcome.mismatches)?;
    }
    if outcome.is_good() {
        return Ok(());
    }
    out.flush()?;
    Err(Error::Failed("the soak found mismatches or leaks".into()))
}

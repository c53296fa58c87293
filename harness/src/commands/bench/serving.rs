//! `bench --serving`: what serving many at once costs, each as a multiple of what it is compared to, measured in turn.

use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use wattle_engine::{Control, Engine, Lora, Request};
use wattle_policy::{CostSource, OpCost};

use super::runner::{Runner, Targets, Test};
use super::{Args, Output, loading};
use crate::commands::write_json;
use crate::common::Common;
use crate::error::Result;
use crate::meter::{Ratio, median_and_spread};
use crate::progress::Progress;
use crate::report::quant_name;
use crate::table::Table;

/// Tokens before an adapter is switched on, and after.
const BEFORE: usize = 24;
const AFTER: usize = 8;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
struct Line {
    /// What was measured.
    what: String,
    /// And what it is a multiple of.
    of: &'static str,
    backend: String,
    device: String,
    quant: String,
    threads: usize,
    /// Geometric mean over the repetitions, and its 95 % interval.
    ratio: f64,
    low: Option<f64>,
    high: Option<f64>,
    /// The same ratio of the DRAM bytes that the plan needs, where it says something about time.
    bytes: Option<f64>,
}

/// Something that is measured as a ratio, once a repetition.
type Measure<'a> = (String, &'static str, Option<f64>, Box<dyn Fn(&mut Runner) -> Result<f64> + 'a>);

/// Measures.
pub(super) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let mut runner = super::open(args, common)?;
    let most = args.paths.iter().copied().max().unwrap_or(1);
    let mut lines = Vec::new();
    let general = general(args);
    let progress = Progress::bar("bench", (general.len() + 2) * (args.repetitions as usize + 1));
    let place = Place::of(&mut runner.engine, common.thread_count());
    measure(&mut runner, general, args.repetitions, &progress, &place, &mut lines)?;
    for targets in [Targets::QueryValue, Targets::All] {
        runner.set_targets(targets)?;
        let adapted = vec![adapters(&mut runner, most, targets)?];
        measure(&mut runner, adapted, args.repetitions, &progress, &place, &mut lines)?;
    }
    drop(progress);
    let changes = loading::changes(runner, args.repetitions)?;
    let times = |of: fn(&loading::Changes) -> f64| changes.iter().map(of).collect::<Vec<f64>>();
    let what = "adapter loaded, replaced, forgotten: longest time between two tokens";
    lines.push(place.line(what.into(), "a step", None, &times(|changes| changes.pause)));
    let what = "adapter loaded, replaced, forgotten: until all was done";
    lines.push(place.line(what.into(), "a step", None, &times(|changes| changes.whole)));
    match args.output {
        Output::Json => write_json(&lines, out),
        Output::Csv => super::record::write_csv(&lines, out),
        Output::Md => Ok(table(&lines).write(out)?),
    }
}

/// What needs no particular adapters.
fn general(args: &Args) -> Vec<Measure<'_>> {
    let base = |paths| Test { adapters: 0, paths: Some(paths) };
    let several = args.paths.iter().copied().filter(|&paths| paths > 1);
    let paths = several.map(|paths| {
        let ratio = move |runner: &mut Runner| Ok(runner.rate(&base(paths))? / runner.rate(&base(1))?);
        let measure: Measure = (format!("{paths} paths, tokens/s"), "one path's", None, Box::new(ratio));
        measure
    });
    let own = args.paths.iter().copied().map(|paths| {
        let share = move |runner: &mut Runner| own_time(runner, paths);
        let measure: Measure =
            (format!("{paths} paths, scheduler's own time"), "a step", None, Box::new(share));
        measure
    });
    let known = (args.prompt > 0).then(|| {
        let what = format!("prompt of {} again, time to first token", args.prompt);
        let measure: Measure = (what, "the first time's", None, Box::new(known_prompt));
        measure
    });
    let what = "switch to an adapter, time to its first token";
    let switches = [("a step", false), ("a step with the adapter", true)].map(|(of, adapted)| {
        let ratio = move |runner: &mut Runner| switch(runner, adapted);
        let measure: Measure = (what.into(), of, None, Box::new(ratio));
        measure
    });
    known.into_iter().chain(paths).chain(own).chain(switches).collect()
}

/// As many adapters as paths, beside one for all.
fn adapters(runner: &mut Runner, paths: u32, targets: Targets) -> Result<Measure<'static>> {
    runner.adapters(paths)?;
    let bytes = |count| -> Result<f64> {
        let (plan, shape) = runner.decode_step(count, paths)?;
        let cost: OpCost = (0..plan.ops.len()).map(|op| plan.cost(op, &shape)).sum();
        Ok(cost.dram_bytes() as f64)
    };
    // Speed is as one over bytes. The plan's are those of factors everywhere.
    let (name, bytes) = match targets {
        Targets::QueryValue => ("q and v", None),
        Targets::All => ("all linear", Some(bytes(1)? / bytes(paths)?)),
    };
    let test = move |adapters| Test { adapters, paths: Some(paths) };
    let ratio = move |runner: &mut Runner| Ok(runner.rate(&test(paths))? / runner.rate(&test(1))?);
    let what = format!("{paths} adapters of {name}, tokens/s of {paths} paths");
    Ok((what, "one adapter's", bytes, Box::new(ratio)))
}

/// Each measure in turn, after one round that is not counted.
fn measure(
    runner: &mut Runner,
    measures: Vec<Measure>,
    repetitions: u32,
    progress: &Progress,
    place: &Place,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let mut ratios = vec![Vec::new(); measures.len()];
    for repetition in 0..=repetitions {
        for ((.., once), ratios) in measures.iter().zip(&mut ratios) {
            let ratio = once(runner)?;
            if repetition > 0 {
                ratios.push(ratio);
            }
            progress.step();
        }
    }
    for ((what, of, bytes, _), ratios) in measures.into_iter().zip(ratios) {
        lines.push(place.line(what, of, bytes, &ratios));
    }
    Ok(())
}

/// Where it was measured.
struct Place {
    backend: &'static str,
    device: String,
    quant: String,
    threads: usize,
}

impl Place {
    fn of(engine: &mut Engine, threads: usize) -> Self {
        let quant = quant_name(engine.plan());
        let backend = engine.backend();
        Self { backend: backend.kind(), device: backend.device().to_owned(), quant, threads }
    }

    fn line(&self, what: String, of: &'static str, bytes: Option<f64>, ratios: &[f64]) -> Line {
        let ratio = Ratio::of(ratios);
        let interval = ratio.and_then(|ratio| ratio.interval);
        Line {
            what,
            of,
            backend: self.backend.to_owned(),
            device: self.device.clone(),
            quant: self.quant.clone(),
            threads: self.threads,
            ratio: ratio.map_or(f64::NAN, |ratio| ratio.mean),
            low: interval.map(|interval| interval[0]),
            high: interval.map(|interval| interval[1]),
            bytes,
        }
    }
}

/// Time to the first token of a prompt that was run before, as a share of the first time's.
fn known_prompt(runner: &mut Runner) -> Result<f64> {
    let request = Request { ignore_eos: true, ..Request::new(runner.ids(runner.settings.prompt), 1) };
    let mut first_token =
        || Ok::<_, crate::error::Error>(runner.engine.generate(&request)?.report.first_token);
    let first = first_token()?.as_secs_f64();
    Ok(first_token()?.as_secs_f64() / first)
}

/// The share of decoding steps that is not the backend's.
fn own_time(runner: &mut Runner, paths: u32) -> Result<f64> {
    let before = runner.engine.step_times();
    runner.rate(&Test { adapters: 0, paths: Some(paths) })?;
    let after = runner.engine.step_times();
    let device = (after.device - before.device).as_secs_f64();
    Ok(1.0 - device / (after.total - before.total).as_secs_f64())
}

/// From the token at which a path is told to switch to the first token that the adapter had a part in, as a multiple of a
/// step before, or of one with the adapter behind it. The adapter is in its slot.
fn switch(runner: &mut Runner, adapted: bool) -> Result<f64> {
    let adapter = runner.adapters(1)?[0];
    let ids = runner.ids(1);
    let request = Request { ignore_eos: true, ..Request::new(ids, BEFORE + AFTER) };
    let mut times = Vec::new();
    runner.engine.stream(&request, |_| {
        times.push(Instant::now());
        if times.len() == BEFORE { Control::Switch(Lora::new(adapter)) } else { Control::Continue }
    })?;
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    // A GPU has begun the next step already: the one behind it is the adapter's.
    let ahead = usize::from(runner.gpu().is_some());
    let steps = if adapted { &gaps[BEFORE + ahead..] } else { &gaps[..BEFORE - 1] };
    let (step, _) = median_and_spread(steps.to_vec());
    Ok(gaps[BEFORE - 1..=BEFORE - 1 + ahead].iter().sum::<f64>() / step)
}

/// The table for a reader.
fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(["what", "of", "ratio", "95 %", "by bytes"]);
    for line in lines {
        let interval = line.low.zip(line.high).map(|(low, high)| format!("{low:.4} to {high:.4}"));
        table.row([
            line.what.clone(),
            line.of.to_owned(),
            format!("{:.4}", line.ratio),
            interval.unwrap_or_default(),
            line.bytes.map(|bytes| format!("{bytes:.4}")).unwrap_or_default(),
        ]);
    }
    table
}

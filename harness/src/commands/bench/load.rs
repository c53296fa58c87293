//! `bench --load`: how long a model takes to load, beside reading its files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use wattle_engine::{Engine, EngineOptions, Request};

use super::{Args, Output};
use crate::commands::write_json;
use crate::common::Common;
use crate::error::{Error, Result};
use crate::meter::{Ratio, median_and_spread};
use crate::progress::Progress;
use crate::report::{Bytes, quant_name};
use crate::session::Source;
use crate::table::{Table, percent};

/// What was done, over and over.
#[derive(Clone, Debug, Serialize)]
struct Line {
    /// `read`, `load`, or `load and first token`.
    what: &'static str,
    /// Of all safetensors files.
    bytes: u64,
    backend: String,
    device: String,
    quant: String,
    threads: usize,
    /// Median over the repetitions.
    seconds: f64,
    /// Largest minus smallest, as a share of the median.
    spread: f64,
    /// Time as a multiple of reading, paired, and its 95 % interval.
    of_reading: Option<f64>,
    of_reading_low: Option<f64>,
    of_reading_high: Option<f64>,
}

const WHAT: [&str; 3] = ["read", "load", "load and first token"];

/// Measures; the three take turns, so that all find the files in the page cache.
pub(super) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let dir = Source::find(common)?.model;
    let files = files(&dir)?;
    let options = common.engine_options();
    let mut engine = Engine::load(&dir, options.clone())?;
    let quant = quant_name(engine.plan());
    let (backend, device) = (engine.backend().kind().to_owned(), engine.backend().device().to_owned());
    drop(engine);
    let (mut times, mut bytes) = ([const { Vec::new() }; 3], 0);
    let progress = Progress::bar("bench", args.repetitions as usize + 1);
    for repetition in 0..=args.repetitions {
        let read = timed(|| read(&files))?;
        bytes = read.0;
        let seconds =
            [read.1, timed(|| load(&dir, &options, false))?.1, timed(|| load(&dir, &options, true))?.1];
        // The first time brings the files into the page cache.
        if repetition > 0 {
            times.iter_mut().zip(seconds).for_each(|(times, seconds)| times.push(seconds));
        }
        progress.step();
    }
    drop(progress);
    let line = |(what, seconds): (&'static str, &Vec<f64>)| {
        let of_reading: Vec<f64> = seconds.iter().zip(&times[0]).map(|(this, read)| this / read).collect();
        let of_reading = Ratio::of(&of_reading).filter(|_| what != WHAT[0]);
        let (seconds, spread) = median_and_spread(seconds.clone());
        Line {
            what,
            bytes,
            backend: backend.clone(),
            device: device.clone(),
            quant: quant.clone(),
            threads: common.thread_count(),
            seconds,
            spread,
            of_reading: of_reading.map(|ratio| ratio.mean),
            of_reading_low: of_reading.and_then(|ratio| Some(ratio.interval?[0])),
            of_reading_high: of_reading.and_then(|ratio| Some(ratio.interval?[1])),
        }
    };
    let lines: Vec<Line> = WHAT.into_iter().zip(&times).map(line).collect();
    match args.output {
        Output::Json => write_json(&lines, out),
        Output::Csv => super::record::write_csv(&lines, out),
        Output::Md => Ok(table(&lines).write(out)?),
    }
}

/// The weights of a directory: one file, or all safetensors files.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(dir).map_err(|error| Error::file(dir, error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    if files.is_empty() { Err(Error::file(dir, "has no safetensors files")) } else { Ok(files) }
}

/// Reads files to their ends, into a buffer that caches hold; returns their bytes.
fn read(files: &[PathBuf]) -> Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    for path in files {
        let failed = |error| Error::file(path, error);
        let mut file = File::open(path).map_err(failed)?;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => bytes += count as u64,
            }
        }
    }
    Ok(bytes)
}

/// Loads the model, and draws one token, for which all weights are read.
fn load(dir: &Path, options: &EngineOptions, token: bool) -> Result<()> {
    let mut engine = Engine::load(dir, options.clone())?;
    if token {
        engine.generate(&Request::new(vec![0], 1))?;
    }
    Ok(())
}

/// What it returns, and the seconds that it took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    let result = work()?;
    Ok((result, started.elapsed().as_secs_f64()))
}

/// The table for a reader.
fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(["test", "bytes", "quant", "time", "spread", "of reading"]);
    for line in lines {
        let of_reading = match (line.of_reading, line.of_reading_low, line.of_reading_high) {
            (Some(ratio), Some(low), Some(high)) => format!("{ratio:.3} ({low:.3} to {high:.3})"),
            (Some(ratio), ..) => format!("{ratio:.3}"),
            _ => String::new(),
        };
        table.row([
            line.what.to_owned(),
            Bytes(line.bytes).to_string(),
            line.quant.clone(),
            format!("{:.2} ms", line.seconds * 1e3),
            percent(line.spread),
            of_reading,
        ]);
    }
    table
}

//! Half an hour without a pause: how fast this machine stays, and what heat does to simulated devices.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use wattle_engine::{BackendChoice, Engine, EngineOptions, Request};
use wattle_policy::simulate::{self, Conditions};
use wattle_policy::thermal::Temperatures;
use wattle_policy::workload::Inference;
use wattle_policy::{Grid, Profile};

use super::page::Page;
use super::plot::{self, Series, Titles};
use crate::bandwidth;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shipped;
use crate::simulated::{DEVICES, Plans, weight_bytes};
use crate::table::Table;
use crate::tasks::{self, Task};

/// A point of a curve covers so much time \[s\].
const EVERY_S: f64 = 30.0;
/// Of the simulated runs \[s\].
const SIMULATED_S: f64 = 1800.0;
/// Air, and the devices when they begin \[°C\].
const AMBIENT_C: f64 = 25.0;
/// Paths that decode together here.
const BATCH: usize = 8;
const MAX_NEW: usize = 64;
/// The model and the inference that simulated devices repeat: the largest of the carbon paper's.
const MODEL: &str = "gpt2";
const INFERENCE: Inference = Inference { prompt: 128, new: 32, rank: 8, lora_on_prompt: true };
/// Layers with LoRA there: the deepest ones.
const LAYERS: u128 = 0b1111 << 8;

/// Real time on this machine.
#[derive(Clone, Debug, Serialize)]
struct Here {
    minutes: f64,
    /// When \[min\], tokens per second since the point before, and bytes per second that reading as much as the weights
    /// took right after: other programs and heat slow both down.
    points: Vec<[f64; 3]>,
}

/// A simulated device.
#[derive(Clone, Debug, Serialize)]
struct Device {
    device: String,
    /// Time \[min\], inferences per second, surface \[°C\], chip \[°C\].
    curve: Vec<[f64; 4]>,
    inferences: u64,
    first_latency_s: f64,
    last_latency_s: f64,
    energy_j: f64,
    first_energy_j: f64,
    /// When it first slowed down \[s\].
    throttled_after_s: Option<f64>,
    operational_mg: f64,
}

/// Runs it.
pub(super) fn run(minutes: f64, dir: &Path, out: &mut dyn Write) -> Result<()> {
    if !(minutes > 0.0 && minutes <= 24.0 * 60.0) {
        return Err(Error::value("--minutes", format!("{minutes} is not above 0 and at most a day")));
    }
    let grid = Grid::named("world")?;
    let devices: Vec<Device> = DEVICES.iter().map(|name| device(name, &grid)).collect::<Result<_>>()?;
    let here = here(minutes)?;
    let mut page = Page::new("sustained", "Without a pause");
    page.note(format!(
        "Simulated: {MODEL} on {} prompt and {} new tokens with LoRA in four layers, one inference after another for {} \
         minutes from {AMBIENT_C} °C on; heat by the two-node model, energy by the proxy (tier C), batteries not emptied.",
        INFERENCE.prompt,
        INFERENCE.new,
        SIMULATED_S / 60.0
    ));
    page.note(format!(
        "Real: sprout on this machine's CPU, {BATCH} problems at a time for {minutes} minutes. Other programs may share \
         it, so that beside every point stands how fast as many bytes as the weights were read right after."
    ));
    let line = |pick: usize| {
        let series = |d: &Device| Series::new(&d.device, d.curve.iter().map(|p| [p[0], p[pick]]).collect());
        devices.iter().map(series).collect::<Vec<_>>()
    };
    let titles = |title, y| Titles { title, x: "minutes", y };
    let mut speed = line(1);
    for (series, device) in speed.iter_mut().zip(&devices) {
        series.points.iter_mut().for_each(|point| point[1] *= device.first_latency_s);
    }
    page.plot("Simulated speed", plot::lines(titles("Speed against the first inference", "ratio"), &speed)?);
    page.plot("Simulated surface", plot::lines(titles("Temperature of the surface", "°C"), &line(2))?);
    let rates = here.points.iter().map(|&[minute, tokens, _]| [minute, tokens]).collect();
    let rates = [Series::new("this machine", rates)];
    page.plot("Real speed", plot::lines(titles("Tokens per second here", "tokens/s"), &rates)?);
    let relative = [Series::new("this machine", here.relative())];
    let title = "Tokens per second by bytes per second of reading, against the first";
    page.plot("Real speed beside the machine's", plot::lines(titles(title, "ratio"), &relative)?);
    page.table("Simulated devices", table(&devices));
    page.table("Here", here.table());
    page.write(dir, &serde_json::json!({ "simulated": devices, "here": here }), out)
}

fn device(name: &str, grid: &Grid) -> Result<Device> {
    let profile = Profile::named(name)?;
    let plans = Plans::named(MODEL, &shipped::model()?, &profile.quant)?;
    let priced = plans.workload(INFERENCE).price(&profile);
    let mut conditions = Conditions::rested(AMBIENT_C, grid.mg_per_wh);
    let mut device = Device {
        device: name.to_owned(),
        curve: Vec::new(),
        inferences: 0,
        first_latency_s: 0.0,
        last_latency_s: 0.0,
        energy_j: 0.0,
        first_energy_j: 0.0,
        throttled_after_s: None,
        operational_mg: 0.0,
    };
    let (mut seconds, mut next_s) = (0.0, 0.0);
    while seconds < SIMULATED_S {
        let outcome = simulate::run(&profile, &priced, &INFERENCE, LAYERS, &conditions);
        if device.inferences == 0 {
            (device.first_latency_s, device.first_energy_j) = (outcome.latency_s, outcome.energy_j);
        }
        if outcome.throttled > 1e-6 {
            device.throttled_after_s.get_or_insert(seconds);
        }
        // Time that does not pass would never end.
        seconds += outcome.latency_s.max(1e-4);
        conditions.temperatures = outcome.temperatures;
        device.inferences += 1;
        device.last_latency_s = outcome.latency_s;
        device.energy_j += outcome.energy_j;
        device.operational_mg += outcome.carbon.operational_mg;
        if seconds >= next_s {
            let Temperatures { surface_c, junction_c } = outcome.temperatures;
            device.curve.push([seconds / 60.0, 1.0 / outcome.latency_s, surface_c, junction_c]);
            next_s = seconds + EVERY_S;
        }
    }
    Ok(device)
}

/// Tokens per second of the shipped model, window after window.
fn here(minutes: f64) -> Result<Here> {
    let dir = shipped::model()?;
    let options = EngineOptions {
        backend: BackendChoice::Cpu,
        sequences: BATCH,
        context: 256,
        ..EngineOptions::default()
    };
    let mut engine = Engine::load(&dir, options)?;
    let problems = Task::read(&tasks::shipped_files(&dir)?[0])?.problems;
    let mut requests = Vec::new();
    for problem in problems.iter().take(BATCH) {
        requests.push(Request { ignore_eos: true, ..Request::new(engine.encode(&problem.prompt)?, MAX_NEW) });
    }
    let _progress = Progress::spinner(format!("running for {minutes} minutes"));
    let (started, end) = (Instant::now(), Duration::from_secs_f64(60.0 * minutes));
    let bytes = weight_bytes(engine.weights());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut points, mut since, mut tokens) = (Vec::new(), Instant::now(), 0);
    while started.elapsed() < end {
        let generations = engine.generate_all(&requests)?;
        tokens += generations.iter().map(|generation| generation.report.new_tokens).sum::<usize>();
        let seconds = since.elapsed().as_secs_f64();
        if seconds >= EVERY_S || started.elapsed() >= end {
            let read = bandwidth::read(bytes, threads)?;
            points.push([started.elapsed().as_secs_f64() / 60.0, tokens as f64 / seconds, read]);
            (since, tokens) = (Instant::now(), 0);
        }
    }
    Ok(Here { minutes, points })
}

impl Here {
    /// Tokens per second for every byte per second of reading, against the first point.
    fn relative(&self) -> Vec<[f64; 2]> {
        let ratio = |[_, tokens, read]: &[f64; 3]| tokens / read;
        let first = self.points.first().map_or(1.0, ratio);
        self.points.iter().map(|point| [point[0], ratio(point) / first]).collect()
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["", "first", "last", "least", "most"]);
        let tokens: Vec<f64> = self.points.iter().map(|point| point[1]).collect();
        let read: Vec<f64> = self.points.iter().map(|point| point[2] * 1e-9).collect();
        let relative: Vec<f64> = self.relative().iter().map(|point| point[1]).collect();
        for (name, values) in
            [("tokens/s", tokens), ("GB/s of reading", read), ("tokens/s by reading, of the first", relative)]
        {
            let shown = |value: Option<f64>| value.map(|value| format!("{value:.3}")).unwrap_or_default();
            let [first, last] = [values.first(), values.last()].map(|end| shown(end.copied()));
            let [least, most] = [f64::min as fn(f64, f64) -> f64, f64::max]
                .map(|end| shown(values.iter().copied().reduce(end)));
            table.row([name.to_owned(), first, last, least, most]);
        }
        table
    }
}

fn table(devices: &[Device]) -> Table {
    let mut table = Table::new([
        "device",
        "inferences",
        "slower after",
        "first s",
        "last s",
        "first mJ",
        "mean mJ",
        "surface °C",
        "op. mg",
    ]);
    for d in devices {
        let n = d.inferences.max(1) as f64;
        table.row([
            d.device.clone(),
            d.inferences.to_string(),
            d.throttled_after_s.map_or_else(|| "never".to_owned(), |s| format!("{s:.0} s")),
            format!("{:.4}", d.first_latency_s),
            format!("{:.4}", d.last_latency_s),
            format!("{:.3}", d.first_energy_j * 1e3),
            format!("{:.3}", d.energy_j / n * 1e3),
            format!("{:.1}", d.curve.last().map_or(0.0, |point| point[2])),
            format!("{:.4}", d.operational_mg),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_never_rests_gets_hot_and_never_passes_its_limit_for_long() {
        let grid = Grid::named("world").unwrap();
        let watch = device("smartwatch", &grid).unwrap();
        let profile = Profile::named("smartwatch").unwrap();
        let hottest = watch.curve.iter().map(|point| point[2]).fold(0.0, f64::max);
        assert!(hottest > AMBIENT_C + 3.0 && hottest < profile.throttle.surface_limit_c + 1.0, "{hottest}");
        assert!(watch.last_latency_s >= watch.first_latency_s && watch.curve.len() > 10);
        assert!(
            (watch.energy_j - watch.operational_mg * 3600.0 / grid.mg_per_wh).abs() < 1e-6 * watch.energy_j
        );
    }
}

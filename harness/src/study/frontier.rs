//! Energy, time and carbon by number of layers.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use wattle_policy::Grid;
use wattle_policy::scheme::Cell;
use wattle_policy::simulate::Conditions;
use wattle_policy::world::Situation;

use super::page::Page;
use super::plot::{self, Series, Titles};
use super::{SIMULATED, Subject};
use crate::error::Result;
use crate::meter::mean_sd;
use crate::table::Table;

/// Of [`wattle_policy::world::World::lengths`]: the one in the middle of those that a policy is trained on.
const LENGTH: usize = 4;
/// Air and device \[°C\].
const AMBIENT_C: f64 = 25.0;

/// One number of layers.
#[derive(Clone, Debug, Serialize)]
struct Point {
    device: String,
    model: String,
    task: String,
    layers: usize,
    energy_j: f64,
    latency_s: f64,
    operational_mg: f64,
    embodied_mg: f64,
    score: f64,
    reward: f64,
}

/// Runs it.
pub(super) fn run(subject: &Subject, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let grid = Grid::named("world")?;
    let points: Vec<Point> =
        subject.world.scheme.cells().into_iter().flat_map(|cell| of_cell(subject, cell, &grid)).collect();
    let inference = subject.world.lengths[LENGTH];
    let mut page = Page::new("frontier", "Energy and carbon by number of LoRA layers");
    page.note(SIMULATED);
    page.note(format!(
        "A prompt of {} tokens and {} new ones, {AMBIENT_C} °C, full battery, {} g/kWh. Unmerged LoRA costs what its \
         bytes, arithmetic and launches cost in the engine's plans; the first layer also brings the plan with LoRA in \
         place of the one without.",
        inference.prompt, inference.new, grid.mg_per_wh
    ));
    let relative = |pick: fn(&Point) -> f64| relative(subject, &points, pick);
    let titles = Titles { title: "Energy against no LoRA", x: "layers", y: "ratio" };
    page.plot("Energy", plot::lines(titles, &relative(|p| p.energy_j))?);
    let titles = Titles { title: "Operational carbon against no LoRA", x: "layers", y: "ratio" };
    page.plot("Operational carbon", plot::lines(titles, &relative(|p| p.operational_mg))?);
    let titles =
        Titles { title: "Carbon with the device's making, against no LoRA", x: "layers", y: "ratio" };
    page.plot("All carbon", plot::lines(titles, &relative(|p| p.operational_mg + p.embodied_mg))?);
    let titles = Titles { title: "Reward", x: "layers", y: "reward (mean over models and tasks)" };
    page.plot("Reward", plot::lines(titles, &by_device(subject, &points, |p| p.reward))?);
    page.table(
        "From no layer to all that the device allows, means over models and tasks",
        table(subject, &points),
    );
    page.write(dir, &serde_json::json!({ "inference": inference, "grid": grid, "points": points }), out)
}

/// From no layer to the most that the device allows, one by one.
fn of_cell(subject: &Subject, cell: Cell, grid: &Grid) -> Vec<Point> {
    let (world, [_, most]) = (subject.world, subject.world.range(cell));
    let profile = &world.profiles[cell.device];
    let conditions = Conditions::rested(AMBIENT_C, grid.mg_per_wh);
    let situation = Situation { cell, length: LENGTH, conditions };
    let model = world.scheme.model(cell);
    let point = |layers| {
        let choice = world.of_count(cell, layers);
        let (outcome, reward) = world.judge(&situation, choice)?;
        Some(Point {
            device: profile.name.clone(),
            model: model.name.clone(),
            task: model.tasks[cell.task].name.clone(),
            layers,
            energy_j: outcome.energy_j,
            latency_s: outcome.latency_s,
            operational_mg: outcome.carbon.operational_mg,
            embodied_mg: outcome.carbon.embodied_mg,
            score: reward.performance,
            reward: reward.total,
        })
    };
    (0..=most).filter_map(point).collect()
}

/// Means over a device's models and tasks, by number of layers.
fn by_device(subject: &Subject, points: &[Point], pick: fn(&Point) -> f64) -> Vec<Series> {
    let device = |profile: &wattle_policy::Profile| {
        let own: Vec<&Point> = points.iter().filter(|point| point.device == profile.name).collect();
        let most = own.iter().map(|point| point.layers).max().unwrap_or(0);
        let mean = |layers| {
            let values: Vec<f64> = own.iter().filter(|p| p.layers == layers).map(|p| pick(p)).collect();
            [layers as f64, mean_sd(&values)[0]]
        };
        Series::new(&profile.name, (0..=most).map(mean).collect())
    };
    subject.world.profiles.iter().map(device).collect()
}

/// The same, divided by what no layer costs.
fn relative(subject: &Subject, points: &[Point], pick: fn(&Point) -> f64) -> Vec<Series> {
    let mut series = by_device(subject, points, pick);
    for series in &mut series {
        let none = series.points.first().map_or(1.0, |point| point[1]);
        series.points.iter_mut().for_each(|point| point[1] /= none);
    }
    series
}

fn table(subject: &Subject, points: &[Point]) -> Table {
    let mut table = Table::new(["device", "layers", "mJ", "ms", "op. mg", "emb. mg", "score", "reward"]);
    let columns: [fn(&Point) -> f64; 6] = [
        |p| p.energy_j * 1e3,
        |p| p.latency_s * 1e3,
        |p| p.operational_mg,
        |p| p.embodied_mg,
        |p| p.score,
        |p| p.reward,
    ];
    let columns = columns.map(|pick| by_device(subject, points, pick));
    for (device, series) in columns[0].iter().enumerate() {
        for index in 0..series.points.len() {
            let [mj, ms, operational, embodied, score, reward] =
                std::array::from_fn(|c| format!("{:.4}", columns[c][device].points[index][1]));
            table.row([series.name.clone(), index.to_string(), mj, ms, operational, embodied, score, reward]);
        }
    }
    table
}

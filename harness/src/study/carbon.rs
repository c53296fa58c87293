//! How carbon is distributed, and what performance it buys.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::page::Page;
use super::plot::{self, Series, Titles};
use super::{SIMULATED, Subject};
use crate::error::Result;
use crate::meter::mean_sd;
use crate::scores::SITUATIONS;
use crate::table::Table;

const BINS: usize = 40;
/// The bin of the paper's histogram that is highest, and its mean \[mg CO2e\].
const PAPER_MODE_MG: [f64; 2] = [35.0, 50.0];
const PAPER_MEAN_MG: f64 = 46.6;

/// One device, model and task under the policy.
#[derive(Clone, Debug, Serialize)]
struct Point {
    device: String,
    model: String,
    task: String,
    /// Means over situations.
    operational_mg: f64,
    embodied_mg: f64,
    score: f64,
    /// No other point of this device has less operational carbon and no lower score.
    efficient: bool,
}

/// Runs it.
pub(super) fn run(subject: &Subject, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let world = subject.world;
    let mut points = Vec::new();
    let mut drawn: Vec<[Vec<f64>; 2]> = vec![Default::default(); world.profiles.len()];
    for cell in world.scheme.cells() {
        let (mut sums, model) = ([0.0; 3], world.scheme.model(cell));
        for situation in subject.situations(cell) {
            let choice = subject.policy.choose(cell, &world.case(&situation));
            let Some((outcome, reward)) = world.judge(&situation, choice) else { continue };
            let [operational, total] = &mut drawn[cell.device];
            operational.push(outcome.carbon.operational_mg);
            total.push(outcome.carbon.total_mg());
            let values = [outcome.carbon.operational_mg, outcome.carbon.embodied_mg, reward.performance];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / SITUATIONS as f64);
        }
        points.push(Point {
            device: world.profiles[cell.device].name.clone(),
            model: model.name.clone(),
            task: model.tasks[cell.task].name.clone(),
            operational_mg: sums[0],
            embodied_mg: sums[1],
            score: sums[2],
            efficient: false,
        });
    }
    mark(&mut points);
    let mut page = Page::new("carbon", "Carbon of an inference, and what it buys");
    page.note(SIMULATED);
    let mean =
        |part: usize| mean_sd(&drawn.iter().flat_map(|d| d[part].iter().copied()).collect::<Vec<_>>())[0];
    page.note(format!(
        "The paper's histogram has its mode at {} to {} mg and its mean at {PAPER_MEAN_MG} mg, without saying how much of \
         it is the device's making. Here the mean is {:.4} mg operational and {:.0} mg in all: nearly all of it is the \
         device's making, divided by the inferences of its lifetime, which every profile assumes. The paper's mean would \
         take {:.1} times as many inferences; no choice of layers leads there.",
        PAPER_MODE_MG[0],
        PAPER_MODE_MG[1],
        mean(0),
        mean(1),
        mean(1) / PAPER_MEAN_MG
    ));
    let named = |part: usize| {
        let pair = |(profile, drawn): (&wattle_policy::Profile, &[Vec<f64>; 2])| {
            (profile.name.clone(), drawn[part].clone())
        };
        world.profiles.iter().zip(&drawn).map(pair).collect::<Vec<_>>()
    };
    let titles = Titles { title: "Operational carbon", x: "mg CO2e", y: "share of inferences" };
    page.plot("Operational carbon", plot::histogram(titles, &named(0), BINS)?);
    let titles = Titles { title: "Operational and embodied carbon", x: "mg CO2e", y: "share of inferences" };
    page.plot("With the device's making", plot::histogram(titles, &named(1), BINS)?);
    let titles = Titles { title: "Score against operational carbon", x: "mg CO2e", y: "score" };
    page.plot("Performance and carbon", plot::points(titles, &series(subject, &points))?);
    page.table("Points that no other of the device beats in both", table(&points));
    page.write(dir, &serde_json::json!({ "points": points, "operational_and_total_mg": drawn }), out)
}

/// Marks each device's points that no other beats.
fn mark(points: &mut [Point]) {
    for index in 0..points.len() {
        let own = &points[index];
        let beats = |other: &Point| {
            other.device == own.device
                && other.operational_mg <= own.operational_mg
                && other.score >= own.score
                && (other.operational_mg < own.operational_mg || other.score > own.score)
        };
        points[index].efficient = !points.iter().any(beats);
    }
}

fn series(subject: &Subject, points: &[Point]) -> Vec<Series> {
    let device = |profile: &wattle_policy::Profile| {
        let own = points.iter().filter(|point| point.device == profile.name);
        Series::new(&profile.name, own.map(|point| [point.operational_mg, point.score]).collect())
    };
    subject.world.profiles.iter().map(device).collect()
}

fn table(points: &[Point]) -> Table {
    let mut table = Table::new(["device", "model", "task", "op. mg", "emb. mg", "score"]);
    for point in points.iter().filter(|point| point.efficient) {
        table.row([
            point.device.clone(),
            point.model.clone(),
            point.task.clone(),
            format!("{:.4}", point.operational_mg),
            format!("{:.2}", point.embodied_mg),
            format!("{:.3}", point.score),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_efficient_when_no_other_of_its_device_beats_it() {
        let point = |device: &str, operational_mg, score| Point {
            device: device.into(),
            model: String::new(),
            task: String::new(),
            operational_mg,
            embodied_mg: 0.0,
            score,
            efficient: false,
        };
        let mut points =
            [point("a", 1.0, 0.5), point("a", 2.0, 0.5), point("a", 3.0, 0.9), point("b", 9.0, 0.1)];
        mark(&mut points);
        assert_eq!(points.map(|point| point.efficient), [true, false, true, true]);
    }
}

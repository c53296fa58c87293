//! How often limits are kept.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::page::Page;
use super::plot::{self, Titles};
use super::{SIMULATED, Subject};
use crate::error::Result;
use crate::table::Table;

/// The limits, in the order of [`wattle_policy::reward::Reward::penalties`].
const KINDS: [&str; 4] = ["temperature", "latency", "memory", "power"];
/// Who chooses.
const WHO: [&str; 3] = ["policy", "fewest layers", "most layers"];

/// A device with one who chooses.
#[derive(Clone, Debug, Serialize)]
struct Line {
    device: String,
    who: &'static str,
    inferences: usize,
    /// Inferences that passed each limit.
    violations: [usize; 4],
    /// What the paper counts, of all kinds.
    paper_violations: Option<usize>,
}

impl Line {
    /// Inferences that kept the limit, 0 to 1.
    fn kept(&self, kind: usize) -> f64 {
        1.0 - self.violations[kind] as f64 / self.inferences.max(1) as f64
    }
}

/// Runs it.
pub(super) fn run(subject: &Subject, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let world = subject.world;
    let line = |device: usize, who: usize| {
        let paper = match world.profiles[device].name.as_str() {
            "tablet" => Some(24),
            "vr-headset" => Some(33),
            _ => None,
        };
        Line {
            device: world.profiles[device].name.clone(),
            who: WHO[who],
            inferences: 0,
            violations: [0; 4],
            paper_violations: paper.filter(|_| who == 0),
        }
    };
    let mut lines: Vec<Line> = (0..world.profiles.len())
        .flat_map(|device| (0..WHO.len()).map(move |who| line(device, who)))
        .collect();
    for cell in world.scheme.cells() {
        for situation in subject.situations(cell) {
            let chosen = subject.policy.choose(cell, &world.case(&situation));
            for (who, choice) in [chosen, world.least(cell), world.most(cell)].into_iter().enumerate() {
                let Some((_, reward)) = world.judge(&situation, choice) else { continue };
                let line = &mut lines[cell.device * WHO.len() + who];
                line.inferences += 1;
                let passed = reward.penalties.map(|penalty| usize::from(penalty > 0.0));
                line.violations.iter_mut().zip(passed).for_each(|(sum, passed)| *sum += passed);
            }
        }
    }
    let mut page = Page::new("constraints", "How often limits are kept");
    page.note(SIMULATED);
    page.note(
        "Limits and the states that devices are found in are assumptions of the profiles and of the drawn situations; \
         the paper counts 24 violations on the tablet and 33 on the headset in 500 episodes, without its limits, and \
         says \"near-perfect\" of the others.",
    );
    let names = subject.devices();
    let bars = KINDS.iter().enumerate().map(|(kind, name)| {
        let policy = lines.iter().filter(|line| line.who == WHO[0]);
        ((*name).to_owned(), policy.map(|line| [line.kept(kind), 0.0]).collect())
    });
    let titles = Titles { title: "Kept by the policy", x: "device", y: "share of inferences" };
    page.plot("Satisfaction", plot::bars(titles, &names, &bars.collect::<Vec<_>>())?);
    page.table("Inferences that passed a limit", table(&lines));
    page.write(dir, &serde_json::json!({ "kinds": KINDS, "lines": lines }), out)
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "device",
        "choice",
        "inferences",
        "temperature",
        "latency",
        "memory",
        "power",
        "all",
        "paper's",
    ]);
    for line in lines {
        let [temperature, latency, memory, power] = line.violations.map(|n| n.to_string());
        let paper = line.paper_violations.map(|n| n.to_string()).unwrap_or_default();
        table.row([
            line.device.clone(),
            line.who.to_owned(),
            line.inferences.to_string(),
            temperature,
            latency,
            memory,
            power,
            line.violations.iter().sum::<usize>().to_string(),
            paper,
        ]);
    }
    table
}

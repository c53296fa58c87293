//! What quantization does to energy, carbon and answers of the shipped model, apart from caching and batching.

mod ablation;
mod answers;
mod formats;
mod quality;
mod shapes;

use std::io::Write;
use std::path::Path;

use wattle_engine::Precision;
use wattle_engine::model::{Model, Quant};
use wattle_policy::{Grid, Profile};

use super::page::Page;
use super::remote;
use crate::error::Result;
use crate::progress::Progress;
use crate::tasks::Task;
use answers::{Answered, Shipped};
use formats::Line;

/// Problems that run together, as in the study that this follows.
const BATCH: usize = 8;
/// Where it runs: the class of machine of the study that this follows.
const LOCAL: &str = "laptop";

/// How weights are kept.
#[derive(Clone, Copy, Debug)]
struct Format {
    name: &'static str,
    /// Inside the layers.
    bits: u32,
    kept: Kept,
}

const SWEEP: [Format; 7] = [
    Format { name: "f32", bits: 32, kept: Kept::Wide },
    Format { name: "f16", bits: 16, kept: Kept::Stored },
    Format { name: "q8_0", bits: 8, kept: Kept::Quantized(Quant::Q8_0) },
    Format { name: "int8", bits: 8, kept: Kept::Quantized(Quant::Int8) },
    Format { name: "q4_1", bits: 4, kept: Kept::Quantized(Quant::Q4_1) },
    Format { name: "q4_0", bits: 4, kept: Kept::Quantized(Quant::Q4_0) },
    Format { name: "int4", bits: 4, kept: Kept::Quantized(Quant::Int4) },
];
/// Of [`SWEEP`]: what the others are compared with, and what they are compared by.
const STORED: Format = SWEEP[1];
const FOUR_BITS: Format = SWEEP[5];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// The stored numbers as f32.
    Wide,
    Stored,
    Quantized(Quant),
    /// Only embedding and head.
    Outside(Quant),
}

impl Kept {
    fn model(self, model: &Model) -> Result<Model> {
        Ok(match self {
            Self::Wide => model.widened()?,
            Self::Stored => model.clone(),
            Self::Quantized(quant) => model.quantized(quant)?,
            Self::Outside(quant) => quality::outside(model, quant)?,
        })
    }
}

/// Runs it; of every task `problems` problems, evenly through the file.
pub(super) fn run(problems: usize, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let (shipped, grid) = (Shipped::open(problems)?, Grid::named("world")?);
    let profiles = [Profile::named(LOCAL)?, Profile::named(remote::SERVER)?];
    let (mut lines, mut remote) = (Vec::new(), Vec::new());
    let progress = Progress::bar("formats", SWEEP.len() * shipped.tasks.len());
    for task in &shipped.tasks {
        let mut answered = Vec::new();
        for format in SWEEP {
            let answers = shipped.answer(task, &task.problems, format.kept, Precision::Exact, BATCH)?;
            answered.push((format, answers));
            progress.step();
        }
        lines.extend(formats::compare(task, &answered, &profiles[0], &grid));
        remote.extend(remotely(task, &answered, &profiles, &grid));
    }
    let quality = quality::run(&shipped)?;
    let ablated = ablation::run(&shipped, &profiles[0])?;
    let shapes = shapes::run(&profiles[0])?;
    let mut page = Page::new("quantization", "Quantization, energy, carbon and answers");
    page.note(format!(
        "sprout on {problems} problems of each of its tasks, greedy, {BATCH} at a time. Energy is the proxy's (tier C) of \
         the steps that ran, with the profile {LOCAL:?}; carbon is energy × {} g/kWh ({}). Drift: answers that differ \
         from those with the stored weights; Δ log p: how far the log-probability of what was said moves on average.",
        grid.mg_per_wh, grid.source
    ));
    page.note(reported(&lines));
    page.note(shapes::note(&shapes));
    formats::plots(&mut page, &lines)?;
    page.table("By format", formats::table(&lines));
    quality::table(&mut page, &quality);
    ablation::tables(&mut page, &ablated);
    page.table("Models of the study's size: priced, not run", shapes::table(&shapes));
    page.table("Here or on a server: a stated model", remote::table(&remote));
    page.note(remote::assumptions());
    let data = serde_json::json!({
        "problems": problems, "batch": BATCH, "profile": LOCAL, "grid": grid, "formats": lines, "quality": quality, "ablation": ablated,
        "shapes": shapes, "remote": remote,
    });
    page.write(dir, &data, out)
}

/// The study's figures beside those of here.
fn reported(lines: &[Line]) -> String {
    let saved: Vec<String> = lines
        .iter()
        .filter(|line| line.format == FOUR_BITS.name)
        .map(|line| format!("{:.0} % ({})", (1.0 - line.joules_of_stored) * 100.0, line.task))
        .collect();
    format!(
        "The study that this follows reports 30 to 40 % less energy and up to 45 % less carbon at 4 bits, with neither \
         its meter nor α stated. Here {} takes {} less than {}. With one α carbon falls by what energy falls by, and not \
         more: 45 % beside 40 % needs another α. Weights are most of the bytes of a step of its models; of sprout's \
         steps other bytes, arithmetic, launches and idle power are a larger part, which no format of weights changes.",
        FOUR_BITS.name,
        saved.join(" and "),
        STORED.name
    )
}

/// A task here and on a server, one line per format.
fn remotely(
    task: &Task,
    answered: &[(Format, Answered)],
    profiles: &[Profile; 2],
    grid: &Grid,
) -> Vec<remote::Line> {
    let n = task.problems.len().max(1) as f64;
    let asked: usize = task.problems.iter().map(|problem| problem.prompt.len()).sum();
    let line = |(format, answered): &(Format, Answered)| {
        let [local_j, server_j] = profiles.each_ref().map(|profile| answered.joules(profile) / n);
        let said: usize = answered.texts.iter().map(String::len).sum();
        let problem = remote::Problem {
            task: task.name.clone(),
            format: format.name,
            local_j,
            server_j,
            text_bytes: (asked + said) as f64 / n,
            waiting_w: profiles[0].idle_w,
        };
        remote::Line::new(&problem, grid)
    };
    answered.iter().map(line).collect()
}

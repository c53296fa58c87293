//! Studies that train: learning curves over seeds, and what parts of the reward do.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use wattle_policy::environment::Requests;
use wattle_policy::reward::{Mode, Rule};
use wattle_policy::world::{Split, World};
use wattle_policy::{Description, Training};

use super::page::Page;
use super::plot::{self, Series, Titles};
use super::{Args, SIMULATED};
use crate::commands::Scenario;
use crate::error::Result;
use crate::meter::{interval, mean_sd};
use crate::progress::Progress;
use crate::scores::{self, Row};
use crate::simulated::{self, Choices};
use crate::table::Table;
use crate::training::{Diagnostics, Trainer};
use crate::{shipped, train};

/// A training of one seed.
#[derive(Clone, Debug, Serialize)]
struct Run {
    seed: u64,
    updates: Vec<Diagnostics>,
    /// Means over all cells after the training, in situations that were not trained on.
    regret: f64,
    worst_regret: f64,
    layers: f64,
    oracle_layers: f64,
    energy_j: f64,
    operational_mg: f64,
    score_per_mg: f64,
    gate_open: f64,
}

/// Trainings of one rule.
#[derive(Clone, Debug, Serialize)]
struct Variant {
    name: &'static str,
    rule: Rule,
    runs: Vec<Run>,
}

/// Runs it.
pub(super) fn run(args: &Args, ablations: bool, out: &mut dyn Write) -> Result<()> {
    let rules = if ablations { rules() } else { vec![("default", Rule::default())] };
    let progress = Progress::bar("trainings", rules.len() * args.seeds as usize);
    let mut variants = Vec::new();
    for (name, rule) in rules {
        let choices = Choices { rule, ..Choices::default() };
        let world = Arc::new(simulated::world(&choices, &shipped::model()?)?);
        let mut runs = Vec::new();
        for seed in args.seed..args.seed + args.seeds {
            runs.push(one(&world, seed, args.steps)?);
            progress.step();
        }
        variants.push(Variant { name, rule, runs });
    }
    let (name, title) = match ablations {
        true => ("ablations", "What the parts of the reward do"),
        false => ("learning", "Learning curves"),
    };
    let mut page = Page::new(name, title);
    page.note(SIMULATED);
    page.note(format!(
        "PPO on single requests, {} seeds of {} steps each; bands are 95 % intervals of the mean (Student's t).",
        args.seeds, args.steps
    ));
    curves(&mut page, &variants)?;
    page.table(
        "After training, in situations that were not trained on: mean ± half of the 95 % interval",
        table(&variants),
    );
    page.write(&args.out, &serde_json::json!({ "steps": args.steps, "variants": variants }), out)
}

/// The default, without one thing or with another at a time.
fn rules() -> Vec<(&'static str, Rule)> {
    let default = Rule::default();
    vec![
        ("default", default),
        ("no gate", Rule { tau: -1.0, ..default }),
        ("τ 0.50", Rule { tau: 0.5, ..default }),
        ("τ 0.60", Rule { tau: 0.6, ..default }),
        ("no carbon", Rule { carbon: 0.0, ..default }),
        ("no energy", Rule { energy: 0.0, ..default }),
        ("no performance", Rule { performance: 0.0, ..default }),
        ("performance × 2", Rule { performance: 2.0 * default.performance, ..default }),
        ("no penalties", Rule { penalties: [0.0; 4], ..default }),
        ("paper-literal", Rule { mode: Mode::PaperLiteral, ..default }),
    ]
}

/// One training and its scores.
fn one(world: &Arc<World>, seed: u64, steps: u64) -> Result<Run> {
    let environment = Requests::new(Arc::clone(world), world.scheme.cells(), Split::Train);
    let mut trainer = Trainer::new(environment, train::settings(Scenario::Requests), seed);
    let mut updates = Vec::new();
    trainer.train(steps, |diagnostics, _| {
        updates.push(*diagnostics);
        Ok(())
    })?;
    let description = Description::new(world.scheme.clone(), Training::default());
    let policy = train::policy(&trainer, &description)?;
    let rows = scores::rows(world, &policy, Split::Test, 1);
    let mean = |pick: fn(&Row) -> f64| mean_sd(&rows.iter().map(pick).collect::<Vec<_>>())[0];
    Ok(Run {
        seed,
        updates,
        regret: mean(|row| row.regret),
        worst_regret: rows.iter().map(|row| row.regret).fold(0.0, f64::max),
        layers: mean(|row| row.layers),
        oracle_layers: mean(|row| row.oracle_layers),
        energy_j: mean(|row| 1.0 / row.inf_per_j),
        operational_mg: mean(|row| row.operational_mg),
        score_per_mg: mean(|row| row.performance_per_mg),
        gate_open: mean(|row| row.gate_open),
    })
}

/// Reward, entropy and explained variance by steps.
fn curves(page: &mut Page, variants: &[Variant]) -> Result<()> {
    let series = |pick: fn(&Diagnostics) -> f64| {
        let curve = |variant: &Variant| {
            let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
            for update in variant.runs.iter().flat_map(|run| &run.updates) {
                at.entry(update.steps).or_default().push(pick(update));
            }
            let (mut points, mut band) = (Vec::new(), Vec::new());
            for (steps, values) in at {
                let [mean, half] = interval(&values);
                points.push([steps as f64, mean]);
                band.push([mean - half, mean + half]);
            }
            Series { name: variant.name.to_owned(), points, band }
        };
        variants.iter().map(curve).collect::<Vec<_>>()
    };
    let titles = |title, y| Titles { title, x: "steps", y };
    let [reward, entropy] = [series(|d| d.mean_reward), series(|d| d.entropy)];
    page.plot("Reward while training", plot::lines(titles("Mean reward of a rollout", "reward"), &reward)?);
    page.plot("Entropy", plot::lines(titles("Entropy of choices", "nats"), &entropy)?);
    let explained = series(|d| d.explained_variance);
    let title = titles("Variance of returns that values explain", "share");
    page.plot("Explained variance", plot::lines(title, &explained)?);
    Ok(())
}

fn table(variants: &[Variant]) -> Table {
    let mut table = Table::new([
        "reward",
        "seeds",
        "regret %",
        "worst regret %",
        "layers",
        "oracle's",
        "op. mg",
        "perf/mg",
        "gate open %",
    ]);
    for variant in variants {
        let of = |pick: fn(&Run) -> f64| {
            let [mean, half] = interval(&variant.runs.iter().map(pick).collect::<Vec<_>>());
            format!("{mean:.4} ± {half:.4}")
        };
        table.row([
            variant.name.to_owned(),
            variant.runs.len().to_string(),
            of(|run| run.regret * 100.0),
            of(|run| run.worst_regret * 100.0),
            of(|run| run.layers),
            of(|run| run.oracle_layers),
            of(|run| run.operational_mg),
            of(|run| run.score_per_mg),
            of(|run| run.gate_open * 100.0),
        ]);
    }
    table
}

//! `wattle policy train`: a policy from a simulated world.

use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use wattle_policy::environment::{Day, Environment, Requests};
use wattle_policy::world::{Split, World};
use wattle_policy::{Description, METADATA, TrainedPolicy, Training};

use crate::commands::{Scenario, TrainArgs, write_json, write_rows};
use crate::error::{Error, Result};
use crate::policy;
use crate::progress::Progress;
use crate::scores::{self, Row};
use crate::shipped;
use crate::simulated::{self, Choices};
use crate::training::{Diagnostics, Settings, Trainer, serialize};

/// Weight of the entropy (*ours*).
const ENTROPY: f32 = 0.01;
/// Updates between checkpoints.
const CHECKPOINT_EVERY: u64 = 10;

/// What `--json` prints.
#[derive(Serialize)]
struct Log<'a> {
    settings: &'a Settings,
    seed: u64,
    updates: &'a [Diagnostics],
    rows: &'a [Row],
}

/// Runs it.
pub(crate) fn run(args: &TrainArgs, out: &mut dyn Write) -> Result<()> {
    let defaults = Choices::default();
    let or = |given: &[String], default: Vec<String>| if given.is_empty() { default } else { given.to_vec() };
    let choices = Choices {
        devices: or(&args.devices, defaults.devices),
        models: or(&args.models, defaults.models),
        ranks: if args.ranks.is_empty() { defaults.ranks } else { args.ranks.clone() },
        action: args.action.into(),
        rule: args.rule.rule(),
    };
    let world = Arc::new(simulated::world(&choices, &shipped::model()?)?);
    let (settings, cells) = (settings(args.scenario), world.scheme.cells());
    let updates = match args.scenario {
        Scenario::Requests => {
            train(Requests::new(Arc::clone(&world), cells, Split::Train), settings, args, &world)?
        }
        Scenario::Day => train(Day::new(Arc::clone(&world), cells, Split::Train), settings, args, &world)?,
    };
    let trained = policy::read(&args.out)?;
    let rows = scores::rows(&world, &trained, Split::Test, 1);
    if args.json {
        let log = Log { settings: &settings, seed: args.seed, updates: &updates, rows: &rows };
        return write_json(&log, out);
    }
    write_rows(&rows, out)
}

/// The defaults, with a rate that falls to 0 and a little weight on entropy: a layer more or less changes the reward by less
/// than a thousandth, and without it a policy settles before it has told them apart. A request is an episode of its own, so
/// that nothing is to be discounted.
pub(crate) fn settings(scenario: Scenario) -> Settings {
    let gamma = match scenario {
        Scenario::Requests => 0.0,
        Scenario::Day => Settings::default().gamma,
    };
    Settings { gamma, anneal: true, entropy_weight: ENTROPY, ..Settings::default() }
}

/// Trains in an environment and writes the policy.
fn train<E: Environment>(
    environment: E,
    settings: Settings,
    args: &TrainArgs,
    world: &World,
) -> Result<Vec<Diagnostics>> {
    let mut trainer = Trainer::new(environment, settings, args.seed);
    if let Some(file) = args.checkpoint.as_ref().filter(|file| args.resume && file.exists()) {
        trainer.resume(file)?;
    }
    let left = args.steps.saturating_sub(trainer.state.steps).div_ceil(settings.rollout as u64);
    let progress = Progress::bar("updates", left as usize);
    let mut updates: Vec<Diagnostics> = Vec::new();
    trainer.train(args.steps, |diagnostics, trainer| {
        progress.step();
        updates.push(*diagnostics);
        match &args.checkpoint {
            Some(file) if (updates.len() as u64).is_multiple_of(CHECKPOINT_EVERY) => trainer.save(file),
            _ => Ok(()),
        }
    })?;
    if let Some(file) = &args.checkpoint {
        trainer.save(file)?;
    }
    let training = Training {
        steps: trainer.state.steps,
        seed: args.seed,
        scenario: format!("{:?}", args.scenario).to_lowercase(),
    };
    let description = Description::new(world.scheme.clone(), training);
    let bytes = bytes(&trainer, &description)?;
    std::fs::write(&args.out, bytes).map_err(|error| Error::file(&args.out, error))?;
    Ok(updates)
}

/// The policy file of what was trained so far.
fn bytes<E>(trainer: &Trainer<E>, description: &Description) -> Result<Vec<u8>> {
    let text = serde_json::to_string(description).map_err(|error| Error::Failed(error.to_string()))?;
    let tensors: Vec<_> = trainer.state.parameters.policy().collect();
    serialize(&tensors, [(METADATA.to_owned(), text)].into())
}

/// The policy that was trained so far, as it decides at run time.
pub(crate) fn policy<E>(trainer: &Trainer<E>, description: &Description) -> Result<TrainedPolicy> {
    Ok(TrainedPolicy::from_bytes(&bytes(trainer, description)?)?)
}

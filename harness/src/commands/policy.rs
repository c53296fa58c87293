//! `wattle policy`.

use std::io::Write;
use std::path::PathBuf;

#[cfg(feature = "training")]
use wattle_policy::reward::{Mode, Rule};
use wattle_policy::scheme::ActionKind;
use wattle_policy::world::Split;
use wattle_policy::{Grid, Profile};

use super::write_json;
use crate::common::Common;
use crate::error::Result;
use crate::scores::{self, Row};
use crate::shipped;
use crate::simulated;
use crate::table::{Table, percent};

/// Arguments of `policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Train a policy on simulated devices (needs a build with the feature `training`)
    Train(TrainArgs),
    /// Print what a policy was made for and how it was trained
    Show(ShowArgs),
    /// Score a policy on every device × model × task, in situations that it was not trained on
    Table(TableArgs),
    /// Print the simulated devices and the grids, with where their figures come from
    Devices(DevicesArgs),
    /// Measure the shipped model's accuracy for every set of LoRA layers
    Measure(MeasureArgs),
}

/// Arguments of `policy train`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Where the policy goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Steps in the simulated devices
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub steps: u64,
    /// Fixes everything
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Single requests in drawn states, or days in which heat and charge carry over
    #[arg(long, value_enum, default_value_t)]
    pub scenario: Scenario,
    /// How many layers, or each layer by itself
    #[arg(long, value_enum, default_value_t)]
    pub action: ActionArg,
    #[command(flatten)]
    pub rule: RuleArgs,
    /// Devices by name [default: the paper's four]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Models by name: those of the paper, shapes that `bench --shape` knows, and sprout [default: the paper's four and
    /// sprout]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub models: Vec<String>,
    /// Ranks of the adapters that there are to choose from; with several the policy picks one too [default: 8]
    #[arg(long, value_name = "R,R", value_delimiter = ',')]
    pub ranks: Vec<u32>,
    /// Keep the training's state here, every so many updates
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint, if it is there
    #[arg(long, requires = "checkpoint")]
    pub resume: bool,
    /// Print one JSON object with every update's diagnostics
    #[arg(long)]
    pub json: bool,
}

/// The reward.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// The reward: wattle's treated default, or the paper's letters
    #[arg(long, value_enum, default_value_t)]
    pub reward: RewardArg,
    /// τ of the carbon gate; negative: no gate
    #[arg(long, value_name = "T", default_value_t = wattle_policy::reward::GATE, allow_negative_numbers = true)]
    pub tau: f64,
}

#[cfg(feature = "training")]
impl RuleArgs {
    /// The rule that these options describe.
    pub fn rule(&self) -> Rule {
        let mode = match self.reward {
            RewardArg::Treated => Mode::Treated,
            RewardArg::PaperLiteral => Mode::PaperLiteral,
        };
        Rule { mode, tau: self.tau, ..Rule::default() }
    }
}

/// `--reward`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RewardArg {
    #[default]
    Treated,
    PaperLiteral,
}

/// `--scenario`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    #[default]
    Requests,
    Day,
}

/// `--action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ActionArg {
    #[default]
    Count,
    Subset,
}

impl From<ActionArg> for ActionKind {
    fn from(action: ActionArg) -> Self {
        match action {
            ActionArg::Count => Self::Count,
            ActionArg::Subset => Self::Subset,
        }
    }
}

/// Arguments of `policy show`.
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The policy [default: the one that comes with wattle]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `policy table`.
#[derive(Debug, clap::Args)]
struct TableArgs {
    /// The policy [default: the one that comes with wattle]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Which situations are drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Fail where the policy is further from the best choice than --most-regret, or worse than the fewest layers
    #[arg(long)]
    check: bool,
    /// (oracle − policy) / (oracle − worst) that --check lets pass [%]
    #[arg(long, value_name = "PERCENT", default_value_t = 3.0, requires = "check")]
    most_regret: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `policy devices`.
#[derive(Debug, clap::Args)]
struct DevicesArgs {
    /// Every figure of one device with its source
    #[arg(value_name = "NAME|FILE")]
    name: Option<String>,
}

/// Arguments of `policy measure`.
#[derive(Debug, clap::Args)]
pub(crate) struct MeasureArgs {
    /// Problems of the shipped task that are asked for every set of layers
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub problems: u32,
    /// Where the table goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    match &args.action {
        Action::Train(args) => train(args, out),
        Action::Show(args) => show(args, out),
        Action::Table(args) => table(args, out),
        Action::Devices(args) => devices(args, out),
        Action::Measure(args) => crate::measure::run(args, common),
    }
}

#[cfg(feature = "training")]
fn train(args: &TrainArgs, out: &mut dyn Write) -> Result<()> {
    crate::train::run(args, out)
}

#[cfg(not(feature = "training"))]
fn train(_: &TrainArgs, _: &mut dyn Write) -> Result<()> {
    let reason = "this build cannot train; build with `--features training`";
    Err(crate::error::Error::Failed(format!("policy train: {reason}")))
}

/// The policy of these options: the shipped one lies beside the shipped model.
fn file(given: Option<&PathBuf>) -> Result<PathBuf> {
    match given {
        Some(file) => Ok(file.clone()),
        None => Ok(shipped::policy(&shipped::model()?)),
    }
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> Result<()> {
    let policy = crate::policy::read(&file(args.file.as_ref())?)?;
    let description = &policy.description;
    if args.json {
        return write_json(description, out);
    }
    let (scheme, training) = (&description.scheme, &description.training);
    writeln!(out, "trained  {} steps of {}, seed {}", training.steps, training.scenario, training.seed)?;
    writeln!(out, "reward   {}", serde_json::to_string(&scheme.rule).unwrap_or_default())?;
    writeln!(out, "action   {:?}, components {:?}", scheme.action, scheme.components())?;
    for device in &scheme.devices {
        writeln!(out, "device   {}, carbon target {:.4} mg CO2e operational", device.name, device.target_mg)?;
    }
    for model in &scheme.models {
        let tasks: Vec<_> = model.tasks.iter().map(|task| task.name.as_str()).collect();
        let quality = match model.tasks.iter().all(|task| task.quality.is_measured()) {
            true => "measured",
            false => "a stand-in",
        };
        writeln!(out, "model    {} ({}): {}; quality {quality}", model.name, model.shape, tasks.join(", "))?;
    }
    Ok(())
}

fn table(args: &TableArgs, out: &mut dyn Write) -> Result<()> {
    let policy = crate::policy::read(&file(args.policy.as_ref())?)?;
    let world = simulated::world_of(policy.scheme(), &shipped::model()?)?;
    let rows = scores::rows(&world, &policy, Split::Test, args.seed);
    match args.json {
        true => write_json(&serde_json::json!({ "rows": rows }), out)?,
        false => write_rows(&rows, out)?,
    }
    if args.check { scores::check(&rows, args.most_regret / 100.0) } else { Ok(()) }
}

/// The table for a reader, with what it is about.
pub(crate) fn write_rows(rows: &[Row], out: &mut dyn Write) -> Result<()> {
    rows_table(rows).write(out)?;
    Ok(writeln!(
        out,
        "\nsimulated devices; energy of the proxy (tier C); scores of the paper's models are a stand-in"
    )?)
}

/// One line per device, model and task.
pub(crate) fn rows_table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "device", "model", "task", "policy", "oracle", "worst", "l_min", "l_max", "random", "regret",
        "layers", "inf/J", "op. mg", "emb. mg",
    ]);
    for row in rows {
        let reward = |value: f64| format!("{value:.4}");
        table.row([
            row.device.clone(),
            row.model.clone(),
            row.task.clone(),
            reward(row.policy_reward),
            reward(row.oracle_reward),
            reward(row.worst_reward),
            reward(row.always_min_reward),
            reward(row.always_max_reward),
            reward(row.random_reward),
            percent(row.regret),
            format!("{:.1}", row.layers),
            format!("{:.2}", row.inf_per_j),
            format!("{:.4}", row.operational_mg),
            format!("{:.2}", row.embodied_mg),
        ]);
    }
    table
}

fn devices(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    if let Some(name) = &args.name {
        let profile = crate::energy::profile(name)?;
        let mut table = Table::new(["figure", "value", "year", "source"]);
        for (name, figure) in &profile.figures {
            let source =
                if figure.assumption { format!("assumed: {}", figure.source) } else { figure.source.clone() };
            table.row([name.clone(), figure.value.to_string(), figure.year.to_string(), source]);
        }
        return Ok(table.write(out)?);
    }
    let mut table = Table::new(["device", "what it stands for", "LoRA layers", "weights", "assumed"]);
    for profile in Profile::builtin()? {
        let [least, most] = profile.lora_layers;
        let assumed = format!("{} of {} figures", profile.assumptions().count(), profile.figures.len());
        table.row([
            profile.name.clone(),
            profile.title.clone(),
            format!("{least}-{most}"),
            profile.quant.clone(),
            assumed,
        ]);
    }
    table.write(out)?;
    writeln!(out)?;
    let mut table = Table::new(["grid", "g/kWh", "source"]);
    for grid in Grid::builtin()? {
        table.row([grid.code, grid.mg_per_wh.to_string(), grid.source]);
    }
    Ok(table.write(out)?)
}

//! Studies: each is one command that writes JSON, a table and an HTML page with plots.

mod baselines;
mod carbon;
mod constraints;
mod day;
mod frontier;
mod page;
mod paper;
mod plot;
mod quantization;
mod remote;
mod sustained;
#[cfg(feature = "training")]
mod trained;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use wattle_policy::TrainedPolicy;
use wattle_policy::scheme::Cell;
use wattle_policy::world::{Situation, Split, World};

use crate::error::Result;
use crate::scores::{self, Row};
use crate::{policy, shipped, simulated};

/// Arguments of `study`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which
    #[arg(value_enum)]
    name: Name,
    /// The folder for NAME.json and NAME.html
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The policy [default: the one that comes with wattle]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Which situations are drawn; of trainings the first seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Trainings per curve of `learning` and `ablations`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=1000))]
    seeds: u64,
    /// Steps of each training
    #[arg(long, value_name = "N", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    steps: u64,
    /// Problems of each task that `quantization` asks
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    problems: u32,
    /// Days of each device, model and task that `day` lives
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    days: u64,
    /// Time that `sustained` runs here [min]
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
}

/// The studies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// The carbon paper's table of best layers, inferences per joule and performance per mg, beside the paper's figures
    Table,
    /// Energy and carbon by number of layers
    Frontier,
    /// Distribution of carbon, and performance against carbon
    Carbon,
    /// How often limits of memory, power, latency and temperature are kept
    Constraints,
    /// The policy against the fewest and the most layers, chance, and the best choice
    Baselines,
    /// The same over days on which heat and charge carry over and the grid changes
    Day,
    /// Energy, carbon and answers of the shipped model by format of its weights; caching and batching apart
    Quantization,
    /// Half an hour without a pause: real speed here, simulated heat on devices
    Sustained,
    /// Learning curves over seeds (needs a build with the feature `training`)
    Learning,
    /// Without the gate, with other τ and weights (needs a build with the feature `training`)
    Ablations,
}

/// Runs one.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    match args.name {
        Name::Learning | Name::Ablations => trained(args, out),
        Name::Quantization => quantization::run(args.problems as usize, &args.out, out),
        Name::Sustained => sustained::run(args.minutes, &args.out, out),
        name => {
            let (world, policy) = subject(args)?;
            let subject = Subject { world: &world, policy: &policy, seed: args.seed };
            match name {
                Name::Table => paper::run(&subject, &args.out, out),
                Name::Frontier => frontier::run(&subject, &args.out, out),
                Name::Carbon => carbon::run(&subject, &args.out, out),
                Name::Day => day::run(&subject, args.days, &args.out, out),
                Name::Constraints => constraints::run(&subject, &args.out, out),
                _ => baselines::run(&subject, &args.out, out),
            }
        }
    }
}

#[cfg(feature = "training")]
fn trained(args: &Args, out: &mut dyn Write) -> Result<()> {
    trained::run(args, args.name == Name::Ablations, out)
}

#[cfg(not(feature = "training"))]
fn trained(_: &Args, _: &mut dyn Write) -> Result<()> {
    let reason = "study: this build cannot train; build with `--features training`";
    Err(crate::error::Error::Failed(reason.into()))
}

/// What is studied: a policy in the world that it was made for.
struct Subject<'a> {
    world: &'a Arc<World>,
    policy: &'a TrainedPolicy,
    seed: u64,
}

impl Subject<'_> {
    /// Names of the devices.
    fn devices(&self) -> Vec<String> {
        self.world.profiles.iter().map(|profile| profile.name.clone()).collect()
    }

    /// Situations of a cell that the policy was not trained on.
    fn situations(&self, cell: Cell) -> Vec<Situation> {
        scores::situations(self.world, Split::Test, self.seed, cell)
    }

    /// How the policy does there, cell by cell.
    fn rows(&self) -> Vec<Row> {
        scores::rows(self.world, self.policy, Split::Test, self.seed)
    }
}

fn subject(args: &Args) -> Result<(Arc<World>, TrainedPolicy)> {
    let model = shipped::model()?;
    let file = args.policy.clone().unwrap_or_else(|| shipped::policy(&model));
    let policy = policy::read(&file)?;
    Ok((Arc::new(simulated::world_of(policy.scheme(), &model)?), policy))
}

/// What every page says of simulated devices.
const SIMULATED: &str = "Devices are simulated on the engine's own plans; their energy is the proxy's (tier C). Scores \
                         of models whose weights are not here are a stand-in; those of sprout were measured.";

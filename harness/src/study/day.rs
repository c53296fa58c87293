//! Days on a device, whose grid, charge and heat change: whether a learned policy earns its place there.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use wattle_policy::Random;
use wattle_policy::environment::{Day, Environment};
use wattle_policy::scheme::{Cell, Choice};
use wattle_policy::world::{Situation, Split, World};

use super::page::Page;
use super::plot::{self, Series, Titles};
use super::{SIMULATED, Subject};
use crate::error::Result;
use crate::meter::{interval, mean_sd};
use crate::scores::seed_of;
use crate::table::Table;

/// Who chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Policy,
    Fewest,
    Most,
    Random,
    /// The best choice for the request at hand, by trying all.
    Greedy,
}

impl Who {
    const ALL: [Self; 5] = [Self::Policy, Self::Fewest, Self::Most, Self::Random, Self::Greedy];

    fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Fewest => "fewest layers",
            Self::Most => "most layers",
            Self::Random => "random",
            Self::Greedy => "best of the moment",
        }
    }

    fn choose(self, subject: &Subject, situation: &Situation, random: &mut Random) -> Choice {
        let (world, cell) = (subject.world, situation.cell);
        match self {
            Self::Policy => subject.policy.choose(cell, &world.case(situation)),
            Self::Fewest => world.least(cell),
            Self::Most => world.most(cell),
            Self::Random => {
                let choices = world.choices(cell);
                choices[random.below(choices.len())]
            }
            Self::Greedy => best(world, situation),
        }
    }
}

/// One day of one chooser.
#[derive(Clone, Debug)]
struct Total {
    /// Mean of its requests' rewards.
    reward: f64,
    operational_mg: f64,
    /// By quarter of an hour; shorter where the battery ran empty.
    layers: Vec<f64>,
}

/// A device and a chooser.
#[derive(Clone, Debug, Serialize)]
struct Line {
    device: String,
    who: &'static str,
    days: usize,
    /// Mean reward, and half of its 95 % interval.
    reward: [f64; 2],
    /// What the policy earned more on the same days.
    policy_ahead: [f64; 2],
    /// Mean of a day's measured requests.
    operational_mg: f64,
    layers: f64,
    /// Days on which the battery ran empty.
    cut: usize,
    /// Mean layers by quarter of an hour.
    #[serde(skip)]
    curve: Vec<[f64; 2]>,
}

/// Runs it.
pub(super) fn run(subject: &Subject, days: u64, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let lines: Vec<Line> =
        (0..subject.world.profiles.len()).flat_map(|device| of_device(subject, days, device)).collect();
    let training = &subject.policy.description.training;
    let mut page = Page::new("day", "Days on which grid, charge and heat change");
    page.note(SIMULATED);
    page.note(format!(
        "A burst of one to eight requests every quarter of an hour; heat and charge carry over, the grid is cleaner around \
         noon, the device charges at night. {days} days of every model and task, on grids and at temperatures that were not \
         trained on; everybody has the same days. The policy was trained for {} steps of {:?}. \"Best of the moment\" tries \
         every choice on the request at hand and does not look ahead.",
        training.steps, training.scenario
    ));
    page.note(verdict(&lines));
    let names = subject.devices();
    let bars = Who::ALL[1..].iter().map(|who| {
        let own = lines.iter().filter(|line| line.who == who.name());
        (who.name().to_owned(), own.map(|line| line.policy_ahead).collect())
    });
    let bars: Vec<_> = bars.collect();
    let title = "What the policy earns more than others, mean ± 95 % interval over the same days";
    page.plot("Ahead", plot::bars(Titles { title, x: "device", y: "reward of a request" }, &names, &bars)?);
    let curves: Vec<Series> = lines
        .iter()
        .filter(|line| line.who == Who::Policy.name())
        .map(|line| Series::new(&line.device, line.curve.clone()))
        .collect();
    let titles = Titles { title: "Layers that the policy chooses", x: "hour", y: "layers" };
    page.plot("Layers over the day", plot::lines(titles, &curves)?);
    page.table("By device and choice", table(&lines));
    page.write(dir, &serde_json::json!({ "training": training, "days": days, "lines": lines }), out)
}

/// Everybody's days on a device.
fn of_device(subject: &Subject, days: u64, device: usize) -> Vec<Line> {
    let world = subject.world;
    let cells: Vec<Cell> = world.scheme.cells().into_iter().filter(|cell| cell.device == device).collect();
    let lived = |who: Who| -> Vec<Total> {
        let days = cells.iter().flat_map(|&cell| {
            (0..days).map(move |day| (cell, seed_of(subject.seed, cell).wrapping_add(day << 32)))
        });
        days.map(|(cell, seed)| live(subject, who, cell, seed)).collect()
    };
    let totals = Who::ALL.map(lived);
    let policy: Vec<f64> = totals[0].iter().map(|total| total.reward).collect();
    let name = &world.profiles[device].name;
    Who::ALL.iter().zip(&totals).map(|(who, totals)| Line::new(name, who.name(), totals, &policy)).collect()
}

/// The choice that earns most on the request at hand.
fn best(world: &World, situation: &Situation) -> Choice {
    let earns =
        |choice: Choice| world.judge(situation, choice).map_or(f64::NEG_INFINITY, |(_, reward)| reward.total);
    let better = |a: Choice, b: Choice| if earns(b) > earns(a) { b } else { a };
    world.choices(situation.cell).into_iter().fold(world.least(situation.cell), better)
}

/// A day with somebody's choices.
fn live(subject: &Subject, who: Who, cell: Cell, seed: u64) -> Total {
    let mut day = Day::new(Arc::clone(subject.world), vec![cell], Split::Test);
    let mut random = Random(!seed);
    day.reset(seed);
    while let Some(situation) = day.situation().copied() {
        let step = day.advance(who.choose(subject, &situation, &mut random));
        if step.terminated || step.truncated {
            break;
        }
    }
    let n = day.log.len().max(1) as f64;
    Total {
        reward: day.log.iter().map(|(_, _, reward)| reward.total).sum::<f64>() / n,
        operational_mg: day.log.iter().map(|(_, outcome, _)| outcome.carbon.operational_mg).sum(),
        layers: day.log.iter().map(|(choice, ..)| f64::from(choice.layers.count_ones())).collect(),
    }
}

impl Line {
    fn new(device: &str, who: &'static str, totals: &[Total], policy: &[f64]) -> Self {
        let rewards: Vec<f64> = totals.iter().map(|total| total.reward).collect();
        let ahead: Vec<f64> = policy.iter().zip(&rewards).map(|(policy, own)| policy - own).collect();
        let mean = |values: Vec<f64>| mean_sd(&values)[0];
        let at = |slot: usize| {
            let layers = totals.iter().filter_map(|total| total.layers.get(slot).copied());
            [slot as f64 * 24.0 / Day::SLOTS as f64, mean(layers.collect())]
        };
        Self {
            device: device.to_owned(),
            who,
            days: totals.len(),
            reward: interval(&rewards),
            policy_ahead: interval(&ahead),
            operational_mg: mean(totals.iter().map(|total| total.operational_mg).collect()),
            layers: mean(totals.iter().flat_map(|total| total.layers.iter().copied()).collect()),
            cut: totals.iter().filter(|total| total.layers.len() < Day::SLOTS).count(),
            curve: (0..Day::SLOTS).map(at).collect(),
        }
    }
}

/// Whether learning earned its place.
fn verdict(lines: &[Line]) -> String {
    let against = |who: &str, sign: f64| {
        let clear = |line: &&Line| {
            let [mean, half] = line.policy_ahead;
            line.who == who && sign * mean - half > 0.0
        };
        let names: Vec<&str> = lines.iter().filter(clear).map(|line| line.device.as_str()).collect();
        if names.is_empty() { "no device".to_owned() } else { names.join(", ") }
    };
    let said = Who::ALL[1..].iter().map(|who| {
        let who = who.name();
        format!("{who}: more on {}, less on {}", against(who, 1.0), against(who, -1.0))
    });
    let said: Vec<String> = said.collect();
    format!(
        "Where the interval of the difference leaves 0 out, the policy earns, against {}.",
        said.join("; ")
    )
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "device",
        "choice",
        "days",
        "reward",
        "policy ahead by",
        "layers",
        "op. mg/day",
        "cut short",
    ]);
    for line in lines {
        let shown = |[mean, half]: [f64; 2]| format!("{mean:.5} ± {half:.5}");
        table.row([
            line.device.clone(),
            line.who.to_owned(),
            line.days.to_string(),
            shown(line.reward),
            shown(line.policy_ahead),
            format!("{:.2}", line.layers),
            format!("{:.3}", line.operational_mg),
            line.cut.to_string(),
        ]);
    }
    table
}

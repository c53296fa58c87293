//! Simulated devices that models' inferences are run on: what a policy is trained and scored in.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::observation::Case;
use crate::profile::Profile;
use crate::random::Random;
use crate::reward::Reward;
use crate::scheme::{Cell, Choice, Scheme};
use crate::simulate::{Conditions, Outcome};
use crate::thermal::Temperatures;
use crate::workload::{Inference, Priced};

/// c* is this much of the device's median under always-l_min.
const TARGET: f64 = 1.25;
/// Grids that a policy is trained on \[mg/Wh\].
const TRAINED_GRIDS: [f64; 2] = [20.0, 800.0];
/// Situations that the median is taken of.
const MEDIAN_OF: usize = 400;

/// Which situations are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Lengths, grids, heat and charge that a policy is trained on.
    Train,
    /// Others, that it is scored on: other lengths, real countries' grids, hotter and colder days, emptier and fuller
    /// batteries.
    Test,
}

/// A request: what is run where, and in which state the device is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Situation {
    /// Device, model, task.
    pub cell: Cell,
    /// Of [`World::lengths`].
    pub length: usize,
    /// The device's state.
    pub conditions: Conditions,
}

/// Costs of one model's inferences on one kind of weights: by length, then by adapter.
pub type Costs = Vec<Vec<crate::workload::Workload>>;

/// Simulated devices, and what every inference costs on them.
#[derive(Clone, Debug)]
pub struct World {
    /// Devices, models, tasks, choices, reward.
    pub scheme: Scheme,
    /// One per device of the scheme.
    pub profiles: Vec<Profile>,
    /// Prompt and new tokens; the first `trained` are trained on, the others scored on.
    pub lengths: Vec<Inference>,
    trained: usize,
    /// By device, model, length, adapter.
    priced: Vec<Vec<Vec<Vec<Priced>>>>,
    /// Real grids, for [`Split::Test`] \[mg/Wh\].
    grids: Vec<f64>,
}

impl World {
    /// A world in which `costs` says what inferences of a model (by its index in the scheme) with a device's kind of
    /// weights cost. Every device's carbon target is set to 1.25 × its median under always-l_min.
    ///
    /// # Errors
    /// A scheme that does not hold, or costs for other lengths or adapters than there are.
    pub fn new(
        scheme: Scheme,
        profiles: Vec<Profile>,
        costs: &BTreeMap<(usize, String), Costs>,
        trained: usize,
    ) -> Result<Self> {
        scheme.check()?;
        let error = |reason: String| Error::new("world", reason);
        let mut priced = Vec::new();
        for (profile, device) in profiles.iter().zip(&scheme.devices) {
            if profile.name != device.name {
                return Err(error(format!("profile {} stands where {} should", profile.name, device.name)));
            }
            let mut models = Vec::new();
            for (index, model) in scheme.models.iter().enumerate() {
                let found = costs.get(&(index, profile.quant.clone()));
                let lengths =
                    found.ok_or_else(|| error(format!("no costs of {} in {}", model.name, profile.quant)))?;
                let price = |adapters: &Vec<crate::workload::Workload>| -> Vec<Priced> {
                    adapters.iter().map(|workload| workload.price(profile)).collect()
                };
                models.push(lengths.iter().map(price).collect::<Vec<_>>());
            }
            priced.push(models);
        }
        let any = costs.values().next().ok_or_else(|| error("no costs".into()))?;
        let lengths: Vec<Inference> =
            any.iter().filter_map(|adapters| adapters.first()).map(|workload| workload.inference).collect();
        let whole = |costs: &Costs| {
            costs.len() == lengths.len()
                && costs.iter().all(|adapters| adapters.len() == scheme.adapters.len())
        };
        if trained == 0 || trained > lengths.len() || !costs.values().all(whole) {
            return Err(error("costs are not of the same lengths and adapters everywhere".into()));
        }
        let grids = crate::Grid::builtin()?.into_iter().map(|grid| grid.mg_per_wh).collect();
        let mut world = Self { scheme, profiles, lengths, trained, priced, grids };
        for device in 0..world.profiles.len() {
            world.scheme.devices[device].target_mg = world.target_mg(device);
        }
        Ok(world)
    }

    /// 1.25 × the device's median operational carbon under always-l_min, over all of its cells.
    fn target_mg(&self, device: usize) -> f64 {
        let cells: Vec<Cell> = self.scheme.cells().into_iter().filter(|cell| cell.device == device).collect();
        let mut random = Random(device as u64);
        let mut carbon: Vec<f64> = (0..MEDIAN_OF)
            .filter_map(|index| {
                let situation = self.draw(cells[index % cells.len()], Split::Train, &mut random);
                let outcome = self.outcome(&situation, self.least(situation.cell))?;
                Some(outcome.carbon.operational_mg)
            })
            .collect();
        carbon.sort_by(f64::total_cmp);
        let target = TARGET * carbon.get(carbon.len() / 2).copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
        // Six digits, which JSON keeps exactly.
        format!("{target:.5e}").parse().unwrap_or(target)
    }

    /// Draws the state of a device and the length of a request.
    pub fn draw(&self, cell: Cell, split: Split, random: &mut Random) -> Situation {
        let profile = &self.profiles[cell.device];
        let (length, grid, ambient_c, battery) = match split {
            Split::Train => (
                random.below(self.trained),
                (random.between(TRAINED_GRIDS[0].ln(), TRAINED_GRIDS[1].ln())).exp(),
                random.between(12.0, 36.0),
                [0.1, 0.95],
            ),
            Split::Test => (
                self.trained + random.below(self.lengths.len() - self.trained),
                self.grids[random.below(self.grids.len())],
                random.between(8.0, 38.0),
                [0.02, 1.0],
            ),
        };
        let limit_c = profile.throttle.surface_limit_c;
        // Most requests find the device cool; some find it after long work.
        let heat = random.unit() * random.unit();
        let surface_c = ambient_c + heat * (limit_c - ambient_c).max(0.0);
        let temperatures = Temperatures { surface_c, junction_c: surface_c + random.between(0.0, 8.0) };
        let charge = random.between(battery[0], battery[1]);
        let battery = if profile.battery_wh > 0.0 { charge } else { 1.0 };
        let length = length.min(self.lengths.len() - 1);
        let conditions = Conditions { temperatures, ambient_c, battery, grid_mg_per_wh: grid };
        Situation { cell, length, conditions }
    }

    /// The same situation on the grid at which the carbon gate closes at some number of layers that the device allows, if
    /// that is a grid to train on: in so few drawn situations does the gate lie between two numbers of layers that a policy
    /// would hardly see what it does there (*ours*).
    pub fn at_the_gate(&self, situation: Situation, random: &mut Random) -> Situation {
        let [least, most] = self.range(situation.cell);
        let count = random.between(least as f64, most as f64 + 1.0) as usize;
        let Some(outcome) = self.outcome(&situation, self.of_count(situation.cell, count)) else {
            return situation;
        };
        let share = outcome.carbon.operational_mg / self.scheme.devices[situation.cell.device].target_mg;
        let mut moved = situation;
        moved.conditions.grid_mg_per_wh *=
            self.scheme.rule.gate_share() / share * random.between(0.995, 1.005);
        let trained = TRAINED_GRIDS[0]..=TRAINED_GRIDS[1];
        if trained.contains(&moved.conditions.grid_mg_per_wh) { moved } else { situation }
    }

    /// The case that a situation is.
    pub fn case(&self, situation: &Situation) -> Case<'_> {
        let Cell { device, model, .. } = situation.cell;
        Case {
            profile: &self.profiles[device],
            priced: &self.priced[device][model][situation.length],
            inference: self.lengths[situation.length],
            conditions: situation.conditions,
        }
    }

    /// What a choice leads to; `None` for an adapter that there is not.
    pub fn outcome(&self, situation: &Situation, choice: Choice) -> Option<Outcome> {
        self.case(situation).outcome(choice)
    }

    /// What a choice leads to, and its reward.
    pub fn judge(&self, situation: &Situation, choice: Choice) -> Option<(Outcome, Reward)> {
        let outcome = self.outcome(situation, choice)?;
        Some((outcome, self.reward(situation, choice, &outcome)))
    }

    /// The reward of an outcome.
    pub fn reward(&self, situation: &Situation, choice: Choice, outcome: &Outcome) -> Reward {
        let device = situation.cell.device;
        let score = self.scheme.score(situation.cell, choice);
        let target_mg = self.scheme.devices[device].target_mg;
        self.scheme.rule.reward(&self.profiles[device], target_mg, &situation.conditions, outcome, score)
    }

    /// What the network sees.
    pub fn observe(&self, situation: &Situation) -> Vec<f32> {
        self.scheme.observe(situation.cell, &self.case(situation))
    }

    /// Which values of an action may be chosen.
    pub fn mask(&self, cell: Cell) -> Vec<bool> {
        self.scheme.mask(&self.profiles[cell.device], cell)
    }

    /// What an action stands for.
    pub fn choice(&self, cell: Cell, action: &[usize]) -> Choice {
        self.scheme.choice(&self.profiles[cell.device], cell, action)
    }

    /// As many layers as a count says, with the first adapter.
    pub fn of_count(&self, cell: Cell, count: usize) -> Choice {
        Choice { layers: self.scheme.quality(cell).pick(count), adapter: 0 }
    }

    /// The device's fewest and most layers.
    pub fn range(&self, cell: Cell) -> [usize; 2] {
        self.profiles[cell.device].layer_range(self.scheme.model(cell).layers)
    }

    /// Always-l_min.
    pub fn least(&self, cell: Cell) -> Choice {
        self.of_count(cell, self.range(cell)[0])
    }

    /// Always-l_max.
    pub fn most(&self, cell: Cell) -> Choice {
        self.of_count(cell, self.range(cell)[1])
    }

    /// Every choice that the action space has in a cell: what an exhaustive oracle looks at.
    pub fn choices(&self, cell: Cell) -> Vec<Choice> {
        use crate::scheme::ActionKind;
        let [least, most] = self.range(cell);
        let layers = self.scheme.model(cell).layers;
        let sets: Vec<u128> = match self.scheme.action {
            ActionKind::Count => (least..=most).map(|count| self.scheme.quality(cell).pick(count)).collect(),
            ActionKind::Subset => {
                let size = |set: &u128| (least..=most).contains(&(set.count_ones() as usize));
                (0..1u128 << layers.min(16)).filter(size).collect()
            }
        };
        let adapters = 0..self.scheme.adapters.len();
        sets.into_iter()
            .flat_map(|layers| adapters.clone().map(move |adapter| Choice { layers, adapter }))
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reward::Rule;
    use crate::scheme::{ActionKind, tests::scheme};
    use crate::workload::tests::workload;

    pub(crate) fn world(action: ActionKind) -> World {
        let profiles = ["smartwatch", "tablet"].map(|name| Profile::named(name).unwrap()).to_vec();
        let costs: Costs = [(8, 4), (16, 8), (12, 6)].map(|(p, n)| vec![workload(p, n)]).to_vec();
        let costs = BTreeMap::from([((0, "q4_0".to_owned()), costs)]);
        World::new(scheme(action), profiles, &costs, 2).unwrap()
    }

    #[test]
    fn half_of_all_requests_are_below_the_carbon_target_by_a_quarter() {
        let world = world(ActionKind::Count);
        let mut random = Random(0);
        let (mut below, n) = (0, 200);
        for _ in 0..n {
            let situation = world.draw(Cell { device: 0, model: 0, task: 0 }, Split::Train, &mut random);
            let outcome = world.outcome(&situation, world.least(situation.cell)).unwrap();
            below += usize::from(1.25 * outcome.carbon.operational_mg < world.scheme.devices[0].target_mg);
        }
        assert!((70..130).contains(&below), "{below} of {n}");
    }

    #[test]
    fn what_is_scored_was_not_trained_on() {
        let world = world(ActionKind::Count);
        let cell = Cell { device: 1, model: 0, task: 1 };
        let mut random = Random(1);
        for _ in 0..50 {
            assert!(world.draw(cell, Split::Train, &mut random).length < 2);
            let situation = world.draw(cell, Split::Test, &mut random);
            assert_eq!(situation.length, 2);
            assert_eq!(world.observe(&situation).len(), world.scheme.observation_len());
            assert!(world.observe(&situation).iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn at_the_gate_one_layer_more_or_less_decides() {
        let world = world(ActionKind::Count);
        let (cell, mut random) = (Cell { device: 0, model: 0, task: 0 }, Random(2));
        let mut moved = 0;
        for _ in 0..100 {
            let drawn = world.draw(cell, Split::Train, &mut random);
            let at = world.at_the_gate(drawn, &mut random);
            let grid = at.conditions.grid_mg_per_wh;
            assert!((TRAINED_GRIDS[0]..=TRAINED_GRIDS[1]).contains(&grid));
            if grid != drawn.conditions.grid_mg_per_wh {
                moved += 1;
                let near = [1, 2].into_iter().any(|count| {
                    let (outcome, _) = world.judge(&at, world.of_count(cell, count)).unwrap();
                    let share = outcome.carbon.operational_mg / world.scheme.devices[0].target_mg;
                    (share / world.scheme.rule.gate_share() - 1.0).abs() < 0.0051
                });
                assert!(near, "{at:?}");
            }
        }
        assert!(moved > 50, "{moved}");
        let open = Rule { tau: -1.0, ..Rule::default() };
        let mut world = world;
        world.scheme.rule = open;
        let drawn = world.draw(cell, Split::Train, &mut random);
        assert_eq!(world.at_the_gate(drawn, &mut random), drawn, "without a gate there is nowhere to go");
    }

    #[test]
    fn every_allowed_choice_is_judged() {
        let (counts, subsets) = (world(ActionKind::Count), world(ActionKind::Subset));
        let cell = Cell { device: 0, model: 0, task: 0 };
        assert_eq!(counts.choices(cell).len(), 2);
        assert_eq!(subsets.choices(cell).len(), 3);
        let situation = counts.draw(cell, Split::Train, &mut Random(3));
        for choice in subsets.choices(cell) {
            let (outcome, reward) = subsets.judge(&situation, choice).unwrap();
            assert!(outcome.energy_j > 0.0 && reward.total.is_finite());
        }
        assert!(counts.judge(&situation, Choice { layers: 1, adapter: 7 }).is_none());
    }
}

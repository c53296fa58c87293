//! What a policy was made for: devices, models, tasks and the choices that it has. It is stored with the network.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::profile::Profile;
use crate::quality::Quality;
use crate::reward::Rule;
use crate::workload::all_layers;

/// A device that the policy knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceEntry {
    /// The profile's name.
    pub name: String,
    /// c*: 1.25 × the median operational carbon under always-l_min \[mg CO2e\].
    pub target_mg: f64,
}

/// A task of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Its name.
    pub name: String,
    /// Scores by set of layers.
    pub quality: Quality,
}

/// A model that the policy knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// What it is called.
    pub name: String,
    /// What its shape is: models of another shape are refused.
    pub shape: String,
    /// Its layers.
    pub layers: usize,
    /// At least one.
    pub tasks: Vec<TaskEntry>,
}

/// An adapter to choose, where there are several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterEntry {
    /// Its rank.
    pub rank: u32,
    /// Its α.
    pub alpha: f64,
    /// What the gain in quality is multiplied by, against the first adapter (*stand-in*).
    pub gain: f64,
}

/// What an action is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// How many layers; [`Quality::pick`] says which.
    #[default]
    Count,
    /// Every layer on or off.
    Subset,
}

/// What a policy was made for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scheme {
    /// Devices.
    pub devices: Vec<DeviceEntry>,
    /// Models.
    pub models: Vec<ModelEntry>,
    /// Adapters; at least one.
    pub adapters: Vec<AdapterEntry>,
    /// What an action is.
    pub action: ActionKind,
    /// The reward it was trained on.
    pub rule: Rule,
}

/// Which device, model and task, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Of [`Scheme::devices`].
    pub device: usize,
    /// Of [`Scheme::models`].
    pub model: usize,
    /// Of the model's tasks.
    pub task: usize,
}

/// A choice that an action stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Layers with LoRA.
    pub layers: u128,
    /// Of [`Scheme::adapters`].
    pub adapter: usize,
}

impl Scheme {
    /// Checks what a file said.
    ///
    /// # Errors
    /// Names what is missing or out of range.
    pub fn check(&self) -> Result<()> {
        let error = |name: &str, reason: &str| Err(Error::new(format!("policy: {name}"), reason));
        if self.devices.is_empty() || self.devices.len() > 64 {
            return error("devices", "expected 1 to 64");
        }
        if self.devices.iter().any(|device| !(device.target_mg > 0.0 && device.target_mg.is_finite())) {
            return error("target_mg", "not above 0");
        }
        if self.models.is_empty() || self.models.len() > 256 {
            return error("models", "expected 1 to 256");
        }
        if self.adapters.is_empty() || self.adapters.len() > 16 {
            return error("adapters", "expected 1 to 16");
        }
        for model in &self.models {
            if model.tasks.is_empty() || model.tasks.len() > 64 {
                return error(&model.name, "expected 1 to 64 tasks");
            }
            for task in &model.tasks {
                task.quality.check(&format!("{} on {}", model.name, task.name))?;
                if task.quality.layers() != model.layers {
                    return error(&model.name, "the quality of a task has another number of layers");
                }
            }
        }
        Ok(())
    }

    /// Names of all tasks, each once, in order of appearance.
    pub fn task_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for task in self.models.iter().flat_map(|model| &model.tasks) {
            if !names.contains(&task.name.as_str()) {
                names.push(&task.name);
            }
        }
        names
    }

    /// Every device × model × task.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for device in 0..self.devices.len() {
            for (model, entry) in self.models.iter().enumerate() {
                cells.extend((0..entry.tasks.len()).map(|task| Cell { device, model, task }));
            }
        }
        cells
    }

    /// The cell of these names; a model is found by its name, else by its shape.
    ///
    /// # Errors
    /// Names what the policy was made for.
    pub fn find(
        &self,
        device: &str,
        model: &str,
        shape: &str,
        layers: usize,
        task: Option<&str>,
    ) -> Result<Cell> {
        let list = |names: Vec<&str>| names.join(", ");
        let device_index = self.devices.iter().position(|entry| entry.name == device).ok_or_else(|| {
            let names = self.devices.iter().map(|entry| entry.name.as_str()).collect();
            Error::new("device", format!("the policy was not made for {device:?}, but for {}", list(names)))
        })?;
        let fits = |entry: &ModelEntry| entry.shape == shape && entry.layers == layers;
        let named = self.models.iter().position(|entry| entry.name == model && fits(entry));
        let model_index = named.or_else(|| self.models.iter().position(fits)).ok_or_else(|| {
            let name =
                |entry: &ModelEntry| format!("{} ({}, {} layers)", entry.name, entry.shape, entry.layers);
            let names: Vec<_> = self.models.iter().map(name).collect();
            let reason = format!(
                "the policy was not made for {model} ({shape}, {layers} layers), but for {}",
                names.join(", ")
            );
            Error::new("model", reason)
        })?;
        let tasks = &self.models[model_index].tasks;
        let task_index = match task {
            None => Some(0),
            Some(task) => tasks.iter().position(|entry| entry.name == task),
        };
        let task = task_index.ok_or_else(|| {
            let names = tasks.iter().map(|entry| entry.name.as_str()).collect();
            Error::new("task", format!("the policy knows for this model: {}", list(names)))
        })?;
        Ok(Cell { device: device_index, model: model_index, task })
    }

    /// The model of a cell.
    pub fn model(&self, cell: Cell) -> &ModelEntry {
        &self.models[cell.model]
    }

    /// The scores of a cell's task.
    pub fn quality(&self, cell: Cell) -> &Quality {
        &self.model(cell).tasks[cell.task].quality
    }

    /// The score of a choice: an adapter's gain scales what LoRA adds to the base's score.
    pub fn score(&self, cell: Cell, choice: Choice) -> f64 {
        let quality = self.quality(cell);
        let (base, with) = (quality.score(0), quality.score(choice.layers));
        let gain = self.adapters.get(choice.adapter).map_or(1.0, |adapter| adapter.gain);
        (base + gain * (with - base)).clamp(0.0, 1.0)
    }

    /// The most layers that any model has.
    fn most_layers(&self) -> usize {
        self.models.iter().map(|model| model.layers).max().unwrap_or(0)
    }

    /// Sizes of an action's components: one of so many values each.
    pub fn components(&self) -> Vec<usize> {
        let mut components = match self.action {
            ActionKind::Count => vec![self.most_layers() + 1],
            ActionKind::Subset => vec![2; self.most_layers()],
        };
        if self.adapters.len() > 1 {
            components.push(self.adapters.len());
        }
        components
    }

    /// Which values of each component may be chosen in a cell, one flag per value, component after component.
    pub fn mask(&self, profile: &Profile, cell: Cell) -> Vec<bool> {
        let layers = self.model(cell).layers;
        let [least, most] = profile.layer_range(layers);
        let mut mask: Vec<bool> = match self.action {
            ActionKind::Count => {
                (0..=self.most_layers()).map(|count| (least..=most).contains(&count)).collect()
            }
            ActionKind::Subset => (0..self.most_layers()).flat_map(|layer| [true, layer < layers]).collect(),
        };
        if self.adapters.len() > 1 {
            mask.extend(std::iter::repeat_n(true, self.adapters.len()));
        }
        mask
    }

    /// What an action stands for. A subset that is too small gets the deepest layers that it lacks, one that is too
    /// large loses its shallowest (*ours*).
    pub fn choice(&self, profile: &Profile, cell: Cell, action: &[usize]) -> Choice {
        let adapter = match self.adapters.len() {
            0 | 1 => 0,
            n => action.last().copied().unwrap_or(0).min(n - 1),
        };
        let layers = self.model(cell).layers;
        let [least, most] = profile.layer_range(layers);
        let layers = match self.action {
            ActionKind::Count => {
                let count = action.first().copied().unwrap_or(0).clamp(least, most);
                self.quality(cell).pick(count)
            }
            ActionKind::Subset => {
                let bits = action.iter().take(layers).enumerate();
                let mut set = bits.fold(0, |set, (layer, &bit)| set | u128::from(bit == 1) << layer);
                while (set.count_ones() as usize) < least {
                    let lacking = !set & all_layers(layers);
                    set |= 1 << (127 - lacking.leading_zeros());
                }
                while set.count_ones() as usize > most {
                    set &= set - 1;
                }
                set
            }
        };
        Choice { layers, adapter }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::quality::StandIn;

    pub(crate) fn scheme(action: ActionKind) -> Scheme {
        let quality = |base| Quality::StandIn(StandIn { base, gain: 0.3, layers: 2 });
        let task = |name: &str, base| TaskEntry { name: name.into(), quality: quality(base) };
        let device = |name: &str| DeviceEntry { name: name.into(), target_mg: 1e-6 };
        Scheme {
            devices: vec![device("smartwatch"), device("tablet")],
            models: vec![ModelEntry {
                name: "toy".into(),
                shape: "toy-2x1".into(),
                layers: 2,
                tasks: vec![task("qa", 0.3), task("dialogue", 0.5)],
            }],
            adapters: vec![AdapterEntry { rank: 8, alpha: 16.0, gain: 1.0 }],
            action,
            rule: Rule::default(),
        }
    }

    #[test]
    fn counts_and_subsets_become_layers_that_the_device_allows() {
        let (watch, tablet) = (Profile::named("smartwatch").unwrap(), Profile::named("tablet").unwrap());
        let cell = Cell { device: 0, model: 0, task: 0 };
        let count = scheme(ActionKind::Count);
        assert_eq!(count.components(), [3]);
        assert_eq!(count.mask(&watch, cell), [false, true, true]);
        assert_eq!(count.mask(&tablet, cell), [false, false, true]);
        assert_eq!(count.choice(&watch, cell, &[1]).layers, 0b10);
        assert_eq!(count.choice(&watch, cell, &[0]).layers, 0b10, "not fewer than the device allows");
        let subset = scheme(ActionKind::Subset);
        assert_eq!(subset.components(), [2, 2]);
        assert_eq!(subset.choice(&watch, cell, &[1, 0]).layers, 0b01);
        assert_eq!(subset.choice(&watch, cell, &[0, 0]).layers, 0b10);
        assert_eq!(subset.choice(&tablet, cell, &[1, 0]).layers, 0b11);
    }

    #[test]
    fn a_rank_is_a_choice_where_there_are_several() {
        let mut scheme = scheme(ActionKind::Count);
        scheme.adapters.push(AdapterEntry { rank: 16, alpha: 32.0, gain: 1.1 });
        let (watch, cell) = (Profile::named("smartwatch").unwrap(), Cell { device: 0, model: 0, task: 0 });
        assert_eq!(scheme.components(), [3, 2]);
        assert_eq!(scheme.mask(&watch, cell), [false, true, true, true, true]);
        let choice = scheme.choice(&watch, cell, &[2, 1]);
        assert_eq!(choice, Choice { layers: 0b11, adapter: 1 });
        assert!((scheme.score(cell, choice) - (0.3 + 1.1 * 0.3)).abs() < 1e-12);
    }

    #[test]
    fn what_the_policy_was_not_made_for_is_refused_by_name() {
        let scheme = scheme(ActionKind::Count);
        assert!(scheme.check().is_ok());
        let found = scheme.find("tablet", "other name", "toy-2x1", 2, Some("dialogue")).unwrap();
        assert_eq!(found, Cell { device: 1, model: 0, task: 1 });
        let message = |device, shape, layers, task| {
            scheme.find(device, "m", shape, layers, task).unwrap_err().to_string()
        };
        assert!(message("phone", "toy-2x1", 2, None).contains("smartwatch, tablet"));
        assert!(message("tablet", "gpt2-12x768", 12, None).contains("toy (toy-2x1, 2 layers)"));
        assert!(message("tablet", "toy-2x1", 3, None).contains("3 layers"));
        assert!(message("tablet", "toy-2x1", 2, Some("chess")).contains("qa, dialogue"));
        let nothing = Scheme { devices: Vec::new(), ..scheme.clone() };
        assert!(nothing.check().unwrap_err().to_string().contains("devices"));
    }
}

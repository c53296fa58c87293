//! A trained policy: what it was made for, its network, and decisions with their reasons.

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::network::Network;
use crate::observation::Case;
use crate::reward::Reward;
use crate::scheme::{Cell, Choice, Scheme};
use crate::simulate::Outcome;

/// The key of a file's description in its safetensors metadata.
pub const METADATA: &str = "wattle.policy";
/// The version of that description.
const FORMAT: u32 = 2;
/// The longest file that is read \[bytes\].
pub const MAX_LENGTH: usize = 64 << 20;

/// What stands in a file beside the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// 2.
    pub format: u32,
    /// What it was made for.
    pub scheme: Scheme,
    /// How it was trained.
    pub training: Training,
}

/// How a policy was trained, for `show`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Steps in the environment.
    pub steps: u64,
    /// Fixes everything.
    pub seed: u64,
    /// Which environment.
    pub scenario: String,
}

impl Description {
    /// For a scheme that was trained like this.
    pub fn new(scheme: Scheme, training: Training) -> Self {
        Self { format: FORMAT, scheme, training }
    }
}

/// A trained policy.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedPolicy {
    /// What it was made for.
    pub description: Description,
    network: Network,
}

/// A decision, and what it was taken for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Layers with LoRA.
    pub layers: Vec<usize>,
    /// Of the scheme's adapters.
    pub adapter: usize,
    /// What the simulated device expects of it.
    pub expected: Outcome,
    /// Its simulated reward.
    pub reward: Reward,
    /// The reward of the fewest layers, for comparison.
    pub least_reward: Reward,
    /// How many layers the device and the model allow.
    pub range: [usize; 2],
}

impl TrainedPolicy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// Names what is missing, damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let error = |reason: String| Error::new("policy", reason);
        if bytes.len() > MAX_LENGTH {
            return Err(error(format!("longer than {MAX_LENGTH} bytes")));
        }
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| error(format!("no safetensors file: {e}")))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| error(e.to_string()))?;
        let text = header.metadata().as_ref().and_then(|map| map.get(METADATA));
        let text = text
            .ok_or_else(|| error(format!("its metadata has no {METADATA}: it is no policy of wattle's")))?;
        let description: Description = serde_json::from_str(text).map_err(|e| Error::new(METADATA, e))?;
        if description.format != FORMAT {
            return Err(error(format!(
                "format {} is not known; this version reads {FORMAT}",
                description.format
            )));
        }
        description.scheme.check()?;
        let outputs = description.scheme.components().iter().sum();
        let network = Network::read(&tensors, "policy", description.scheme.observation_len(), outputs)?;
        Ok(Self { description, network })
    }

    /// A policy of this network.
    ///
    /// # Errors
    /// For a description that does not hold.
    pub fn new(description: Description, network: Network) -> Result<Self> {
        description.scheme.check()?;
        Ok(Self { description, network })
    }

    /// What it was made for.
    pub fn scheme(&self) -> &Scheme {
        &self.description.scheme
    }

    /// The choice for a case: the network's most probable action, and nothing else.
    pub fn choose(&self, cell: Cell, case: &Case) -> Choice {
        let scheme = self.scheme();
        let action = self.network.decide(
            &scheme.observe(cell, case),
            &scheme.components(),
            &scheme.mask(case.profile, cell),
        );
        scheme.choice(case.profile, cell, &action)
    }

    /// The choice for a case, with what it is expected to lead to.
    ///
    /// # Errors
    /// When the case has no costs for the chosen adapter.
    pub fn decide(&self, cell: Cell, case: &Case) -> Result<Decision> {
        let (scheme, choice) = (self.scheme(), self.choose(cell, case));
        let range = case.profile.layer_range(scheme.model(cell).layers);
        let least = Choice { layers: scheme.quality(cell).pick(range[0]), adapter: 0 };
        let judge = |choice: Choice| -> Result<(Outcome, Reward)> {
            let none = || Error::new("adapter", "no costs of the chosen adapter");
            let outcome = case.outcome(choice).ok_or_else(none)?;
            let (target_mg, score) = (scheme.devices[cell.device].target_mg, scheme.score(cell, choice));
            let reward = scheme.rule.reward(case.profile, target_mg, &case.conditions, &outcome, score);
            Ok((outcome, reward))
        };
        let (expected, reward) = judge(choice)?;
        let (_, least_reward) = judge(least)?;
        let layers = (0..scheme.model(cell).layers).filter(|layer| choice.layers >> layer & 1 == 1).collect();
        Ok(Decision { layers, adapter: choice.adapter, expected, reward, least_reward, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use crate::network::tests::file;
    use crate::random::Random;
    use crate::scheme::{ActionKind, tests::scheme};
    use crate::world::{Split, tests::world};

    /// A policy that always prefers the last value.
    fn bytes(description: &Description) -> Vec<u8> {
        let (inputs, outputs) = (description.scheme.observation_len(), 3);
        let bias = (0..outputs).map(|i| i as f32).collect();
        let tensors = [
            ("policy.0.weight", vec![outputs, inputs], vec![0.0; outputs * inputs]),
            ("policy.0.bias", vec![outputs], bias),
        ];
        let text = serde_json::to_string(description).unwrap();
        file(&tensors, Some(HashMap::from([(METADATA.to_owned(), text)])))
    }

    #[test]
    fn a_policy_that_was_written_decides_and_says_why() {
        let world = world(ActionKind::Count);
        let description = Description::new(world.scheme.clone(), Training::default());
        let policy = TrainedPolicy::from_bytes(&bytes(&description)).unwrap();
        assert_eq!(policy.description, description);
        let cell = world.scheme.cells()[0];
        let situation = world.draw(cell, Split::Test, &mut Random(1));
        let decision = policy.decide(cell, &world.case(&situation)).unwrap();
        assert_eq!((decision.layers.as_slice(), decision.range), (&[0usize, 1][..], [1, 2]));
        let (outcome, reward) = world.judge(&situation, world.of_count(cell, 2)).unwrap();
        assert_eq!((decision.expected, decision.reward), (outcome, reward));
        assert_eq!(decision.least_reward, world.judge(&situation, world.least(cell)).unwrap().1);
    }

    #[test]
    fn what_is_no_policy_is_refused_by_name() {
        let description = Description::new(scheme(ActionKind::Count), Training::default());
        let message = |bytes: &[u8]| TrainedPolicy::from_bytes(bytes).unwrap_err().to_string();
        assert!(message(b"nothing").contains("policy"));
        assert!(message(&file(&[], None)).contains(METADATA));
        let earlier = Description { format: 1, ..description.clone() };
        assert!(message(&bytes(&earlier)).contains("format 1"));
        let mut wider = description;
        wider.scheme.devices.push(wider.scheme.devices[0].clone());
        let good = bytes(&wider);
        assert!(TrainedPolicy::from_bytes(&good).is_ok());
        wider.scheme.action = ActionKind::Subset;
        assert!(message(&bytes(&wider)).contains("4 outputs"));
    }
}

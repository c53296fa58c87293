//! An inference of a model as the sum of its ops' costs, for any set of LoRA layers.
//!
//! An op of layer l costs one thing with LoRA on in l and another with it off, whatever the other layers do, so that a
//! sum over layers stands for all 2^layers sets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CostSource, OpCost, Profile, Roofline, StepShape};

/// Rows of a prompt that run in one step.
const CHUNK: u32 = 256;

/// What "one inference" is: a prompt and the tokens generated after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Inference {
    /// Prompt tokens, at least 1.
    pub prompt: u32,
    /// New tokens, at least 1; the last prompt row draws the first.
    pub new: u32,
    /// Rank of the adapter where the cost source knows no better.
    pub rank: u32,
    /// Whether LoRA is on while the prompt runs (else only from the first generated token on).
    pub lora_on_prompt: bool,
}

/// The two parts of an inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The prompt, which draws the first new token.
    Prompt,
    /// The other new tokens, one at a time.
    Decode,
}

/// Costs of steps, equal ones counted together.
type Costs = BTreeMap<OpCost, u64>;

/// An op over an inference: `[prompt, decode]` with LoRA off and on in its layer.
#[derive(Clone, Debug, Default)]
struct OpWork {
    name: String,
    layer: Option<u32>,
    off: [Costs; 2],
    on: [Costs; 2],
}

/// What an inference costs op by op.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What was counted.
    pub inference: Inference,
    /// Layers of the model.
    pub layers: usize,
    /// Weights \[bytes\].
    pub weight_bytes: u64,
    /// The plan without LoRA, which runs when no layer has it.
    base: Vec<OpWork>,
    /// The plan with LoRA.
    adapted: Vec<OpWork>,
}

impl Workload {
    /// Counts an inference on the plans without and with LoRA of a model of `layers` layers.
    pub fn new(
        base: &dyn CostSource,
        adapted: &dyn CostSource,
        layers: usize,
        weight_bytes: u64,
        inference: Inference,
    ) -> Self {
        let all = all_layers(layers);
        let base = ops(base, &inference, 0);
        let adapted = ops(adapted, &inference, all);
        Self { inference, layers, weight_bytes, base, adapted }
    }

    /// Costs on a device.
    pub fn price(&self, profile: &Profile) -> Priced {
        let mut priced = Priced {
            base: [Slice::default(); 2],
            outside: [Slice::default(); 2],
            layers: vec![[[Slice::default(); 2]; 2]; self.layers],
            weight_bytes: self.weight_bytes,
        };
        for op in &self.base {
            add(&mut priced.base, &op.off, profile);
        }
        for op in &self.adapted {
            match op.layer.and_then(|layer| priced.layers.get_mut(layer as usize)) {
                Some([off, on]) => {
                    add(off, &op.off, profile);
                    add(on, &op.on, profile);
                }
                None => add(&mut priced.outside, &op.on, profile),
            }
        }
        priced
    }

    /// Every op of one phase with its cost over the whole phase, for LoRA in these layers.
    pub fn ops(&self, layers: u128, phase: Phase) -> impl Iterator<Item = (&str, OpCost)> {
        let ops = if layers & all_layers(self.layers) == 0 { &self.base } else { &self.adapted };
        ops.iter().map(move |op| {
            let on = op.layer.is_none_or(|layer| layers >> layer.min(127) & 1 == 1);
            let costs = if on { &op.on } else { &op.off };
            (op.name.as_str(), costs[phase as usize].iter().map(|(&cost, &n)| cost * n).sum())
        })
    }
}

/// Bits of all layers.
pub fn all_layers(layers: usize) -> u128 {
    if layers >= 127 { u128::MAX >> 1 } else { (1 << layers) - 1 }
}

/// The ops of a plan over an inference, without LoRA and with LoRA in the layers `on`.
fn ops(source: &dyn CostSource, inference: &Inference, on: u128) -> Vec<OpWork> {
    let work = |(index, name): (usize, &str)| OpWork {
        name: name.to_owned(),
        layer: source.mask_layer(index),
        ..OpWork::default()
    };
    let mut ops: Vec<OpWork> = source.op_names().into_iter().enumerate().map(work).collect();
    for (phase, shape) in steps(inference) {
        let lora = phase == Phase::Decode || inference.lora_on_prompt;
        let with = |layers: u128| {
            let mut shape = shape.clone().with_adapter(inference.rank);
            shape.rows.iter_mut().for_each(|row| row.lora = if lora { layers } else { 0 });
            shape
        };
        let (without, with) = (with(0), (on != 0 && lora).then(|| with(on)));
        for (index, op) in ops.iter_mut().enumerate() {
            let off = source.cost(index, &without);
            let on = with.as_ref().map_or(off, |with| source.cost(index, with));
            *op.off[phase as usize].entry(off).or_default() += 1;
            *op.on[phase as usize].entry(on).or_default() += 1;
        }
    }
    ops
}

/// The steps of an inference: the prompt in chunks, of which only the last is sampled, then one token a step.
fn steps(inference: &Inference) -> impl Iterator<Item = (Phase, StepShape)> {
    let (prompt, new) = (inference.prompt.max(1), inference.new.max(1));
    let chunks = (0..prompt).step_by(CHUNK as usize).map(move |start| {
        let rows = CHUNK.min(prompt - start);
        let mut shape = StepShape::prefill(rows, start);
        if start + rows < prompt {
            shape.rows.iter_mut().for_each(|row| row.sampled = false);
        }
        (Phase::Prompt, shape)
    });
    chunks.chain((0..new - 1).map(move |i| (Phase::Decode, StepShape::decode(1, prompt + i))))
}

/// A sum over ops and steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slice {
    /// At full speed \[s\].
    pub seconds: f64,
    /// Without static power \[J\].
    pub dynamic_j: f64,
    /// LoRA factors read \[bytes\], over all steps.
    pub lora_bytes: f64,
    /// Keys and values written \[bytes\].
    pub kv_bytes: f64,
}

impl Slice {
    fn plus(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            dynamic_j: self.dynamic_j + other.dynamic_j,
            lora_bytes: self.lora_bytes + other.lora_bytes,
            kv_bytes: self.kv_bytes + other.kv_bytes,
        }
    }
}

fn add(sums: &mut [Slice; 2], costs: &[Costs; 2], profile: &Profile) {
    for (sum, costs) in sums.iter_mut().zip(costs) {
        for (cost, &n) in costs {
            *sum = sum.plus(slice(cost, n as f64, &profile.roofline, profile));
        }
    }
}

fn slice(cost: &OpCost, n: f64, roofline: &Roofline, profile: &Profile) -> Slice {
    Slice {
        seconds: n * roofline.seconds(cost),
        dynamic_j: n * profile.coefficients.energy(cost, 0.0, 0.0).dynamic_j(),
        lora_bytes: n * cost.lora_bytes as f64,
        kv_bytes: n * cost.kv_write_bytes as f64,
    }
}

/// A [`Workload`] on one device.
#[derive(Clone, Debug)]
pub struct Priced {
    base: [Slice; 2],
    outside: [Slice; 2],
    /// Per layer `[off, on]`.
    layers: Vec<[[Slice; 2]; 2]>,
    weight_bytes: u64,
}

impl Priced {
    /// Layers of the model.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Prompt and decode with LoRA in these layers.
    pub fn phases(&self, layers: u128) -> [Slice; 2] {
        if layers & all_layers(self.layers.len()) == 0 {
            return self.base;
        }
        let mut sums = self.outside;
        for (index, states) in self.layers.iter().enumerate() {
            let slices = &states[(layers >> index & 1) as usize];
            sums = [sums[0].plus(slices[0]), sums[1].plus(slices[1])];
        }
        sums
    }

    /// Memory that the inference holds \[bytes\]: weights, keys and values of all positions, LoRA factors.
    pub fn memory_bytes(&self, inference: &Inference, layers: u128) -> f64 {
        let [prompt, decode] = self.phases(layers);
        let per_step = match inference.new.saturating_sub(1) {
            0 => prompt.lora_bytes,
            steps => decode.lora_bytes / f64::from(steps),
        };
        self.weight_bytes as f64 + prompt.kv_bytes + decode.kv_bytes + per_step
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::RowShape;

    /// Two layers of one op each, between an embedding and a head; LoRA adds 10 bytes and 20 operations per row.
    pub(crate) struct Toy {
        pub lora: bool,
    }

    impl CostSource for Toy {
        fn op_names(&self) -> Vec<&str> {
            vec!["embed", "layers.0.mix", "layers.1.mix", "head"]
        }

        fn cost(&self, index: usize, shape: &StepShape) -> OpCost {
            let rows = shape.rows.len() as u64;
            let on = |row: &&RowShape| self.lora && row.lora >> (index - 1) & 1 == 1;
            match index {
                0 => OpCost { weight_bytes: rows, launches: 1, ..OpCost::default() },
                1 | 2 => {
                    let active = shape.rows.iter().filter(on).count() as u64;
                    let depth: u64 = shape.rows.iter().map(|row| u64::from(row.position) + 1).sum();
                    OpCost {
                        weight_bytes: 1000,
                        lora_bytes: if active > 0 { 10 } else { 0 },
                        kv_read_bytes: depth,
                        kv_write_bytes: rows,
                        flops: 2000 * rows + 20 * active,
                        lora_flops: 20 * active,
                        launches: 1 + u64::from(self.lora),
                        ..OpCost::default()
                    }
                }
                _ => OpCost {
                    weight_bytes: 500,
                    flops: 1000 * shape.sampled() as u64,
                    launches: 1,
                    ..OpCost::default()
                },
            }
        }
    }

    pub(crate) fn workload(prompt: u32, new: u32) -> Workload {
        let inference = Inference { prompt, new, rank: 8, lora_on_prompt: true };
        Workload::new(&Toy { lora: false }, &Toy { lora: true }, 2, 2500, inference)
    }

    fn total(workload: &Workload, layers: u128) -> OpCost {
        [Phase::Prompt, Phase::Decode]
            .into_iter()
            .flat_map(|phase| workload.ops(layers, phase))
            .map(|(_, c)| c)
            .sum()
    }

    #[test]
    fn an_inference_by_hand() {
        // Prompt of 3, then 2 decode steps at positions 3 and 4.
        let workload = workload(3, 3);
        let base = total(&workload, 0);
        assert_eq!(base.weight_bytes, 3 + 2 * 1000 + 500 + 2 * (1 + 2 * 1000 + 500));
        assert_eq!(base.kv_read_bytes, 2 * (1 + 2 + 3) + 2 * 4 + 2 * 5);
        assert_eq!(base.launches, 3 * 4);
        let one = total(&workload, 0b10);
        assert_eq!(one.lora_bytes, 3 * 10);
        assert_eq!(one.flops - base.flops, 20 * 5);
        assert_eq!(one.launches - base.launches, 3 * 2, "the plan with LoRA launches more");
    }

    #[test]
    fn a_set_of_layers_costs_the_sum_of_its_layers() {
        let (workload, profile) = (workload(300, 4), Profile::named("tablet").unwrap());
        let priced = workload.price(&profile);
        for layers in 0..4u128 {
            let mut expected = [0.0; 2];
            for (phase, sum) in [Phase::Prompt, Phase::Decode].into_iter().zip(&mut expected) {
                *sum = workload
                    .ops(layers, phase)
                    .map(|(_, c)| profile.coefficients.energy(&c, 0.0, 0.0).dynamic_j())
                    .sum();
            }
            for (slice, expected) in priced.phases(layers).iter().zip(expected) {
                assert!(
                    (slice.dynamic_j - expected).abs() < 1e-9 * expected,
                    "{layers}: {slice:?} {expected}"
                );
            }
        }
        // Weights, one byte per position and layer, and the factors of both layers.
        assert_eq!(priced.memory_bytes(&workload.inference, 0b11), 2500.0 + 2.0 * 303.0 + 20.0);
    }

    #[test]
    fn a_prompt_without_lora_costs_what_the_base_reads() {
        let inference = Inference { prompt: 4, new: 2, rank: 8, lora_on_prompt: false };
        let workload = Workload::new(&Toy { lora: false }, &Toy { lora: true }, 2, 0, inference);
        let lora = |phase| workload.ops(0b11, phase).map(|(_, cost)| cost.lora_bytes).sum::<u64>();
        assert_eq!((lora(Phase::Prompt), lora(Phase::Decode)), (0, 20));
    }
}

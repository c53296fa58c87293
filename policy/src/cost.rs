//! What an op costs, as numbers that a plan knows before anything runs.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Mul, Range};

/// One row (token) of a step, as far as its cost depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowShape {
    /// The row's token; only which rows share a token matters (an embedding row is read once).
    pub token: u32,
    /// The row's sequence.
    pub sequence: u32,
    /// Position in the sequence, from 0: the row attends to `position + 1` positions.
    pub position: u32,
    /// Whether the row's logits are wanted.
    pub sampled: bool,
    /// Adapter slot, or `None`.
    pub slot: Option<u32>,
    /// One bit per layer: is LoRA applied there? Bit 127 stands for projections outside the layers.
    pub lora: u128,
}

/// What a sequence has in common with another: the same memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The other sequence.
    pub of: u32,
    /// How many of its first positions. What the other has of these in common with a third is that one's.
    pub positions: u32,
}

/// The rows of a step, and the adapters that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// The rows, in the order in which they run.
    pub rows: Vec<RowShape>,
    /// Rank of every adapter slot's factors, used for each LoRA site where the source knows no better.
    pub ranks: Vec<u32>,
    /// By sequence, the keys and values that it shares; they are read once.
    pub prefixes: BTreeMap<u32, Prefix>,
}

impl StepShape {
    /// One decode step: `paths` sequences, each at position `depth`, all sampled, without LoRA.
    pub fn decode(paths: u32, depth: u32) -> Self {
        let row =
            |i| RowShape { token: i, sequence: i, position: depth, sampled: true, ..RowShape::default() };
        Self { rows: (0..paths).map(row).collect(), ..Self::default() }
    }

    /// A prompt of `tokens` rows from position `depth` on, the last one sampled, without LoRA.
    pub fn prefill(tokens: u32, depth: u32) -> Self {
        let row =
            |i| RowShape { token: i, position: depth + i, sampled: i + 1 == tokens, ..RowShape::default() };
        Self { rows: (0..tokens).map(row).collect(), ..Self::default() }
    }

    /// The same step with every row on adapter slot 0 of this rank, in every layer.
    pub fn with_adapter(mut self, rank: u32) -> Self {
        self.ranks = vec![rank];
        for row in &mut self.rows {
            (row.slot, row.lora) = (Some(0), u128::MAX);
        }
        self
    }

    /// The same step, all sequences having their first `positions` in common with sequence 0.
    pub fn with_shared_prefix(mut self, positions: u32) -> Self {
        let prefix = Prefix { of: 0, positions };
        self.prefixes = self.rows.iter().map(|row| (row.sequence, prefix)).collect();
        self
    }

    /// Whose memory holds these positions of a sequence: its own, or that of whom it shares them with; the last ones first.
    pub fn held(&self, sequence: u32, positions: Range<u32>) -> Vec<(u32, Range<u32>)> {
        let (mut held, mut holder, mut positions) = (Vec::new(), sequence, positions);
        // No chain is longer than there are links, unless it is a ring.
        for _ in 0..self.prefixes.len() {
            let prefix = self.prefixes.get(&holder).filter(|prefix| prefix.of != holder);
            let Some(prefix) = prefix.filter(|prefix| positions.start < prefix.positions) else { break };
            if prefix.positions < positions.end {
                held.push((holder, prefix.positions..positions.end));
                positions.end = prefix.positions;
            }
            holder = prefix.of;
        }
        held.push((holder, positions));
        held
    }

    /// How many rows have their logits computed.
    pub fn sampled(&self) -> usize {
        self.rows.iter().filter(|row| row.sampled).count()
    }
}

/// Bytes, arithmetic and launches of one op in one step.
///
/// DRAM bytes count every distinct element once (the least that any implementation must move); on-chip bytes
/// count every access of the plain twin. `tests/` compares both with counting views of the twins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpCost {
    /// Base weights, biases, norm weights and tables read \[bytes\].
    pub weight_bytes: u64,
    /// LoRA factors read \[bytes\].
    pub lora_bytes: u64,
    /// KV cache read \[bytes\].
    pub kv_read_bytes: u64,
    /// KV cache written \[bytes\].
    pub kv_write_bytes: u64,
    /// Activations read \[bytes\].
    pub activation_read_bytes: u64,
    /// Activations written \[bytes\].
    pub activation_write_bytes: u64,
    /// Bytes of every operand access of the plain twin, wherever it is served from \[bytes\].
    pub on_chip_bytes: u64,
    /// f32 arithmetic: a multiply and an add are two.
    pub flops: u64,
    /// Of `flops`, those that only LoRA causes.
    pub lora_flops: u64,
    /// Kernel launches.
    pub launches: u64,
}

impl OpCost {
    /// All DRAM bytes, read and written.
    pub fn dram_bytes(&self) -> u64 {
        self.weight_bytes
            + self.lora_bytes
            + self.kv_read_bytes
            + self.kv_write_bytes
            + self.activation_read_bytes
            + self.activation_write_bytes
    }
}

impl Add for OpCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            lora_bytes: self.lora_bytes + other.lora_bytes,
            kv_read_bytes: self.kv_read_bytes + other.kv_read_bytes,
            kv_write_bytes: self.kv_write_bytes + other.kv_write_bytes,
            activation_read_bytes: self.activation_read_bytes + other.activation_read_bytes,
            activation_write_bytes: self.activation_write_bytes + other.activation_write_bytes,
            on_chip_bytes: self.on_chip_bytes + other.on_chip_bytes,
            flops: self.flops + other.flops,
            lora_flops: self.lora_flops + other.lora_flops,
            launches: self.launches + other.launches,
        }
    }
}

/// The cost of so many equal ones.
impl Mul<u64> for OpCost {
    type Output = Self;

    fn mul(self, n: u64) -> Self {
        Self {
            weight_bytes: self.weight_bytes * n,
            lora_bytes: self.lora_bytes * n,
            kv_read_bytes: self.kv_read_bytes * n,
            kv_write_bytes: self.kv_write_bytes * n,
            activation_read_bytes: self.activation_read_bytes * n,
            activation_write_bytes: self.activation_write_bytes * n,
            on_chip_bytes: self.on_chip_bytes * n,
            flops: self.flops * n,
            lora_flops: self.lora_flops * n,
            launches: self.launches * n,
        }
    }
}

impl AddAssign for OpCost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for OpCost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// Something whose parts have names and costs: the engine's plan, or a simulated one.
pub trait CostSource {
    /// The stable names of all ops, in the order in which they run.
    fn op_names(&self) -> Vec<&str>;

    /// The cost of op `index` in a step of this shape; zero for an index past the end.
    fn cost(&self, index: usize, shape: &StepShape) -> OpCost;

    /// The layer whose LoRA mask op `index` depends on; `None` where it depends on no layer's. An op may carry what the
    /// next layer needs, so that its name does not always tell.
    fn mask_layer(&self, index: usize) -> Option<u32> {
        self.op_names().get(index).and_then(|name| layer_of(name))
    }
}

/// The layer that an op of this name belongs to: names in layer 3 begin with `layers.3.`.
pub fn layer_of(op: &str) -> Option<u32> {
    op.strip_prefix("layers.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_held_by_the_last_of_a_chain_that_shares_them() {
        let links = [(1, 0, 64), (2, 1, 128), (3, 3, 9), (4, 5, 7), (5, 4, 7)];
        let prefixes = links.map(|(sequence, of, positions)| (sequence, Prefix { of, positions })).into();
        let shape = StepShape { prefixes, ..StepShape::default() };
        assert_eq!(shape.held(0, 0..200), [(0, 0..200)]);
        assert_eq!(shape.held(1, 0..65), [(1, 64..65), (0, 0..64)]);
        assert_eq!(shape.held(1, 0..64), [(0, 0..64)]);
        assert_eq!(shape.held(2, 0..200), [(2, 128..200), (1, 64..128), (0, 0..64)]);
        assert_eq!(shape.held(2, 100..120), [(1, 100..120)], "a window");
        assert_eq!(shape.held(3, 0..20), [(3, 0..20)]);
        // A ring ends somewhere.
        let ring = shape.held(4, 0..9);
        assert_eq!(ring[0], (4, 7..9));
        assert_eq!(ring[1].1, 0..7);
    }
}

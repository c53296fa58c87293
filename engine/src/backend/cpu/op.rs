//! What an op of a step works on, and its translation to the kernels' own types.

use std::collections::BTreeMap;

use wattle_kernels_cpu::State;
use wattle_kernels_cpu::activate::Function;
use wattle_kernels_cpu::attend;
use wattle_kernels_cpu::cache::{KvMut, Layout};
use wattle_kernels_cpu::fast::Precision;
use wattle_shaders::{Row, Sample};

use super::slot::Slot;
use crate::adapter::Place;
use crate::model::Activation;
use crate::plan::{Attend, FactorType, KvShape, OpKind, Site};

/// The operands of one op in one step.
pub(super) struct Io<'a> {
    /// The rows that the op works on: the step's, or those that are sampled.
    pub rows: &'a [Row],
    pub samples: &'a [Sample],
    pub inputs: Vec<&'a [f32]>,
    /// Width of the first input.
    pub width: usize,
    pub output: &'a mut [f32],
    /// Whether the op makes the t that it reads: the op before it did not run.
    pub makes_t: bool,
    /// The t that the op carries.
    pub carried: &'a mut [f32],
    /// K and V of the op's layer.
    pub cache: KvMut<'a>,
    /// Pages of a key head that attention reads: its keys and its values.
    pub pages_read: &'a mut u64,
    pub layout: Layout<'a>,
    /// Of a sequence, at most.
    pub positions: usize,
    pub states: &'a mut [State],
    pub slots: &'a BTreeMap<usize, Slot>,
    /// How the plan keeps what is in them.
    pub factors: FactorType,
    /// Pairs, and \[sets, context, pairs, 2\].
    pub angles: Option<(usize, &'a [f32])>,
    pub shape: KvShape,
    pub precision: Precision,
}

impl<'a> Io<'a> {
    /// What `of` finds in the slots that rows of the step name, for each target of a site.
    pub fn pairs<T>(&self, site: &Site, of: impl Fn(&'a Slot, &Place) -> Option<T>) -> Vec<Vec<Option<T>>> {
        let used = |slot| self.rows.iter().any(|row| row.slot as usize == slot && row.lora_in(site.layer));
        let used: Vec<bool> = (0..site.capacity.slots).map(used).collect();
        let pair = |slot: usize, place| of(self.slots.get(&slot)?, &place);
        let target = |target: &crate::plan::SiteTarget| {
            let place = Place { layer: site.layer, target: target.target };
            used.iter().enumerate().map(|(slot, &used)| used.then(|| pair(slot, place)).flatten()).collect()
        };
        site.targets.iter().map(target).collect()
    }

    pub fn attend(&self, attend: &Attend) -> attend::Attend {
        attend::Attend { heads: self.shape.heads, scale: attend.scale, window: attend.window }
    }
}

/// The layer whose cache an op uses; 0 for ops that use none.
pub(super) fn layer(kind: &OpKind) -> usize {
    match kind {
        OpKind::KvWrite { layer } => *layer as usize,
        OpKind::Attend(attend) => attend.layer as usize,
        OpKind::RopeKv(op) => op.layer as usize,
        _ => 0,
    }
}

pub(super) fn function(activation: Activation) -> Function {
    match activation {
        Activation::Gelu => Function::Gelu,
        Activation::GeluTanh => Function::GeluTanh,
        Activation::Relu => Function::Relu,
        Activation::Silu => Function::Silu,
    }
}

//! A model compiled to a flat list of ops. Any backend runs it; every op knows its cost.
//!
//! [`build`] emits the plain plan, one mathematical step per op; [`fuse`] rewrites it into the fast one.

mod accesses;
mod build;
mod carry;
mod cost;
mod fuse;
mod gate;
mod graph;
mod late;
mod lora;
mod op;
mod site;
mod table;

pub use build::build;
pub use carry::GATE_UP_PART;
pub use fuse::{FuseOptions, fuse};
pub use op::{Attend, Carry, Extent, GateUp, Norm, Op, OpKind, Project, RopeKv, Tensor, TensorId};
pub use site::{LoraCapacity, Site, SiteTarget};
pub use table::RopeTable;
pub use wattle_kernels_cpu::cache::KvType;
pub use wattle_shaders::FactorType;

/// The shape of the KV cache, the same in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that have a cache.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`: query head h reads key head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What elements are stored as.
    pub store: KvType,
}

impl KvShape {
    /// Bytes of one position's keys (or values).
    pub fn position_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Bytes of one position's keys (or values) of a head.
    pub fn head_bytes(&self) -> usize {
        self.head_dim * self.store.element_bytes() + self.store.scale_bytes()
    }

    /// Elements of one position's keys (or values).
    pub fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one row's queries.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// A model as a list of ops.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they run: an op reads only tensors of earlier ones.
    pub ops: Vec<Op>,
    /// What the ops write.
    pub tensors: Vec<Tensor>,
    /// The KV cache that the ops expect.
    pub kv: KvShape,
    /// How LoRA factors are kept.
    pub factors: FactorType,
    /// Angles for ops that rotate; `None` where positions are learned.
    pub rope: Option<RopeTable>,
    /// Rows of the embedding, width of the logits.
    pub vocab: usize,
}

impl Plan {
    /// The same plan, keys and values being stored as `store`.
    pub fn with_kv(mut self, store: KvType) -> Self {
        self.kv.store = store;
        self
    }

    /// The same plan, LoRA factors being kept as `factors`.
    pub fn with_factors(mut self, factors: FactorType) -> Self {
        self.factors = factors;
        self
    }

    /// The tensor that `id` names.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// The tensor of this name: the door for taps, imports and exports.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        let index = self.tensors.iter().position(|tensor| tensor.name == name)?;
        Some(TensorId(index as u32))
    }

    /// The index of the op of this name.
    pub fn find_op(&self, name: &str) -> Option<usize> {
        self.ops.iter().position(|op| op.name == name)
    }

    /// Tensors that ops of `range` read but do not write: what must be imported to run the range alone.
    pub fn live_in(&self, range: std::ops::Range<usize>) -> Vec<TensorId> {
        let ops = self.ops.get(range).unwrap_or_default();
        let written: Vec<_> = ops.iter().flat_map(Op::outputs).collect();
        let mut read: Vec<_> = ops.iter().flat_map(|op| op.inputs.iter().copied()).collect();
        read.sort();
        read.dedup();
        read.retain(|id| !written.contains(id));
        read
    }

    /// The widest tensor, in elements: with a device's binding limit it bounds the rows of a step.
    pub fn max_width(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.width).max().unwrap_or(0)
    }
}

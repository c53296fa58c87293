//! The ops of a plan: one mathematical step each (plain), or several that mean exactly their parts (fused).

use std::sync::Arc;

use wattle_kernels_cpu::ColumnOrder;

use super::Site;
use crate::gate::LayerGate;
use crate::model::{Activation, Matrix, NormKind, NormWeights, Vector};

/// Index of a [`Tensor`] in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);

/// How many rows a tensor has in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// One per row of the step.
    Rows,
    /// One per [`wattle_shaders::Sample`] of the step.
    Samples,
}

/// An activation: f32 \[rows, width\]. Written by exactly one op.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name of the op that writes it; in a fused plan, of the last plain op that the fused one stands for.
    /// Tensors of the same name mean the same in the plain and in the fused plan; but in that of a CPU those of the last
    /// layer behind its attention have the extent of samples (see [`super::FuseOptions::early_select`]).
    pub name: String,
    /// Rows in a step.
    pub extent: Extent,
    /// Elements of a row.
    pub width: usize,
}

/// One entry of a plan.
#[derive(Clone, Debug)]
pub struct Op {
    /// Stable and unique in the plan: `layers.3.q`, `head`, …
    pub name: String,
    /// What it computes.
    pub kind: OpKind,
    /// The tensors it reads, in the order that its kind documents.
    pub inputs: Vec<TensorId>,
    /// The tensor it writes; `None` for [`OpKind::KvWrite`] and [`OpKind::Sample`].
    pub output: Option<TensorId>,
    /// A x of LoRA that the same launch writes.
    pub carry: Option<Carry>,
}

impl Op {
    /// The tensors it writes.
    pub fn outputs(&self) -> impl Iterator<Item = TensorId> {
        self.output.into_iter().chain(self.carry.as_ref().map(|carry| carry.t))
    }

    /// The LoRA sites that it has factors of: B of its own outputs, A of what it carries.
    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        let own = match &self.kind {
            OpKind::LoraDown { site } | OpKind::LoraEmbed { site } | OpKind::LoraUp { site } => Some(site),
            OpKind::Project(project) => project.lora.as_ref(),
            OpKind::GateUp(gate_up) => gate_up.lora.as_ref(),
            OpKind::RopeKv(rope_kv) => rope_kv.lora.as_ref(),
            _ => None,
        };
        own.into_iter().chain(self.carry.as_ref().map(|carry| &carry.site))
    }

    /// As [`Self::sites`], to be changed.
    pub(super) fn sites_mut(&mut self) -> impl Iterator<Item = &mut Arc<Site>> {
        let own = match &mut self.kind {
            OpKind::LoraDown { site } | OpKind::LoraEmbed { site } | OpKind::LoraUp { site } => Some(site),
            OpKind::Project(project) => project.lora.as_mut(),
            OpKind::GateUp(gate_up) => gate_up.lora.as_mut(),
            OpKind::RopeKv(rope_kv) => rope_kv.lora.as_mut(),
            _ => None,
        };
        own.into_iter().chain(self.carry.as_mut().map(|carry| &mut carry.site))
    }
}

/// t = A v that a launch writes beside its output, so that no launch exists for it alone. v is the op's output; of a
/// projection with a norm, its normed input. Elements of rows without LoRA are left alone.
#[derive(Clone, Debug)]
pub struct Carry {
    /// The site whose A it is; its `cols` are the width of v.
    pub site: Arc<Site>,
    /// The tensor: \[rows, partials, targets × R\].
    pub t: TensorId,
}

/// What an op computes. x, y, … are its inputs in order; a row is a row of the step unless its extent says otherwise.
#[derive(Clone, Debug)]
pub enum OpKind {
    /// () → table\[token of the row\].
    Embed {
        /// \[vocab, width\].
        table: Arc<Matrix>,
    },
    /// x → x + table\[position + offset\].
    AddPosition {
        /// \[positions, width\].
        table: Arc<Matrix>,
        /// Rows skipped at the start of the table.
        offset: u32,
    },
    /// x → norm of each of the `groups` equal parts of a row.
    Norm(Norm),
    /// x, \[t if `lora`\], \[r if `residual`\] → activation(W x + b + B t) + r, with norm(x) for x if there is a norm.
    Project(Project),
    /// x → t = A x, for rows whose slot has factors and whose mask bit is on; other elements of t are left alone.
    LoraDown {
        /// Where and how much.
        site: Arc<Site>,
    },
    /// () → t = the column of A at the row's token, for active rows: LoRA on the embedding.
    LoraEmbed {
        /// Where and how much; `cols` is the vocabulary.
        site: Arc<Site>,
    },
    /// y, t → y + B t for active rows, y for others.
    LoraUp {
        /// Where and how much.
        site: Arc<Site>,
    },
    /// x → x rotated by the row's position; heads of `head_dim`, of which the first `rotary_dim` are rotated.
    Rope {
        /// Heads in a row of x.
        heads: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// k, v → (): written to the layer's cache at the row's sequence and position.
    KvWrite {
        /// Which cache.
        layer: u32,
    },
    /// q → softmax(scale · q Kᵀ) V over the positions that the row may see; K, V from the layer's cache.
    Attend(Attend),
    /// x → f(x), or gate, up → f(gate) · up.
    Activate {
        /// f.
        function: Activation,
        /// Whether there are two inputs.
        gated: bool,
    },
    /// x, y → x + y.
    Add,
    /// x \[rows\] → x of the sampled rows \[samples\].
    Select,
    /// logits \[samples\] → (): draws a token per sample into the sequence's state and the step's result.
    Sample,
    /// qkv, \[t if `lora`\] → q: B t is added, per-head norms of q and k, rotation of q and k, K and V to the cache.
    RopeKv(RopeKv),
    /// x, \[t if `lora`\] → f(G x + b_g + B_g t) · (U x + b_u + B_u t).
    GateUp(GateUp),
    /// x → score \[1\]; where it is not above the threshold, LoRA is off in the layer for the rest of the step, for rows
    /// that are gated ([`wattle_shaders::GATED`]).
    Gate(Arc<LayerGate>),
}

/// [`OpKind::Norm`].
#[derive(Clone, Debug)]
pub struct Norm {
    /// Layer or RMS.
    pub kind: NormKind,
    /// \[width / groups\] each.
    pub weights: NormWeights,
    /// Added to the variance.
    pub eps: f32,
    /// Parts of a row that are normalized apart (heads, for q/k norms; else 1).
    pub groups: usize,
}

/// [`OpKind::Project`].
#[derive(Clone, Debug)]
pub struct Project {
    /// RMS norm of the whole row, applied to x first.
    pub norm: Option<Norm>,
    /// W: \[outputs, inputs\].
    pub weight: Arc<Matrix>,
    /// b: \[outputs\].
    pub bias: Option<Arc<Vector>>,
    /// Adds B t.
    pub lora: Option<Arc<Site>>,
    /// Applied to the sum.
    pub activation: Option<Activation>,
    /// Adds the last input at the end.
    pub residual: bool,
}

/// [`OpKind::Attend`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Which cache.
    pub layer: u32,
    /// Multiplies q·k.
    pub scale: f32,
    /// Only the last so many positions, the own one included.
    pub window: Option<u32>,
}

/// [`OpKind::RopeKv`].
#[derive(Clone, Debug)]
pub struct RopeKv {
    /// Which cache.
    pub layer: u32,
    /// Norm of every q head.
    pub q_norm: Option<NormWeights>,
    /// Norm of every k head.
    pub k_norm: Option<NormWeights>,
    /// Added to the variance (RMS).
    pub eps: f32,
    /// Whether q and k are rotated.
    pub rotate: bool,
    /// Targets q, k and v, as they lie in qkv.
    pub lora: Option<Arc<Site>>,
}

/// [`OpKind::GateUp`].
#[derive(Clone, Debug)]
pub struct GateUp {
    /// G: \[ffn, width\].
    pub gate: Arc<Matrix>,
    /// b_g.
    pub gate_bias: Option<Arc<Vector>>,
    /// U: \[ffn, width\].
    pub up: Arc<Matrix>,
    /// b_u.
    pub up_bias: Option<Arc<Vector>>,
    /// f.
    pub function: Activation,
    /// Targets gate (outputs from 0) and up (outputs from ffn, as if the two were stacked).
    pub lora: Option<Arc<Site>>,
}

impl OpKind {
    /// The order of the columns of the op's matrices, where it is not that of its inputs. All of them have the same.
    pub fn order(&self) -> Option<&ColumnOrder> {
        match self {
            Self::Project(project) => project.weight.order.as_deref(),
            Self::GateUp(gate_up) => gate_up.gate.order.as_deref(),
            _ => None,
        }
    }

    /// The name of the kernel that runs the op, as [`wattle_shaders::for_each_kernel`] lists it.
    pub fn kernel(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::AddPosition { .. } => "add_position",
            Self::Norm(_) => "norm",
            Self::Project(_) => "project",
            Self::LoraDown { .. } => "lora_down",
            Self::LoraEmbed { .. } => "lora_embed",
            Self::LoraUp { .. } => "lora_up",
            Self::Rope { .. } => "rope",
            Self::KvWrite { .. } => "kv_write",
            Self::Attend(_) => "attend",
            Self::Activate { .. } => "activate",
            Self::Add => "add",
            Self::Select => "select",
            Self::Sample => "sample",
            Self::RopeKv(_) => "rope_kv",
            Self::GateUp(_) => "gate_up",
            Self::Gate(_) => "gate",
        }
    }
}

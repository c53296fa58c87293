//! LoRA factors of one adapter slot, in the form that plans and backends use.

use std::collections::BTreeMap;

/// A projection that can carry LoRA, by its role, whatever the family calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Query projection (also the q rows of c_attn and qkv_proj).
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention's output projection.
    O,
    /// Gate of a gated MLP.
    Gate,
    /// Up projection, c_fc, fc1.
    Up,
    /// Down projection, the MLP's c_proj, fc2.
    Down,
    /// OPT-350M's projection from the embedding's width.
    ProjectIn,
    /// OPT-350M's projection to the embedding's width.
    ProjectOut,
    /// The head.
    Head,
    /// The token embedding: A's columns belong to tokens.
    Embed,
}

/// Where factors apply: a target in a layer (or, with layer [`wattle_shaders::OUTSIDE_LAYERS`], outside them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The layer, or [`wattle_shaders::OUTSIDE_LAYERS`].
    pub layer: u32,
    /// The projection.
    pub target: Target,
}

/// y += B (A x): the scale is already in B.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Inputs.
    pub cols: usize,
    /// Outputs.
    pub rows: usize,
    /// \[rank, cols\], row-major.
    pub a: Vec<f32>,
    /// \[rows, rank\], row-major, multiplied by the adapter's scale.
    pub b: Vec<f32>,
}

/// The factors of one slot: one adapter, or several joined (A stacked, scaled B side by side).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// Only places that have factors are listed. q, k and v of a fused c_attn or qkv_proj each have a copy of A.
    pub pairs: BTreeMap<Place, Pair>,
}

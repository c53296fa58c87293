//! The uniform parameters of every kernel, field for field as `struct Params` in its file documents them.

use bytemuck::{Pod, Zeroable};

/// Declares parameter structs: `repr(C)`, plain data, all fields public.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        #[allow(missing_docs, reason = "the kernel's file documents the fields")]
        pub struct $name { $(pub $field: $type),+ }
    )+};
}

params! {
    /// `shared/panels.wgsl`; zeros for dense weights.
    Panels {
        blocks: u32, group_k4: u32, groups: u32, scales: u32, offsets: u32, scale_type: u32, offset_type: u32,
        _pad: u32,
    }
    /// `embed.wgsl`.
    Embed { panels: Panels, k4: u32, first: u32, rows: u32, state_stride: u32 }
    /// `add_position.wgsl`.
    AddPosition { k4: u32, first: u32, rows: u32, offset: u32 }
    /// `norm.wgsl`.
    Norm { width: u32, groups: u32, stride: u32, extent: u32, eps: f32 }
    /// `project.wgsl`.
    Project {
        panels: Panels, k4: u32, used: u32, rows: u32, first: u32, stride: u32, extent: u32, function: u32, biased: u32,
        residual: u32,
    }
    /// `project__normed.wgsl`.
    ProjectNormed {
        panels: Panels, k4: u32, used: u32, rows: u32, first: u32, stride: u32, extent: u32, biased: u32, width: u32,
        carried: u32, eps: f32,
    }
    /// `project__ordered.wgsl`.
    ProjectOrdered { width: u32, stride: u32, extent: u32 }
    /// `gate_up.wgsl`.
    GateUp {
        panels: Panels, k4: u32, used: u32, rows: u32, first: u32, outputs: u32, stride: u32, extent: u32, function: u32,
        biased: u32,
    }
    /// `gate.wgsl`.
    Gate { width: u32, stride: u32, layer: u32, hidden: u32, threshold: f32 }
    /// `lora_down.wgsl`.
    LoraDown { k4: u32, used: u32, extent: u32 }
    /// `lora_embed.wgsl`.
    LoraEmbed { stride: u32, state_stride: u32 }
    /// `lora_up.wgsl`.
    LoraUp { width: u32, stride: u32, extent: u32, further: u32 }
    /// `rope.wgsl`.
    Rope { heads: u32, head_dim: u32, stride: u32, pairs: u32, positions: u32 }
    /// `shared/cache.wgsl`.
    Cache { kv_heads: u32, head_dim: u32, first: u32, heads: u32, tables: u32, stride: u32, _pad: [u32; 2] }
    /// `kv_write.wgsl`.
    KvWrite { cache: Cache, stride: u32 }
    /// `rope_kv.wgsl`.
    RopeKv {
        cache: Cache, heads: u32, stride: u32, q_stride: u32, pairs: u32, positions: u32, q_norm: u32,
        k_norm: u32, eps: f32,
    }
    /// `attend.wgsl`.
    Attend { cache: Cache, heads: u32, stride: u32, window: u32, scale: f32 }
    /// `attend__split.wgsl`.
    AttendSplit { attend: Attend, blocks: u32 }
    /// `activate.wgsl`.
    Activate { k4: u32, extent: u32, function: u32, gated: u32 }
    /// `add.wgsl`.
    Add { k4: u32, extent: u32 }
    /// `select.wgsl`.
    Select { k4: u32 }
    /// `shared/draw.wgsl`.
    Sample { vocab: u32, stride: u32, state_stride: u32 }
    /// `shared/lora.wgsl`: a projection of a site.
    Part { start: u32, rows: u32, offset: u32, _pad: u32 }
    /// `shared/lora.wgsl`.
    Site {
        layer: u32, slots: u32, rank: u32, parts: u32, head: u32, first: u32, count: u32, partials: u32,
        part: [Part; 4],
    }
}

/// Words before the first row of the step buffer: rows, samples, how many rows are of class generated (they come first),
/// the items of attention, the rows that these are of, and padding.
pub const STEP_HEADER: usize = 8;

/// Positions of a chunk of attention: `CHUNK` in `chunks.wgsl`.
pub const CHUNK: usize = 128;

/// `functions.wgsl`: the codes of the activations.
pub mod function {
    /// The identity.
    pub const NONE: u32 = 0;
    /// x/2 · (1 + erf(x/√2)).
    pub const GELU: u32 = 1;
    /// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))).
    pub const GELU_TANH: u32 = 2;
    /// max(x, 0).
    pub const RELU: u32 = 3;
    /// x · sigmoid(x).
    pub const SILU: u32 = 4;
}

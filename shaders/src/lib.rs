//! WGSL sources, the structs they share with the host, and the one list of kernels.
//!
//! A kernel is one name: `wgsl/NAME.wgsl` here, its plain twin `wattle-kernels-cpu/src/NAME.rs`, its cases
//! `tests/kernels/NAME.rs`, its bench `benches/kernels/NAME.rs`. [`for_each_kernel!`] lists the names; every
//! place that has a file per kernel expands it, so that a missing file does not compile.

pub mod ceilings;
mod kernel;
pub mod params;
mod step;

pub use kernel::{FactorType, KERNELS, Kernel, WeightType};
pub use step::{
    FROM_STATE, GATED, GENERATED, LONG_ROPE, LayerMask, MAX_LAYERS, NO_INDEX, OUTSIDE_LAYERS, PAGE, Row,
    Sample, Sampled,
};

/// Calls `$with!` once with the names of all kernels, separated by commas.
#[macro_export]
macro_rules! for_each_kernel {
    ($with:path) => {
        $with! {
            embed, add_position, norm, project, lora_down, lora_embed, lora_up, rope, kv_write, attend,
            activate, add, select, sample, rope_kv, gate_up, gate
        }
    };
}

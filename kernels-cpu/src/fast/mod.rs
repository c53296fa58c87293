//! Fast versions of the kernels: f32, SIMD chosen at run time, threads of the current rayon pool.
//!
//! A row's result depends on nothing but the row (DESIGN idea 6): sums run over 16 lanes that are reduced in a fixed
//! tree, whatever the instruction set's vectors, the number of rows and the number of threads; tiles, blocks and
//! threads divide outputs, never sums. Instruction sets with and without fused multiply-add differ in last bits, but
//! one process uses only one.

mod attend;
mod gate;
mod inputs;
mod lora;
mod lora_up;
mod math;
mod meanwhile;
mod panel;
pub mod peak;
mod project;
mod rows;
mod sample;
mod simd;
mod threads;
mod tile;

pub use attend::attend;
pub use gate::gate;
pub use inputs::Precision;
pub use lora::{Carried, Factor, Factors, lora_down, lora_embed};
pub use lora_up::lora_up;
pub use project::{GateUp, Project, gate_up, project};
pub use rows::{RopeKv, activate, add, add_position, embed, kv_write, norm, rope, rope_kv, select};
pub use sample::sample;
pub use simd::instruction_set;
pub use threads::help_until;

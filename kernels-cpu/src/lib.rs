//! Kernels on the CPU: for every name of the kernel list a plain twin, short and dumb, which is the reference that
//! shaders and the fast versions are tested against.
//!
//! A twin sums in f64, reads its operands through [`Read`] and writes through [`Write`], so that it also runs over
//! counting views ([`Tally`]), which count the bytes it touches. It reads every element of an activation row that it
//! needs more than once into a local array first; matrices and caches are read once per use.

pub mod cache;
mod count;
pub mod distribution;
pub mod fast;
mod halves;
mod lora;
mod order;
pub mod panels;
pub mod philox;
mod state;
mod views;

pub mod activate;
pub mod add;
pub mod add_position;
pub mod attend;
pub mod embed;
pub mod gate;
pub mod gate_up;
pub mod kv_write;
pub mod lora_down;
pub mod lora_embed;
pub mod lora_up;
pub mod norm;
pub mod project;
pub mod rope;
pub mod rope_kv;
pub mod sample;
pub mod select;

pub use count::{Class, Counts, Size, Tally, View};
pub use halves::halves;
pub use lora::{Carry, Lora, Pair, Target};
pub use order::ColumnOrder;
pub use state::State;
pub use views::{Read, Stored, Weight, Write};

/// Refers to the twin of every kernel in the list: a missing one does not compile.
macro_rules! twins {
    ($($name:ident),*) => { const _: () = { $(let _ = $name::plain;)* }; };
}
wattle_shaders::for_each_kernel!(twins);

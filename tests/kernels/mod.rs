//! The cases of every kernel: shared by tests, benches and `wattle kernels check`.
//!
//! A [`Case`] is a small plan with everything it reads. [`Case::check`] runs it on the plain twins and on the backend
//! under test and compares; [`Case::check_exact`] checks what must hold bit for bit on any backend.

mod case;
mod compare;
mod exact;
mod fixture;
mod kept;

mod activate;
mod add;
mod add_position;
mod attend;
mod embed;
mod gate;
mod gate_up;
mod kv_write;
mod lora_down;
mod lora_embed;
mod lora_up;
mod norm;
mod project;
mod rope;
mod rope_kv;
mod rounded;
mod sample;
mod select;

pub use case::{Act, Case, Make};
pub use compare::{Checked, Failure};
pub use kept::kept;
pub use rounded::{Rounded, products, rounded};

/// Makes [`kernels`] from the kernel list: a kernel without cases does not compile.
macro_rules! kernels {
    ($($name:ident),*) => {
        /// Every kernel's name and what makes its cases, in the order of the list.
        pub fn kernels() -> Vec<(&'static str, fn() -> Vec<Case>)> {
            vec![$((stringify!($name), || kept::in_both_types($name::cases()))),*]
        }
    };
}
wattle_shaders::for_each_kernel!(kernels);

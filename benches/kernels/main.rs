//! One Criterion group per kernel: `cargo bench -p wattle-benches --bench kernels -- project`.
#![allow(missing_docs, reason = "each file is one function, and the kernel list documents the names")]

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
mod sample;
mod select;

use criterion::Criterion;

/// Refers to the bench of every kernel in the list: a missing one does not compile.
macro_rules! run {
    ($($name:ident),*) => {
        fn main() {
            let mut criterion = Criterion::default().configure_from_args();
            $($name::bench(&mut criterion);)*
            criterion.final_summary();
            assert!(wattle_benches::finish().is_ok(), "the record cannot be written");
        }
    };
}
wattle_shaders::for_each_kernel!(run);

//! One column of A per row.

use criterion::Criterion;
use wattle_benches::{EIGHT, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "lora_embed", &[EIGHT, PREFILL]);
}

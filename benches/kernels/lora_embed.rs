//! One column of A per row.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "lora_embed", &[Case::decode(DENSE).rank(16), Case::decode(DENSE).rank(16).rows(128)]);
}

//! A pass over the logits.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, GATED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "sample", &[Case::decode(DENSE), Case::decode(GATED), Case::decode(GATED).rows(8)]);
}

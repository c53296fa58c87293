//! A table row per position.

use criterion::Criterion;
use wattle_benches::{Case, GATED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "rope", &[Case::decode(GATED), Case::decode(GATED).rows(128)]);
}

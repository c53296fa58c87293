//! Two passes over a row that fits the cache.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, GATED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(
        c,
        "norm",
        &[
            Case::decode(DENSE),
            Case::decode(DENSE).rows(128),
            Case::decode(GATED),
            Case::decode(GATED).rows(128),
        ],
    );
}

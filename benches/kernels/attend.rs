//! The cache is read once per sequence, and what sequences share once for all: short and long ones, and a prompt.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, GATED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(
        c,
        "attend",
        &[
            Case::decode(GATED),
            Case::decode(GATED).depth(1000),
            Case::decode(DENSE).depth(1000),
            Case::decode(GATED).depth(1000).rows(8),
            Case::decode(GATED).depth(2048).rows(8),
            Case::decode(GATED).depth(2048).rows(8).shared(),
            Case::decode(GATED).rows(512),
        ],
    );
}

//! Rows of a table: bound by latency.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, QUANTIZED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "embed", &[Case::decode(DENSE), Case::decode(DENSE).rows(128), QUANTIZED]);
}

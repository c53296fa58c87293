//! Rows of a table: bound by latency.

use criterion::Criterion;
use wattle_benches::{DECODE, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "embed", &[DECODE, PREFILL]);
}

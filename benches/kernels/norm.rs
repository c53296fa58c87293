//! Two passes over a row that fits the cache.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "norm", &[DECODE, EIGHT, PREFILL]);
}

//! A copy into the cache.

use criterion::Criterion;
use wattle_benches::{DECODE, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "kv_write", &[DECODE, PREFILL]);
}

//! Rotation and a copy into the cache.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "rope_kv", &[DECODE, EIGHT, PREFILL]);
}

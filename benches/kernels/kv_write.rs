//! A copy into the cache.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "kv_write", &[Case::decode(DENSE), Case::decode(DENSE).rows(128)]);
}

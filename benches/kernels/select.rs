//! A copy of rows.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "select", &[Case::decode(DENSE), Case::decode(DENSE).rows(8)]);
}

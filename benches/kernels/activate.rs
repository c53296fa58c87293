//! One function per element.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "activate", &[Case::decode(DENSE), Case::decode(DENSE).rows(128)]);
}

//! The matrix is read once for up to eight rows.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "project", &[DECODE, EIGHT, PREFILL]);
}

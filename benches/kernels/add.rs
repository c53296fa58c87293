//! Two reads and a write per element.

use criterion::Criterion;
use wattle_benches::{DECODE, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "add", &[DECODE, PREFILL]);
}

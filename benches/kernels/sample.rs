//! A pass over the logits.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "sample", &[DECODE, EIGHT]);
}

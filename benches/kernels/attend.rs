//! The cache is read once per sequence: short and long ones, and a prompt.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, PREFILL, Rows, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "attend", &[DECODE, Rows { rows: 1, depth: 1000 }, EIGHT, PREFILL]);
}

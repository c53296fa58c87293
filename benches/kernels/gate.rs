//! One pass over a row and a small MLP.

use criterion::Criterion;
use wattle_benches::{Case, GATED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    let case = Case::decode(GATED).rank(16);
    bench_kernel(c, "gate", &[case, case.rows(8), case.rows(128)]);
}

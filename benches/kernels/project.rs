//! The matrix is read once for up to eight rows.

use criterion::Criterion;
use wattle_benches::{Case, DENSE, GATED, QUANTIZED, bench_kernel};
use wattle_engine::model::Quant;

pub fn bench(c: &mut Criterion) {
    let dense = [Case::decode(DENSE), Case::decode(GATED)];
    let quantized = Quant::ALL.map(|quant| QUANTIZED.quant(quant));
    let mut cases: Vec<Case> = dense.into_iter().chain(quantized).flat_map(Case::columns).collect();
    for rank in [8, 16, 64] {
        cases.extend([QUANTIZED.rank(rank), QUANTIZED.rank(rank).rows(8)]);
    }
    cases.extend([QUANTIZED.rank(16).masked(), QUANTIZED.rank(16).rows(128)]);
    bench_kernel(c, "project", &cases);
}

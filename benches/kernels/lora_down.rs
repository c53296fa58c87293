//! A is read once per slot.

use criterion::Criterion;
use wattle_benches::{QUANTIZED, bench_kernel};

pub fn bench(c: &mut Criterion) {
    let ranks = [8, 16, 64].map(|rank| QUANTIZED.rank(rank));
    let cases = ranks.map(|case| [case, case.rows(8), case.rows(128)]);
    bench_kernel(c, "lora_down", cases.as_flattened());
}

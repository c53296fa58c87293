//! B is read once per slot.

use criterion::Criterion;
use wattle_benches::{DECODE, EIGHT, PREFILL, bench_kernel};

pub fn bench(c: &mut Criterion) {
    bench_kernel(c, "lora_up", &[DECODE, EIGHT, PREFILL]);
}

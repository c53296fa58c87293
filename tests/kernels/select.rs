//! The rows that are sampled.

use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// Copies are exact: the tolerance is 0.
pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 0, 1), (63, 9, 8, 1), (64, 9, 1, 3), (65, 8, 0, 2), (173, 7, 0, 1), (4, 5, 5, 1)];
    shapes.map(|(width, n, first, every)| case(width, n, first, every)).into()
}

fn case(width: usize, n: usize, first: usize, every: usize) -> Case {
    let random = &mut Random(width as u64);
    let mut draft = Draft::new();
    let x = draft.tensor("x", Extent::Rows, width);
    draft.op(OpKind::Select, &[x], Some((Extent::Samples, width)));
    let import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    let step = step(rows(n, random), first, every);
    let name = format!("{} of {n} rows of {width}", step.samples.len());
    Case::new(name, draft.0, step, import)
}

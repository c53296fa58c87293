//! Sums of two tensors.

use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// One f32 addition, rounded alike everywhere: the tolerance is 0.
pub fn cases() -> Vec<Case> {
    [(1, 1), (3, 7), (63, 1), (64, 2), (65, 3), (127, 9), (173, 5), (2000, 33)].map(case).into()
}

fn case((width, n): (usize, usize)) -> Case {
    let random = &mut Random(width as u64);
    let plan = Draft::new().map(OpKind::Add, Extent::Rows, &[width, width], width);
    let import = [0, 1].map(|id| (TensorId(id), random.numbers(n * width, 1.0))).into();
    Case::new(format!("{n} rows of {width}"), plan, step(rows(n, random), 0, 1), import)
}

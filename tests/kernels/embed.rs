//! Rows of the embedding table.

use wattle_engine::model::Dtype;
use wattle_engine::plan::{Extent, OpKind};

use crate::Case;
use crate::fixture::{Draft, Random, VOCAB, rows, step};

/// Copies are exact: the tolerance is 0.
pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, Dtype::F32),
        (3, 2, Dtype::F16),
        (4, 9, Dtype::Bf16),
        (63, 3, Dtype::F32),
        (65, 7, Dtype::Bf16),
        (173, 8, Dtype::F16),
    ];
    shapes.map(|(width, n, dtype)| case(width, n, dtype)).into()
}

fn case(width: usize, n: usize, dtype: Dtype) -> Case {
    let random = &mut Random(width as u64);
    let mut rows = rows(n, random);
    // Two rows of one token, and both ends of the table.
    rows[n - 1].token = rows[0].token;
    rows[n / 2].token = VOCAB as u32 - 1;
    rows[n / 3].token = 0;
    let kind = OpKind::Embed { table: random.matrix(VOCAB, width, dtype) };
    let plan = Draft::new().map(kind, Extent::Rows, &[], width);
    Case::new(format!("{n} rows of {width}, {dtype:?}"), plan, step(rows, 0, 1), vec![])
}

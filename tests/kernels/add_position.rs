//! Learned positions.

use wattle_engine::model::Dtype;
use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// One f32 addition, rounded alike everywhere: the tolerance is 0.
pub fn cases() -> Vec<Case> {
    let shapes =
        [(1, 1, 0, Dtype::F32), (63, 5, 2, Dtype::F16), (64, 9, 0, Dtype::Bf16), (173, 4, 2, Dtype::F32)];
    shapes.map(|(width, n, offset, dtype)| case(width, n, offset, dtype)).into()
}

fn case(width: usize, n: usize, offset: u32, dtype: Dtype) -> Case {
    let random = &mut Random(width as u64);
    let kind = OpKind::AddPosition { table: random.matrix(16 + offset as usize, width, dtype), offset };
    let plan = Draft::new().map(kind, Extent::Rows, &[width], width);
    let import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    Case::new(
        format!("{n} rows of {width}, {dtype:?}, offset {offset}"),
        plan,
        step(rows(n, random), 0, 1),
        import,
    )
}

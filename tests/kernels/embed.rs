//! Rows of the embedding table.

use wattle_engine::model::{Dtype, Format, Offset};
use wattle_engine::plan::{Extent, OpKind};

use crate::Case;
use crate::fixture::{Draft, QUANTIZED, Random, VOCAB, rows, step};

/// Copies are exact: the tolerance is 0. An element that is a product and a sum may be rounded once or twice.
pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, Dtype::F32),
        (3, 2, Dtype::F16),
        (4, 9, Dtype::Bf16),
        (63, 3, Dtype::F32),
        (65, 7, Dtype::Bf16),
        (173, 8, Dtype::F16),
    ];
    let quantized = QUANTIZED.into_iter().enumerate().map(|(i, format)| case(31 + 33 * i, 2 + i, format));
    shapes.map(|(width, n, dtype)| case(width, n, dtype)).into_iter().chain(quantized).collect()
}

fn case(width: usize, n: usize, format: impl Into<Format>) -> Case {
    let format = format.into();
    let random = &mut Random(width as u64);
    let mut rows = rows(n, random);
    // Two rows of one token, and both ends of the table.
    rows[n - 1].token = rows[0].token;
    rows[n / 2].token = VOCAB as u32 - 1;
    rows[n / 3].token = 0;
    let kind = OpKind::Embed { table: random.matrix(VOCAB, width, format) };
    let plan = Draft::new().map(kind, Extent::Rows, &[], width);
    let rounded = matches!(format, Format::Panels(panels) if panels.offset == Offset::Minimum);
    let tolerance = if rounded { f32::EPSILON } else { 0.0 };
    let name = format!("{n} rows of {width}, {format}");
    Case { tolerance, ..Case::new(name, plan, step(rows, 0, 1), vec![]) }
}

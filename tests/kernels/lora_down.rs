//! t = A x.

use std::sync::Arc;

use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, lora_rows, sampled_rows, site, slots, step};

/// The sums are those of `project`.
const TOLERANCE: f32 = crate::project::TOLERANCE;

/// One to three targets, all rows or only sampled ones.
pub fn cases() -> Vec<Case> {
    let rows = Extent::Rows;
    let shapes: [(usize, &[usize], usize, Extent); 8] = [
        (1, &[1], 1, rows),
        (63, &[5], 9, rows),
        (64, &[7, 7], 2, rows),
        (65, &[8, 4, 4], 3, rows),
        (173, &[8, 4, 4], 9, rows),
        (515, &[3], 7, rows),
        (515, &[3], 33, rows),
        (66, &[9], 9, Extent::Samples),
    ];
    shapes.map(|(cols, outputs, n, extent)| case(cols, outputs, n, extent)).into()
}

fn case(cols: usize, outputs: &[usize], n: usize, extent: Extent) -> Case {
    let random = &mut Random(cols as u64);
    let site = site(cols, outputs);
    let slots = slots(&site, random);
    let plan =
        Draft::new().map(OpKind::LoraDown { site: Arc::clone(&site) }, extent, &[cols], site.t_width());
    let step = step(lora_rows(n, random), 0, 2);
    let lines = if extent == Extent::Rows { n } else { sampled_rows(&step).len() };
    let import = vec![(TensorId(0), random.numbers(lines * cols, 1.0))];
    let name = format!("{n} {extent:?} of {cols}, {} targets", outputs.len());
    Case { slots, tolerance: TOLERANCE, ..Case::new(name, plan, step, import) }
}

//! y + B t.

use std::sync::Arc;

use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, lora_rows, sampled_rows, site, slots, step, t_values};

/// Measured on the CPU's f32 kernels: 1.6e-7 (up to six terms, added in the same order everywhere).
const TOLERANCE: f32 = 1e-6;

/// One to three targets, all rows or only sampled ones.
pub fn cases() -> Vec<Case> {
    let rows = Extent::Rows;
    let shapes: [(&[usize], usize, Extent); 8] = [
        (&[1], 1, rows),
        (&[63], 9, rows),
        (&[65, 64], 2, rows),
        (&[70, 20, 21], 3, rows),
        (&[173], 7, rows),
        (&[400, 131], 33, rows),
        (&[127, 1, 130], 9, rows),
        (&[66], 9, Extent::Samples),
    ];
    shapes.map(|(outputs, n, extent)| case(outputs, n, extent)).into()
}

fn case(outputs: &[usize], n: usize, extent: Extent) -> Case {
    let width = outputs.iter().sum();
    let random = &mut Random(width as u64);
    let site = site(5, outputs);
    let slots = slots(&site, random);
    let kind = OpKind::LoraUp { site: Arc::clone(&site) };
    let plan = Draft::new().map(kind, extent, &[width, site.t_width()], width);
    let step = step(lora_rows(n, random), 0, 2);
    let of_extent = if extent == Extent::Rows { step.rows.clone() } else { sampled_rows(&step) };
    let y = random.numbers(of_extent.len() * width, 1.0);
    let t = t_values(&site, &slots, &of_extent, random);
    let name = format!("{n} {extent:?} of {width}, {} targets", outputs.len());
    let case = Case::new(name, plan, step, vec![(TensorId(0), y), (TensorId(1), t)]);
    Case { slots, tolerance: TOLERANCE, ..case }
}

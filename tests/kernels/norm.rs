//! Layer and RMS norms.

use wattle_engine::model::{NormKind, NormWeights};
use wattle_engine::plan::{Extent, Norm, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, carrying, lora_rows, rows, site, slots, step};

/// Measured on the CPU's f32 kernels: 3.3e-7 at most; a GPU's inverse square root may be 2 ulp off, and its sums run
/// in other orders.
const TOLERANCE: f32 = 4e-6;

/// Rows have variances down to the size of ε, so that a wrong ε shows.
pub fn cases() -> Vec<Case> {
    let (layer, rms) = (NormKind::Layer, NormKind::Rms);
    let shapes = [
        (layer, 1, 1, 1, 0.0),
        (layer, 4, 1, 2, 3.0),
        (layer, 63, 1, 9, 3.0),
        (layer, 64, 1, 3, 0.0),
        (layer, 65, 1, 1, -2.0),
        (layer, 173, 1, 5, 1.0),
        (layer, 1027, 1, 2, 1.0),
        (rms, 1, 1, 2, 0.0),
        (rms, 3, 1, 1, 0.0),
        (rms, 127, 1, 4, 1.0),
        (rms, 129, 1, 8, 0.0),
        (rms, 173, 1, 7, 0.0),
        (rms, 70, 7, 6, 0.0),
        (rms, 320, 5, 3, 0.0),
        (rms, 640, 1, 33, 0.0),
    ];
    let carried = [
        (rms, 1, 1, Extent::Rows),
        (rms, 65, 9, Extent::Rows),
        (layer, 64, 2, Extent::Rows),
        (layer, 173, 7, Extent::Rows),
        (rms, 515, 33, Extent::Rows),
        (rms, 130, 9, Extent::Samples),
    ];
    let shapes = shapes.map(|(kind, width, groups, n, mean)| case(kind, width, groups, n, mean));
    let carried = carried.map(|(kind, width, n, extent)| carrying_case(kind, width, n, extent));
    shapes.into_iter().chain(carried).collect()
}

/// With A y of one or three projections.
fn carrying_case(kind: NormKind, width: usize, n: usize, extent: Extent) -> Case {
    let random = &mut Random(width as u64);
    let site = site(width, &[8, 4, 4][..1 + n % 3]);
    let (weight, bias) = (random.vector(width), random.vector(width));
    let weights = NormWeights { weight: Some(weight), bias: (kind == NormKind::Layer).then_some(bias) };
    let norm = Norm { kind, weights, eps: 1e-5, groups: 1 };
    let plan = carrying(Draft::new().map(OpKind::Norm(norm), extent, &[width], width), &site);
    let step = step(lora_rows(n, random), 0, 2);
    let lines = if extent == Extent::Rows { n } else { step.samples.len() };
    let import = vec![(TensorId(0), random.numbers(lines * width, 1.0))];
    let name = format!("{kind:?}, {n} {extent:?} of {width}, carrying");
    let slots = slots(&site, random);
    Case { slots, tolerance: TOLERANCE, ..Case::new(name, plan, step, import) }
}

fn case(kind: NormKind, width: usize, groups: usize, n: usize, mean: f32) -> Case {
    let random = &mut Random(width as u64);
    let weight = (width != 3).then(|| random.vector(width / groups));
    let bias = (kind == NormKind::Layer && width != 64).then(|| random.vector(width / groups));
    let norm = Norm { kind, weights: NormWeights { weight, bias }, eps: 1e-5, groups };
    let plan = Draft::new().map(OpKind::Norm(norm), Extent::Rows, &[width], width);
    let mut x = Vec::new();
    for line in 0..n {
        let scale = [1.0, 3e-3, 30.0][line % 3];
        x.extend(random.numbers(width, scale).into_iter().map(|x| x + scale * mean));
    }
    let name = format!("{kind:?}, {n} rows of {width} in {groups} groups");
    let case = Case::new(name, plan, step(rows(n, random), 0, 1), vec![(TensorId(0), x)]);
    Case { tolerance: TOLERANCE, ..case }
}

//! Layer and RMS norms.

use wattle_engine::model::{NormKind, NormWeights};
use wattle_engine::plan::{Extent, Norm, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

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
    shapes.map(|(kind, width, groups, n, mean)| case(kind, width, groups, n, mean)).into()
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

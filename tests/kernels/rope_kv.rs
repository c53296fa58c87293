//! Head norms, rotation and cache write in one.

use wattle_engine::model::NormWeights;
use wattle_engine::plan::{Extent, KvShape, OpKind, RopeKv, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};
use crate::kv_write::filled;
use crate::rope::{mark_long, table};

/// The norm's error and the rotation's. Measured on the CPU's f32 kernels: 1.6e-7.
const TOLERANCE: f32 = 4e-6;

/// With and without norms and rotation; grouped heads.
pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 2, 2, 1, false),
        (6, 2, 10, 10, 9, true),
        (7, 7, 10, 4, 4, false),
        (14, 2, 64, 64, 3, true),
        (5, 1, 33, 32, 5, true),
        (3, 3, 16, 0, 7, false),
    ];
    shapes
        .map(|(heads, kv_heads, head_dim, rotary_dim, n, norms)| {
            let shape = KvShape { layers: 2, heads, kv_heads, head_dim };
            case(shape, rotary_dim, n, norms)
        })
        .into()
}

fn case(shape: KvShape, rotary_dim: usize, n: usize, norms: bool) -> Case {
    let random = &mut Random(shape.head_dim as u64);
    let rotate = rotary_dim > 0;
    let mut norm = || NormWeights { weight: Some(random.vector(shape.head_dim)), bias: None };
    let (q_norm, k_norm) = (norms.then(&mut norm), norms.then(&mut norm));
    let mut draft = Draft::with_kv(shape);
    draft.0.rope = rotate.then(|| table(rotary_dim));
    let op = RopeKv { layer: 1, q_norm, k_norm, eps: 1e-3, rotate };
    let width = shape.q_width() + 2 * shape.width();
    let plan = draft.map(OpKind::RopeKv(op), Extent::Rows, &[width], shape.q_width());
    let mut rows = rows(n, random);
    if rotate {
        mark_long(&mut rows);
    }
    let import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    let name = format!("{n} rows, {shape:?}, {rotary_dim} rotated, norms: {norms}");
    let case = Case::new(name, plan, step(rows, 0, 1), import);
    Case { kv: filled(shape, 16, random), tolerance: TOLERANCE, ..case }
}

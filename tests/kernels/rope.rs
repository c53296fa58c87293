//! Rotation by position.

use wattle_engine::model::{LongRope, Rope};
use wattle_engine::plan::{Extent, OpKind, RopeTable, TensorId};
use wattle_engine::{LONG_ROPE, Row};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// Two products and a sum of f32: half an ulp each. Measured on the CPU's f32 kernels: 8.3e-8.
const TOLERANCE: f32 = 1e-6;

/// Odd numbers of heads, part of a head rotated, two factor sets in one step.
pub fn cases() -> Vec<Case> {
    let shapes =
        [(1, 2, 2, 1), (5, 10, 10, 4), (7, 10, 4, 9), (2, 64, 64, 3), (3, 128, 32, 2), (1, 66, 66, 5)];
    shapes.map(|(heads, head_dim, rotary_dim, n)| case(heads, head_dim, rotary_dim, n)).into()
}

/// Angles with two factor sets.
pub(crate) fn table(rotary_dim: usize) -> RopeTable {
    let pairs = rotary_dim / 2;
    let frequency = |pair: usize, base: f32| base.powf(-(pair as f32) / pairs as f32);
    let inv_freq = (0..pairs).map(|pair| frequency(pair, 1e4)).collect();
    let long =
        LongRope { inv_freq: (0..pairs).map(|pair| frequency(pair, 5e5)).collect(), original_context: 8 };
    RopeTable { rope: Rope { rotary_dim, inv_freq, long: Some(long), attention_factor: 1.19 } }
}

/// Every third row asks for the long factors.
pub(crate) fn mark_long(rows: &mut [Row]) {
    rows.iter_mut().skip(1).step_by(3).for_each(|row| row.flags |= LONG_ROPE);
}

fn case(heads: usize, head_dim: usize, rotary_dim: usize, n: usize) -> Case {
    let random = &mut Random(head_dim as u64);
    let width = heads * head_dim;
    let mut draft = Draft::new();
    draft.0.rope = Some(table(rotary_dim));
    let plan = draft.map(OpKind::Rope { heads, head_dim }, Extent::Rows, &[width], width);
    let mut rows = rows(n, random);
    mark_long(&mut rows);
    let import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    let name = format!("{n} rows, {heads} heads of {head_dim}, {rotary_dim} rotated");
    Case { tolerance: TOLERANCE, ..Case::new(name, plan, step(rows, 0, 1), import) }
}

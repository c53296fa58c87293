//! Gates: scores, and the mask bits that they clear.

use std::sync::Arc;

use wattle_engine::plan::{Extent, KvShape, KvType, OpKind, TensorId};
use wattle_engine::{Feature, GATED, Gate, LayerGate};

use crate::Case;
use crate::fixture::{Draft, Random, lora_rows, rows, site, slots, step, t_values};

/// Measured on the CPU's f32 kernels: 2.4e-7 at most; a GPU's exponential may be a few ulp off.
const TOLERANCE: f32 = 4e-6;

/// The layer of the fixtures' LoRA sites.
const LAYER: u32 = 37;
const KV: KvShape = KvShape { layers: 38, heads: 1, kv_heads: 1, head_dim: 4, store: KvType::F32 };

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 1), (3, 2, 0), (63, 8, 9), (64, 1, 3), (65, 5, 2), (173, 33, 4), (1030, 256, 7)];
    let features = [Feature::Length, Feature::Mean, Feature::Maximum, Feature::Distance];
    let scores = shapes.map(|(width, hidden, n)| score(width, hidden, n));
    scores.into_iter().chain(features.map(obeyed)).collect()
}

/// A random MLP over a random hidden state.
fn score(width: usize, hidden: usize, n: usize) -> Case {
    let random = &mut Random(width as u64);
    let center_and_scale = [random.numbers(width, 0.5), random.numbers(width, 1.0)].concat();
    let mlp = [random.numbers(5 * hidden, 0.3), random.numbers(hidden + 1, 0.3)].concat();
    let weights = [center_and_scale, mlp].concat();
    let gate = LayerGate { layer: LAYER, hidden, weights, threshold: 0.5 };
    let kind = OpKind::Gate(Arc::new(gate));
    let plan = Draft::with_kv(KV).map(kind, Extent::Rows, &[width], 1);
    let import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    let name = format!("{n} rows of {width}, {hidden} units");
    Case { tolerance: TOLERANCE, ..Case::new(name, plan, step(rows(n, random), 0, 1), import) }
}

/// A gate that opens for one row in two, and B t behind it: rows that it keeps closed have none; it is nothing to rows
/// that are not gated, nor to those whose mask is off already.
fn obeyed(feature: Feature) -> Case {
    let (width, n) = (70, 21);
    let random = &mut Random(feature as u64);
    let gate = Gate::above(width, [LAYER], feature, 2.0);
    let gate = gate.layers().next().map(Arc::clone).unwrap_or_else(|| unreachable!("a layer was given"));
    let site = site(width, &[40, 30]);
    let mut draft = Draft::with_kv(KV);
    let x = draft.tensor("x", Extent::Rows, width);
    draft.op(OpKind::Gate(gate), &[x], Some((Extent::Rows, 1)));
    let t = draft.tensor("t", Extent::Rows, site.t_width());
    draft.op(OpKind::LoraUp { site: Arc::clone(&site) }, &[x, t], Some((Extent::Rows, width)));
    let slots = slots(&site, random);
    let mut rows = lora_rows(n, random);
    rows.iter_mut().enumerate().filter(|(i, _)| i % 4 != 1).for_each(|(_, row)| row.flags |= GATED);
    // Far from the threshold on either side, whatever the feature.
    let import = (0..n * width).map(|i| [0.0, 9.0, 9.0][i / width % 3]).zip(random.numbers(n * width, 0.1));
    let import = import.map(|(level, noise)| level + noise).collect();
    let t_values = t_values(&site, &slots, &rows, &mut Random(3));
    let import = vec![(TensorId(0), import), (t, t_values)];
    let name = format!("{feature:?} above 2, obeyed by B t");
    Case { slots, tolerance: TOLERANCE, ..Case::new(name, draft.0, step(rows, 0, 1), import) }
}

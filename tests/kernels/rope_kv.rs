//! Head norms, rotation and cache write in one.

use std::sync::Arc;

use wattle_engine::model::NormWeights;
use wattle_engine::plan::{Extent, KvShape, OpKind, RopeKv, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, lora_rows, rows, site, slots, step, t_values};
use crate::kv_write::filled;
use crate::rope::{mark_long, table};

/// The norm's error and the rotation's. Measured on the CPU's f32 kernels: 1.6e-7.
const TOLERANCE: f32 = 4e-6;

/// With and without norms and rotation; grouped heads.
pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 2, 2, 1, false, false),
        (6, 2, 10, 10, 9, true, false),
        (7, 7, 10, 4, 4, false, false),
        (14, 2, 64, 64, 3, true, false),
        (5, 1, 33, 32, 5, true, false),
        (3, 3, 16, 0, 7, false, false),
        (1, 1, 2, 2, 1, false, true),
        (6, 2, 10, 10, 9, true, true),
        (7, 7, 10, 4, 8, false, true),
        (5, 1, 130, 0, 3, true, true),
    ];
    shapes
        .map(|(heads, kv_heads, head_dim, rotary_dim, n, norms, lora)| {
            let shape = KvShape { layers: 2, heads, kv_heads, head_dim };
            case(shape, rotary_dim, n, norms, lora)
        })
        .into()
}

fn case(shape: KvShape, rotary_dim: usize, n: usize, norms: bool, lora: bool) -> Case {
    let random = &mut Random(shape.head_dim as u64);
    let rotate = rotary_dim > 0;
    let mut norm = || NormWeights { weight: Some(random.vector(shape.head_dim)), bias: None };
    let (q_norm, k_norm) = (norms.then(&mut norm), norms.then(&mut norm));
    let mut draft = Draft::with_kv(shape);
    draft.0.rope = rotate.then(|| table(rotary_dim));
    let site = site(5, &[shape.q_width(), shape.width(), shape.width()]);
    let lora = lora.then(|| Arc::clone(&site));
    let op = RopeKv { layer: 1, q_norm, k_norm, eps: 1e-3, rotate, lora: lora.clone() };
    let width = shape.q_width() + 2 * shape.width();
    let widths = [width, site.t_len()];
    let widths = &widths[..1 + usize::from(lora.is_some())];
    let plan = draft.map(OpKind::RopeKv(op), Extent::Rows, widths, shape.q_width());
    let mut rows = if lora.is_some() { lora_rows(n, random) } else { rows(n, random) };
    if rotate {
        mark_long(&mut rows);
    }
    let mut import = vec![(TensorId(0), random.numbers(n * width, 1.0))];
    let with = if lora.is_some() { ", LoRA" } else { "" };
    let name = format!("{n} rows, {shape:?}, {rotary_dim} rotated, norms: {norms}{with}");
    let mut factors = Vec::new();
    if let Some(site) = lora {
        factors = slots(&site, random);
        import.push((TensorId(1), t_values(&site, &factors, &rows, random)));
    }
    let case = Case::new(name, plan, step(rows, 0, 1), import);
    Case { kv: filled(shape, 16, random), slots: factors, tolerance: TOLERANCE, ..case }
}

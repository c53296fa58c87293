//! Keys and values to the cache.

use wattle_engine::plan::{Extent, KvShape, KvType, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// Copies are exact: the tolerance is 0. What lies around them must stay. As codes and halves a device may round the
/// other way where it is close.
pub fn cases() -> Vec<Case> {
    let plain = [(1, 1, 1), (5, 10, 9), (1, 64, 4), (3, 21, 7), (2, 65, 5)];
    let mut cases: Vec<_> = plain.map(|sizes| case(sizes, KvType::F32)).into();
    for store in [KvType::F16, KvType::Q8] {
        cases.extend([(1, 1, 1), (5, 10, 9), (2, 65, 5)].map(|sizes| case(sizes, store)));
    }
    cases
}

/// How far apart two may be that store the same: as halves by one in the last of 11 bits, as codes by one of 127.
pub(crate) fn rounding(store: KvType) -> f32 {
    match store {
        KvType::F32 => 0.0,
        KvType::F16 => 1.0 / 1024.0,
        KvType::Q8 => 1.01 / 127.0,
    }
}

/// Every layer and sequence, filled: what is written, and what must stay.
pub(crate) fn filled(
    shape: KvShape,
    context: usize,
    random: &mut Random,
) -> Vec<(usize, u32, [Vec<f32>; 2])> {
    let all = (0..shape.layers).flat_map(|layer| (0..3).map(move |sequence| (layer, sequence)));
    let len = context * shape.width();
    all.map(|(layer, sequence)| (layer, sequence, [0, 1].map(|_| random.numbers(len, 1.0)))).collect()
}

fn case((kv_heads, head_dim, n): (usize, usize, usize), store: KvType) -> Case {
    let random = &mut Random(head_dim as u64);
    let shape = KvShape { layers: 2, heads: kv_heads, kv_heads, head_dim, store };
    let mut draft = Draft::with_kv(shape);
    let inputs = ["k", "v"].map(|name| draft.tensor(name, Extent::Rows, shape.width()));
    draft.op(OpKind::KvWrite { layer: 1 }, &inputs, None);
    let import = [0, 1].map(|id| (TensorId(id), random.numbers(n * shape.width(), 1.0))).into();
    let name = format!("{n} rows, {kv_heads} heads of {head_dim}, {store:?}");
    let case = Case::new(name, draft.0, step(rows(n, random), 0, 1), import);
    Case { kv: filled(shape, 16, random), tolerance: rounding(store), ..case }
}

//! Attention over the cache.

use std::sync::Arc;

use wattle_engine::Row;
use wattle_engine::backend::{Capacity, Step};
use wattle_engine::plan::{Attend, Extent, KvShape, OpKind, TensorId};

use crate::fixture::{Draft, Random, carrying, lora_rows, site_in_parts, slots, step};
use crate::{Act, Case};

/// Measured on the CPU's f32 kernels: 5.3e-7 over up to 140 positions; WGSL lets exp be a few ulp off.
const TOLERANCE: f32 = 6e-6;

/// Positions of the cache: more than two workgroups of 64.
const CONTEXT: usize = 140;

/// Rows alone at positions around 64 and 128, several sequences, chunks of a prompt, windows, grouped heads.
pub fn cases() -> Vec<Case> {
    let shape = |heads, kv_heads, head_dim| KvShape { layers: 2, heads, kv_heads, head_dim };
    vec![
        case("first position", shape(1, 1, 4), &[(0, 0)], None),
        case("second position", shape(2, 1, 3), &[(1, 1)], None),
        case("position 62", shape(7, 7, 10), &[(0, 62)], None),
        case("position 63", shape(6, 2, 10), &[(0, 63)], None),
        case("position 64", shape(5, 1, 16), &[(2, 64)], None),
        case("the last position", shape(14, 2, 64), &[(1, 139)], None),
        case("wide heads", shape(2, 1, 130), &[(0, 129), (1, 5)], None),
        case("three sequences", shape(7, 7, 10), &[(0, 127), (1, 0), (2, 65)], None),
        case("a prompt from its start", shape(6, 2, 10), &[0, 1, 2, 3, 4, 5, 6, 7, 8].map(|p| (1, p)), None),
        case("a chunk across 64", shape(4, 4, 16), &[61, 62, 63, 64, 65, 66].map(|p| (0, p)), None),
        case("chunks of two sequences", shape(5, 5, 6), &[(0, 9), (2, 30), (0, 10), (2, 31)], None),
        case("window of one", shape(3, 1, 8), &[(0, 70), (1, 0)], Some(1)),
        case("window of 65", shape(4, 2, 10), &[(0, 130), (1, 64), (2, 20)], Some(65)),
        case("chunk with a window", shape(2, 2, 12), &[7, 8, 9, 10].map(|p| (0, p)), Some(3)),
        carrying_case("one row, carrying", shape(1, 1, 3), &[(0, 5)]),
        carrying_case("a chunk, carrying", shape(6, 2, 10), &[1, 2, 3, 4, 5, 6, 7, 8, 9].map(|p| (1, p))),
        carrying_case("three sequences, carrying", shape(14, 2, 64), &[(0, 70), (1, 0), (2, 65)]),
    ]
}

/// With A y of the projection behind it, a partial sum per head.
fn carrying_case(name: &str, shape: KvShape, rows: &[(u32, u32)]) -> Case {
    let random = &mut Random(7);
    let site = site_in_parts(shape.q_width(), &[9], shape.head_dim);
    let case = case(name, shape, rows, None);
    let Some(Act::Run { range, step, import }) = case.acts.into_iter().next() else { unreachable!() };
    let kinds = lora_rows(rows.len(), random);
    let merged = |(row, kind): (&Row, Row)| Row { slot: kind.slot, lora: kind.lora, ..*row };
    let rows = step.rows.iter().zip(kinds).map(merged).collect();
    let acts = vec![Act::Run { range, step: Step { rows, ..step }, import }];
    let plan = Arc::new(carrying((*case.plan).clone(), &site));
    Case { name: case.name, plan, acts, slots: slots(&site, random), kv: case.kv, ..case }
}

fn case(name: &str, shape: KvShape, rows: &[(u32, u32)], window: Option<u32>) -> Case {
    let random = &mut Random(shape.head_dim as u64);
    let width = shape.q_width();
    let attend = Attend { layer: 1, scale: 1.3 / (shape.head_dim as f32).sqrt(), window };
    let plan = Draft::with_kv(shape).map(OpKind::Attend(attend), Extent::Rows, &[width], width);
    let import = vec![(TensorId(0), random.numbers(rows.len() * width, 2.0))];
    let step =
        step(rows.iter().map(|&(sequence, position)| Row::prompt(0, position, sequence)).collect(), 0, 1);
    let kv = (0..3).map(|sequence| (1, sequence, cache(shape, rows, window, sequence, random))).collect();
    let case = Case::new(name, plan, step, import);
    let capacity = Capacity { context: CONTEXT, ..case.capacity };
    Case { kv, capacity, tolerance: TOLERANCE, ..case }
}

/// A sequence's keys and values: NaN where no row of it may look.
fn cache(
    shape: KvShape,
    rows: &[(u32, u32)],
    window: Option<u32>,
    sequence: u32,
    random: &mut Random,
) -> [Vec<f32>; 2] {
    let sees =
        |position: u32, row: u32| position <= row && window.is_none_or(|window| row - position < window);
    let seen = |position: u32| rows.iter().any(|&(owner, row)| owner == sequence && sees(position, row));
    [0, 1].map(|_| {
        let numbers = random.numbers(CONTEXT * shape.width(), 1.0);
        let hide = |(index, x)| if seen((index / shape.width()) as u32) { x } else { f32::NAN };
        numbers.into_iter().enumerate().map(hide).collect()
    })
}

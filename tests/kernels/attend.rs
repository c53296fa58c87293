//! Attention over the cache.

use std::sync::Arc;

use wattle_engine::Row;
use wattle_engine::backend::{Capacity, Step};
use wattle_engine::cache::{PAGE, pages_for};
use wattle_engine::plan::{Attend, Extent, KvShape, KvType, OpKind, TensorId};

use crate::fixture::{Draft, Random, carrying, lora_rows, site_in_parts, slots, step};
use crate::{Act, Case};

/// Measured on the CPU's f32 kernels: 5.3e-7 over up to 140 positions; WGSL lets exp be a few ulp off.
const TOLERANCE: f32 = 6e-6;

/// Positions of the cache: a GPU takes them in tiles of a page, or splits them in chunks of two.
const CONTEXT: usize = 400;

/// Rows alone at positions around the borders of pages, several sequences, chunks of a prompt, windows, grouped heads,
/// pages that sequences share, and all that keys and values are stored as.
pub fn cases() -> Vec<Case> {
    let stored = |heads, kv_heads, head_dim, store| KvShape { layers: 2, heads, kv_heads, head_dim, store };
    let shape = |heads, kv_heads, head_dim| stored(heads, kv_heads, head_dim, KvType::F32);
    let mut cases = vec![
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
        case("several chunks", shape(6, 2, 10), &[(0, 127), (0, 128), (1, 399), (2, 256)], None),
        case("chunks outside a window", shape(4, 2, 10), &[(0, 390), (1, 200), (2, 20)], Some(130)),
        case("more heads than a workgroup has", shape(18, 2, 12), &[(0, 260), (1, 2)], None),
        case("rows that are not split beside the same alone", shape(2, 1, 4), &chunk::<66>(190), None),
        carrying_case("several chunks, carrying", shape(18, 2, 10), &[(0, 5), (1, 300), (2, 130)]),
        carrying_case("one row, carrying", shape(1, 1, 3), &[(0, 5)]),
        carrying_case("a chunk, carrying", shape(6, 2, 10), &[1, 2, 3, 4, 5, 6, 7, 8, 9].map(|p| (1, p))),
        carrying_case("three sequences, carrying", shape(14, 2, 64), &[(0, 70), (1, 0), (2, 65)]),
        sharing("all share a page", shape(6, 2, 10), &[(0, 70), (1, 139), (2, 64)], None),
        sharing("two share two pages", shape(14, 2, 64), &[(0, 130), (1, 128)], None),
        sharing("within the shared pages", shape(7, 7, 10), &[(0, 63), (1, 127), (2, 9)], None),
        sharing(
            "chunks behind a shared page",
            shape(5, 1, 16),
            &[(0, 66), (0, 67), (1, 64), (1, 65), (2, 80)],
            None,
        ),
        sharing("a window over a shared border", shape(4, 2, 10), &[(0, 66), (1, 70), (2, 100)], Some(30)),
    ];
    let apart = |position| [position, position + 1, position - 7, position + 70];
    cases.extend([
        paths("two paths", shape(6, 2, 10), 4, &[280, 281], None),
        paths("three paths that part in a chunk", shape(5, 1, 16), 3, &[200, 205, 330], None),
        paths("three paths that part in a page", shape(7, 7, 10), 2, &[129, 150, 128], None),
        paths("eight paths", shape(7, 7, 10), 4, &[256, 257, 258, 259, 260, 261, 262, 300], None),
        paths("nine paths", shape(14, 2, 64), 4, &[256, 399, 257, 300, 390, 258, 259, 260, 270], None),
        paths("nine paths within their prompt", shape(6, 2, 10), 6, &[383; 9], None),
        paths("paths with a window", shape(4, 2, 10), 4, &apart(290), Some(200)),
        paths("paths with a window behind what they share", shape(6, 2, 10), 4, &apart(300), Some(40)),
    ]);
    for (name, store) in [("halves", KvType::F16), ("codes", KvType::Q8)] {
        let nine = [256, 257, 280, 290, 300, 310, 320, 330, 399];
        cases.push(paths(&format!("{name}, nine paths"), stored(7, 7, 10, store), 4, &nine, Some(350)));
        cases.push(paths(&format!("{name}, three paths"), stored(6, 2, 10, store), 4, &nine[..3], None));
        let rows = &[(0, 63), (1, 64), (2, 139)];
        cases.push(case(&format!("{name}, odd heads"), stored(7, 7, 10, store), rows, None));
        let far = &[(0, 127), (1, 399), (2, 256)];
        cases.push(case(&format!("{name}, several chunks"), stored(6, 2, 10, store), far, Some(300)));
        cases.push(sharing(&format!("{name}, shared"), stored(14, 2, 64, store), rows, Some(100)));
    }
    cases
}

/// Sequences 0 and 1 have two pages in common, sequence 2 the first of them.
fn sharing(name: &str, shape: KvShape, rows: &[(u32, u32)], window: Option<u32>) -> Case {
    let case = case(name, shape, rows, window);
    let random = &mut Random(3);
    let everybody: Vec<(u32, u32)> = rows.iter().map(|&(_, position)| (0, position)).collect();
    let mut kv: Vec<_> = (0..3).map(|_| cache(shape, &everybody, window, 0, random)).collect();
    for (sequence, pages) in [(1, 2), (2, 1)] {
        let shared = pages * PAGE * shape.width();
        let (first, others) = kv.split_at_mut(sequence);
        for (from, to) in first[0].iter().zip(&mut others[0]) {
            to[..shared].copy_from_slice(&from[..shared]);
        }
    }
    let kv = kv.into_iter().zip(0..).map(|(kv, sequence)| (1, sequence, kv)).collect();
    let rest = |first: u32| first..first + (pages_for(CONTEXT) as u32 - 3);
    let table = |pages: [u32; 3], first| pages.into_iter().chain(rest(first)).collect();
    let tables = vec![table([7, 2, 4], 8), table([7, 2, 0], 12), table([7, 5, 3], 16)];
    Case { kv, tables: Some(tables), ..case }
}

/// A row of each of some sequences, whose first `pages` pages are the same; and one of a sequence with none of them.
fn paths(name: &str, shape: KvShape, pages: usize, positions: &[u32], window: Option<u32>) -> Case {
    let rows: Vec<(u32, u32)> = (0..).zip(positions.iter().copied().chain([300])).collect();
    let sequences = rows.len();
    let each = pages_for(CONTEXT);
    let case = case(name, shape, &rows, window);
    let capacity = Capacity { sequences, pages: sequences * each + 1, ..case.capacity };
    let random = &mut Random(pages as u64);
    let everybody: Vec<_> = rows.iter().map(|&(_, position)| (0, position)).collect();
    let common = cache(shape, &everybody, window, 0, random);
    let (mut kv, mut tables) = (Vec::new(), Vec::new());
    for sequence in 0..sequences {
        let alone = sequence + 1 == sequences;
        let mut own = cache(shape, &rows, window, sequence as u32, random);
        let mut table: Vec<u32> = (0..each).map(|page| (sequence * each + page) as u32).collect();
        if !alone {
            let shared = pages * PAGE * shape.width();
            own.iter_mut()
                .zip(&common)
                .for_each(|(own, common)| own[..shared].copy_from_slice(&common[..shared]));
            (0..pages).for_each(|page| table[page] = page as u32);
        }
        kv.push((1, sequence as u32, own));
        tables.push(table);
    }
    Case { kv, tables: Some(tables), capacity, ..case }
}

/// A chunk of a prompt of sequence 1, from this position on.
fn chunk<const ROWS: usize>(first: u32) -> [(u32, u32); ROWS] {
    std::array::from_fn(|i| (1, first + i as u32))
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
    Case { kv, tolerance: TOLERANCE, ..case.with_context(CONTEXT) }
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

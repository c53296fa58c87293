//! Split attention: the chunks of long sequences, each by a workgroup that reads it once for all rows that have it in
//! common. See `shared/items.wgsl`.

use wattle_shaders::{Row, params::CHUNK};

use super::device::Gpu;
use super::launch::stride;
use crate::backend::pages::PageTables;
use crate::backend::{Capacity, Step};
use crate::cache::PAGE;
use crate::error::Result;
use crate::plan::KvShape;

/// Elements that a workgroup has of its heads (`ELEMENTS` in `queries.wgsl`), and heads (`MOST` in `chunks.wgsl`).
const ELEMENTS: usize = 1024;
const HEADS: usize = 8;
/// Rows of an item at most (`MEMBERS` in `items.wgsl`): a workgroup reads a chunk once, and takes as long as all of them.
const MEMBERS: usize = 8;
/// Rows of a step whose sequences are split: more fill a device by themselves.
const ROWS: usize = 64;
/// Chunks of all rows of a step at most, so that the parts take a few MiB.
const CHUNKS: usize = 1024;

/// What workgroups hand over to each other.
pub(super) struct Split {
    /// Heads of a workgroup, which share a key head, and workgroups for all heads of one.
    pub heads: u32,
    pub blocks: u32,
    /// Rows whose heads a workgroup can have at a time.
    pub together: u32,
    /// f32 \[chunks of all rows, kv_heads × blocks, heads, 2 + head_dim padded to 4\].
    pub parts: wgpu::Buffer,
    /// u32 \[rows, kv_heads × blocks\], zeros between launches.
    pub done: wgpu::Buffer,
    /// Chunks of all rows that there is room for.
    room: usize,
}

impl Split {
    /// `None` where workgroups cannot see what others wrote, or heads are too wide.
    pub fn new(gpu: &Gpu, shape: KvShape, capacity: Capacity) -> Result<Option<Self>> {
        let head_dim = stride(shape.head_dim);
        let most = HEADS.min(ELEMENTS / head_dim.max(1));
        if !gpu.limits.coherent || most == 0 {
            return Ok(None);
        }
        let group = shape.heads / shape.kv_heads.max(1);
        let blocks = group.div_ceil(most);
        let heads = group.div_ceil(blocks);
        let bytes = shape.kv_heads * blocks * heads * (2 + head_dim) * 4;
        let fitting = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / bytes.max(1);
        let (rows, chunks) = most_of(&capacity);
        let room = fitting.min(chunks);
        let parts = gpu.storage("parts of attention", (room * bytes) as u64)?;
        let done = gpu.storage("chunks that are done", (rows * shape.kv_heads * blocks * 4) as u64)?;
        let together = (most / heads.max(1)) as u32;
        Ok(Some(Self { heads: heads as u32, blocks: blocks as u32, together, parts, done, room }))
    }

    /// Divides a step's attention, and appends to `words` what shaders read of that.
    pub fn divide(&self, step: &Step, tables: &PageTables, words: &mut Vec<u32>) -> Division {
        divide(step, tables, self.room, words)
    }
}

/// Rows of a step that are split at most, and chunks of them.
fn most_of(capacity: &Capacity) -> (usize, usize) {
    let rows = capacity.rows.min(ROWS);
    (rows, CHUNKS.min(rows * capacity.context.div_ceil(CHUNK)))
}

/// The words of any division.
pub(super) fn words(capacity: &Capacity) -> usize {
    let (rows, chunks) = most_of(capacity);
    rows.next_multiple_of(4) + chunks.next_multiple_of(4)
}

/// How the attention of a step is divided over workgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Division {
    /// Chunks, each read by workgroups for some rows.
    pub items: u32,
    /// The first rows of the step, which these are of; of the others, a workgroup reads all chunks.
    pub rows: u32,
    /// The most rows that an item has.
    pub most: u32,
    /// Chunks that are read, of items and of others.
    pub chunks: u64,
}

impl Division {
    /// All rows by themselves.
    pub fn whole(rows: &[Row]) -> Self {
        Self { chunks: rows.iter().map(|row| chunks(row) as u64).sum(), ..Self::default() }
    }
}

/// Chunks of a row's positions.
fn chunks(row: &Row) -> usize {
    row.position as usize / CHUNK + 1
}

/// The end of what a row sees of a chunk, and the pages of that, whatever its window; `None` if it is behind the row.
fn view<'a>(row: &Row, chunk: usize, tables: &'a PageTables) -> Option<(usize, &'a [u32])> {
    let (begin, end) = (chunk * CHUNK, (row.position as usize + 1).min((chunk + 1) * CHUNK));
    (begin < end).then(|| (end, tables.part(row.sequence, begin / PAGE..end.div_ceil(PAGE))))
}

/// Rows that see the same of a chunk on the same pages are an item, up to [`MEMBERS`] of them. How a row is summed does
/// not depend on it. Where there are chunks for no more than `room`, or too many rows, rows stay whole: those of prompts
/// then fill a device by themselves.
fn divide(step: &Step, tables: &PageTables, room: usize, words: &mut Vec<u32>) -> Division {
    let count = if step.rows.len() <= ROWS { step.rows.len() } else { step.generated() };
    let (rows, others) = step.rows.split_at(count);
    let total: usize = rows.iter().map(chunks).sum();
    if count > ROWS || total > room || total == count {
        return Division::whole(&step.rows);
    }
    // Rows whose tables begin alike become neighbours.
    let mut order = [0; ROWS];
    let order = &mut order[..count];
    order.iter_mut().enumerate().for_each(|(index, to)| *to = index);
    order.sort_unstable_by_key(|&i| {
        (tables.part(rows[i].sequence, 0..rows[i].position as usize / PAGE + 1), i)
    });
    let mut before = 0;
    for &index in &*order {
        words.push((before << 8 | index) as u32);
        before += chunks(&rows[index]);
    }
    words.resize(words.len().next_multiple_of(4), 0);
    let start = words.len();
    let mut most = 0;
    for chunk in 0..rows.iter().map(chunks).max().unwrap_or(0) {
        let view = |index: usize| view(&rows[index], chunk, tables);
        let mut first = 0;
        for run in order.chunk_by(|&a, &b| view(a) == view(b)) {
            // Of nine rows, five and four.
            let each = run.len().div_ceil(run.len().div_ceil(MEMBERS));
            for item in run.chunks(each) {
                if view(item[0]).is_some() {
                    words.push((chunk << 16 | first << 8 | item.len()) as u32);
                    most = most.max(item.len());
                }
                first += item.len();
            }
        }
    }
    let items = words.len() - start;
    let chunks = items as u64 + Division::whole(others).chunks;
    Division { items: items as u32, rows: count as u32, most: most as u32, chunks }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use wattle_shaders::GENERATED;

    /// Tables of so many pages: sequence s has its first `shared(s)` in common with all others, which have as many.
    fn tables(sequences: u32, each: usize, shared: impl Fn(u32) -> usize) -> PageTables {
        let pages = (sequences as usize + 1) * each;
        let sizes =
            Capacity { sequences: sequences as usize, context: each * PAGE, pages, rows: 1, samples: 1 };
        let mut tables = PageTables::new(&sizes).unwrap();
        for sequence in 0..sequences {
            let own = (sequence as usize + 1) * each;
            let page = |at: usize| if at < shared(sequence) { at } else { own + at };
            tables.set(sequence, &(0..each).map(|at| page(at) as u32).collect::<Vec<_>>()).unwrap();
        }
        tables
    }

    fn generated(rows: impl IntoIterator<Item = (u32, u32)>) -> Step {
        let row = |(sequence, position)| Row { flags: GENERATED, ..Row::prompt(0, position, sequence) };
        Step { rows: rows.into_iter().map(row).collect(), samples: Vec::new() }
    }

    /// Chunk and rows of every item, after checking that the parts of rows do not overlap.
    fn items(division: Division, words: &[u32]) -> Vec<(u32, Vec<u32>)> {
        let (members, items) = words.split_at((division.rows as usize).next_multiple_of(4));
        assert_eq!(items.len(), division.items as usize);
        let item = |&word: &u32| {
            let (first, count) = ((word >> 8 & 0xff) as usize, (word & 0xff) as usize);
            (word >> 16, members[first..first + count].iter().map(|member| member & 0xff).collect())
        };
        items.iter().map(item).collect()
    }

    #[test]
    fn eight_paths_read_a_prefix_of_2048_positions_once() {
        let tables = tables(8, 40, |_| 2048 / PAGE);
        let step = generated((0..8).map(|path| (path, 2048 + path)));
        let mut words = Vec::new();
        let division = divide(&step, &tables, 1024, &mut words);
        // 16 chunks of the prefix, and a tail for each path.
        assert_eq!(division, Division { items: 16 + 8, rows: 8, most: 8, chunks: 16 + 8 });
        assert_eq!(Division::whole(&step.rows).chunks, 8 * 17);
        let items = items(division, &words);
        assert!((0..16).all(|chunk| items.contains(&(chunk, (0..8).collect()))));
        assert!((0..8).all(|row| items.contains(&(16, vec![row]))));
        // Nine: five and four.
        let nine = generated((0..9).map(|path| (path, 2048)));
        let division = divide(&nine, &self::tables(9, 40, |_| 2048 / PAGE), 1024, &mut Vec::new());
        assert_eq!((division.items, division.most), (2 * 16 + 9, 5));
        // None share.
        let division = divide(&step, &self::tables(8, 40, |_| 0), 1024, &mut Vec::new());
        assert_eq!((division.items, division.most), (8 * 17, 1));
    }

    #[test]
    fn every_chunk_of_every_row_is_one_items_and_items_see_the_same() {
        // Prefixes that end in a chunk and at its border, and none; rows before, in and behind them; two of a sequence.
        let tables = tables(12, 12, |sequence| [0, 3, 4, 8, 8, 8][sequence as usize % 6]);
        let rows = (0..12).map(|s| (s, (s * 67 + 90) % 700)).chain([(3, 601), (3, 602), (4, 511), (5, 511)]);
        let step = generated(rows);
        let mut words = vec![7; 4];
        let division = divide(&step, &tables, 1024, &mut words);
        let items = items(division, &words[4..]);
        let mut served = BTreeSet::new();
        for (chunk, rows) in &items {
            assert!(rows.len() <= MEMBERS && !rows.is_empty());
            let views: Vec<_> =
                rows.iter().map(|&row| view(&step.rows[row as usize], *chunk as usize, &tables)).collect();
            assert!(views.iter().all(|view| view.is_some() && *view == views[0]), "{chunk}: {rows:?}");
            assert!(rows.iter().all(|&row| served.insert((row, *chunk))), "twice: {chunk} of {rows:?}");
        }
        let all = (0..).zip(&step.rows).flat_map(|(row, r)| (0..chunks(r) as u32).map(move |c| (row, c)));
        assert_eq!(served, all.collect());
        // Where they could be together, they are: the rows of sequences 3, 4, 5 and 9 at positions 511 and behind.
        let fourth = items.iter().find(|(chunk, rows)| *chunk == 3 && rows.contains(&14)).unwrap();
        assert_eq!(fourth.1.iter().copied().collect::<BTreeSet<_>>(), [9, 12, 13, 14, 15].into());
        // A row's parts lie behind those of the members before it.
        let mut before = 0;
        for member in &words[4..][..step.rows.len()] {
            assert_eq!(member >> 8, before);
            before += chunks(&step.rows[(member & 0xff) as usize]) as u32;
        }
    }

    #[test]
    fn rows_stay_whole_without_room_and_prompts_in_crowds() {
        let tables = tables(3, 12, |_| 4);
        let mut step = generated([(0, 300), (1, 300), (2, 20)]);
        let whole = Division { chunks: 3 + 3 + 1, ..Division::default() };
        assert_eq!(divide(&step, &tables, 6, &mut Vec::new()), whole);
        assert_eq!(divide(&step, &tables, 7, &mut Vec::new()).items, 5);
        // Beside more prompt rows than are split, those that draw share as before.
        step.rows.extend((0..ROWS as u32).map(|i| Row::prompt(0, 21 + i, 2)));
        let division = Division { items: 5, rows: 3, most: 2, chunks: 5 + ROWS as u64 };
        assert_eq!(divide(&step, &tables, 7, &mut Vec::new()), division);
        let crowd = generated((0..=ROWS as u32).map(|i| (0, 200 + i)));
        assert_eq!(divide(&crowd, &tables, 1024, &mut Vec::new()), Division::whole(&crowd.rows));
        // Nothing to split.
        let short = generated([(0, 127), (1, 127)]);
        assert_eq!(
            divide(&short, &tables, 1024, &mut Vec::new()),
            Division { chunks: 2, ..Division::default() }
        );
    }
}

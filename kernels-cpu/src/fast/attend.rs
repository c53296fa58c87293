//! Attention by pages. Queries that read the same keys read each page of them one after the other, while it is in the
//! nearest cache: those of neighbouring rows of a sequence, of the heads that share a key head, and of sequences that
//! share pages.
//!
//! A score is summed over the head's elements in their order, each position in its own lane; a value over the
//! positions in their order. So neither depends on which queries are computed together, nor on which page has what.

mod keys;
mod values;
mod widen;

use std::mem;
use std::ops::Range;

use wattle_shaders::{PAGE, Row};

use super::math::exp;
use super::simd::{LANES, Simd, Work, run};
use super::threads::{each, parts};
use super::tile::{maximum, sum};
use crate::attend::Attend;
use crate::cache::{Kv, Layout, POSITIONS};

use widen::Source;

/// Queries of one sequence that are computed together.
const TOGETHER: usize = 16;
/// Queries of several sequences that are: their scores lie in the next cache.
const SHARING: usize = 64;

/// `q` and `y` \[rows, heads × head_dim\]; K and V of one layer's cache. Returns how many pages of a key head were read:
/// a page counts once for all queries that read it one after the other.
pub fn attend(rows: &[Row], op: &Attend, layout: Layout, q: &[f32], kv: Kv, y: &mut [f32]) -> u64 {
    // Heads that share a key head lie together.
    let width = op.heads / layout.kv_heads * layout.head_dim;
    let work: usize = rows.iter().map(|row| op.span(row).len() * 2 * op.heads * layout.head_dim).sum();
    let group_of = together(rows, op, &layout);
    let count = group_of.iter().max().map_or(0, |last| last + 1);
    let source = |index| Source { layout, kv, head: index % layout.kv_heads };
    let group = |index| Group { op, source: source(index), queries: Vec::new(), read: 0 };
    let mut groups: Vec<Group> = (0..count * layout.kv_heads).map(group).collect();
    for (index, (q, y)) in q.chunks(width).zip(y.chunks_mut(width)).enumerate() {
        let (line, head) = (index / layout.kv_heads, index % layout.kv_heads);
        let span = op.span(&rows[line]);
        let table = layout.table(rows[line].sequence, span.end.div_ceil(PAGE));
        let heads = q.chunks(layout.head_dim).zip(y.chunks_mut(layout.head_dim));
        let queries = heads.map(|(q, y)| Query { span: span.clone(), table, q, y });
        groups[group_of[line] * layout.kv_heads + head].queries.extend(queries);
    }
    each(tasks(&mut groups, parts(work)), |groups| run(Task(groups)));
    groups.iter().map(|group| group.read).sum()
}

/// Cuts groups into `count` runs of about the same work, or fewer: later rows of a prompt have more to read.
fn tasks<'g, 'a>(mut groups: &'g mut [Group<'a>], count: usize) -> Vec<&'g mut [Group<'a>]> {
    let mut left: usize = groups.iter().map(Group::work).sum();
    let mut tasks = Vec::with_capacity(count);
    while !groups.is_empty() {
        // What is left, divided by the tasks that are left.
        let share = left.div_ceil(count.saturating_sub(tasks.len()).max(1));
        let (mut len, mut work) = (1, groups[0].work());
        while len < groups.len() && work < share {
            work += groups[len].work();
            len += 1;
        }
        let (task, rest) = groups.split_at_mut(len);
        tasks.push(task);
        (groups, left) = (rest, left - work);
    }
    tasks
}

/// Which rows are computed together: for each row, the number of its group.
fn together(rows: &[Row], op: &Attend, layout: &Layout) -> Vec<usize> {
    let heads = op.heads / layout.kv_heads;
    // Neighbours of one sequence; of several blocks that begin with the same page, as many as share a group.
    let mut first_pages: Vec<(u32, usize, usize)> = Vec::new();
    let blocks: Vec<&[Row]> = rows
        .chunk_by(|a, b| a.sequence == b.sequence)
        .flat_map(|run| run.chunks((TOGETHER / heads).max(1)))
        .collect();
    // Enough groups for all threads.
    let share = blocks.len() * layout.kv_heads / rayon::current_num_threads();
    let most = share.min(SHARING / heads).max(1);
    let (mut groups, mut group_of) = (0, Vec::with_capacity(rows.len()));
    for block in blocks {
        let first = layout.table(block[0].sequence, op.span(&block[0]).start / PAGE + 1).last();
        let page = first.copied().unwrap_or(0);
        let sharing = first_pages.iter_mut().find(|(other, ..)| *other == page && block.len() == 1);
        let group = match sharing {
            Some((_, group, count)) if *count < most => {
                *count += 1;
                *group
            }
            _ => {
                first_pages.retain(|(other, ..)| *other != page);
                if block.len() == 1 {
                    first_pages.push((page, groups, 1));
                }
                groups += 1;
                groups - 1
            }
        };
        group_of.extend(block.iter().map(|_| group));
    }
    group_of
}

/// Queries of one key head.
struct Group<'a> {
    op: &'a Attend,
    source: Source<'a>,
    queries: Vec<Query<'a>>,
    /// Pages whose keys were read; as many are of their values.
    read: u64,
}

impl Group<'_> {
    /// Scores that it makes; what else a query takes is worth about a page of them.
    fn work(&self) -> usize {
        self.queries.iter().map(|query| query.span.len() + PAGE).sum()
    }
}

struct Query<'a> {
    /// Positions that it sees.
    span: Range<usize>,
    /// Pages of its sequence, up to its last.
    table: &'a [u32],
    q: &'a [f32],
    y: &'a mut [f32],
}

impl Query<'_> {
    /// Its page of this index, if it sees any position of that.
    fn page(&self, index: usize) -> Option<u32> {
        let sees = self.span.start < (index + 1) * PAGE && index * PAGE < self.span.end;
        self.table.get(index).copied().filter(|_| sees)
    }
}

/// Pages of the same queries.
struct Segment {
    /// Indices of pages in the tables.
    pages: Range<usize>,
    /// Runs of queries that have the same pages.
    parts: Vec<Range<usize>>,
}

/// The queries, sorted by table, that have each page in common.
fn segments(queries: &[Query]) -> Vec<Segment> {
    let start = queries.iter().map(|query| query.span.start).min().unwrap_or(0) / PAGE;
    let end = queries.iter().map(|query| query.span.end).max().unwrap_or(0).div_ceil(PAGE);
    let mut segments: Vec<Segment> = Vec::new();
    for page in start..end {
        let (mut parts, mut at) = (Vec::new(), 0);
        for run in queries.chunk_by(|a, b| a.page(page) == b.page(page)) {
            parts.extend(run[0].page(page).map(|_| at..at + run.len()));
            at += run.len();
        }
        match segments.last_mut().filter(|last| last.parts == parts) {
            Some(last) => last.pages.end = page + 1,
            None => segments.push(Segment { pages: page..page + 1, parts }),
        }
    }
    segments
}

/// The scores of a group's queries: a row for each.
struct Scores {
    values: Vec<f32>,
    /// Positions of a row: whole pages.
    positions: usize,
    /// The first of them.
    start: usize,
}

impl Scores {
    /// In `values`: what others left there is not read.
    fn new(mut values: Vec<f32>, queries: &[Query], segments: &[Segment]) -> Self {
        let start = segments.first().map_or(0, |segment| segment.pages.start * PAGE);
        let positions = segments.last().map_or(0, |segment| segment.pages.end * PAGE - start);
        values.resize(values.len().max(queries.len() * positions), 0.0);
        Self { values, positions, start }
    }

    /// Where query `query` has its score of a position.
    fn at(&self, query: usize, position: usize) -> usize {
        query * self.positions + position - self.start
    }

    /// Those of one query.
    fn of(&self, query: usize, span: &Range<usize>) -> &[f32] {
        &self.values[self.at(query, span.start)..][..span.len()]
    }

    /// The vectors that they lie in, with others beside them.
    fn vectors(&mut self, query: usize, span: &Range<usize>) -> &mut [[f32; LANES]] {
        let first = span.start / LANES * LANES;
        let at = self.at(query, first);
        self.values[at..][..(span.end - first).next_multiple_of(LANES)].as_chunks_mut().0
    }
}

/// Groups, one after the other.
struct Task<'g, 'a>(&'g mut [Group<'a>]);

impl Work for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut room = Room::default();
        for group in self.0 {
            group.attend(simd, &mut room);
        }
    }
}

/// What a group needs for a while, and the next one again.
#[derive(Default)]
struct Room {
    scores: Vec<f32>,
    /// A page as f32.
    wide: Vec<f32>,
}

impl Group<'_> {
    #[inline(always)]
    fn attend<S: Simd>(&mut self, simd: S, room: &mut Room) {
        // What is stable keeps the heads of a row together.
        self.queries.sort_by_key(|query| query.table);
        let segments = segments(&self.queries);
        let mut scores = Scores::new(mem::take(&mut room.scores), &self.queries, &segments);
        for segment in &segments {
            self.keys(simd, segment, &mut scores, &mut room.wide);
        }
        let mut totals = Vec::with_capacity(self.queries.len());
        for (index, query) in self.queries.iter_mut().enumerate() {
            let max = maximum(scores.of(index, &query.span));
            for vector in scores.vectors(index, &query.span) {
                for score in vector {
                    *score = exp(simd, *score - max);
                }
            }
            totals.push(sum(simd, scores.of(index, &query.span), |weight| weight));
            query.y.fill(0.0);
        }
        for segment in &segments {
            self.values(simd, segment, &scores, &mut room.wide);
        }
        for (query, total) in self.queries.iter_mut().zip(totals) {
            query.y.iter_mut().for_each(|y| *y /= total);
        }
        room.scores = scores.values;
    }
}

/// Cuts a run of queries into tiles of 8, 4, 2 and 1, at most `most`.
fn tiles(mut run: Range<usize>, most: usize) -> Vec<Range<usize>> {
    let mut tiles = Vec::new();
    while !run.is_empty() {
        let len = match run.len().min(most) {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        tiles.push(run.start..run.start + len);
        run.start += len;
    }
    tiles
}

/// Panels of a page that some query of a tile sees.
fn panels(queries: &[Query], page: usize) -> Range<usize> {
    let start = queries.iter().map(|query| query.span.start).min().unwrap_or(0).max(page * PAGE);
    let end = queries.iter().map(|query| query.span.end).max().unwrap_or(0).min((page + 1) * PAGE);
    (start - page * PAGE) / POSITIONS..(end.max(start) - page * PAGE).div_ceil(POSITIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that are read where `paths` sequences share four pages and each has another of its own, with 14 heads over
    /// two key heads; a prompt's 20 rows of a page come with them.
    fn read(paths: usize) -> u64 {
        let own = |path: usize| [0, 1, 2, 3, 4 + path as u32, 0];
        let tables: Vec<u32> = (0..=paths).flat_map(own).collect();
        let layout = Layout { kv_heads: 2, head_dim: 16, tables: &tables, stride: 6 };
        let row = |(path, position)| Row::prompt(0, position, path as u32);
        let rows: Vec<Row> = (0..paths).map(|path| (path, 256 + path as u32)).map(row).collect();
        let rows = [rows, (8..28).map(|position| row((paths, position))).collect()].concat();
        let cache = vec![0.5; (5 + paths) * 2 * layout.block_len()];
        let q = vec![0.25; rows.len() * 14 * 16];
        let mut y = vec![0.0; q.len()];
        let op = Attend { heads: 14, scale: 0.25, window: None };
        let read = attend(&rows, &op, layout, &q, Kv::F32([&cache; 2]), &mut y);
        assert!(y.iter().all(|y| (y - 0.5).abs() < 1e-6), "the mean of equal values");
        read
    }

    #[test]
    fn tasks_are_all_groups_in_their_order_and_about_the_same_work() {
        let layout = Layout { kv_heads: 1, head_dim: 16, tables: &[], stride: 0 };
        let op = Attend { heads: 1, scale: 1.0, window: None };
        let source = Source { layout, kv: Kv::F32([&[]; 2]), head: 0 };
        let query = |end| Query { span: 0..end, table: &[], q: &[], y: &mut [] };
        let group = |end| Group { op: &op, source, queries: vec![query(end)], read: 0 };
        let group_work = |end| group(end).work();
        for (ends, count) in [(1..513, 8), (1..10, 8), (500..502, 8), (1..4, 1), (0..0, 8)] {
            let mut groups: Vec<Group> = ends.clone().map(group).collect();
            let (total, most) = (ends.clone().map(group_work).sum::<usize>(), group_work(ends.end));
            let tasks = tasks(&mut groups, count);
            assert!(tasks.len() <= count && tasks.iter().all(|task| !task.is_empty()), "{ends:?}");
            for task in &tasks {
                let work: usize = task.iter().map(Group::work).sum();
                assert!(work <= total / count + most, "{ends:?}: {work} of {total} in one of {count}");
            }
            let cut: Vec<usize> =
                tasks.iter().flat_map(|task| &**task).map(|group| group.queries[0].span.end).collect();
            assert_eq!(cut, ends.collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_sequences_share_is_read_once_for_each_key_head() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        // Two rows of the prompt at a time have 14 queries.
        let prompt = 10;
        for paths in [1, 2, 8, 9] {
            assert_eq!(pool.install(|| read(paths)), 2 * (4 + paths as u64 + prompt), "{paths} paths");
        }
        // 64 queries at most: nine rows.
        assert_eq!(pool.install(|| read(10)), 2 * (2 * 4 + 10 + prompt));
    }
}

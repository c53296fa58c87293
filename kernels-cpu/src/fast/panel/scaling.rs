//! What codes of a panel are multiplied with.

use std::ops::Range;

use super::super::simd::{Element, LANES, Simd};
use crate::panels::{Offsets, Panels, Scales};

/// Groups whose scales are made f32 at once: few, so that memory is not left waiting meanwhile.
const CHUNK: usize = 16;

/// Scales or offsets of some groups of a panel.
pub(super) type Chunk = [[f32; LANES]; CHUNK];

/// Scales and offsets of a matrix as f32, whatever they are stored as: the loops over codes are compiled for one type of
/// them only. For many lines those of some panels are kept so, for few they are made when they are needed.
pub(super) struct Scaling<'a> {
    matrix: &'a Panels<'a>,
    groups: usize,
    /// Of some panels, by panel and group; empty for few lines.
    scales: Vec<[f32; LANES]>,
    /// The same, where there are any.
    offsets: Vec<[f32; LANES]>,
    /// The panel that was kept first.
    first: usize,
    later: Later,
}

impl<'a> Scaling<'a> {
    /// Keeps those of `panels` panels at a time, or none.
    pub fn new(matrix: &'a Panels<'a>, panels: usize) -> Self {
        let groups = matrix.groups();
        let zeros = || vec![[0.0; LANES]; panels * groups];
        let offsets = match matrix.offsets {
            Offsets::Middle | Offsets::NormalFloat => Vec::new(),
            Offsets::Minimum(_) | Offsets::Zero(_) => zeros(),
        };
        Self { matrix, groups, scales: zeros(), offsets, first: 0, later: Later::new(matrix) }
    }

    /// Keeps those of other panels.
    #[inline(always)]
    pub fn keep<S: Simd>(&mut self, simd: S, panels: Range<usize>) {
        let (start, count) = (panels.start * self.groups, panels.len() * self.groups);
        if !self.scales.is_empty() {
            scales(simd, self.matrix, start, &mut self.scales[..count]);
        }
        if !self.offsets.is_empty() {
            offsets(simd, self.matrix, start, &mut self.offsets[..count]);
        }
        self.first = panels.start;
    }

    /// Those of a panel: one of those that are kept, if any are.
    #[inline(always)]
    pub fn of(&self, panel: usize) -> Groups<'_> {
        let kept = (panel - self.first) * self.groups..(panel - self.first + 1) * self.groups;
        Groups {
            matrix: self.matrix,
            start: panel * self.groups,
            count: self.groups,
            scales: self.scales.get(kept.clone()),
            offsets: self.offsets.get(kept),
            later: self.later.than(panel),
        }
    }
}

/// Scales and offsets of one panel.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    matrix: &'a Panels<'a>,
    /// The first group, of the matrix.
    start: usize,
    count: usize,
    /// If they are kept.
    scales: Option<&'a [[f32; LANES]]>,
    /// If there are any, and they are kept.
    offsets: Option<&'a [[f32; LANES]]>,
    pub later: Later,
}

impl Groups<'_> {
    /// The scales of some groups, at most [`CHUNK`]; `room` is for them.
    #[inline(always)]
    pub fn scales<'b, S: Simd>(
        &'b self,
        simd: S,
        groups: Range<usize>,
        room: &'b mut Chunk,
    ) -> &'b [[f32; LANES]] {
        if let Some(kept) = self.scales {
            return &kept[groups];
        }
        let room = &mut room[..groups.len()];
        scales(simd, self.matrix, self.start + groups.start, room);
        room
    }

    /// The same of offsets; what `room` has where there are none.
    #[inline(always)]
    pub fn offsets<'b, S: Simd>(
        &'b self,
        simd: S,
        groups: Range<usize>,
        room: &'b mut Chunk,
    ) -> &'b [[f32; LANES]] {
        if let Some(kept) = self.offsets {
            return &kept[groups];
        }
        let room = &mut room[..groups.len()];
        offsets(simd, self.matrix, self.start + groups.start, room);
        room
    }

    /// All groups, in order.
    #[inline(always)]
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let count = self.count;
        (0..count).step_by(CHUNK).map(move |start| start..count.min(start + CHUNK))
    }
}

/// The scales of the groups from `start` on.
#[inline(always)]
fn scales<S: Simd>(simd: S, matrix: &Panels, start: usize, to: &mut [[f32; LANES]]) {
    match matrix.scales {
        Scales::F32(values) => convert(simd, &values[start * LANES..], to),
        Scales::F16(values) => convert(simd, &values[start * LANES..], to),
        Scales::Bf16(values) => convert(simd, &values[start * LANES..], to),
    }
}

/// The offsets of the groups from `start` on, where there are any.
#[inline(always)]
fn offsets<S: Simd>(simd: S, matrix: &Panels, start: usize, to: &mut [[f32; LANES]]) {
    match matrix.offsets {
        Offsets::Middle | Offsets::NormalFloat => {}
        Offsets::Minimum(values) => convert(simd, &values[start * LANES..], to),
        Offsets::Zero(values) => convert(simd, &values[start * LANES..], to),
    }
}

#[inline(always)]
fn convert<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [[f32; LANES]]) {
    for (from, to) in from.as_chunks().0.iter().zip(to) {
        simd.store(E::load(simd, from), to);
    }
}

/// Panels between the one in use and the one whose scales and offsets are asked for.
const LATER: usize = 2;

/// Scales and offsets of later panels. They lie apart from the codes, in runs too short for processors to see ahead, and
/// many requests at once would keep those for codes waiting: a little is asked for with each block of codes.
#[derive(Clone, Copy)]
pub(super) struct Later {
    scales: Stream,
    offsets: Stream,
}

impl Later {
    pub fn new(matrix: &Panels) -> Self {
        let scales = match matrix.scales {
            Scales::F32(values) => Stream::new(matrix, values),
            Scales::F16(values) => Stream::new(matrix, values),
            Scales::Bf16(values) => Stream::new(matrix, values),
        };
        let offsets = match matrix.offsets {
            // None: what is asked for is on its way already.
            Offsets::Middle | Offsets::NormalFloat => scales,
            Offsets::Minimum(values) => Stream::new(matrix, values),
            Offsets::Zero(values) => Stream::new(matrix, values),
        };
        Self { scales, offsets }
    }

    /// What is needed some panels after `panel`.
    #[inline(always)]
    pub fn than(self, panel: usize) -> Self {
        Self { scales: self.scales.from(panel), offsets: self.offsets.from(panel) }
    }

    /// Asks for a block's share of the scales.
    #[inline(always)]
    pub fn scales<S: Simd>(self, simd: S, block: usize) {
        simd.prefetch(self.scales.start.wrapping_add(block * self.scales.share));
    }

    /// The same of offsets.
    #[inline(always)]
    pub fn offsets<S: Simd>(self, simd: S, block: usize) {
        simd.prefetch(self.offsets.start.wrapping_add(block * self.offsets.share));
    }
}

/// Bytes of which some are read for each block of a panel.
#[derive(Clone, Copy)]
struct Stream {
    start: *const u8,
    panel: usize,
    share: usize,
}

impl Stream {
    fn new<E>(matrix: &Panels, values: &[E]) -> Self {
        let panel = matrix.groups() * LANES * size_of::<E>();
        Self { start: values.as_ptr().cast(), panel, share: panel.div_ceil(matrix.blocks()) }
    }

    #[inline(always)]
    fn from(self, panel: usize) -> Self {
        Self { start: self.start.wrapping_add((panel + LATER) * self.panel), ..self }
    }
}

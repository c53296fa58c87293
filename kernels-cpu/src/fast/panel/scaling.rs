//! What codes of a panel are multiplied with.

use std::ops::Range;

use super::super::simd::{Element, LANES, Simd};
use crate::panels::{Offsets, Panels, Scales};

/// Scales and offsets of the groups of some panels as f32, whatever they are stored as: the loops over codes are compiled
/// for one type of them only.
pub(super) struct Scaling {
    /// By panel and group.
    scales: Vec<[f32; LANES]>,
    /// The same, where there are any.
    offsets: Vec<[f32; LANES]>,
    groups: usize,
    /// The panel that was read first.
    first: usize,
    later: Later,
}

/// Scales and offsets of one panel.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub scales: &'a [[f32; LANES]],
    /// Where there are any.
    pub offsets: &'a [[f32; LANES]],
    pub later: Later,
}

impl Scaling {
    /// Room for those of `panels` panels.
    pub fn new(matrix: &Panels, panels: usize) -> Self {
        let groups = matrix.groups();
        let zeros = || vec![[0.0; LANES]; panels * groups];
        let offsets = match matrix.offsets {
            Offsets::Middle | Offsets::NormalFloat => Vec::new(),
            Offsets::Minimum(_) | Offsets::Zero(_) => zeros(),
        };
        Self { scales: zeros(), offsets, groups, first: 0, later: Later::new(matrix) }
    }

    /// Those of one of the panels that were read last.
    #[inline(always)]
    pub fn of(&self, panel: usize) -> Groups<'_> {
        let place = panel - self.first;
        let groups = place * self.groups..(place + 1) * self.groups;
        let offsets = self.offsets.get(groups.clone()).unwrap_or_default();
        Groups { scales: &self.scales[groups], offsets, later: self.later.than(panel) }
    }

    /// Reads those of some panels.
    #[inline(always)]
    pub fn read<S: Simd>(&mut self, simd: S, matrix: &Panels, panels: Range<usize>) {
        let (start, count) = (panels.start * self.groups * LANES, panels.len() * self.groups);
        self.first = panels.start;
        let scales = &mut self.scales[..count];
        match matrix.scales {
            Scales::F32(values) => convert(simd, &values[start..], scales),
            Scales::F16(values) => convert(simd, &values[start..], scales),
            Scales::Bf16(values) => convert(simd, &values[start..], scales),
        }
        match matrix.offsets {
            Offsets::Middle | Offsets::NormalFloat => {}
            Offsets::Minimum(values) => convert(simd, &values[start..], &mut self.offsets[..count]),
            Offsets::Zero(values) => convert(simd, &values[start..], &mut self.offsets[..count]),
        }
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

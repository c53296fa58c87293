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
        Self { scales: zeros(), offsets, groups }
    }

    /// Scales and offsets of a panel, by its place among those read last.
    pub fn of(&self, place: usize) -> [&[[f32; LANES]]; 2] {
        let groups = place * self.groups..(place + 1) * self.groups;
        [&self.scales, &self.offsets].map(|all| all.get(groups.clone()).unwrap_or_default())
    }

    /// Reads those of some panels.
    #[inline(always)]
    pub fn read<S: Simd>(&mut self, simd: S, matrix: &Panels, panels: Range<usize>) {
        let (start, count) = (panels.start * self.groups * LANES, panels.len() * self.groups);
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

/// Asks for the next panels' meanwhile: they lie apart from the codes, in runs too short for processors to see ahead.
#[inline(always)]
fn convert<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [[f32; LANES]]) {
    let ahead = to.len() * LANES;
    for (from, to) in from.as_chunks().0.iter().zip(to) {
        simd.prefetch(from.as_ptr().wrapping_add(ahead));
        simd.store(E::load(simd, from), to);
    }
}

//! What codes of a panel are multiplied with.

use super::super::simd::{Element, LANES, Simd};
use crate::panels::{Offsets, Panels, Scales};

/// Scales and offsets of the groups of a panel as f32, whatever they are stored as: the loops over codes are compiled
/// for one type of them only.
pub(super) struct Scaling {
    pub scales: Vec<[f32; LANES]>,
    /// As long, where there are any.
    pub offsets: Vec<[f32; LANES]>,
}

impl Scaling {
    pub fn new(matrix: &Panels) -> Self {
        let zeros = || vec![[0.0; LANES]; matrix.groups()];
        let offsets = match matrix.offsets {
            Offsets::Middle | Offsets::NormalFloat => Vec::new(),
            Offsets::Minimum(_) | Offsets::Zero(_) => zeros(),
        };
        Self { scales: zeros(), offsets }
    }

    /// Reads those of panel `index`.
    #[inline(always)]
    pub fn read<S: Simd>(&mut self, simd: S, matrix: &Panels, index: usize) {
        let start = index * matrix.groups() * LANES;
        match matrix.scales {
            Scales::F32(values) => convert(simd, &values[start..], &mut self.scales),
            Scales::F16(values) => convert(simd, &values[start..], &mut self.scales),
            Scales::Bf16(values) => convert(simd, &values[start..], &mut self.scales),
        }
        match matrix.offsets {
            Offsets::Middle | Offsets::NormalFloat => {}
            Offsets::Minimum(values) => convert(simd, &values[start..], &mut self.offsets),
            Offsets::Zero(values) => convert(simd, &values[start..], &mut self.offsets),
        }
    }
}

/// Asks for the next panel's meanwhile: they lie apart from the codes, in runs too short for processors to see ahead.
#[inline(always)]
fn convert<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [[f32; LANES]]) {
    let ahead = to.len() * LANES;
    for (from, to) in from.as_chunks().0.iter().zip(to) {
        simd.prefetch(from.as_ptr().wrapping_add(ahead));
        simd.store(E::load(simd, from), to);
    }
}

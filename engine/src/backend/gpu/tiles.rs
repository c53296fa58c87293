//! How projections run: format → arithmetic (of prompts), and shape → tile. Decisions only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattle_shaders::{Kernel, WeightType};

use super::launch::{Constant, offset_code};
use crate::model::{Bits, Format, Offset, PANEL, PanelFormat};

/// How the products of a tile are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// In f32.
    Floats,
    /// Of f16, in f32.
    Halves,
    /// In 8 bits, sums of 32 in integers.
    Codes,
    /// By cooperative matrices: in f16, sums in f32.
    Matrices,
}

impl Products {
    /// What is done with weights of this format, in fast precision or not, where cooperative matrices work or not.
    pub fn of(format: Format, fast: bool, cooperative: bool) -> Self {
        match format {
            _ if !fast => Self::Floats,
            _ if cooperative => Self::Matrices,
            Format::Panels(panels) if panels.offset != Offset::NormalFloat => Self::Codes,
            _ => Self::Halves,
        }
    }

    /// How the kernels' names end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Floats => "",
            Self::Halves => "_half",
            Self::Codes => "_int8",
            Self::Matrices => "_coop",
        }
    }
}

/// What a workgroup of a projection computes. Whatever the tile, every sum is made in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tile {
    /// Lines.
    pub rows: u32,
    /// Outputs.
    pub outputs: u32,
    /// Lines of an invocation, which has four outputs; 1 in matrix-vector kernels, whose invocations have a share of the
    /// inputs of all lines.
    pub lane_rows: u32,
}

/// Steps of so many prompt lines or fewer are *few*.
pub(super) const FEW: u32 = 16;

/// Outputs from which on the large tile makes enough workgroups of a chunk of a prompt.
const WIDE: u32 = 2048;

/// The tile of cooperative matrices.
const SQUARE: Tile = Tile::new(64, 64, 8);

/// Bytes of workgroup memory that a device needs for the cooperative kernels.
pub(super) fn cooperative_memory() -> u32 {
    SQUARE.memory(Products::Matrices)
}

/// The tiles for few lines: many workgroups, each with little to do.
const FOR_FEW: [Tile; 3] = [Tile::new(16, 32, 4), Tile::new(16, 64, 4), Tile::new(8, 64, 2)];

/// The tiles for many lines: what is read is used as often as the tile is wide.
const FOR_MANY: [Tile; 4] = [SQUARE, Tile::new(32, 32, 4), Tile::new(32, 64, 8), Tile::new(64, 128, 8)];

impl Tile {
    /// Of kernels that know no tiles.
    pub(super) const ONE: Self = Self::new(1, 1, 1);

    const fn new(rows: u32, outputs: u32, lane_rows: u32) -> Self {
        Self { rows, outputs, lane_rows }
    }

    /// Of a matrix-vector kernel: so many lines at a time, and so many panels.
    const fn vectors(columns: u32, panels: u32) -> Self {
        Self::new(columns, panels * PANEL as u32, 1)
    }

    /// Whether it is of a matrix-vector kernel.
    pub fn is_vectors(self) -> bool {
        self.lane_rows == 1
    }

    /// The kernel that computes it, where `kernel` computes one panel in a workgroup.
    pub(super) fn kernel(self, kernel: &'static Kernel) -> &'static Kernel {
        if self == Self::vectors(self.rows, 2) { paired(kernel.name).unwrap_or(kernel) } else { kernel }
    }

    /// The `override`s in tile.wgsl.
    pub(super) fn constants(self) -> Vec<Constant> {
        vec![("0", self.rows), ("1", self.outputs), ("2", self.lane_rows)]
    }

    /// Bytes of workgroup memory, at most, of kernels that end in this suffix.
    fn memory(self, products: Products) -> u32 {
        let floats = self.outputs * 128 + self.rows * (144 + 16) + 64;
        match products {
            Products::Floats | Products::Halves => floats,
            Products::Codes => floats + self.outputs * 40 + self.rows * 44,
            Products::Matrices => floats + 4096 * 4 + (2304 + 2560) * 2,
        }
    }
}

/// The variant of a matrix-vector kernel for two panels in a workgroup, which share what is loaded of the inputs. (Where
/// there is none, as for G and U of a gated MLP, two matrices share it.)
fn paired(kernel: &str) -> Option<&'static Kernel> {
    match kernel {
        "project" => Kernel::named("project__paired"),
        "project__normed" => Kernel::named("project__normed_paired"),
        _ => None,
    }
}

/// The lines that a projection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    /// Samples, or rows of class generated: so many at a time, of so many inputs.
    Columns { columns: u32, inputs: u64 },
    /// Of class prompt, [`FEW`] or fewer.
    Few,
    /// Of class prompt, more.
    Many,
}

/// A projection, as far as its tile depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The kernel's name.
    pub kernel: &'static str,
    pub products: Products,
    pub weights: WeightType,
    pub outputs: u64,
    pub lines: Lines,
}

impl Shape {
    /// How a table names it.
    pub fn key(&self) -> String {
        let lines = match self.lines {
            Lines::Columns { columns, inputs } => format!("{inputs} {columns}"),
            Lines::Few => "few".into(),
            Lines::Many => "many".into(),
        };
        format!("{} {:?} {} {lines}", self.kernel, self.weights, self.outputs)
    }

    /// The tiles that may be chosen on a device with so many bytes of workgroup memory; the default is the first.
    pub fn candidates(&self, memory: u32) -> Vec<Tile> {
        let mut tiles = match (self.lines, self.products) {
            (Lines::Columns { columns, .. }, _) => {
                let pairs = paired(self.kernel).is_some() && self.outputs > PANEL as u64;
                return (1..=1 + u32::from(pairs)).map(|panels| Tile::vectors(columns, panels)).collect();
            }
            (_, Products::Matrices) => vec![SQUARE],
            (Lines::Few, _) => FOR_FEW.to_vec(),
            (Lines::Many, _) => FOR_MANY.to_vec(),
        };
        if tiles.len() > 1 && self.lines == Lines::Many && self.outputs < u64::from(WIDE) {
            tiles.swap(0, 1);
        }
        tiles.retain(|tile| tile.memory(self.products) <= memory);
        tiles
    }
}

/// What a device takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// What was measured to be best, by [`Shape::key`].
    pub measured: BTreeMap<String, Tile>,
    /// For tests: taken for all shapes.
    pub forced: Option<Tile>,
    /// Bytes of workgroup memory.
    pub memory: u32,
}

impl Table {
    /// The tile of a shape: the measured one, as long as it is a candidate.
    pub fn tile(&self, shape: &Shape) -> Tile {
        let candidates = shape.candidates(self.memory);
        let vectors = matches!(shape.lines, Lines::Columns { .. });
        match self.forced.filter(|forced| forced.is_vectors() == vectors) {
            Some(forced) if vectors => {
                let alike = candidates.iter().find(|tile| tile.outputs == forced.outputs);
                return *alike.unwrap_or(&candidates[0]);
            }
            Some(forced) if shape.products != Products::Matrices => return forced,
            _ => {}
        }
        let known = self.measured.get(&shape.key()).filter(|tile| candidates.contains(tile));
        // The smallest fits the 16 KiB that every device has.
        *known.or(candidates.first()).unwrap_or(&FOR_FEW[0])
    }
}

/// All tiles that projections of rows of class prompt may run in, and the one of matrix-vector kernels that is no default.
pub fn tiles() -> Vec<Tile> {
    FOR_FEW.into_iter().chain(FOR_MANY).chain([Tile::vectors(1, 2)]).collect()
}

/// The lanes of a workgroup of a matrix-vector kernel, and what its offsets are: `override`s of dots.wgsl and unit.wgsl.
/// Sums depend on the lanes, so that these depend on the matrix alone: where a row is short, many have nothing to do.
pub(super) fn matrix_constants(format: Format, cols: usize) -> Vec<Constant> {
    let units = match format {
        Format::Panels(PanelFormat { bits: Bits::Four, .. }) => cols.div_ceil(8),
        _ => cols.div_ceil(4),
    };
    let lanes = ("1", if units < 128 { 128 } else { 256 });
    match format {
        Format::Dense(_) => vec![lanes],
        Format::Panels(panels) => vec![lanes, ("2", offset_code(panels.offset))],
    }
}

/// The columns that a matrix-vector kernel may have, as far as steps of `lines` lines use them.
pub(super) fn columns(lines: usize) -> Vec<u32> {
    let widths = [1, 2, 4, 8];
    // Those that are wider than the largest step would never run.
    let widest = widths.partition_point(|&columns| (columns as usize) < lines) + 1;
    widths.into_iter().take(widest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Dtype, Q4_0};

    const KIB_32: Table = Table { measured: BTreeMap::new(), forced: None, memory: 32 << 10 };

    fn shape(outputs: u64, few: bool) -> Shape {
        let (kernel, products) = ("project__tiled", Products::Floats);
        let lines = if few { Lines::Few } else { Lines::Many };
        Shape { kernel, products, weights: WeightType::Nibbles, outputs, lines }
    }

    #[test]
    fn one_panel_is_the_default_and_two_are_taken_where_they_were_measured_to_be_faster() {
        let lines = Lines::Columns { columns: 4, inputs: 896 };
        let of = |kernel| Shape { kernel, lines, ..shape(896, false) };
        let (one, two) = (Tile::vectors(4, 1), Tile::vectors(4, 2));
        assert_eq!(of("project").candidates(0), [one, two]);
        assert_eq!(of("gate_up").candidates(0), [one], "G and U share inputs already");
        assert_eq!(Shape { outputs: 16, ..of("project") }.candidates(0), [one], "nothing to pair");
        let table = Table { measured: [(of("project").key(), two)].into(), ..KIB_32 };
        assert_eq!((table.tile(&of("project")), table.tile(&of("project__normed"))), (two, one));
        let other = Lines::Columns { columns: 4, inputs: 4864 };
        assert_eq!(table.tile(&Shape { lines: other, ..of("project") }), one, "another shape");
        let name = |kernel, tile: Tile| tile.kernel(Kernel::named(kernel).unwrap()).name;
        assert_eq!([one, two].map(|tile| name("project", tile)), ["project", "project__paired"]);
        assert_eq!(name("gate_up", two), "gate_up");
    }

    #[test]
    fn every_candidate_is_one_that_the_kernels_can_run() {
        for tile in FOR_FEW.into_iter().chain(FOR_MANY) {
            assert!(tile.rows.is_multiple_of(tile.lane_rows) && tile.lane_rows <= 8, "{tile:?}");
            // Half of a gated MLP's outputs are whole partial sums.
            assert!(tile.outputs.is_multiple_of(32) && tile.rows <= 64, "{tile:?}");
            // Eight lanes share a row; every device runs 256.
            let lanes = tile.outputs / 4 * (tile.rows / tile.lane_rows);
            assert!(lanes.is_multiple_of(8) && (32..=256).contains(&lanes), "{tile:?}");
            assert!(tile.memory(Products::Floats) <= 32 << 10, "{tile:?}");
        }
    }

    #[test]
    fn narrow_projections_get_smaller_tiles() {
        let tile = |outputs, few| KIB_32.tile(&shape(outputs, few));
        assert_eq!((tile(896, true), tile(896, false)), (FOR_FEW[0], FOR_MANY[1]));
        assert_eq!((tile(4096, true), tile(4096, false)), (FOR_FEW[0], FOR_MANY[0]));
    }

    #[test]
    fn what_was_measured_is_taken_unless_it_is_no_candidate() {
        let (wide, few) = (shape(4096, false), shape(4096, true));
        let odd = Tile::new(1024, 7, 3);
        let measured = [(wide.key(), FOR_MANY[2]), (few.key(), odd)].into();
        let table = Table { measured, ..KIB_32 };
        assert_eq!((table.tile(&wide), table.tile(&few)), (FOR_MANY[2], FOR_FEW[0]));
        assert_eq!(table.tile(&shape(896, false)), FOR_MANY[1], "another shape");
        let small = Table { memory: 16 << 10, ..table };
        assert!(small.tile(&wide).memory(Products::Floats) <= 16 << 10, "{:?}", small.tile(&wide));
    }

    #[test]
    fn only_fast_precision_rounds_and_only_what_can_be_rounded() {
        let nf4 = PanelFormat { offset: Offset::NormalFloat, ..Q4_0 };
        let (q4_0, nf4, f16) = (Format::Panels(Q4_0), Format::Panels(nf4), Format::Dense(Dtype::F16));
        for format in [q4_0, nf4, f16] {
            assert_eq!(Products::of(format, false, true), Products::Floats);
            assert_eq!(Products::of(format, true, true), Products::Matrices);
        }
        let without = [q4_0, nf4, f16].map(|format| Products::of(format, true, false));
        assert_eq!(without, [Products::Codes, Products::Halves, Products::Halves]);
    }

    #[test]
    fn columns_are_no_wider_than_steps_need() {
        assert_eq!((columns(1), columns(3), columns(100)), (vec![1], vec![1, 2, 4], vec![1, 2, 4, 8]));
    }
}

//! Which tiles projections run in: decisions only.

use super::launch::Constant;

/// What a workgroup of a projection computes. Whatever the tile, every sum is made in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Lines.
    pub rows: u32,
    /// Outputs.
    pub outputs: u32,
    /// Lines of an invocation, which has four outputs; at most 8.
    pub lane_rows: u32,
}

impl Tile {
    /// Of kernels that know no tiles.
    pub const ONE: Self = Self { rows: 1, outputs: 1, lane_rows: 1 };
    /// For few lines: many workgroups, each with little to do.
    const FEW: Self = Self { rows: 16, outputs: 32, lane_rows: 4 };
    /// For many lines: each weight and input that is read is used 64 times.
    const MANY: Self = Self { rows: 64, outputs: 64, lane_rows: 8 };

    /// The `override`s in tile.wgsl.
    pub fn constants(self) -> Vec<Constant> {
        vec![("0", self.rows), ("1", self.outputs), ("2", self.lane_rows)]
    }
}

/// The columns that a matrix-vector kernel may have, as far as steps of `lines` lines use them.
pub(super) fn columns(lines: usize) -> impl Iterator<Item = Tile> {
    of_use([1, 2, 4, 8].map(|rows| Tile { rows, ..Tile::ONE }), lines)
}

/// The tiles of a `__tiled` kernel, as far as steps of `lines` lines use them.
pub(super) fn tiles(lines: usize) -> impl Iterator<Item = Tile> {
    of_use([Tile::FEW, Tile::MANY], lines)
}

/// Those that are wider than the largest step would never run.
fn of_use<const N: usize>(tiles: [Tile; N], lines: usize) -> impl Iterator<Item = Tile> {
    let widest = tiles.partition_point(|tile| (tile.rows as usize) < lines) + 1;
    tiles.into_iter().take(widest)
}

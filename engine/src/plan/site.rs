//! LoRA sites: where a plan has factors, and what their pools take on a device.

use wattle_shaders::FactorType;

use crate::adapter::Target;

/// A LoRA site: projections of one input that carry LoRA together.
///
/// On a device factors lie in pools of fixed strides, so that adapters load without moving anything. With S slots and R
/// ranks ([`LoraCapacity`]): A pool \[targets, S, R\] rows of cols elements, padded to four; B pool, target after target,
/// \[S, rows of the target\] rows of R elements, padded to an even number. Before each lies its table \[targets, S\] of the
/// ranks, 0 where the slot has no factors, and of the powers of two that elements are multiplied by. `t` = A x is
/// \[row, partials, targets × R\]: sums over `part` columns each, which whoever reads t adds up in a fixed order.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The layer whose mask bit counts, or [`wattle_shaders::OUTSIDE_LAYERS`].
    pub layer: u32,
    /// Width of the input x.
    pub cols: usize,
    /// The projections, in the order of their outputs.
    pub targets: Vec<SiteTarget>,
    /// Pool strides.
    pub capacity: LoraCapacity,
    /// Columns of a partial sum of t; `cols` where t is whole.
    pub part: usize,
}

/// One projection of a [`Site`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteTarget {
    /// Which.
    pub target: Target,
    /// Its outputs.
    pub rows: usize,
    /// Where its outputs begin in a row of the op's output.
    pub start: usize,
}

/// How many adapters a plan has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoraCapacity {
    /// Adapter slots, S.
    pub slots: usize,
    /// The highest rank, R.
    pub rank: usize,
    /// Whether what lies outside the layers (embedding, head, `project_in`, `project_out`) has sites too: few adapters
    /// need them, and their pools are big.
    pub outside: bool,
}

impl Site {
    /// Words of the table before each pool: a rank and a power of two per target and slot, padded to whole vec4s.
    pub fn table_words(&self) -> usize {
        (2 * self.targets.len() * self.capacity.slots).next_multiple_of(4)
    }

    /// Rows of the A pool.
    pub fn a_rows(&self) -> usize {
        self.targets.len() * self.capacity.slots * self.capacity.rank
    }

    /// Rows of the B pool.
    pub fn b_rows(&self) -> usize {
        self.b_offset(self.targets.len())
    }

    /// The first row of target `index` in the B pool.
    pub fn b_offset(&self, index: usize) -> usize {
        let rows: usize = self.targets[..index].iter().map(|t| t.rows).sum();
        rows * self.capacity.slots
    }

    /// Elements of a row of the A pool: whole quads.
    pub fn a_stride(&self) -> usize {
        self.cols.next_multiple_of(4)
    }

    /// Elements of a row of the B pool: whole words, however factors are kept.
    pub fn b_stride(&self) -> usize {
        self.capacity.rank.next_multiple_of(2)
    }

    /// Bytes of the pools of A and of B, without their tables.
    pub fn factor_bytes(&self, factors: FactorType) -> [usize; 2] {
        [self.a_rows() * self.a_stride(), self.b_rows() * self.b_stride()].map(|len| len * factors.bytes())
    }

    /// Bytes of the pools of A and of B as they lie on a device, each behind its table.
    pub fn pool_bytes(&self, factors: FactorType) -> [usize; 2] {
        self.factor_bytes(factors).map(|bytes| 4 * self.table_words() + bytes)
    }

    /// Elements of t = A x, or of one of its partial sums.
    pub fn t_width(&self) -> usize {
        self.targets.len() * self.capacity.rank
    }

    /// Partial sums of t.
    pub fn partials(&self) -> usize {
        self.cols.div_ceil(self.part.max(1))
    }

    /// Width of the tensor t: all partial sums.
    pub fn t_len(&self) -> usize {
        self.partials() * self.t_width()
    }
}

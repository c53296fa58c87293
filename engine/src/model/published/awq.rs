//! AWQ (Lin et al. 2023) in the layout of AutoAWQ's GEMM kernels. For a module of `out` outputs and `in` inputs:
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `qweight` | I32 | \[in, out / 8\] | the codes of 8 outputs for an input |
//! | `qzeros` | I32 | \[groups, out / 8\] | the zero points of 8 outputs |
//! | `scales` | F16 | \[groups, out\] | s |
//!
//! From the lowest bits on, a word holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.

use super::pack::{Elements, Target};
use super::words::{Scales, Words, per_word, words};
use super::{bits, group_size, only};
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Fields;
use crate::model::format::{Bits, Offset, PanelFormat};
use crate::model::matrix::Matrix;

/// Codes in a word.
const PER: usize = per_word(Bits::Four);

/// Where in its word each of eight outputs is.
const PLACES: [usize; PER] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What the config says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Awq {
    /// Inputs that share a scale.
    group: Option<usize>,
}

impl Awq {
    /// Reads `quantization_config`.
    pub(super) fn read(config: &Fields) -> Result<Self> {
        // AutoAWQ's names, and GPTQModel's for the same layout.
        for name in ["version", "format", "checkpoint_format"] {
            only(config, name, &["gemm"])?;
        }
        let name = if config.names().any(|name| name == "w_bit") { "w_bit" } else { "bits" };
        if bits(config, name)? != Bits::Four {
            return Err(config.error(name, "8; expected 4"));
        }
        if config.flag("zero_point")? == Some(false) {
            return Err(config.error("zero_point", "false; expected true"));
        }
        Ok(Self { group: group_size(config, Some(128))? })
    }

    /// The matrix \[rows, cols\] of a module.
    pub(super) fn matrix(self, from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        let groups = cols.div_ceil(self.group.unwrap_or(cols));
        if !rows.is_multiple_of(PER) {
            let reason = format!("{rows} outputs do not fill words of {PER} codes; expected a multiple");
            return Err(from.error(&name("qweight"), reason));
        }
        let codes = words(from, &name("qweight"), &[cols, rows / PER])?;
        let zeros = words(from, &name("qzeros"), &[groups, rows / PER])?;
        let scales = Scales::read(from, &name("scales"), &[groups, rows])?;
        let [codes, zeros] = [&codes, &zeros].map(|bytes| Words::new(bytes, Bits::Four));
        let format =
            PanelFormat { bits: Bits::Four, offset: Offset::Zero, group: self.group, scale: scales.dtype };
        Target { from, module, rows, cols, format, order: None, scales: scales.all() }
            .affine("qzeros", &Stored { rows, codes, zeros })
    }
}

struct Stored<'a> {
    rows: usize,
    codes: Words<'a>,
    zeros: Words<'a>,
}

impl Elements for Stored<'_> {
    #[inline]
    fn code(&self, row: usize, input: usize) -> u8 {
        self.codes.get(input * (self.rows / PER) + row / PER, PLACES[row % PER])
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        self.zeros.get(group * (self.rows / PER) + row / PER, PLACES[row % PER])
    }

    fn scale(&self, row: usize, group: usize) -> usize {
        group * self.rows + row
    }
}

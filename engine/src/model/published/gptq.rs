//! GPTQ (Frantar et al. 2022), as AutoGPTQ and GPTQModel store it. For a module of `out` outputs and `in` inputs, with
//! P codes in a word (8 of 4 bits, 4 of 8):
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `qweight` | I32 | \[in / P, out\] | the codes of P inputs of an output |
//! | `qzeros` | I32 | \[groups, out / P\] | the zero points z of P outputs: z itself (`gptq_v2`), or z − 1 (`gptq`) |
//! | `scales` | F16 | \[groups, out\] | s |
//! | `g_idx` | I32 | \[in\] | the group of each input; may be missing without act-order |
//!
//! z − 1 wraps around: 15 stands for a z of 0.

use super::groups::order;
use super::pack::{Elements, Target};
use super::words::{Scales, Words, per_word, words};
use super::{bits, group_size, only};
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Fields;
use crate::model::format::{Bits, Offset, PanelFormat};
use crate::model::matrix::Matrix;

/// What the config says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Gptq {
    bits: Bits,
    /// Inputs that share a scale.
    group: Option<usize>,
    /// Zero points are stored minus one.
    less_one: bool,
    /// Groups may have any inputs.
    act_order: bool,
}

impl Gptq {
    /// Reads `quantization_config`.
    pub(super) fn read(config: &Fields) -> Result<Self> {
        let accepted = ["gptq", "gptq_v2"];
        let format = if config.text("checkpoint_format")?.is_some() { "checkpoint_format" } else { "format" };
        only(config, format, &accepted)?;
        only(config, "pack_dtype", &["int32"])?;
        if config.flag("is_marlin_format")? == Some(true) {
            return Err(
                config.error("is_marlin_format", "true; expected false: only GPTQ's own layout is read")
            );
        }
        let version = config.text(format)?.unwrap_or_else(|| accepted[0].into());
        Ok(Self {
            bits: bits(config, "bits")?,
            group: group_size(config, Some(128))?,
            less_one: version.to_lowercase() == accepted[0],
            act_order: config.flag("desc_act")?.unwrap_or(false),
        })
    }

    /// The matrix \[rows, cols\] of a module.
    pub(super) fn matrix(self, from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        let (per, group) = (per_word(self.bits), self.group.unwrap_or(cols));
        let groups = cols.div_ceil(group);
        if !rows.is_multiple_of(per) || !cols.is_multiple_of(per) {
            let reason = format!("[{rows}, {cols}] does not fill words of {per} codes; expected multiples");
            return Err(from.error(&name("qweight"), reason));
        }
        let codes = words(from, &name("qweight"), &[cols / per, rows])?;
        let zeros = words(from, &name("qzeros"), &[groups, rows / per])?;
        let scales = Scales::read(from, &name("scales"), &[groups, rows])?;
        let order = match self.act_order || from.dtype(&name("g_idx")).is_some() {
            true => order(from, &name("g_idx"), cols, group)?,
            false => None,
        };
        let elements = Stored {
            rows,
            per,
            codes: Words::new(&codes, self.bits),
            zeros: Words::new(&zeros, self.bits),
            less: u8::from(self.less_one),
            most: if self.bits == Bits::Four { 15 } else { 255 },
        };
        let format =
            PanelFormat { bits: self.bits, offset: Offset::Zero, group: self.group, scale: scales.dtype };
        Target { from, module, rows, cols, format, order, scales: scales.all() }.affine("qzeros", &elements)
    }
}

struct Stored<'a> {
    rows: usize,
    /// Codes in a word.
    per: usize,
    codes: Words<'a>,
    zeros: Words<'a>,
    /// What zero points are stored less.
    less: u8,
    /// The largest code.
    most: u8,
}

impl Elements for Stored<'_> {
    #[inline]
    fn code(&self, row: usize, input: usize) -> u8 {
        self.codes.get(input / self.per * self.rows + row, input % self.per)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        let stored = self.zeros.get(group * (self.rows / self.per) + row / self.per, row % self.per);
        stored.wrapping_add(self.less) & self.most
    }

    fn scale(&self, row: usize, group: usize) -> usize {
        group * self.rows + row
    }
}

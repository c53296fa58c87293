//! 4-bit NormalFloat of bitsandbytes (Dettmers et al. 2023). A matrix of `out` outputs and `in` inputs is n = out · in
//! elements, row-major, in blocks of 64 that share a scale. For a module:
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `weight` | U8 | \[n / 2, 1\] | two codes a byte, the first in the high half |
//! | `weight.absmax` | F32 | \[blocks\] | s |
//! | `weight.quant_map` | F32 | \[16\] | the table of NF4 |
//! | `weight.quant_state.bitsandbytes__nf4` | U8 | \[bytes\] | JSON: [`State`] |
//!
//! With nested ("double") quantization, `weight.absmax` is U8, and s = map\[absmax\] · outer\[block / 256\] + offset, with
//! `weight.nested_quant_map` F32 \[256\], `weight.nested_absmax` F32 \[⌈blocks / 256⌉\] and the state's `nested_offset`,
//! each operation rounded to f32.

use serde::Deserialize;
use wattle_kernels_cpu::panels::NF4;

use super::only;
use super::pack::{Elements, Target};
use super::words::{bytes, floats};
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Fields;
use crate::model::format::{BLOCK, Bits, Offset, PanelFormat};
use crate::model::matrix::{Bytes, Dtype, Matrix};

/// The state of a module in this format, after the module's name.
pub(super) const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
/// That of one in bitsandbytes' other 4-bit format.
pub(super) const OTHER_STATE: &str = "weight.quant_state.bitsandbytes__fp4";
/// States are read up to this length.
const MAX_STATE: usize = 4096;

/// What `quant_state` says.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Checks `quantization_config`.
pub(super) fn check(config: &Fields) -> Result<()> {
    if config.flag("load_in_8bit")? == Some(true) {
        return Err(config.error("load_in_8bit", "true; expected load_in_4bit with bnb_4bit_quant_type nf4"));
    }
    if config.flag("load_in_4bit")? != Some(true) {
        return Err(config.error("load_in_4bit", "not true; expected true with bnb_4bit_quant_type nf4"));
    }
    if config.text("bnb_4bit_quant_type")?.is_none() {
        return Err(config.error("bnb_4bit_quant_type", "missing, which means fp4; accepted: nf4"));
    }
    only(config, "bnb_4bit_quant_type", &["nf4"])?;
    only(config, "bnb_4bit_quant_storage", &["uint8"])
}

/// The matrix \[rows, cols\] of a module.
pub(super) fn matrix(from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    if from.dtype(&name(OTHER_STATE)).is_some() {
        return Err(from.error(&name(OTHER_STATE), "fp4 is not supported; accepted: nf4"));
    }
    let state = state(from, &name(STATE), [rows, cols])?;
    // Where rows do not begin with a block, 32 elements of one are still of one block.
    let group = if cols.is_multiple_of(state.blocksize) { state.blocksize } else { BLOCK };
    if !cols.is_multiple_of(group) {
        let reason = format!("has rows of {cols} inputs; expected a multiple of {BLOCK}");
        return Err(from.error(&name("weight"), reason));
    }
    let codes = bytes(from, &name("weight"), &[rows * cols / 2, 1])?;
    let table = floats(from, &name("weight.quant_map"), &[NF4.len()])?;
    // The table has been printed with different numbers of digits.
    if table.iter().zip(NF4).any(|(found, value)| (found - value).abs() > 1e-6) {
        return Err(from.error(&name("weight.quant_map"), "is not the table of nf4"));
    }
    let scales = scales(from, &format!("{module}.weight"), &state, (rows * cols).div_ceil(state.blocksize))?;
    let format =
        PanelFormat { bits: Bits::Four, offset: Offset::NormalFloat, group: Some(group), scale: Dtype::F32 };
    let elements = Stored { cols, group, blocksize: state.blocksize, codes: codes.as_ref() };
    let scales = bytemuck::cast_slice(&scales);
    Target { from, module, rows, cols, format, order: None, scales }.pack(&elements)
}

/// Reads and checks `quant_state`.
fn state(from: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<State> {
    let error = |reason: String| from.error(name, reason);
    let shape_of_text =
        from.shape(name).ok_or_else(|| error("missing; expected the state of nf4, in U8".into()))?;
    let len = shape_of_text.iter().product();
    if len > MAX_STATE {
        return Err(error(format!("has {len} bytes; expected at most {MAX_STATE}")));
    }
    let text: Bytes = bytes(from, name, &[len])?;
    let state: State =
        serde_json::from_slice(text.as_ref()).map_err(|e| error(format!("not a quantization state: {e}")))?;
    if state.quant_type != "nf4" {
        return Err(error(format!("quant_type is {:?}; accepted: nf4", state.quant_type)));
    }
    if state.shape != shape {
        return Err(error(format!("shape is {:?}; config.json asks for {shape:?}", state.shape)));
    }
    if !(BLOCK..=4096).contains(&state.blocksize) || !state.blocksize.is_multiple_of(BLOCK) {
        let reason = format!("blocksize is {}; expected a multiple of {BLOCK} up to 4096", state.blocksize);
        return Err(error(reason));
    }
    Ok(state)
}

/// The scales of all blocks of the tensor `weight`.
fn scales(from: &Checkpoint, weight: &str, state: &State, blocks: usize) -> Result<Vec<f32>> {
    let name = |suffix: &str| format!("{weight}.{suffix}");
    if from.dtype(&name("absmax")) != Some(safetensors::Dtype::U8) {
        return floats(from, &name("absmax"), &[blocks]);
    }
    let error = |reason: &str| from.error(&name("quant_state.bitsandbytes__nf4"), reason);
    let per = state.nested_blocksize.filter(|&size| size > 0);
    let per = per.ok_or_else(|| error("nested_blocksize is missing or 0; weight.absmax is nested"))?;
    let offset = state.nested_offset.filter(|offset| offset.is_finite());
    let offset =
        offset.ok_or_else(|| error("nested_offset is missing or not finite; weight.absmax is nested"))?;
    let codes = bytes(from, &name("absmax"), &[blocks])?;
    let outer = floats(from, &name("nested_absmax"), &[blocks.div_ceil(per)])?;
    let map = floats(from, &name("nested_quant_map"), &[256])?;
    let scale = |(block, &code): (usize, &u8)| map[usize::from(code)] * outer[block / per] + offset;
    let scales: Vec<f32> = codes.as_ref().iter().enumerate().map(scale).collect();
    match scales.iter().all(|scale| scale.is_finite()) {
        true => Ok(scales),
        false => Err(from.error(&name("nested_absmax"), "makes scales that are not finite")),
    }
}

struct Stored<'a> {
    cols: usize,
    /// Columns that share a scale in panels.
    group: usize,
    /// Elements that share one in the file.
    blocksize: usize,
    codes: &'a [u8],
}

impl Elements for Stored<'_> {
    #[inline]
    fn code(&self, row: usize, input: usize) -> u8 {
        let index = row * self.cols + input;
        let byte = self.codes[index / 2];
        if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
    }

    fn zero(&self, _row: usize, _group: usize) -> u8 {
        0
    }

    fn scale(&self, row: usize, group: usize) -> usize {
        (row * self.cols + group * self.group) / self.blocksize
    }
}

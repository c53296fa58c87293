//! compressed-tensors, as llm-compressor writes it, in the format `pack-quantized`. For a module of `out` outputs and
//! `in` inputs, with P codes in a word (8 of 4 bits, 4 of 8):
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `weight_packed` | I32 | \[out, ⌈in / P⌉\] | the codes of P inputs of an output |
//! | `weight_scale` | BF16, F16 or F32 | \[out, groups\] | s |
//! | `weight_zero_point` | I32 | \[⌈out / P⌉, groups\] | the zero points of P outputs, if they are not symmetric |
//! | `weight_shape` | I64 | \[2\] | out, in |
//! | `weight_g_idx` | I32 | \[in\] | the group of each input, if they were chosen by activation |
//!
//! Codes and zero points are signed numbers (−8 to 7), stored plus 8 (8 bits: plus 128). A `weight_g_idx` that is −1
//! throughout was never set.

use super::groups::order;
use super::pack::{Elements, Target};
use super::words::{Scales, Words, per_word, words};
use super::{bits, group_size, only};
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Fields;
use crate::model::format::{Bits, Offset, PanelFormat};
use crate::model::matrix::{Bytes, Matrix};

/// What the config says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Compressed {
    bits: Bits,
    /// Inputs that share a scale.
    group: Option<usize>,
    symmetric: bool,
    /// Groups may have any inputs.
    act_order: bool,
}

impl Compressed {
    /// Reads `quantization_config`.
    pub(super) fn read(config: &Fields) -> Result<Self> {
        const FORMAT: &str = "pack-quantized";
        if config.text("format")?.is_none() {
            return Err(config.error("format", format!("missing; expected {FORMAT}")));
        }
        only(config, "format", &[FORMAT])?;
        absent(config, "kv_cache_scheme")?;
        if config.object("transform_config")?.is_some_and(|transforms| transforms.names().next().is_some()) {
            return Err(config.error("transform_config", "has transforms; expected none"));
        }
        if let Some(sparsity) = config.object("sparsity_config")? {
            only(&sparsity, "format", &["dense"])?;
        }
        let groups = config.object("config_groups")?.unwrap_or_else(|| config.empty("config_groups"));
        let names: Vec<&str> = groups.names().collect();
        let [name] = names[..] else {
            let reason =
                format!("{} groups of modules; expected one, for all that are quantized", names.len());
            return Err(config.error("config_groups", reason));
        };
        let group = groups.object(name)?.unwrap_or_else(|| groups.empty(name));
        only(&group, "format", &[FORMAT])?;
        absent(&group, "input_activations")?;
        absent(&group, "output_activations")?;
        weights(&group.object("weights")?.unwrap_or_else(|| group.empty("weights")))
    }

    /// The matrix \[rows, cols\] of a module.
    pub(super) fn matrix(self, from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let name = |suffix: &str| format!("{module}.{suffix}");
        let (per, group) = (per_word(self.bits), self.group.unwrap_or(cols));
        let groups = cols.div_ceil(group);
        check_shape(from, &name("weight_shape"), [rows, cols])?;
        let codes = words(from, &name("weight_packed"), &[rows, cols.div_ceil(per)])?;
        let scales = Scales::read(from, &name("weight_scale"), &[rows, groups])?;
        let zeros = match self.symmetric {
            true => None,
            false => Some(words(from, &name("weight_zero_point"), &[rows.div_ceil(per), groups])?),
        };
        let order = match self.sorted(from, &name("weight_g_idx"), cols)? {
            true => None,
            false => order(from, &name("weight_g_idx"), cols, group)?,
        };
        let elements = Stored {
            groups,
            per,
            words: cols.div_ceil(per),
            codes: Words::new(&codes, self.bits),
            zeros: zeros.as_ref().map(|zeros| Words::new(zeros, self.bits)),
            middle: self.bits.middle(),
        };
        let format =
            PanelFormat { bits: self.bits, offset: Offset::Zero, group: self.group, scale: scales.dtype };
        Target { from, module, rows, cols, format, order, scales: scales.all() }
            .affine("weight_zero_point", &elements)
    }

    /// Whether groups are of consecutive inputs because nothing says otherwise.
    fn sorted(self, from: &Checkpoint, name: &str, cols: usize) -> Result<bool> {
        if self.group.is_none() || (!self.act_order && from.dtype(name).is_none()) {
            return Ok(true);
        }
        let groups: Bytes = words(from, name, &[cols])?;
        Ok(groups.as_ref().iter().all(|&byte| byte == u8::MAX))
    }
}

/// Reads `weights`.
fn weights(config: &Fields) -> Result<Compressed> {
    only(config, "type", &["int"])?;
    only(config, "strategy", &["group", "channel"])?;
    let size = group_size(config, None)?;
    let group = match config.text("strategy")?.as_deref() {
        Some("channel") => None,
        Some(_) if size.is_none() => {
            return Err(config.error("group_size", "missing; the strategy group has one"));
        }
        _ => size,
    };
    // A flag says "group"; "dynamic" and "static" are later names of "group" and "weight".
    let act_order =
        config.read("actorder", "group, weight, dynamic, static, true or false", |value| {
            match (value.as_bool(), value.as_str()) {
                (Some(flag), _) => Some(flag),
                (_, Some("group" | "dynamic")) => Some(true),
                (_, Some("weight" | "static")) => Some(false),
                _ => None,
            }
        })?;
    Ok(Compressed {
        bits: bits(config, "num_bits")?,
        group,
        symmetric: config.flag("symmetric")?.unwrap_or(true),
        act_order: act_order.unwrap_or(false),
    })
}

/// An error where the field `name` is an object.
fn absent(config: &Fields, name: &str) -> Result<()> {
    match config.object(name)? {
        Some(_) => Err(config.error(name, "is not supported; expected null: only weights are quantized")),
        None => Ok(()),
    }
}

/// That `weight_shape` says what config.json says.
fn check_shape(from: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<()> {
    let bytes = from.exactly(name, &[2], safetensors::Dtype::I64)?;
    let stored: Vec<i64> = bytes.as_ref().as_chunks().0.iter().copied().map(i64::from_le_bytes).collect();
    match stored.iter().map(|&size| usize::try_from(size).ok()).eq(shape.map(Some)) {
        true => Ok(()),
        false => Err(from.error(name, format!("says {stored:?}; config.json asks for {shape:?}"))),
    }
}

struct Stored<'a> {
    groups: usize,
    /// Codes in a word.
    per: usize,
    /// Words in a row.
    words: usize,
    codes: Words<'a>,
    /// `None`: all in the middle.
    zeros: Option<Words<'a>>,
    /// What codes are stored plus.
    middle: u8,
}

impl Elements for Stored<'_> {
    #[inline]
    fn code(&self, row: usize, input: usize) -> u8 {
        self.codes.get(row * self.words + input / self.per, input % self.per)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        let stored = |zeros: &Words| zeros.get(row / self.per * self.groups + group, row % self.per);
        self.zeros.as_ref().map_or(self.middle, stored)
    }

    fn scale(&self, row: usize, group: usize) -> usize {
        row * self.groups + group
    }
}

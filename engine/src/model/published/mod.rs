//! Checkpoints that others have quantized, read as they are published: config.json's `quantization_config` says how.
//!
//! | method | codes | element |
//! |---|---|---|
//! | [`gptq`] | 4 bits, or 8 symmetric; groups of inputs, in any order (act-order) | s · (c − z) |
//! | [`awq`], GEMM version | 4 bits; groups of inputs | s · (c − z) |
//! | [`compressed`]-tensors, `pack-quantized` | 4 bits, or 8 symmetric; groups of inputs, or rows | s · (c − z) |
//! | bitsandbytes [`nf4`] | 4 bits; blocks of 64 elements | s · NF4\[c\] |
//!
//! and `wattle`, this project's own files, which are panels already. Each quantized projection becomes panels with just
//! these elements; nothing is rounded again. A projection is quantized where the checkpoint has its codes, so that
//! modules a quantizer left out (`modules_to_not_convert`, `ignore`, …) stay dense without being listed anywhere.

mod awq;
mod compressed;
mod gptq;
mod groups;
mod nf4;
mod pack;
mod words;

use super::checkpoint::Checkpoint;
use super::config::Fields;
use super::format::{BLOCK, Bits};
use super::matrix::{Matrix, Vector};
use super::stored::{self, Stored};
use super::weights::{Order, Source};
use crate::error::Result;

/// The methods that are read, for messages.
const ACCEPTED: &str =
    "gptq, awq (version gemm), compressed-tensors (pack-quantized), bitsandbytes (4-bit nf4), wattle";

/// How a checkpoint's projections are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Gptq(gptq::Gptq),
    Awq(awq::Awq),
    Compressed(compressed::Compressed),
    NormalFloat,
    Stored(Stored),
}

/// Reads config.json's `quantization_config` (compressed-tensors first called it `compression_config`; LLaVA's may be
/// in the language model's config); `None` where there is none.
pub(super) fn read(config: &Fields) -> Result<Option<Method>> {
    let text = config.object("text_config")?;
    for config in [Some(config), text.as_ref()].into_iter().flatten() {
        for name in ["quantization_config", "compression_config"] {
            if let Some(fields) = config.object(name)? {
                return method(&fields).map(Some);
            }
        }
    }
    Ok(None)
}

fn method(fields: &Fields) -> Result<Method> {
    let named = fields.text("quant_method")?;
    match named.as_deref() {
        Some("gptq") => gptq::Gptq::read(fields).map(Method::Gptq),
        Some("awq") => awq::Awq::read(fields).map(Method::Awq),
        Some("compressed-tensors") => compressed::Compressed::read(fields).map(Method::Compressed),
        Some(stored::METHOD) => Stored::read(fields).map(Method::Stored),
        Some("bitsandbytes") => nf4::check(fields).map(|()| Method::NormalFloat),
        // Before transformers 4.35 only bitsandbytes wrote such a config, without its name.
        None if fields.names().any(|name| name.starts_with("load_in_")) => {
            nf4::check(fields).map(|()| Method::NormalFloat)
        }
        Some(other) => {
            Err(fields.error("quant_method", format!("{other:?} is not supported; accepted: {ACCEPTED}")))
        }
        None => Err(fields.error("quant_method", format!("missing; accepted: {ACCEPTED}"))),
    }
}

impl Method {
    /// What follows a module's name and a dot in the names of the tensors that only a quantized module has.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Gptq(_) | Self::Awq(_) => &["qweight", "qzeros", "scales"],
            Self::Compressed(_) => &["weight_packed", "weight_scale"],
            Self::NormalFloat => &[nf4::STATE, nf4::OTHER_STATE, "weight.absmax"],
            Self::Stored(_) => &[Stored::CODES],
        }
    }

    /// The matrix \[rows, cols\] of a quantized module.
    fn matrix(self, from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        match self {
            Self::Gptq(gptq) => gptq.matrix(from, module, rows, cols),
            Self::Awq(awq) => awq.matrix(from, module, rows, cols),
            Self::Compressed(compressed) => compressed.matrix(from, module, rows, cols),
            Self::NormalFloat => nf4::matrix(from, module, rows, cols),
            Self::Stored(stored) => stored.matrix(from, module, rows, cols),
        }
    }
}

/// A checkpoint, dense or quantized.
pub(super) struct Published {
    checkpoint: Checkpoint,
    method: Option<Method>,
}

impl Published {
    /// The checkpoint with what [`read`] found in its config.
    pub(super) fn new(checkpoint: Checkpoint, method: Option<Method>) -> Self {
        Self { checkpoint, method }
    }

    /// Module and method of the weight `name`, if it is quantized.
    fn quantized<'a>(&self, name: &'a str) -> Option<(&'a str, Method)> {
        let (module, method) = (name.strip_suffix(".weight")?, self.method?);
        let stored = |suffix: &&str| self.checkpoint.has(&format!("{module}.{suffix}"));
        method.suffixes().iter().any(stored).then_some((module, method))
    }
}

impl Source for Published {
    fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name) || self.quantized(name).is_some()
    }

    /// Quantizers store GPT-2's projections as they store others, so `order` is that of dense ones.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix> {
        let Some((module, method)) = self.quantized(name) else {
            return self.checkpoint.matrix(name, rows, cols, order);
        };
        if method != Method::NormalFloat && self.checkpoint.has(name) {
            let reason = "is there dense and quantized; expected one of the two";
            return Err(self.checkpoint.error(name, reason));
        }
        method.matrix(&self.checkpoint, module, rows, cols)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        self.checkpoint.vector(name, len)
    }
}

/// The field that says how many bits a code has.
fn bits(config: &Fields, name: &str) -> Result<Bits> {
    let bits = config.read(name, "4 or 8", |value| match value.as_u64()? {
        4 => Some(Bits::Four),
        8 => Some(Bits::Eight),
        _ => None,
    })?;
    bits.ok_or_else(|| config.error(name, "missing; expected 4 or 8"))
}

/// The field `group_size`: how many inputs share a scale; `None` for all of a row. Where it is absent or null, it is
/// `default`.
fn group_size(config: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    const MOST: usize = 1 << 20;
    let expected = format!("-1 (whole rows) or a multiple of {BLOCK} up to {MOST}");
    let size = config.read("group_size", &expected, |value| match value.as_i64()? {
        -1 => Some(None),
        size => usize::try_from(size)
            .ok()
            .filter(|size| (BLOCK..=MOST).contains(size) && size.is_multiple_of(BLOCK))
            .map(Some),
    })?;
    Ok(size.unwrap_or(default))
}

/// An error unless the field `name` is absent, null, or one of `accepted`, in small or capital letters.
fn only(config: &Fields, name: &str, accepted: &[&str]) -> Result<()> {
    match config.text(name)? {
        Some(text) if !accepted.contains(&text.to_lowercase().as_str()) => {
            let accepted = accepted.join(", ");
            Err(config.error(name, format!("{text:?} is not supported; accepted: {accepted}")))
        }
        _ => Ok(()),
    }
}

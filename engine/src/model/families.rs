//! config.json → [`Spec`], one reader per group of families. A field that is absent has the default of its
//! `model_type` in transformers.

use wattle_shaders::MAX_LAYERS;

use super::config::Fields;
use super::rope;
use super::spec::{Activation, Family, NormKind, Positions, Spec};
use crate::error::Result;

/// The most positions that a config may claim.
pub(super) const MAX_CONTEXT: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 22;
const MAX_WIDTH: usize = 1 << 17;
const MAX_HEADS: usize = 1 << 12;
const MAX_FFN: usize = 1 << 20;

/// What config.json says about a checkpoint's tensors, beyond the sizes in [`Spec`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// The language model is part of a LLaVA checkpoint.
    pub(super) llava: bool,
    /// The head is the embedding, unless the checkpoint has another one.
    pub(super) tied: bool,
    /// q, k and v have biases.
    pub(super) qkv_bias: bool,
    /// o has a bias.
    pub(super) o_bias: bool,
    /// The MLP's projections have biases.
    pub(super) mlp_bias: bool,
    /// Norms have parameters.
    pub(super) norm_parameters: bool,
    /// There is a norm before the head.
    pub(super) final_norm: bool,
}

/// Reads config.json; `generation` is generation_config.json, whose eos list wins.
pub(super) fn read(config: &Fields, generation: Option<&Fields>) -> Result<(Spec, Layout)> {
    let expected = "gpt2, opt, llama, mistral, qwen2, qwen3, phi3, llava";
    let Some(model_type) = config.text("model_type")? else {
        return Err(config.error("model_type", format!("missing; accepted: {expected}")));
    };
    refuse(config)?;
    let (mut spec, layout) = match model_type.as_str() {
        "gpt2" => gpt2(config)?,
        "opt" => opt(config)?,
        "llava" => llava(config)?,
        name => match Rotary::of(name) {
            Some(rotary) => rotary.read(config)?,
            None => {
                return Err(
                    config.error("model_type", format!("{name:?} is not supported; accepted: {expected}"))
                );
            }
        },
    };
    if let Some(ids) = generation.map(|fields| fields.ids("eos_token_id")).transpose()?.flatten() {
        spec.eos = ids;
    }
    // Some configs name ids of tokens that were never added: those cannot occur.
    spec.eos.retain(|&id| (id as usize) < spec.vocab);
    spec.bos = spec.bos.filter(|&id| (id as usize) < spec.vocab);
    Ok((spec, layout))
}

/// Refuses what changes the results of any family and is not supported.
fn refuse(config: &Fields) -> Result<()> {
    if config.flag("is_causal")? == Some(false) {
        return Err(config.error("is_causal", "false: attention to later tokens is not supported"));
    }
    if config.object("per_layer_config")?.is_some_and(|layers| layers.names().next().is_some()) {
        return Err(config.error("per_layer_config", "layers of different configs are not supported"));
    }
    Ok(())
}

/// The language model of a LLaVA checkpoint; its tied flag may stand in either config.
fn llava(config: &Fields) -> Result<(Spec, Layout)> {
    let text = config.object("text_config")?.unwrap_or_else(|| config.empty("text_config"));
    let model_type = text.text("model_type")?.unwrap_or_else(|| "llama".into());
    let Some(rotary) = Rotary::of(&model_type) else {
        let reason = format!("{model_type:?} is not supported; accepted: llama, mistral, qwen2, qwen3, phi3");
        return Err(text.error("model_type", reason));
    };
    refuse(&text)?;
    let (mut spec, mut layout) = rotary.read(&text)?;
    if let Some(ids) = config.ids("eos_token_id")? {
        spec.eos = ids;
    }
    layout.llava = true;
    layout.tied |= config.flag("tie_word_embeddings")?.unwrap_or(false);
    Ok((spec, layout))
}

fn gpt2(config: &Fields) -> Result<(Spec, Layout)> {
    // transformers knows sizes by the names that other families have, too, and takes those first.
    let size = |usual: &str, own: &str, most: usize, default: usize| -> Result<usize> {
        let (usual, own) = (config.size(usual, 1..=most)?, config.size(own, 1..=most)?);
        Ok(usual.or(own).unwrap_or(default))
    };
    let width = size("hidden_size", "n_embd", MAX_WIDTH, 768)?;
    let heads = size("num_attention_heads", "n_head", MAX_HEADS, 12)?;
    let layers = size("num_hidden_layers", "n_layer", MAX_LAYERS, 12)?;
    let head_dim = whole_heads(config, "n_head", width, heads)?;
    let scaled = config.flag("scale_attn_weights")?.unwrap_or(true);
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false);
    let scale = |layer: usize| {
        let scale = if scaled { (head_dim as f64).powf(-0.5) } else { 1.0 };
        (if by_layer { scale / (layer + 1) as f64 } else { scale }) as f32
    };
    let spec = Spec {
        family: Family::Gpt2,
        vocab: config.size("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(50257),
        width,
        embed_width: width,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: config.size("n_inner", 1..=MAX_FFN)?.unwrap_or(4 * width),
        context: size("max_position_embeddings", "n_positions", MAX_CONTEXT, 1024)?,
        norm: NormKind::Layer,
        norm_eps: config.positive("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        post_norm: false,
        activation: activation(config, "activation_function", Activation::GeluTanh)?,
        positions: Positions::Learned { offset: 0 },
        attention_scale: (0..layers).map(scale).collect(),
        window: vec![None; layers],
        eos: eos(config, &[50256])?,
        bos: bos(config, Some(50256))?,
    };
    let layout = Layout {
        llava: false,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        norm_parameters: true,
        final_norm: true,
    };
    Ok((spec, layout))
}

fn opt(config: &Fields) -> Result<(Spec, Layout)> {
    let width = config.size("hidden_size", 1..=MAX_WIDTH)?.unwrap_or(768);
    let heads = config.size("num_attention_heads", 1..=MAX_HEADS)?.unwrap_or(12);
    let layers = config.size("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(12);
    let head_dim = whole_heads(config, "num_attention_heads", width, heads)?;
    let pre_norm = config.flag("do_layer_norm_before")?.unwrap_or(true);
    let bias = config.flag("enable_bias")?.unwrap_or(true);
    let spec = Spec {
        family: Family::Opt,
        vocab: config.size("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(50272),
        width,
        embed_width: config.size("word_embed_proj_dim", 1..=MAX_WIDTH)?.unwrap_or(width),
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: config.size("ffn_dim", 1..=MAX_FFN)?.unwrap_or(3072),
        context: config.size("max_position_embeddings", 1..=MAX_CONTEXT)?.unwrap_or(2048),
        norm: NormKind::Layer,
        norm_eps: 1e-5,
        post_norm: !pre_norm,
        activation: activation(config, "activation_function", Activation::Relu)?,
        positions: Positions::Learned { offset: 2 },
        attention_scale: attention_scale(layers, head_dim),
        window: vec![None; layers],
        eos: eos(config, &[2])?,
        bos: bos(config, Some(2))?,
    };
    let layout = Layout {
        llava: false,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        norm_parameters: config.flag("layer_norm_elementwise_affine")?.unwrap_or(true),
        final_norm: pre_norm && !config.flag("_remove_final_layer_norm")?.unwrap_or(false),
    };
    Ok((spec, layout))
}

/// The defaults of a family with rotated positions, RMS norms and a gated MLP.
struct Rotary {
    family: Family,
    vocab: usize,
    width: usize,
    ffn: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: width / heads.
    head_dim: Option<usize>,
    context: usize,
    eps: f64,
    bos: Option<u32>,
    eos: &'static [u32],
}

const LLAMA: Rotary = Rotary {
    family: Family::Llama,
    vocab: 32_000,
    width: 4096,
    ffn: 11_008,
    kv_heads: None,
    head_dim: None,
    context: 2048,
    eps: 1e-6,
    bos: Some(1),
    eos: &[2],
};
const MISTRAL: Rotary =
    Rotary { family: Family::Mistral, ffn: 14_336, kv_heads: Some(8), context: 131_072, ..LLAMA };
const QWEN2: Rotary = Rotary {
    family: Family::Qwen2,
    vocab: 151_936,
    ffn: 22_016,
    kv_heads: Some(32),
    context: 32_768,
    bos: None,
    eos: &[],
    ..LLAMA
};
const QWEN3: Rotary = Rotary { family: Family::Qwen3, head_dim: Some(128), ..QWEN2 };
const PHI3: Rotary = Rotary {
    family: Family::Phi3,
    vocab: 32_064,
    width: 3072,
    ffn: 8192,
    context: 4096,
    eps: 1e-5,
    eos: &[32_000],
    ..LLAMA
};

impl Rotary {
    /// The defaults of a `model_type`.
    fn of(model_type: &str) -> Option<&'static Self> {
        match model_type {
            "llama" => Some(&LLAMA),
            "mistral" => Some(&MISTRAL),
            "qwen2" => Some(&QWEN2),
            "qwen3" => Some(&QWEN3),
            "phi3" => Some(&PHI3),
            _ => None,
        }
    }

    fn read(&self, config: &Fields) -> Result<(Spec, Layout)> {
        let width = config.size("hidden_size", 1..=MAX_WIDTH)?.unwrap_or(self.width);
        let heads = config.size("num_attention_heads", 1..=MAX_HEADS)?.unwrap_or(32);
        let layers = config.size("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(32);
        let context = config.size("max_position_embeddings", 1..=MAX_CONTEXT)?.unwrap_or(self.context);
        let head_dim = match config.size("head_dim", 1..=MAX_HEADS)?.or(self.head_dim) {
            Some(head_dim) => head_dim,
            None => whole_heads(config, "num_attention_heads", width, heads)?,
        };
        let spec = Spec {
            family: self.family,
            vocab: config.size("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(self.vocab),
            width,
            embed_width: width,
            layers,
            heads,
            kv_heads: self.kv_heads(config, heads)?,
            head_dim,
            ffn: config.size("intermediate_size", 1..=MAX_FFN)?.unwrap_or(self.ffn),
            context,
            norm: NormKind::Rms,
            norm_eps: config.positive("rms_norm_eps")?.unwrap_or(self.eps) as f32,
            post_norm: false,
            activation: activation(config, "hidden_act", Activation::Silu)?,
            positions: Positions::Rope(rope::read(config, self.family, head_dim, context)?),
            attention_scale: attention_scale(layers, head_dim),
            window: self.windows(config, layers)?,
            eos: eos(config, self.eos)?,
            bos: bos(config, self.bos)?,
        };
        let flag = |name: &str| -> Result<bool> { Ok(config.flag(name)?.unwrap_or(false)) };
        let (qkv_bias, o_bias, mlp_bias) = match self.family {
            Family::Llama => (flag("attention_bias")?, flag("attention_bias")?, flag("mlp_bias")?),
            Family::Qwen2 => (true, false, false),
            Family::Qwen3 => (flag("attention_bias")?, flag("attention_bias")?, false),
            _ => (false, false, false),
        };
        let tied = flag("tie_word_embeddings")?;
        let llava = false;
        Ok((
            spec,
            Layout { llava, tied, qkv_bias, o_bias, mlp_bias, norm_parameters: true, final_norm: true },
        ))
    }

    fn kv_heads(&self, config: &Fields, heads: usize) -> Result<usize> {
        let name = "num_key_value_heads";
        let kv_heads = config.size_or(name, 1..=MAX_HEADS, self.kv_heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads}; expected a divisor of the {heads} query heads");
            return Err(config.error(name, reason));
        }
        Ok(kv_heads)
    }

    /// Per layer, how far back attention reaches.
    fn windows(&self, config: &Fields, layers: usize) -> Result<Vec<Option<u32>>> {
        let default = if self.family == Family::Phi3 { None } else { Some(4096) };
        let window = config.size_or("sliding_window", 1..=MAX_CONTEXT, default)?.map(|n| n as u32);
        match self.family {
            // With a list transformers takes it for a Ministral, whose layers differ.
            Family::Mistral if config.texts("layer_types")?.is_some() => {
                layer_windows(config, layers, window)
            }
            Family::Mistral | Family::Phi3 => Ok(vec![window; layers]),
            Family::Qwen2 | Family::Qwen3 => {
                let used = config.flag("use_sliding_window")?.unwrap_or(false);
                layer_windows(config, layers, window.filter(|_| used))
            }
            _ => Ok(vec![None; layers]),
        }
    }
}

/// The windows of a family whose layers differ: `layer_types` says which, or else all from `max_window_layers` on.
fn layer_windows(config: &Fields, layers: usize, window: Option<u32>) -> Result<Vec<Option<u32>>> {
    let Some(types) = config.texts("layer_types")? else {
        let first = config.size("max_window_layers", 0..=MAX_CONTEXT)?.unwrap_or(28);
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        let reason =
            format!("a list of {} entries; expected one for each of the {layers} layers", types.len());
        return Err(config.error("layer_types", reason));
    }
    let of_type = |layer_type: &String| match layer_type.as_str() {
        "full_attention" | "attention" => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => {
            let reason = "layers slide, but sliding_window or use_sliding_window switches the window off";
            Err(config.error("layer_types", reason))
        }
        other => {
            let reason = format!("{other:?} is not supported; accepted: full_attention, sliding_attention");
            Err(config.error("layer_types", reason))
        }
    };
    types.iter().map(of_type).collect()
}

/// Elements of a head where the width is split evenly among the heads.
fn whole_heads(config: &Fields, name: &str, width: usize, heads: usize) -> Result<usize> {
    if !width.is_multiple_of(heads) {
        return Err(config.error(name, format!("{heads}; expected a divisor of the width, {width}")));
    }
    Ok(width / heads)
}

fn attention_scale(layers: usize, head_dim: usize) -> Vec<f32> {
    vec![(head_dim as f64).powf(-0.5) as f32; layers]
}

fn activation(config: &Fields, name: &str, default: Activation) -> Result<Activation> {
    let Some(function) = config.text(name)? else { return Ok(default) };
    match function.as_str() {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => {
            let accepted = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu";
            Err(config.error(name, format!("{other:?} is not supported; accepted: {accepted}")))
        }
    }
}

/// The ids that end a text; null switches the default off.
fn eos(config: &Fields, default: &[u32]) -> Result<Vec<u32>> {
    let default = if config.is_null("eos_token_id") { &[] } else { default };
    Ok(config.ids("eos_token_id")?.unwrap_or_else(|| default.to_vec()))
}

/// The id that begins a text; null switches the default off.
fn bos(config: &Fields, default: Option<u32>) -> Result<Option<u32>> {
    let default = if config.is_null("bos_token_id") { None } else { default };
    Ok(config.ids("bos_token_id")?.map_or(default, |ids| ids.first().copied()))
}

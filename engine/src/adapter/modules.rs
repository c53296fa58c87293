//! Module names of each family → layer and targets.

use wattle_shaders::OUTSIDE_LAYERS;

use super::{Place, Target};
use crate::model::{Family, LayerWeights, Spec};

/// What a module's name stands for in a model.
#[derive(Debug, PartialEq)]
pub(super) enum Module {
    /// A projection, or several fused ones.
    Linear(Linear),
    /// A part of a multimodal model that text does not pass through.
    NotForText,
    /// A layer that the model does not have.
    NoSuchLayer,
    /// Nothing that the family has.
    Unknown,
}

/// A linear module of the checkpoint.
#[derive(Debug, PartialEq)]
pub(super) struct Linear {
    /// Inputs.
    pub cols: usize,
    /// Where its outputs belong, and how many rows belong there: several for a fused module, in the order of its rows.
    pub parts: Vec<(Place, usize)>,
}

impl Linear {
    /// All outputs.
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Whether it is the model's head or its token embedding, which "all-linear" leaves out.
    pub(super) fn is_vocabulary(&self) -> bool {
        self.parts.iter().any(|(place, _)| matches!(place.target, Target::Head | Target::Embed))
    }
}

/// What the module `name` (without `base_model.model.`) is in the model that `spec` describes.
pub(super) fn find(name: &str, spec: &Spec) -> Module {
    const NOT_FOR_TEXT: [&str; 5] =
        ["vision_tower", "vision_model", "multi_modal_projector", "vision_resampler", "visual"];
    if name.split('.').any(|part| NOT_FOR_TEXT.contains(&part)) {
        return Module::NotForText;
    }
    let stems: &[&str] = match spec.family {
        Family::Gpt2 => &["transformer.h.", "h."],
        Family::Opt => &["model.decoder.layers.", "decoder.layers."],
        // The longer ones are LLaVA's, from before and after transformers 4.52.
        _ => &["model.layers.", "layers.", "language_model.model.layers.", "model.language_model.layers."],
    };
    let Some(in_layers) = stems.iter().find_map(|stem| name.strip_prefix(stem)) else {
        return linear(OUTSIDE_LAYERS, outside(name, spec), spec);
    };
    let Some((index, module)) = in_layers.split_once('.') else { return Module::Unknown };
    let targets = inside(module, spec.family);
    if targets.is_empty() || !index.bytes().all(|b| b.is_ascii_digit()) {
        return Module::Unknown;
    }
    match index.parse::<u32>() {
        Ok(layer) if (layer as usize) < spec.layers => linear(layer, targets, spec),
        _ => Module::NoSuchLayer,
    }
}

/// The projections of a layer, those of attention first.
pub fn projections(layer: &LayerWeights) -> impl Iterator<Item = (Target, &crate::model::Linear)> {
    let gate = layer.gate.as_ref().map(|gate| (Target::Gate, gate));
    let rest = [
        (Target::Q, &layer.q),
        (Target::K, &layer.k),
        (Target::V, &layer.v),
        (Target::O, &layer.o),
        (Target::Up, &layer.up),
        (Target::Down, &layer.down),
    ];
    rest.into_iter().chain(gate)
}

/// Outputs and inputs of a target: \[rows, cols\].
pub(super) fn shape(target: Target, spec: &Spec) -> [usize; 2] {
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    match target {
        Target::Q => [q, spec.width],
        Target::K | Target::V => [kv, spec.width],
        Target::O => [spec.width, q],
        Target::Gate | Target::Up => [spec.ffn, spec.width],
        Target::Down => [spec.width, spec.ffn],
        Target::ProjectIn => [spec.width, spec.embed_width],
        Target::ProjectOut => [spec.embed_width, spec.width],
        Target::Head => [spec.vocab, spec.embed_width],
        Target::Embed => [spec.embed_width, spec.vocab],
    }
}

fn linear(layer: u32, targets: &[Target], spec: &Spec) -> Module {
    let Some(&first) = targets.first() else { return Module::Unknown };
    let [_, cols] = shape(first, spec);
    let parts = targets.iter().map(|&target| (Place { layer, target }, shape(target, spec)[0])).collect();
    Module::Linear(Linear { cols, parts })
}

/// The targets of a module outside the layers; none when the model has no such module.
fn outside(name: &str, spec: &Spec) -> &'static [Target] {
    let projects = spec.embed_width != spec.width;
    match name {
        "lm_head" | "language_model.lm_head" => &[Target::Head],
        "transformer.wte" | "wte" | "model.decoder.embed_tokens" | "decoder.embed_tokens" => &[Target::Embed],
        "model.embed_tokens" | "embed_tokens" => &[Target::Embed],
        "language_model.model.embed_tokens" | "model.language_model.embed_tokens" => &[Target::Embed],
        "model.decoder.project_in" | "decoder.project_in" if projects => &[Target::ProjectIn],
        "model.decoder.project_out" | "decoder.project_out" if projects => &[Target::ProjectOut],
        _ => &[],
    }
}

/// The targets of a module of a layer, in the order of its rows; none when the family has no such module.
fn inside(module: &str, family: Family) -> &'static [Target] {
    use Target::{Down, Gate, K, O, Q, Up, V};
    match (family, module) {
        (Family::Gpt2, "attn.c_attn") | (Family::Phi3, "self_attn.qkv_proj") => &[Q, K, V],
        (Family::Gpt2, "attn.c_proj") | (Family::Opt, "self_attn.out_proj") => &[O],
        (Family::Gpt2, "mlp.c_fc") | (Family::Opt, "fc1") => &[Up],
        (Family::Gpt2, "mlp.c_proj") | (Family::Opt, "fc2") => &[Down],
        (Family::Gpt2, _) => &[],
        (Family::Phi3, "mlp.gate_up_proj") => &[Gate, Up],
        (Family::Phi3, "self_attn.o_proj") => &[O],
        (Family::Phi3, "mlp.down_proj") => &[Down],
        (Family::Phi3, _) => &[],
        (_, "self_attn.q_proj") => &[Q],
        (_, "self_attn.k_proj") => &[K],
        (_, "self_attn.v_proj") => &[V],
        (Family::Opt, _) => &[],
        (_, "self_attn.o_proj") => &[O],
        (_, "mlp.gate_proj") => &[Gate],
        (_, "mlp.up_proj") => &[Up],
        (_, "mlp.down_proj") => &[Down],
        _ => &[],
    }
}

//! What a model is, free of any family's naming: config.json is read into this, and the plan is built from this.

use std::sync::Arc;

use super::matrix::{Matrix, Vector};

/// The architectures that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// GPT-2, DistilGPT2, DialoGPT.
    Gpt2,
    /// OPT, with pre-norm (125M, 1.3B, …) or post-norm (350M).
    Opt,
    /// Llama 2, 3 and 3.x, and LLaVA's language model of that kind.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Phi-3.
    Phi3,
}

/// How a norm normalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// (x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016).
    Layer,
    /// x / √(mean(x²) + ε) · weight (Zhang & Sennrich 2019).
    Rms,
}

/// The MLP's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x/2 · (1 + erf(x/√2)).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))): `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x).
    Silu,
}

/// Rotary position embedding; pairs are (i, i + rotary_dim/2) of the first `rotary_dim` elements of a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many elements of a head are rotated; even.
    pub rotary_dim: usize,
    /// One frequency per pair, after scaling (llama3, linear, longrope's short factors).
    pub inv_freq: Vec<f32>,
    /// longrope: the long factor set.
    pub long: Option<LongRope>,
    /// Multiplies cos and sin (longrope's and yarn's attention factor; else 1).
    pub attention_factor: f32,
}

/// longrope's second factor set, used by sequences longer than the original context.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// One frequency per pair under the long factors.
    pub inv_freq: Vec<f32>,
    /// A sequence of more tokens than this uses the long factors for all its positions.
    pub original_context: usize,
}

/// How positions enter.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned table: position p adds its row p + offset.
    Learned {
        /// Rows skipped at the start of the table (OPT: 2).
        offset: usize,
    },
    /// Rotation of q and k.
    Rope(Rope),
}

/// A model's shape and rules. All sizes were checked against each other when it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding and of the logits.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the embedding; differs from `width` where the model projects in and out (OPT-350M).
    pub embed_width: usize,
    /// Transformer layers, at most [`wattle_shaders::MAX_LAYERS`].
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the MLP's hidden layer.
    pub ffn: usize,
    /// The most positions that the model was made for.
    pub context: usize,
    /// Which norm.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_eps: f32,
    /// Norms come after the residual addition instead of before attention and MLP (OPT-350M).
    pub post_norm: bool,
    /// The MLP's activation.
    pub activation: Activation,
    /// How positions enter.
    pub positions: Positions,
    /// Per layer: what multiplies q·k.
    pub attention_scale: Vec<f32>,
    /// Per layer: attend only to the last so many positions (the own one included).
    pub window: Vec<Option<u32>>,
    /// Tokens that end a generation (generation_config.json's, else config.json's).
    pub eos: Vec<u32>,
    /// The token that begins a text, if the config names one.
    pub bos: Option<u32>,
}

impl Spec {
    /// Leaves no more than the first so many layers.
    pub fn truncate(&mut self, layers: usize) {
        self.layers = self.layers.min(layers);
        self.attention_scale.truncate(layers);
        self.window.truncate(layers);
    }
}

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear {
    /// W: \[outputs, inputs\].
    pub weight: Arc<Matrix>,
    /// b: \[outputs\].
    pub bias: Option<Arc<Vector>>,
}

/// The parameters of a norm, each \[width\] (or \[head_dim\] for q/k norms).
#[derive(Clone, Debug, Default)]
pub struct NormWeights {
    /// Scale; `None` is ones.
    pub weight: Option<Arc<Vector>>,
    /// Shift; `None` is zeros.
    pub bias: Option<Arc<Vector>>,
}

/// The weights of one layer. Fused checkpoints (c_attn, qkv_proj, gate_up_proj) are row ranges of one tensor.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Before (or, post-norm, after) attention.
    pub attn_norm: NormWeights,
    /// \[heads × head_dim, width\].
    pub q: Linear,
    /// \[kv_heads × head_dim, width\].
    pub k: Linear,
    /// \[kv_heads × head_dim, width\].
    pub v: Linear,
    /// \[width, heads × head_dim\].
    pub o: Linear,
    /// RMS norm of every q head (Qwen3).
    pub q_norm: Option<NormWeights>,
    /// RMS norm of every k head (Qwen3).
    pub k_norm: Option<NormWeights>,
    /// Before (or, post-norm, after) the MLP.
    pub mlp_norm: NormWeights,
    /// \[ffn, width\]; `None` where the MLP is not gated.
    pub gate: Option<Linear>,
    /// \[ffn, width\].
    pub up: Linear,
    /// \[width, ffn\].
    pub down: Linear,
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// \[vocab, embed_width\].
    pub embed: Arc<Matrix>,
    /// The learned position table.
    pub positions: Option<Arc<Matrix>>,
    /// \[width, embed_width\] (OPT-350M).
    pub project_in: Option<Linear>,
    /// \[embed_width, width\] (OPT-350M).
    pub project_out: Option<Linear>,
    /// One entry per layer.
    pub layers: Vec<LayerWeights>,
    /// Before the head; `None` where the model has none (OPT-350M).
    pub final_norm: Option<NormWeights>,
    /// \[vocab, embed_width\]; the same matrix as `embed` where tied.
    pub head: Linear,
}

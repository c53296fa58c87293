//! [`Weights`] from tensors by name: how each family calls its parts.

use std::sync::Arc;

use super::families::Layout;
use super::matrix::{Matrix, Vector};
use super::spec::{Family, LayerWeights, Linear, NormKind, NormWeights, Positions, Spec, Weights};
use crate::error::{Error, Result};

/// Where tensors come from: a checkpoint, or a generator of random ones.
pub(super) trait Source {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// The matrix \[rows, cols\] of this name.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix>;

    /// The vector \[len\] of this name.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vector>;
}

/// How a projection is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// \[outputs, inputs\], as it is used.
    OutIn,
    /// \[inputs, outputs\]: GPT-2's Conv1D, which is transposed once.
    InOut,
}

/// Reads all weights of a model.
pub(super) fn assemble(spec: &Spec, layout: &Layout, source: &mut dyn Source) -> Result<Weights> {
    let names = Names::of(spec.family, layout.llava);
    let prefix = names.prefix(source);
    let mut tensors = Tensors { spec, layout, source };
    let layer = |tensors: &mut Tensors<'_>, index: usize| match spec.family {
        Family::Gpt2 => tensors.gpt2_layer(&format!("{prefix}h.{index}.")),
        Family::Opt => tensors.opt_layer(&format!("{prefix}layers.{index}.")),
        _ => tensors.rotary_layer(&format!("{prefix}layers.{index}.")),
    };
    let layers = (0..spec.layers).map(|index| layer(&mut tensors, index)).collect::<Result<_>>()?;
    let (embed, head) = tensors.embedding(&format!("{prefix}{}", names.embed), names.heads)?;
    let positions = match (&spec.positions, names.positions) {
        (Positions::Learned { offset }, Some(name)) => {
            let rows = spec.context + offset;
            Some(Arc::new(tensors.source.matrix(
                &format!("{prefix}{name}"),
                rows,
                spec.width,
                Order::OutIn,
            )?))
        }
        _ => None,
    };
    let (width, embed_width) = (spec.width, spec.embed_width);
    let mut project = |name: &str, rows, cols| match width == embed_width {
        true => Ok(None),
        false => tensors.linear(&format!("{prefix}{name}"), rows, cols, false).map(Some),
    };
    Ok(Weights {
        embed,
        positions,
        project_in: project("project_in", width, embed_width)?,
        project_out: project("project_out", embed_width, width)?,
        layers,
        final_norm: match layout.final_norm {
            true => Some(tensors.norm(&format!("{prefix}{}", names.final_norm))?),
            false => None,
        },
        head: Linear { weight: head, bias: None },
    })
}

/// How a family calls what lies outside its layers.
struct Names {
    /// What may stand before all names but the head's, and which tensor shows it.
    prefixes: &'static [&'static str],
    marker: &'static str,
    embed: &'static str,
    positions: Option<&'static str>,
    final_norm: &'static str,
    heads: &'static [&'static str],
}

impl Names {
    fn of(family: Family, llava: bool) -> Self {
        match family {
            Family::Gpt2 => Self {
                prefixes: &["transformer.", ""],
                marker: "h.0.attn.c_proj.weight",
                embed: "wte.weight",
                positions: Some("wpe.weight"),
                final_norm: "ln_f",
                heads: &["lm_head.weight"],
            },
            Family::Opt => Self {
                prefixes: &["model.decoder.", "decoder."],
                marker: "layers.0.self_attn.out_proj.weight",
                embed: "embed_tokens.weight",
                positions: Some("embed_positions.weight"),
                final_norm: "final_layer_norm",
                heads: &["lm_head.weight"],
            },
            _ => Self {
                // LLaVA's keys before and after transformers 4.52.
                prefixes: match llava {
                    true => &["language_model.model.", "model.language_model.", "language_model."],
                    false => &["model.", ""],
                },
                marker: "layers.0.self_attn.o_proj.weight",
                embed: "embed_tokens.weight",
                positions: None,
                final_norm: "norm",
                heads: if llava {
                    &["language_model.lm_head.weight", "lm_head.weight"]
                } else {
                    &["lm_head.weight"]
                },
            },
        }
    }

    /// The prefix that the source uses; the usual one if none fits, for the errors that follow.
    fn prefix(&self, source: &dyn Source) -> &'static str {
        let fits = |prefix: &&&str| source.has(&format!("{prefix}{}", self.marker));
        self.prefixes.iter().find(fits).or(self.prefixes.first()).copied().unwrap_or_default()
    }
}

/// Reads the parts of one model.
struct Tensors<'a> {
    spec: &'a Spec,
    layout: &'a Layout,
    source: &'a mut dyn Source,
}

impl Tensors<'_> {
    /// The embedding and the head. Where they are tied, one of them may be missing; where both are stored and
    /// differ all the same, both count (as in transformers 5).
    fn embedding(&mut self, embed: &str, heads: &[&str]) -> Result<(Arc<Matrix>, Arc<Matrix>)> {
        let stored = heads.iter().find(|name| self.source.has(name)).copied();
        let (rows, cols) = (self.spec.vocab, self.spec.embed_width);
        let mut read = |name: &str| self.source.matrix(name, rows, cols, Order::OutIn).map(Arc::new);
        match (self.layout.tied, stored) {
            (false, _) => Ok((read(embed)?, read(stored.or(heads.first().copied()).unwrap_or_default())?)),
            (true, None) => read(embed).map(|both| (Arc::clone(&both), both)),
            (true, Some(head)) => {
                let head = read(head)?;
                if !self.source.has(embed) {
                    return Ok((Arc::clone(&head), head));
                }
                let embed = self.source.matrix(embed, rows, cols, Order::OutIn).map(Arc::new)?;
                let head = if same(&embed, &head) { Arc::clone(&embed) } else { head };
                Ok((embed, head))
            }
        }
    }

    fn gpt2_layer(&mut self, layer: &str) -> Result<LayerWeights> {
        let (width, ffn) = (self.spec.width, self.spec.ffn);
        let qkv = self.linear(&format!("{layer}attn.c_attn"), 3 * width, width, true)?;
        Ok(LayerWeights {
            attn_norm: self.norm(&format!("{layer}ln_1"))?,
            q: rows_of(&qkv, 0, width)?,
            k: rows_of(&qkv, width, width)?,
            v: rows_of(&qkv, 2 * width, width)?,
            o: self.linear(&format!("{layer}attn.c_proj"), width, width, true)?,
            q_norm: None,
            k_norm: None,
            mlp_norm: self.norm(&format!("{layer}ln_2"))?,
            gate: None,
            up: self.linear(&format!("{layer}mlp.c_fc"), ffn, width, true)?,
            down: self.linear(&format!("{layer}mlp.c_proj"), width, ffn, true)?,
        })
    }

    fn opt_layer(&mut self, layer: &str) -> Result<LayerWeights> {
        let (width, ffn) = (self.spec.width, self.spec.ffn);
        let Layout { qkv_bias, o_bias, mlp_bias, .. } = *self.layout;
        Ok(LayerWeights {
            attn_norm: self.norm(&format!("{layer}self_attn_layer_norm"))?,
            q: self.linear(&format!("{layer}self_attn.q_proj"), width, width, qkv_bias)?,
            k: self.linear(&format!("{layer}self_attn.k_proj"), width, width, qkv_bias)?,
            v: self.linear(&format!("{layer}self_attn.v_proj"), width, width, qkv_bias)?,
            o: self.linear(&format!("{layer}self_attn.out_proj"), width, width, o_bias)?,
            q_norm: None,
            k_norm: None,
            mlp_norm: self.norm(&format!("{layer}final_layer_norm"))?,
            gate: None,
            up: self.linear(&format!("{layer}fc1"), ffn, width, mlp_bias)?,
            down: self.linear(&format!("{layer}fc2"), width, ffn, mlp_bias)?,
        })
    }

    /// A layer of Llama, Mistral, Qwen or Phi-3.
    fn rotary_layer(&mut self, layer: &str) -> Result<LayerWeights> {
        let Spec { family, width, ffn, head_dim, .. } = *self.spec;
        let (q_width, kv_width) = (self.spec.heads * head_dim, self.spec.kv_heads * head_dim);
        let Layout { qkv_bias, o_bias, mlp_bias, .. } = *self.layout;
        let (attention, mlp) = (format!("{layer}self_attn"), format!("{layer}mlp"));
        let (q, k, v, gate, up);
        if family == Family::Phi3 {
            let qkv = self.linear(&format!("{attention}.qkv_proj"), q_width + 2 * kv_width, width, false)?;
            q = rows_of(&qkv, 0, q_width)?;
            k = rows_of(&qkv, q_width, kv_width)?;
            v = rows_of(&qkv, q_width + kv_width, kv_width)?;
            let gate_up = self.linear(&format!("{mlp}.gate_up_proj"), 2 * ffn, width, false)?;
            gate = rows_of(&gate_up, 0, ffn)?;
            up = rows_of(&gate_up, ffn, ffn)?;
        } else {
            q = self.linear(&format!("{attention}.q_proj"), q_width, width, qkv_bias)?;
            k = self.linear(&format!("{attention}.k_proj"), kv_width, width, qkv_bias)?;
            v = self.linear(&format!("{attention}.v_proj"), kv_width, width, qkv_bias)?;
            gate = self.linear(&format!("{mlp}.gate_proj"), ffn, width, mlp_bias)?;
            up = self.linear(&format!("{mlp}.up_proj"), ffn, width, mlp_bias)?;
        }
        Ok(LayerWeights {
            attn_norm: self.norm(&format!("{layer}input_layernorm"))?,
            q,
            k,
            v,
            o: self.linear(&format!("{attention}.o_proj"), width, q_width, o_bias)?,
            q_norm: self.head_norm(&format!("{attention}.q_norm"))?,
            k_norm: self.head_norm(&format!("{attention}.k_norm"))?,
            mlp_norm: self.norm(&format!("{layer}post_attention_layernorm"))?,
            gate: Some(gate),
            up,
            down: self.linear(&format!("{mlp}.down_proj"), width, ffn, mlp_bias)?,
        })
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
        let order = if self.spec.family == Family::Gpt2 { Order::InOut } else { Order::OutIn };
        let weight = Arc::new(self.source.matrix(&format!("{name}.weight"), rows, cols, order)?);
        let bias = match bias {
            true => Some(self.vector(&format!("{name}.bias"), rows)?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    /// A norm over the width of the residual stream.
    fn norm(&mut self, name: &str) -> Result<NormWeights> {
        if !self.layout.norm_parameters {
            return Ok(NormWeights::default());
        }
        let weight = Some(self.vector(&format!("{name}.weight"), self.spec.width)?);
        let bias = match self.spec.norm {
            NormKind::Layer => Some(self.vector(&format!("{name}.bias"), self.spec.width)?),
            NormKind::Rms => None,
        };
        Ok(NormWeights { weight, bias })
    }

    /// Qwen3's norm of the heads of q or k.
    fn head_norm(&mut self, name: &str) -> Result<Option<NormWeights>> {
        if self.spec.family != Family::Qwen3 {
            return Ok(None);
        }
        let weight = Some(self.vector(&format!("{name}.weight"), self.spec.head_dim)?);
        Ok(Some(NormWeights { weight, bias: None }))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Arc<Vector>> {
        self.source.vector(name, len).map(Arc::new)
    }
}

/// Outputs `start..start + rows` of a fused projection, on the same bytes.
fn rows_of(fused: &Linear, start: usize, rows: usize) -> Result<Linear> {
    let outside = || Error::value(&fused.weight.name, format!("has no rows {start} to {}", start + rows));
    let weight = Arc::new(fused.weight.row_range(start, rows).ok_or_else(outside)?);
    let bias = match &fused.bias {
        Some(bias) => {
            let values = bias.values.get(start..start + rows).ok_or_else(outside)?.to_vec();
            Some(Arc::new(Vector { name: bias.name.clone(), values }))
        }
        None => None,
    };
    Ok(Linear { weight, bias })
}

/// Whether two matrices hold the same bytes.
fn same(a: &Matrix, b: &Matrix) -> bool {
    let parts = a.parts.iter().zip(&b.parts);
    a.format == b.format
        && a.parts.len() == b.parts.len()
        && parts.into_iter().all(|(a, b)| a.data.as_ref() == b.data.as_ref())
}

//! Spec and weights → the plain plan.

use std::sync::Arc;

use wattle_shaders::OUTSIDE_LAYERS;

use super::{
    Attend, Extent, FactorType, KvShape, KvType, LoraCapacity, Norm, Op, OpKind, Plan, Project, RopeTable,
    Site, SiteTarget, Tensor, TensorId,
};
use crate::adapter::Target;
use crate::model::{LayerWeights, Linear, NormKind, NormWeights, Positions, Spec, Weights};

/// The plain plan of a model, one mathematical step per op; with LoRA on every projection if `lora` has slots. Keys,
/// values and factors are f32.
pub fn build(spec: &Spec, weights: &Weights, lora: LoraCapacity) -> Plan {
    let &Spec { layers, heads, kv_heads, head_dim, .. } = spec;
    let kv = KvShape { layers, heads, kv_heads, head_dim, store: KvType::F32 };
    let rope = match &spec.positions {
        Positions::Rope(rope) => Some(RopeTable { rope: rope.clone() }),
        Positions::Learned { .. } => None,
    };
    let factors = FactorType::F32;
    let plan = Plan { ops: Vec::new(), tensors: Vec::new(), kv, factors, rope, vocab: spec.vocab };
    let mut builder = Builder { spec, lora, plan };
    let mut x = builder.embed(weights);
    for (layer, layer_weights) in weights.layers.iter().enumerate() {
        x = builder.attention(layer, layer_weights, x);
        x = builder.mlp(layer, layer_weights, x);
    }
    builder.head(weights, x);
    builder.plan
}

struct Builder<'a> {
    spec: &'a Spec,
    lora: LoraCapacity,
    plan: Plan,
}

impl Builder<'_> {
    /// Adds an op, and the tensor of its name if `shape` is given.
    fn op(
        &mut self,
        name: String,
        kind: OpKind,
        inputs: &[TensorId],
        shape: Option<(Extent, usize)>,
    ) -> TensorId {
        let id = TensorId(self.plan.tensors.len() as u32);
        if let Some((extent, width)) = shape {
            self.plan.tensors.push(Tensor { name: name.clone(), extent, width });
        }
        let output = shape.map(|_| id);
        self.plan.ops.push(Op { name, kind, inputs: inputs.to_vec(), output, carry: None });
        id
    }

    /// Adds an op whose output has the extent of its first input.
    fn map(&mut self, name: String, kind: OpKind, inputs: &[TensorId], width: usize) -> TensorId {
        let extent = self.plan.tensor(inputs[0]).extent;
        self.op(name, kind, inputs, Some((extent, width)))
    }

    fn width(&self, id: TensorId) -> usize {
        self.plan.tensor(id).width
    }

    fn embed(&mut self, weights: &Weights) -> TensorId {
        let table = Arc::clone(&weights.embed);
        let shape = (Extent::Rows, table.cols);
        let (vocab, width) = (table.rows, table.cols);
        let carries_lora = self.lora.outside && self.lora.slots > 0 && self.lora.rank > 0;
        let name = if carries_lora { "embed.base" } else { "embed" };
        let mut x = self.op(name.into(), OpKind::Embed { table }, &[], Some(shape));
        if carries_lora {
            let site = self.site(OUTSIDE_LAYERS, Target::Embed, [width, vocab]);
            let gather = OpKind::LoraEmbed { site: Arc::clone(&site) };
            let t = self.op("embed.lora_down".into(), gather, &[], Some((Extent::Rows, site.t_width())));
            x = self.map("embed".into(), OpKind::LoraUp { site }, &[x, t], width);
        }
        if let Some(linear) = &weights.project_in {
            x = self.project("project_in", OUTSIDE_LAYERS, Target::ProjectIn, linear, x);
        }
        if let (Positions::Learned { offset }, Some(table)) = (&self.spec.positions, &weights.positions) {
            let kind = OpKind::AddPosition { table: Arc::clone(table), offset: *offset as u32 };
            x = self.map("positions".into(), kind, &[x], self.spec.width);
        }
        x
    }

    /// W x + b, and B (A x) on top where the plan has room for adapters.
    fn project(&mut self, name: &str, layer: u32, target: Target, linear: &Linear, x: TensorId) -> TensorId {
        let rows = linear.weight.rows;
        let project = Project {
            norm: None,
            weight: Arc::clone(&linear.weight),
            bias: linear.bias.clone(),
            lora: None,
            activation: None,
            residual: false,
        };
        let has_site = layer != OUTSIDE_LAYERS || self.lora.outside;
        if self.lora.slots == 0 || self.lora.rank == 0 || !has_site {
            return self.map(name.into(), OpKind::Project(project), &[x], rows);
        }
        let y = self.map(format!("{name}.base"), OpKind::Project(project), &[x], rows);
        let site = self.site(layer, target, [rows, linear.weight.cols]);
        let down = OpKind::LoraDown { site: Arc::clone(&site) };
        let t = self.map(format!("{name}.lora_down"), down, &[x], site.t_width());
        self.map(name.into(), OpKind::LoraUp { site }, &[y, t], rows)
    }

    /// A site of one target with factors B: \[rows, rank\] and A: \[rank, cols\].
    fn site(&self, layer: u32, target: Target, [rows, cols]: [usize; 2]) -> Arc<Site> {
        let targets = vec![SiteTarget { target, rows, start: 0 }];
        Arc::new(Site { layer, cols, targets, capacity: self.lora, part: cols })
    }

    fn norm(&mut self, name: String, weights: &NormWeights, x: TensorId) -> TensorId {
        let (kind, eps) = (self.spec.norm, self.spec.norm_eps);
        let norm = Norm { kind, weights: weights.clone(), eps, groups: 1 };
        self.map(name, OpKind::Norm(norm), &[x], self.width(x))
    }

    /// RMS norm of each head, where the model has it.
    fn head_norm(
        &mut self,
        name: String,
        weights: Option<&NormWeights>,
        groups: usize,
        x: TensorId,
    ) -> TensorId {
        let Some(weights) = weights else { return x };
        let eps = self.spec.norm_eps;
        let norm = Norm { kind: NormKind::Rms, weights: weights.clone(), eps, groups };
        self.map(name, OpKind::Norm(norm), &[x], self.width(x))
    }

    fn rope(&mut self, name: String, heads: usize, x: TensorId) -> TensorId {
        if self.plan.rope.is_none() {
            return x;
        }
        let kind = OpKind::Rope { heads, head_dim: self.spec.head_dim };
        self.map(name, kind, &[x], self.width(x))
    }

    fn attention(&mut self, layer: usize, weights: &LayerWeights, residual: TensorId) -> TensorId {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let (index, pre_norm) = (layer as u32, !self.spec.post_norm);
        let x = if pre_norm { self.norm(name("attn_norm"), &weights.attn_norm, residual) } else { residual };
        let q = self.project(&name("q"), index, Target::Q, &weights.q, x);
        let k = self.project(&name("k"), index, Target::K, &weights.k, x);
        let v = self.project(&name("v"), index, Target::V, &weights.v, x);
        let (heads, kv_heads) = (self.spec.heads, self.spec.kv_heads);
        let q = self.head_norm(name("q_norm"), weights.q_norm.as_ref(), heads, q);
        let k = self.head_norm(name("k_norm"), weights.k_norm.as_ref(), kv_heads, k);
        let q = self.rope(name("rope_q"), heads, q);
        let k = self.rope(name("rope_k"), kv_heads, k);
        self.op(name("kv_write"), OpKind::KvWrite { layer: index }, &[k, v], None);
        let (scale, window) = (self.spec.attention_scale[layer], self.spec.window[layer]);
        let attend = Attend { layer: index, scale, window };
        let a = self.map(name("attend"), OpKind::Attend(attend), &[q], self.width(q));
        let o = self.project(&name("o"), index, Target::O, &weights.o, a);
        let sum = self.map(name("attn_add"), OpKind::Add, &[o, residual], self.spec.width);
        if pre_norm { sum } else { self.norm(name("attn_norm"), &weights.attn_norm, sum) }
    }

    fn mlp(&mut self, layer: usize, weights: &LayerWeights, residual: TensorId) -> TensorId {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let (index, pre_norm) = (layer as u32, !self.spec.post_norm);
        let x = if pre_norm { self.norm(name("mlp_norm"), &weights.mlp_norm, residual) } else { residual };
        let function = self.spec.activation;
        let gate =
            weights.gate.as_ref().map(|gate| self.project(&name("gate"), index, Target::Gate, gate, x));
        let up = self.project(&name("up"), index, Target::Up, &weights.up, x);
        let activate = OpKind::Activate { function, gated: gate.is_some() };
        let inputs: Vec<_> = gate.into_iter().chain([up]).collect();
        let h = self.map(name("act"), activate, &inputs, self.spec.ffn);
        let down = self.project(&name("down"), index, Target::Down, &weights.down, h);
        let sum = self.map(name("mlp_add"), OpKind::Add, &[down, residual], self.spec.width);
        if pre_norm { sum } else { self.norm(name("mlp_norm"), &weights.mlp_norm, sum) }
    }

    /// From here on only sampled rows count.
    fn head(&mut self, weights: &Weights, x: TensorId) {
        let shape = (Extent::Samples, self.width(x));
        let mut x = self.op("select".into(), OpKind::Select, &[x], Some(shape));
        if let Some(norm) = &weights.final_norm {
            x = self.norm("final_norm".into(), norm, x);
        }
        if let Some(linear) = &weights.project_out {
            x = self.project("project_out", OUTSIDE_LAYERS, Target::ProjectOut, linear, x);
        }
        let logits = self.project("head", OUTSIDE_LAYERS, Target::Head, &weights.head, x);
        self.op("sample".into(), OpKind::Sample, &[logits], None);
    }
}

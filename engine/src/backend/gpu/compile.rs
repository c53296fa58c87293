//! The launches of every kind of op, but those with weights or factors (see [`super::linear`]).

use wattle_shaders::{Kernel, WeightType, params};

use super::device::Gpu;
use super::launch::{B_POOL, Grid, Launch, T, extent_code, function_code, k4, read, stride, write};
use super::lora::Pools;
use super::sequences::{Heads, Sequences};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::gate::LayerGate;
use crate::model::{NormKind, Vector};
use crate::plan::{Attend, Extent, KvType, Norm, Op, OpKind, Plan, RopeKv, Tensor};

/// What launches are made of.
pub(super) struct Compiler<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a Plan,
    pub op: &'a Op,
    pub weights: &'a mut Weights,
    pub pools: &'a mut Pools,
    pub sequences: &'a Sequences,
    /// The plan's table of cosines and sines.
    pub angles: Option<&'a wgpu::Buffer>,
    /// What `sample` writes.
    pub results: &'a wgpu::Buffer,
    /// Bound where an op has no such operand.
    pub nothing: &'a wgpu::Buffer,
    /// Bound where an op carries no A x.
    pub nowhere: &'a wgpu::Buffer,
    /// Where inputs are brought into the order of a matrix's columns (see [`super::order`]).
    pub ordered: &'a wgpu::Buffer,
    /// Per tensor, its buffer.
    pub activations: &'a [wgpu::Buffer],
}

impl Compiler<'_> {
    /// The launches of the op, in order.
    pub fn launches(mut self) -> Result<Vec<Launch>> {
        let first = self.order()?;
        Ok(first.into_iter().chain(self.kernels()?).collect())
    }

    /// Those of its kernel.
    fn kernels(mut self) -> Result<Vec<Launch>> {
        match &self.op.kind {
            OpKind::Embed { table } => self.embed(table),
            OpKind::AddPosition { table, offset } => self.add_position(table, *offset),
            OpKind::Norm(norm) => self.norm(norm),
            OpKind::Project(project) => self.project(project),
            OpKind::LoraDown { site } => self.lora_down(site),
            OpKind::LoraEmbed { site } => self.lora_embed(site),
            OpKind::LoraUp { site } => self.lora_up(site),
            OpKind::Rope { heads, head_dim } => self.rope(*heads, *head_dim),
            OpKind::KvWrite { layer } => self.kv_write(*layer),
            OpKind::Attend(attend) => self.attend(attend),
            OpKind::Activate { function, gated } => {
                let second = if *gated { self.input(1) } else { self.nothing };
                let params = params::Activate {
                    k4: k4(self.tensor_in(0).width),
                    extent: extent_code(self.extent()),
                    function: function_code(Some(*function)),
                    gated: u32::from(*gated),
                };
                self.elementwise(params, second)
            }
            OpKind::Add => {
                let params =
                    params::Add { k4: k4(self.tensor_in(0).width), extent: extent_code(self.extent()) };
                self.elementwise(params, self.input(1))
            }
            OpKind::Select => {
                let bindings = vec![read(1, self.input(0)), write(2, self.output()?)];
                let params = params::Select { k4: k4(self.tensor_in(0).width) };
                let launch = Launch::new(&self, params, bindings, Grid::Groups(1))?;
                Ok(vec![Launch { extent: Extent::Samples, ..launch }])
            }
            OpKind::Sample => self.sample(),
            OpKind::Gate(gate) => self.gate(gate),
            OpKind::RopeKv(rope_kv) => self.rope_kv(rope_kv),
            OpKind::GateUp(gate_up) => self.gate_up(gate_up),
        }
    }

    /// The op's kernel.
    pub fn kernel(&self) -> Result<&'static Kernel> {
        self.variant(self.op.kind.kernel())
    }

    /// The kernel of this name: a variant of the op's.
    pub fn variant(&self, name: &str) -> Result<&'static Kernel> {
        Kernel::named(name).ok_or_else(|| self.gpu.error(format!("there is no kernel {name}")))
    }

    pub fn tensor_in(&self, index: usize) -> &Tensor {
        self.plan.tensor(self.op.inputs[index])
    }

    pub fn input(&self, index: usize) -> &wgpu::Buffer {
        match self.op.kind.order() {
            Some(_) if index == 0 => self.ordered,
            _ => &self.activations[self.op.inputs[index].0 as usize],
        }
    }

    pub fn output(&self) -> Result<&wgpu::Buffer> {
        let missing = || Error::value(&self.op.name, "the op has no output");
        Ok(&self.activations[self.op.output.ok_or_else(missing)?.0 as usize])
    }

    /// The extent of the op's output (or first input).
    pub fn extent(&self) -> Extent {
        let id = self.op.output.or(self.op.inputs.first().copied());
        id.map_or(Extent::Rows, |id| self.plan.tensor(id).extent)
    }

    fn elementwise<P: bytemuck::Pod>(&self, params: P, second: &wgpu::Buffer) -> Result<Vec<Launch>> {
        let bindings = vec![read(1, self.input(0)), read(2, second), write(3, self.output()?)];
        let grid = Grid::Elements(u64::from(k4(self.tensor_in(0).width)));
        Ok(vec![Launch { extent: self.extent(), ..Launch::new(self, params, bindings, grid)? }])
    }

    fn norm(&mut self, norm: &Norm) -> Result<Vec<Launch>> {
        let row = self.tensor_in(0).width;
        let width = row / norm.groups;
        let centered = norm.kind == NormKind::Layer;
        let (weight, bias) = (norm.weights.weight.as_deref(), norm.weights.bias.as_deref());
        let params = params::Norm {
            width: width as u32,
            groups: norm.groups as u32,
            stride: stride(row) as u32,
            extent: extent_code(self.extent()),
            eps: norm.eps,
        };
        let flags = [centered, weight.is_some(), centered && bias.is_some()];
        let constants = ["0", "1", "2"].into_iter().zip(flags.map(u32::from)).collect();
        let (weight, bias) = (self.vectors(&[weight], width)?, self.vectors(&[bias], width)?);
        let (next, carried) = self.carried()?;
        let operands = [read(1, self.input(0)), read(2, &weight), read(3, &bias), write(4, self.output()?)];
        let bindings = operands.into_iter().chain(carried).collect();
        let grid = Grid::Groups(norm.groups as u64 + u64::from(next.parts * next.rank));
        let launch = Launch::new(self, params, bindings, grid)?;
        Ok(vec![Launch { constants, extent: self.extent(), next: Some(next), ..launch }])
    }

    /// These vectors one after the other, as one buffer; any buffer if there is none.
    pub fn vectors(&mut self, vectors: &[Option<&Vector>], len: usize) -> Result<wgpu::Buffer> {
        if vectors.iter().all(Option::is_none) {
            return Ok(self.nothing.clone());
        }
        self.weights.vectors(self.gpu, vectors, len)
    }

    /// The table of angles, and how many pairs and positions it has.
    fn angles(&self) -> (wgpu::Buffer, u32, u32) {
        let pairs = self.plan.rope.as_ref().map_or(0, |rope| rope.pairs() as u32);
        let buffer = self.angles.unwrap_or(self.nothing).clone();
        (buffer, pairs, self.sequences.capacity.context as u32)
    }

    fn rope(&self, heads: usize, head_dim: usize) -> Result<Vec<Launch>> {
        let (angles, pairs, positions) = self.angles();
        let params = params::Rope {
            heads: heads as u32,
            head_dim: head_dim as u32,
            stride: stride(heads * head_dim) as u32,
            pairs,
            positions,
        };
        let bindings = vec![read(1, self.input(0)), write(2, self.output()?), read(3, &angles)];
        Ok(vec![Launch::new(self, params, bindings, Grid::Groups(heads as u64))?])
    }

    /// One launch per buffer of the layer's cache.
    fn per_heads(
        &self,
        layer: u32,
        launch: impl Fn(&Heads, params::Cache) -> Result<Launch>,
    ) -> Result<Vec<Launch>> {
        let missing = || Error::value(&self.op.name, format!("the cache has no layer {layer}"));
        let heads = self.sequences.layers.get(layer as usize).ok_or_else(missing)?;
        let weights = match self.plan.kv.store {
            KvType::F32 => WeightType::F32,
            KvType::F16 => WeightType::F16,
            KvType::Q8 => WeightType::Bytes,
        };
        let launch = |heads| Ok(Launch { weights, ..launch(heads, self.sequences.params(heads))? });
        heads.iter().map(launch).collect()
    }

    fn kv_write(&self, layer: u32) -> Result<Vec<Launch>> {
        let kv = self.plan.kv;
        self.per_heads(layer, |heads, cache| {
            let params = params::KvWrite { cache, stride: stride(kv.width()) as u32 };
            let inputs = [read(1, self.input(0)), read(2, self.input(1))];
            let bindings = inputs.into_iter().chain([write(4, &heads.k), write(5, &heads.v)]).collect();
            Launch::new(self, params, bindings, Grid::Groups(kv.kv_heads as u64))
        })
    }

    fn rope_kv(&mut self, op: &RopeKv) -> Result<Vec<Launch>> {
        let kv = self.plan.kv;
        let (angles, pairs, positions) = self.angles();
        let q_norm = op.q_norm.as_ref().and_then(|norm| norm.weight.as_deref());
        let k_norm = op.k_norm.as_ref().and_then(|norm| norm.weight.as_deref());
        // A norm without weights has ones.
        let ones = Vector { name: "ones".into(), values: vec![1.0; kv.head_dim] };
        let norms = [(&op.q_norm, q_norm), (&op.k_norm, k_norm)]
            .map(|(norm, weight)| norm.as_ref().map(|_| weight.unwrap_or(&ones)));
        let norms = self.vectors(&norms, kv.head_dim)?;
        let (site, lora) = self.epilogue(op.lora.as_ref())?;
        self.per_heads(op.layer, |heads, cache| {
            let params = params::RopeKv {
                cache,
                heads: kv.heads as u32,
                stride: stride(kv.q_width() + 2 * kv.width()) as u32,
                q_stride: stride(kv.q_width()) as u32,
                pairs: if op.rotate { pairs } else { 0 },
                positions,
                q_norm: u32::from(op.q_norm.is_some()),
                k_norm: u32::from(op.k_norm.is_some()),
                eps: op.eps,
            };
            let reads = [read(1, self.input(0)), read(2, &norms), read(3, &angles)];
            let writes = [write(4, &heads.k), write(5, &heads.v), write(9, self.output()?)];
            let factors = [read(T, &lora.0), read(B_POOL, &lora.1)];
            let bindings = reads.into_iter().chain(writes).chain(factors).collect();
            let launch =
                Launch::new(self, params, bindings, Grid::Groups((kv.heads + 2 * kv.kv_heads) as u64))?;
            Ok(Launch { constants: vec![("0", stride(kv.head_dim) as u32)], site: Some(site), ..launch })
        })
    }

    fn attend(&mut self, attend: &Attend) -> Result<Vec<Launch>> {
        let kv = self.plan.kv;
        let (next, carried) = self.carried()?;
        self.per_heads(attend.layer, |heads, cache| {
            let params = params::Attend {
                cache,
                heads: kv.heads as u32,
                stride: stride(kv.q_width()) as u32,
                window: attend.window.unwrap_or(u32::MAX),
                scale: attend.scale,
            };
            let reads = [read(1, self.input(0)), read(2, &heads.k), read(3, &heads.v)];
            let mut bindings: Vec<_> =
                reads.into_iter().chain([write(4, self.output()?)]).chain(carried.clone()).collect();
            let head_dim = ("0", stride(kv.head_dim) as u32);
            let launch = match &self.sequences.split {
                None => {
                    let launch = Launch::new(self, params, bindings, Grid::Groups(kv.heads as u64))?;
                    Launch { constants: vec![head_dim], ..launch }
                }
                Some(split) => {
                    bindings.extend([write(5, &split.parts), write(6, &split.done)]);
                    let params = params::AttendSplit { attend: params, blocks: split.blocks };
                    let groups = kv.kv_heads as u64 * u64::from(split.blocks);
                    let grid = Grid::Items { groups, together: split.together };
                    let launch = Launch::new(self, params, bindings, grid)?;
                    let constants = vec![head_dim, ("1", split.heads)];
                    Launch { kernel: self.variant("attend__split")?, constants, ..launch }
                }
            };
            Ok(Launch { next: Some(next), ..launch })
        })
    }

    fn gate(&mut self, gate: &LayerGate) -> Result<Vec<Launch>> {
        let width = self.tensor_in(0).width;
        let params = params::Gate {
            width: width as u32,
            stride: stride(width) as u32,
            layer: gate.layer,
            hidden: gate.hidden as u32,
            threshold: gate.threshold,
        };
        let weights = self.weights.values(self.gpu, "gate", &gate.weights)?;
        let bindings = vec![read(1, self.input(0)), read(2, &weights), write(3, self.output()?)];
        let launch = Launch::new(self, params, bindings, Grid::Groups(1))?;
        Ok(vec![Launch { closes: true, ..launch }])
    }

    fn sample(&self) -> Result<Vec<Launch>> {
        let params = params::Sample {
            vocab: self.plan.vocab as u32,
            stride: stride(self.plan.vocab) as u32,
            state_stride: self.sequences.state_stride() as u32,
        };
        let bindings = vec![read(1, self.input(0)), write(2, &self.sequences.state), write(3, self.results)];
        Ok(vec![Launch { extent: Extent::Samples, ..Launch::new(self, params, bindings, Grid::Groups(1))? }])
    }
}

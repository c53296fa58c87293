//! The plain plan → the fast one. A fused op means exactly its parts: tests run both on the same inputs.

use std::sync::Arc;

use super::carry::{carry_lora_down, fold_norm};
use super::graph::{Graph, open_project, sibling};
use super::late::select_early;
use super::{GateUp, Op, OpKind, Plan, Project, RopeKv, Site, TensorId};
use crate::model::{Matrix, NormWeights, Vector};

/// What a backend can do in one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    /// Whether a site's B pool fits one binding, so that B t can be added by the launch that computes W x.
    pub lora_epilogue: bool,
    /// Whether the projection of q, k, v computes the RMS norm before it.
    pub norm_prologue: bool,
    /// With `lora_epilogue`: whether launches carry A x for the projection behind them (see [`super::Carry`]), and the
    /// largest binding \[bytes\] that what they read may take.
    pub carry: Option<u64>,
    /// Whether the last layer goes on behind its attention with sampled rows alone.
    pub early_select: bool,
}

impl FuseOptions {
    /// For a CPU, where a call costs nothing: A x and norms are ops of their own.
    pub const CPU: Self = Self { lora_epilogue: true, norm_prologue: false, carry: None, early_select: true };

    /// For a GPU with bindings of so many bytes: in decode no launch exists for LoRA alone. Two choices of rows instead
    /// of one would be a launch more.
    pub const fn gpu(binding: u64) -> Self {
        Self { lora_epilogue: true, norm_prologue: true, carry: Some(binding), early_select: false }
    }
}

/// Rewrites a plain plan. The result computes the same, with fewer ops and fewer tensors.
pub fn fuse(plan: &Plan, options: FuseOptions) -> Plan {
    let mut graph = Graph::new(plan);
    for index in 0..plan.ops.len() {
        let Some(op) = graph.op(index) else { continue };
        // Each rewrite returns `None` where its pattern does not match, and then has changed nothing.
        let _ = match op.kind {
            OpKind::LoraUp { .. } if options.lora_epilogue => fold_lora_up(&mut graph, index),
            OpKind::Attend(_) => fuse_qkv(&mut graph, index),
            OpKind::Activate { gated: true, .. } => fuse_gate_up(&mut graph, index),
            OpKind::Activate { gated: false, .. } => fuse_activation(&mut graph, index),
            OpKind::Add => fuse_residual(&mut graph, index),
            _ => None,
        };
    }
    // With B t as a launch of its own, a projection is not open: its norm stays.
    for index in (0..plan.ops.len()).filter(|_| options.norm_prologue) {
        let _ = fold_norm(&mut graph, index);
    }
    for index in (0..plan.ops.len()).filter(|_| options.lora_epilogue) {
        let _ = options.carry.and_then(|binding| carry_lora_down(&mut graph, index, binding));
    }
    if options.early_select {
        let _ = select_early(&mut graph);
    }
    graph.finish()
}

/// W x, then y + B t → one projection.
fn fold_lora_up(graph: &mut Graph, index: usize) -> Option<()> {
    let up = graph.op(index)?.clone();
    let OpKind::LoraUp { site } = up.kind else { return None };
    let (base, op) = graph.private_producer(up.inputs[0])?;
    let project = Project { lora: Some(site), ..open_project(op)?.clone() };
    let inputs = vec![op.inputs[0], up.inputs[1]];
    graph.replace(
        &[base],
        index,
        Op { name: up.name, kind: OpKind::Project(project), inputs, output: up.output, carry: None },
    );
    Some(())
}

/// x → activation: the projection applies it.
fn fuse_activation(graph: &mut Graph, index: usize) -> Option<()> {
    let activate = graph.op(index)?.clone();
    let OpKind::Activate { function, .. } = activate.kind else { return None };
    let (at, op) = graph.private_producer(activate.inputs[0])?;
    let project = Project { activation: Some(function), ..open_project(op)?.clone() };
    let fused = Op { kind: OpKind::Project(project), output: activate.output, ..op.clone() };
    graph.replace(&[at], index, fused);
    Some(())
}

/// y + residual: the projection adds it.
fn fuse_residual(graph: &mut Graph, index: usize) -> Option<()> {
    let add = graph.op(index)?.clone();
    let (at, op) = graph.private_producer(add.inputs[0])?;
    let project = Project { residual: true, ..open_project(op)?.clone() };
    let mut fused = Op { kind: OpKind::Project(project), output: add.output, ..op.clone() };
    fused.inputs.push(add.inputs[1]);
    graph.replace(&[at], index, fused);
    Some(())
}

/// q, k, v projections of one input, head norms, rotation and cache write → a stacked projection and one op.
fn fuse_qkv(graph: &mut Graph, attend: usize) -> Option<()> {
    let write = (0..attend).rev().find(|&i| matches!(graph.op(i), Some(op) if op.output.is_none()))?;
    let OpKind::KvWrite { layer } = graph.op(write)?.kind else { return None };
    let (k_input, v_input) = (graph.op(write)?.inputs[0], graph.op(write)?.inputs[1]);
    let q_output = graph.op(attend)?.inputs[0];
    let q = Chain::back_from(graph, q_output)?;
    let k = Chain::back_from(graph, k_input)?;
    let v = Chain::back_from(graph, v_input)?;
    if v.removed.len() != 1 || q.rotate != k.rotate {
        return None;
    }
    let name = graph.op(q.project)?.name.clone();
    let stacked = Stack::of(graph, &[q.project, k.project, v.project])?;
    let eps = q.eps.or(k.eps).unwrap_or(0.0);
    let rope_kv = RopeKv { layer, q_norm: q.norm, k_norm: k.norm, eps, rotate: q.rotate, lora: None };
    let matrices: Vec<_> = stacked.projects.iter().map(|p| &*p.weight).collect();
    let weight = Arc::new(Matrix::stack(&matrices)?);
    let (rows, extent) = (weight.rows, graph.tensor_of(q_output).extent);
    let project = Project {
        norm: None,
        weight,
        bias: stacked.bias(),
        lora: stacked.site.clone(),
        activation: None,
        residual: false,
    };
    let qkv = graph.tensor(sibling(&name, "qkv"), extent, rows);
    let inputs = stacked.merge_lora_down(graph, &sibling(&name, "qkv.lora_down"));
    let removed: Vec<usize> = [q.removed, k.removed, v.removed].concat();
    let kind = OpKind::Project(project);
    graph.replace(
        &removed,
        v.project,
        Op { name: sibling(&name, "qkv"), kind, inputs, output: Some(qkv), carry: None },
    );
    let name = sibling(&name, "rope_kv");
    let op =
        Op { name, kind: OpKind::RopeKv(rope_kv), inputs: vec![qkv], output: Some(q_output), carry: None };
    graph.replace(&[], write, op);
    Some(())
}

/// A projection and what follows it up to the cache or to attention.
struct Chain {
    project: usize,
    norm: Option<NormWeights>,
    eps: Option<f32>,
    rotate: bool,
    removed: Vec<usize>,
}

impl Chain {
    /// Walks back over at most one rotation and one norm to an open projection.
    fn back_from(graph: &Graph, output: TensorId) -> Option<Self> {
        let mut chain = Self { project: 0, norm: None, eps: None, rotate: false, removed: Vec::new() };
        let (mut index, mut op) = graph.private_producer(output)?;
        if let OpKind::Rope { .. } = op.kind {
            chain.rotate = true;
            chain.removed.push(index);
            (index, op) = graph.private_producer(op.inputs[0])?;
        }
        if let OpKind::Norm(norm) = &op.kind {
            (chain.norm, chain.eps) = (Some(norm.weights.clone()), Some(norm.eps));
            chain.removed.push(index);
            (index, op) = graph.private_producer(op.inputs[0])?;
        }
        open_project(op)?;
        chain.project = index;
        chain.removed.push(index);
        Some(chain)
    }
}

/// act(gate) · up of two projections of one input → one op.
fn fuse_gate_up(graph: &mut Graph, index: usize) -> Option<()> {
    let activate = graph.op(index)?.clone();
    let OpKind::Activate { function, .. } = activate.kind else { return None };
    let (gate, _) = graph.private_producer(activate.inputs[0])?;
    let (up, up_op) = graph.private_producer(activate.inputs[1])?;
    let name = sibling(&up_op.name, "gate_up");
    let stacked = Stack::of(graph, &[gate, up])?;
    let [gate_project, up_project] = stacked.projects.as_slice() else { return None };
    if !gate_project.weight.alike(&up_project.weight) {
        return None;
    }
    let kind = OpKind::GateUp(GateUp {
        gate: Arc::clone(&gate_project.weight),
        gate_bias: gate_project.bias.clone(),
        up: Arc::clone(&up_project.weight),
        up_bias: up_project.bias.clone(),
        function,
        lora: stacked.site.clone(),
    });
    let inputs = stacked.merge_lora_down(graph, &format!("{name}.lora_down"));
    graph.replace(&[gate, up], index, Op { name, kind, inputs, output: activate.output, carry: None });
    Some(())
}

/// Projections of one input that can share a launch.
struct Stack {
    x: TensorId,
    projects: Vec<Project>,
    /// The LoRA sites as one, outputs one after the other.
    site: Option<Arc<Site>>,
    /// The ops that compute A x.
    downs: Vec<usize>,
}

impl Stack {
    fn of(graph: &Graph, indices: &[usize]) -> Option<Self> {
        let ops: Vec<&Op> = indices.iter().filter_map(|&i| graph.op(i)).collect();
        let projects: Vec<Project> = ops.iter().filter_map(|op| open_project(op).cloned()).collect();
        let x = ops.first()?.inputs[0];
        let same_input = ops.iter().all(|op| op.inputs[0] == x);
        let with_lora = projects.iter().filter(|p| p.lora.is_some()).count();
        if projects.len() != indices.len() || !same_input || ![0, projects.len()].contains(&with_lora) {
            return None;
        }
        let downs = ops.iter().filter_map(|op| graph.producer(*op.inputs.get(1)?)).collect();
        Some(Self { x, site: merged_site(&projects), projects, downs })
    }

    /// The biases one after the other, zeros where one has none; `None` if none has one.
    fn bias(&self) -> Option<Arc<Vector>> {
        self.projects.iter().find(|p| p.bias.is_some())?;
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for project in &self.projects {
            match &project.bias {
                Some(bias) => {
                    names.push(bias.name.as_str());
                    values.extend_from_slice(&bias.values);
                }
                None => values.resize(values.len() + project.weight.rows, 0.0),
            }
        }
        Some(Arc::new(Vector { name: names.join("+"), values }))
    }

    /// Replaces the stack's A x ops by one; returns the inputs of the stacked projection.
    fn merge_lora_down(&self, graph: &mut Graph, name: &str) -> Vec<TensorId> {
        let (Some(site), Some(&last)) = (&self.site, self.downs.iter().max()) else { return vec![self.x] };
        let t = graph.tensor(name.into(), graph.tensor_of(self.x).extent, site.t_width());
        let kind = OpKind::LoraDown { site: Arc::clone(site) };
        graph.replace(
            &self.downs,
            last,
            Op { name: name.into(), kind, inputs: vec![self.x], output: Some(t), carry: None },
        );
        vec![self.x, t]
    }
}

fn merged_site(projects: &[Project]) -> Option<Arc<Site>> {
    let first = projects.first()?.lora.as_ref()?;
    let (mut targets, mut start) = (Vec::new(), 0);
    for project in projects {
        let site = project.lora.as_ref()?;
        targets.extend(site.targets.iter().map(|t| super::SiteTarget { start: start + t.start, ..*t }));
        start += project.weight.rows;
    }
    Some(Arc::new(Site { targets, ..(**first).clone() }))
}

//! The second half of fusing: norms become prologues, and launches carry A x of the projection behind them.

use std::sync::Arc;

use super::graph::{Graph, open_project};
use super::{Carry, Norm, Op, OpKind, Project, RopeKv, Site, TensorId};
use crate::model::{Matrix, NormKind};

/// Outputs of a partial sum that [`OpKind::GateUp`] carries.
pub const GATE_UP_PART: usize = 16;

/// Elements of a head that [`OpKind::Attend`] can carry at most: workgroup memory of the kernel.
const HEAD_DIM: usize = 512;

/// An RMS norm that only q, k, v projections read → their prologue; their B t is added by what rotates them.
pub(super) fn fold_norm(graph: &mut Graph, rope_kv: usize) -> Option<()> {
    let rotate = graph.op(rope_kv)?.clone();
    let OpKind::RopeKv(rope) = &rotate.kind else { return None };
    let (at, op) = graph.private_producer(rotate.inputs[0])?;
    let (op, project) = (op.clone(), open_project(op)?.clone());
    // Where columns have an order of their own, inputs are brought into it after the norm.
    if project.weight.order.is_some() {
        return None;
    }
    let norm_op = graph.op(graph.producer(op.inputs[0])?)?.clone();
    let OpKind::Norm(norm) = norm_op.kind else { return None };
    let down = |index| matches!(graph.op(index), Some(Op { kind: OpKind::LoraDown { .. }, .. }));
    if !folds(&norm) || graph.consumers(op.inputs[0]).any(|index| index != at && !down(index)) {
        return None;
    }
    let rope = RopeKv { lora: project.lora.clone(), ..rope.clone() };
    let inputs = rotate.inputs.iter().chain(op.inputs.get(1)).copied().collect();
    graph.replace(&[], rope_kv, Op { kind: OpKind::RopeKv(rope), inputs, ..rotate });
    let project = Project { norm: Some(norm), lora: None, ..project };
    graph.replace(&[], at, Op { kind: OpKind::Project(project), inputs: vec![norm_op.inputs[0]], ..op });
    Some(())
}

/// Whether a norm is a weight and one scale for the whole row, which can be applied after the products.
fn folds(norm: &Norm) -> bool {
    norm.kind == NormKind::Rms && norm.groups == 1 && norm.weights.bias.is_none()
}

/// t = A x by its own launch → by the launch that makes x, if what that needs fits bindings of `binding` bytes.
pub(super) fn carry_lora_down(graph: &mut Graph, index: usize, binding: u64) -> Option<()> {
    let down = graph.op(index)?.clone();
    let (OpKind::LoraDown { site }, Some(t)) = (down.kind, down.output) else { return None };
    let (carrier, part) = carrier(graph, down.inputs[0], t, binding)?;
    let site = Arc::new(Site { part: part.min(site.cols), ..(*site).clone() });
    // More partial sums than that cost more than the launch that they save.
    let few = site.partials() == 1 || site.t_len() <= 4 * site.cols;
    let [a, _] = site.pool_bytes(graph.factors());
    if !few || a.max(4 * site.t_len()) as u64 > binding {
        return None;
    }
    let reader = graph.sole_consumer(t)?;
    let mut consumer = graph.op(reader)?.clone();
    if site.partials() > 1 && !matches!(consumer.kind, OpKind::Project(_)) {
        return None;
    }
    consumer.sites_mut().next().map(|own| *own = Arc::clone(&site))?;
    graph.replace(&[], reader, consumer);
    graph.tensor_mut(t).width = site.t_len();
    let op = Op { carry: Some(Carry { site, t }), ..graph.op(carrier)?.clone() };
    graph.replace(&[index], carrier, op);
    Some(())
}

/// The op that can carry A x for the reader of `t`, and over how many columns it sums at most.
fn carrier(graph: &Graph, x: TensorId, t: TensorId, binding: u64) -> Option<(usize, usize)> {
    let reader = graph.op(graph.sole_consumer(t)?)?;
    let index = match &reader.kind {
        // The projection has the norm that makes x.
        OpKind::RopeKv(_) => graph.producer(reader.inputs[0])?,
        _ => graph.producer(x)?,
    };
    let op = graph.op(index).filter(|op| op.carry.is_none())?;
    let part = match &op.kind {
        OpKind::Project(project) if project.norm.is_some() => usize::MAX,
        OpKind::Norm(norm) if norm.groups == 1 => usize::MAX,
        OpKind::Attend(_) if graph.kv().head_dim <= HEAD_DIM => graph.kv().head_dim,
        // Workgroups must own the same outputs wherever the matrix is split: it is not.
        OpKind::GateUp(gate_up) if whole(&gate_up.gate, binding) && whole(&gate_up.up, binding) => {
            GATE_UP_PART
        }
        _ => return None,
    };
    Some((index, part))
}

/// Whether a matrix lies in one binding.
fn whole(matrix: &Matrix, binding: u64) -> bool {
    let padding = matrix.rows.next_multiple_of(16) * 16;
    matrix.parts.len() == 1 && (matrix.bytes() + padding) as u64 <= binding
}

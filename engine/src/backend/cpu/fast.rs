//! Runs one op with its fast kernel.

use wattle_kernels_cpu::fast::{self, Carried, Factor, GateUp, Project, RopeKv};
use wattle_kernels_cpu::gate::Gate;
use wattle_kernels_cpu::norm::Norm;
use wattle_kernels_cpu::rope::Angles;
use wattle_kernels_cpu::{Lora, Pair, Target};
use wattle_shaders::Sampled;

use super::op::{Io, function};
use crate::error::Result;
use crate::model::{NormKind, NormWeights, Vector, weight};
use crate::plan::{Op, OpKind, Plan, Site};

fn values<V: std::ops::Deref<Target = Vector>>(vector: &Option<V>) -> Option<&[f32]> {
    vector.as_ref().map(|vector| &vector.values[..])
}

fn norm(weights: &NormWeights, width: usize, kind: NormKind, eps: f32) -> Norm<&[f32]> {
    let (weight, bias) = (values(&weights.weight), values(&weights.bias));
    Norm { width, center: kind == NormKind::Layer, eps, weight, bias }
}

fn lora<'a>(site: &Site, io: &Io<'a>) -> Lora<Factor<'a>> {
    let pairs = io.pairs(site, |slot, place| {
        let packed = slot.packed(place, io.factors)?;
        let [a, b] = packed.view();
        Some(Pair { rank: packed.rank, a, b })
    });
    let targets = site.targets.iter().zip(pairs);
    let targets = targets.map(|(t, slots)| Target { start: t.start, rows: t.rows, slots }).collect();
    Lora { layer: site.layer, cols: site.cols, rank: site.capacity.rank, part: site.part, targets }
}

/// Whether an op has a fast version. What [`crate::plan::FuseOptions::CPU`] does not ask for has none.
pub(super) fn has(op: &Op) -> bool {
    let whole = op.sites().all(|site| site.partials() == 1);
    let known = match &op.kind {
        OpKind::Project(project) => project.norm.is_none(),
        OpKind::RopeKv(rope_kv) => rope_kv.lora.is_none(),
        _ => true,
    };
    op.carry.is_none() && whole && known
}

/// Rows up to which t = A x is made beside W x, by the same threads: what they save is the hand-off of a step of its own.
pub(super) const FEW: usize = 8;

/// Which ops of a plan only make t for the op right behind them, which then can make it itself.
pub(super) fn left_to_next(plan: &Plan) -> Vec<bool> {
    let readers = |t| plan.ops.iter().filter(|op| op.inputs.contains(&t)).count();
    let left = |pair: &[Op]| {
        let carries = match &pair[1].kind {
            OpKind::Project(op) => op.lora.is_some(),
            OpKind::GateUp(op) => op.lora.is_some(),
            _ => false,
        };
        let made = pair[0].output.filter(|_| matches!(pair[0].kind, OpKind::LoraDown { .. }) && carries);
        made.is_some_and(|t| pair[1].inputs[..2] == [pair[0].inputs[0], t] && readers(t) == 1)
            && pair.iter().all(has)
    };
    plan.ops.windows(2).map(left).chain([false]).collect()
}

/// Runs `op`; what it draws, if it samples.
pub(super) fn run(op: &Op, mut io: Io) -> Result<Vec<Sampled>> {
    let y = std::mem::take(&mut io.output);
    let x = |index: usize| io.inputs[index];
    let (rows, width) = (io.rows, io.width);
    let carried = || if io.makes_t { Carried::From(x(0)) } else { Carried::Made(x(1)) };
    match &op.kind {
        OpKind::Embed { table } => fast::embed(rows, &weight(table)?, io.states, y),
        OpKind::AddPosition { table, offset } => fast::add_position(rows, *offset, &weight(table)?, x(0), y),
        OpKind::Norm(op) => fast::norm(&norm(&op.weights, width / op.groups, op.kind, op.eps), x(0), y),
        OpKind::Project(op) => {
            let lora = op.lora.as_ref().map(|site| lora(site, &io));
            let project = Project {
                rows,
                weight: &weight(&op.weight)?,
                outputs: op.weight.rows,
                bias: values(&op.bias),
                lora: lora.as_ref().map(|lora| (lora, carried())),
                activation: op.activation.map(function),
                residual: op.residual.then(|| x(io.inputs.len() - 1)),
                precision: io.precision,
            };
            fast::project(&project, x(0), y);
        }
        OpKind::LoraDown { site } => fast::lora_down(rows, &lora(site, &io), x(0), y),
        OpKind::LoraEmbed { site } => fast::lora_embed(rows, &lora(site, &io), io.states, y),
        OpKind::LoraUp { site } => fast::lora_up(rows, width, &lora(site, &io), x(0), x(1), y),
        OpKind::Activate { function: f, gated } => {
            fast::activate(function(*f), x(0), gated.then(|| x(1)), y);
        }
        OpKind::Add => fast::add(x(0), x(1), y),
        OpKind::Select => fast::select(io.samples, width, x(0), y),
        OpKind::Gate(gate) => {
            fast::gate(&Gate { width, hidden: gate.hidden, weights: &gate.weights }, x(0), y);
        }
        OpKind::Sample => return Ok(fast::sample(io.samples, width, x(0), io.states)),
        OpKind::GateUp(op) => {
            let lora = op.lora.as_ref().map(|site| lora(site, &io));
            let gate_up = GateUp {
                rows,
                weights: [&weight(&op.gate)?, &weight(&op.up)?],
                outputs: op.gate.rows,
                biases: [values(&op.gate_bias), values(&op.up_bias)],
                function: function(op.function),
                lora: lora.as_ref().map(|lora| (lora, carried())),
                precision: io.precision,
            };
            fast::gate_up(&gate_up, x(0), y);
        }
        OpKind::Rope { .. } | OpKind::KvWrite { .. } | OpKind::RopeKv(_) | OpKind::Attend(_) => {
            attention(op, io, y);
        }
    }
    Ok(Vec::new())
}

/// The ops that know heads and positions.
fn attention(op: &Op, io: Io, y: &mut [f32]) {
    let x = |index: usize| io.inputs[index];
    let (rows, shape) = (io.rows, io.shape);
    let angles = io.angles.map(|(pairs, table)| Angles { table, positions: io.positions, pairs });
    match (&op.kind, angles) {
        (OpKind::Attend(op), _) => {
            let (op, cache) = (io.attend(op), io.cache.as_kv());
            *io.pages_read += fast::attend(rows, &op, io.layout, x(0), cache, y);
        }
        (OpKind::Rope { heads, head_dim }, Some(angles)) => {
            fast::rope(rows, *heads, *head_dim, &angles, x(0), y);
        }
        (OpKind::KvWrite { .. }, _) => fast::kv_write(rows, io.layout, x(0), x(1), io.cache),
        (OpKind::RopeKv(op), angles) => {
            let head_norm = |weights| norm(weights, shape.head_dim, NormKind::Rms, op.eps);
            let rope_kv = RopeKv {
                heads: shape.heads,
                layout: io.layout,
                q_norm: op.q_norm.as_ref().map(head_norm),
                k_norm: op.k_norm.as_ref().map(head_norm),
                angles: angles.filter(|_| op.rotate),
            };
            fast::rope_kv(rows, &rope_kv, x(0), y, io.cache);
        }
        _ => {}
    }
}

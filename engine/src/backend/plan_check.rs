//! Checks that a plan is consistent, so that backends can rely on its shapes.

use wattle_kernels_cpu::ColumnOrder;

use crate::error::{Error, Result};
use crate::model::{Format, Matrix, NormKind, NormWeights, Vector};
use crate::plan::{Carry, Extent, GATE_UP_PART, Norm, Op, OpKind, Plan, Site, TensorId};

/// Whether every op's inputs, output and parameters have the shapes that its kind asks for, and inputs are written
/// before they are read.
///
/// # Errors
/// [`Error::Value`] that names the op.
pub(crate) fn plan(plan: &Plan) -> Result<()> {
    if plan.kv.kv_heads == 0 || plan.kv.head_dim == 0 || !plan.kv.heads.is_multiple_of(plan.kv.kv_heads) {
        return Err(Error::value("plan.kv", format!("{:?}: kv_heads must divide heads", plan.kv)));
    }
    for (index, op) in plan.ops.iter().enumerate() {
        let wrong = |reason: String| Err(Error::value(format!("plan op {}", op.name), reason));
        let ids: Vec<TensorId> = op.inputs.iter().copied().chain(op.outputs()).collect();
        if let Some(id) = ids.iter().find(|id| id.0 as usize >= plan.tensors.len()) {
            return wrong(format!("tensor {} does not exist", id.0));
        }
        if op.outputs().any(|out| plan.ops[..=index].iter().any(|earlier| earlier.inputs.contains(&out))) {
            return wrong("its output was read before".into());
        }
        let widths: Vec<usize> = op.inputs.iter().map(|&id| plan.tensor(id).width).collect();
        let output = op.output.map(|id| plan.tensor(id).width);
        match expected(plan, op, widths.first().copied().unwrap_or(0)) {
            None => return wrong("its parameters do not fit each other".into()),
            Some(shapes) if shapes != (widths.clone(), output) => {
                return wrong(format!(
                    "widths {widths:?} → {output:?}, expected {:?} → {:?}",
                    shapes.0, shapes.1
                ));
            }
            Some(_) => {}
        }
        if op.carry.as_ref().is_some_and(|carry| !carry_fits(plan, op, carry)) {
            return wrong("it cannot carry the A x of its LoRA site".into());
        }
        let extents: Vec<Extent> = ids.iter().map(|&id| plan.tensor(id).extent).collect();
        let fits = match op.kind {
            OpKind::Select => extents == [Extent::Rows, Extent::Samples],
            OpKind::Sample => extents == [Extent::Samples],
            OpKind::Embed { .. } | OpKind::LoraEmbed { .. } | OpKind::KvWrite { .. } | OpKind::RopeKv(_) => {
                extents.iter().all(|&e| e == Extent::Rows)
            }
            _ => extents.windows(2).all(|pair| pair[0] == pair[1]),
        };
        if !fits {
            return wrong(format!("extents {extents:?}"));
        }
    }
    Ok(())
}

/// Widths of the inputs and of the output; `None` when the op's parameters contradict each other.
fn expected(plan: &Plan, op: &Op, first: usize) -> Option<(Vec<usize>, Option<usize>)> {
    let kv = &plan.kv;
    let layer_exists = |layer: u32| (layer as usize) < kv.layers;
    let pairs = plan.rope.as_ref().map(|rope| rope.pairs());
    let rotates = |head_dim: usize| pairs.is_some_and(|pairs| 2 * pairs <= head_dim);
    let lora =
        |site: &Option<_>| site.iter().map(|site: &std::sync::Arc<Site>| site.t_len()).collect::<Vec<_>>();
    let (inputs, output, fits) = match &op.kind {
        OpKind::Embed { table } => (vec![], table.cols, self::table(table) && table.rows >= plan.vocab),
        OpKind::AddPosition { table, .. } => (vec![table.cols], table.cols, self::table(table)),
        OpKind::Norm(norm) => {
            let fits = norm.groups > 0
                && first.is_multiple_of(norm.groups)
                && norm_weights(&norm.weights, first / norm.groups);
            (vec![first], first, fits)
        }
        OpKind::Project(p) => {
            let rows = p.weight.rows;
            let inputs = [vec![p.weight.cols], lora(&p.lora), vec![rows; usize::from(p.residual)]].concat();
            let site = p.lora.as_ref().is_none_or(|s| s.cols == p.weight.cols && site_fits(s, rows));
            let norm = p.norm.as_ref().is_none_or(|norm| prologue_fits(norm, p.weight.cols));
            (inputs, rows, matrix(&p.weight) && vector(&p.bias, rows) && site && norm)
        }
        OpKind::LoraDown { site } => (vec![site.cols], site.t_len(), whole(site)),
        OpKind::LoraEmbed { site } => (vec![], site.t_len(), whole(site) && site.cols >= plan.vocab),
        OpKind::LoraUp { site } => (vec![first, site.t_len()], first, whole(site) && site_fits(site, first)),
        OpKind::Rope { heads, head_dim } => (vec![heads * head_dim], heads * head_dim, rotates(*head_dim)),
        OpKind::KvWrite { layer } => return layer_exists(*layer).then(|| (vec![kv.width(); 2], None)),
        OpKind::Attend(attend) => (vec![kv.q_width()], kv.q_width(), layer_exists(attend.layer)),
        OpKind::Activate { gated, .. } => (vec![first; 1 + usize::from(*gated)], first, true),
        OpKind::Add => (vec![first; 2], first, true),
        OpKind::Select => (vec![first], first, true),
        OpKind::Sample => return Some((vec![plan.vocab], None)),
        OpKind::RopeKv(op) => {
            let norms = [&op.q_norm, &op.k_norm].into_iter().flatten().all(|n| norm_weights(n, kv.head_dim));
            let width = kv.q_width() + 2 * kv.width();
            let site = op.lora.as_ref().is_none_or(|site| whole(site) && site_fits(site, width));
            let fits = layer_exists(op.layer) && norms && site && (!op.rotate || rotates(kv.head_dim));
            ([vec![width], lora(&op.lora)].concat(), kv.q_width(), fits)
        }
        OpKind::GateUp(g) => {
            let (rows, cols) = (g.gate.rows, g.gate.cols);
            let biases = vector(&g.gate_bias, rows) && vector(&g.up_bias, rows);
            let site = g.lora.as_ref().is_none_or(|s| s.cols == cols && whole(s) && site_fits(s, 2 * rows));
            let same = (g.up.rows, g.up.cols, &g.up.order) == (rows, cols, &g.gate.order);
            (
                [vec![cols], lora(&g.lora)].concat(),
                rows,
                matrix(&g.gate) && matrix(&g.up) && biases && site && same,
            )
        }
    };
    fits.then_some((inputs, Some(output)))
}

/// Whether a matrix can be read by rows.
fn table(table: &Matrix) -> bool {
    matrix(table) && table.order.is_none()
}

/// Whether the parts of a matrix hold its elements.
fn matrix(matrix: &Matrix) -> bool {
    let ordered =
        |order: &ColumnOrder| order.columns() == matrix.cols && matches!(matrix.format, Format::Panels(_));
    matrix.cols > 0
        && matrix.order.as_deref().is_none_or(ordered)
        && matrix.parts.iter().all(|part| matrix.format.fits(part, matrix.cols))
        && matrix.parts.iter().map(|p| p.rows).sum::<usize>() == matrix.rows
}

fn vector<T: std::ops::Deref<Target = Vector>>(vector: &Option<T>, len: usize) -> bool {
    vector.as_ref().is_none_or(|vector| vector.values.len() == len)
}

fn norm_weights(weights: &NormWeights, len: usize) -> bool {
    vector(&weights.weight, len) && vector(&weights.bias, len)
}

/// Whether a norm has the form that a projection takes.
fn prologue_fits(norm: &Norm, width: usize) -> bool {
    let rms = norm.kind == NormKind::Rms && norm.groups == 1 && norm.weights.bias.is_none();
    rms && norm_weights(&norm.weights, width)
}

/// Whether an op makes the input of a site in the parts that the site has.
fn carry_fits(plan: &Plan, op: &Op, carry: &Carry) -> bool {
    let site = &*carry.site;
    let (cols, part) = match &op.kind {
        OpKind::Norm(norm) if norm.groups == 1 => (plan.tensor(op.inputs[0]).width, None),
        OpKind::Project(p) if p.norm.is_some() && p.lora.is_none() => (p.weight.cols, None),
        OpKind::Attend(_) => (plan.kv.q_width(), Some(plan.kv.head_dim)),
        OpKind::GateUp(g) => (g.gate.rows, Some(GATE_UP_PART)),
        _ => return false,
    };
    let part = part.unwrap_or(cols).min(cols);
    (site.cols, site.part, site.t_len()) == (cols, part, plan.tensor(carry.t).width)
}

/// Whether t is not in partial sums.
fn whole(site: &Site) -> bool {
    site.partials() == 1
}

fn site_fits(site: &Site, outputs: usize) -> bool {
    site.targets.iter().all(|target| target.start + target.rows <= outputs)
}

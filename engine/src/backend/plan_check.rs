//! Checks that a plan is consistent, so that backends can rely on its shapes.

use wattle_kernels_cpu::ColumnOrder;

use crate::error::{Error, Result};
use crate::model::{Format, Matrix, NormWeights, Vector};
use crate::plan::{Extent, Op, OpKind, Plan, Site, TensorId};

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
        let ids: Vec<TensorId> = op.inputs.iter().copied().chain(op.output).collect();
        if let Some(id) = ids.iter().find(|id| id.0 as usize >= plan.tensors.len()) {
            return wrong(format!("tensor {} does not exist", id.0));
        }
        if op.output.is_some_and(|out| plan.ops[..=index].iter().any(|earlier| earlier.inputs.contains(&out)))
        {
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
        |site: &Option<_>| site.iter().map(|site: &std::sync::Arc<Site>| site.t_width()).collect::<Vec<_>>();
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
            (inputs, rows, matrix(&p.weight) && vector(&p.bias, rows) && site)
        }
        OpKind::LoraDown { site } => (vec![site.cols], site.t_width(), true),
        OpKind::LoraEmbed { site } => (vec![], site.t_width(), site.cols >= plan.vocab),
        OpKind::LoraUp { site } => (vec![first, site.t_width()], first, site_fits(site, first)),
        OpKind::Rope { heads, head_dim } => (vec![heads * head_dim], heads * head_dim, rotates(*head_dim)),
        OpKind::KvWrite { layer } => return layer_exists(*layer).then(|| (vec![kv.width(); 2], None)),
        OpKind::Attend(attend) => (vec![kv.q_width()], kv.q_width(), layer_exists(attend.layer)),
        OpKind::Activate { gated, .. } => (vec![first; 1 + usize::from(*gated)], first, true),
        OpKind::Add => (vec![first; 2], first, true),
        OpKind::Select => (vec![first], first, true),
        OpKind::Sample => return Some((vec![plan.vocab], None)),
        OpKind::RopeKv(op) => {
            let norms = [&op.q_norm, &op.k_norm].into_iter().flatten().all(|n| norm_weights(n, kv.head_dim));
            let fits = layer_exists(op.layer) && norms && (!op.rotate || rotates(kv.head_dim));
            (vec![kv.q_width() + 2 * kv.width()], kv.q_width(), fits)
        }
        OpKind::GateUp(g) => {
            let (rows, cols) = (g.gate.rows, g.gate.cols);
            let biases = vector(&g.gate_bias, rows) && vector(&g.up_bias, rows);
            let site = g.lora.as_ref().is_none_or(|s| s.cols == cols && site_fits(s, 2 * rows));
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

fn site_fits(site: &Site, outputs: usize) -> bool {
    site.targets.iter().all(|target| target.start + target.rows <= outputs)
}

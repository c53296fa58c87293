//! What only sampled rows need is computed for them alone.

use std::collections::BTreeMap;

use super::graph::Graph;
use super::{Extent, Op, OpKind, TensorId};

/// Chooses the sampled rows before the ops that work row by row and whose results nobody else reads: those of the last
/// layer behind its attention. A step that samples nothing, as most of a long prompt, has no work there.
pub(super) fn select_early(graph: &mut Graph) -> Option<()> {
    let ops: Vec<Op> = graph.ops.iter().flatten().cloned().collect();
    let select = ops.iter().position(|op| matches!(op.kind, OpKind::Select))?;
    let late = behind(&ops, select);
    let Op { inputs, output, .. } = ops[select].clone();
    // What is selected must be made by such an op.
    ops.iter().zip(&late).find(|(op, late)| **late && op.outputs().any(|id| id == inputs[0]))?;
    let read_late = |id| ops.iter().zip(&late).any(|(op, is_late)| *is_late && op.inputs.contains(&id));
    // What stands for a tensor where only sampled rows count.
    let mut sampled = BTreeMap::new();
    graph.ops.clear();
    for (at, op) in ops.iter().enumerate().filter(|&(at, _)| at != select) {
        let mut op = op.clone();
        for id in &mut op.inputs {
            *id = match sampled.get(id) {
                Some(&chosen) if late[at] => chosen,
                _ if Some(*id) == output => inputs[0],
                _ => *id,
            };
        }
        let outputs: Vec<TensorId> = op.outputs().collect();
        graph.ops.push(Some(op));
        for id in outputs {
            if late[at] {
                graph.tensor_mut(id).extent = Extent::Samples;
            } else if read_late(id) {
                sampled.insert(id, choose(graph, id));
            }
        }
    }
    Some(())
}

/// For each op, whether it comes before `select`, works row by row, and nobody else reads what it makes.
fn behind(ops: &[Op], select: usize) -> Vec<bool> {
    let mut late = vec![false; ops.len()];
    for at in (0..select).rev() {
        let read_late = |id: TensorId| {
            let mut readers = (0..ops.len()).filter(|&reader| ops[reader].inputs.contains(&id));
            readers.all(|reader| reader == select || late[reader])
        };
        late[at] = by_row(&ops[at].kind) && ops[at].outputs().all(read_late);
    }
    late
}

/// Whether an op makes each line of its output from the same line of its inputs.
fn by_row(kind: &OpKind) -> bool {
    use OpKind::{Activate, Add, GateUp, LoraDown, LoraUp, Norm, Project};
    matches!(kind, Norm(_) | Project(_) | LoraDown { .. } | LoraUp { .. } | Activate { .. } | Add | GateUp(_))
}

/// Adds the op that chooses the sampled rows of a tensor.
fn choose(graph: &mut Graph, id: TensorId) -> TensorId {
    let tensor = graph.tensor_of(id);
    let (name, width) = (format!("select.{}", tensor.name), tensor.width);
    let chosen = graph.tensor(name.clone(), Extent::Samples, width);
    let op = Op { name, kind: OpKind::Select, inputs: vec![id], output: Some(chosen), carry: None };
    graph.ops.push(Some(op));
    chosen
}

//! A plan while it is rewritten: who writes and reads what, and holes where ops were.

use super::{Extent, FactorType, KvShape, Op, OpKind, Plan, Tensor, TensorId};

/// Ops become `None` when a fused op replaces them.
pub(super) struct Graph {
    pub ops: Vec<Option<Op>>,
    plan: Plan,
}

impl Graph {
    pub fn new(plan: &Plan) -> Self {
        Self {
            ops: plan.ops.iter().cloned().map(Some).collect(),
            plan: Plan { ops: Vec::new(), ..plan.clone() },
        }
    }

    /// Index of the op that writes `id`.
    pub fn producer(&self, id: TensorId) -> Option<usize> {
        self.ops.iter().position(|op| op.as_ref().is_some_and(|op| op.outputs().any(|output| output == id)))
    }

    /// Indices of the ops that read `id`.
    pub fn consumers(&self, id: TensorId) -> impl Iterator<Item = usize> {
        let reads = move |op: &Option<Op>| op.as_ref().is_some_and(|op| op.inputs.contains(&id));
        (0..self.ops.len()).filter(move |&i| reads(&self.ops[i]))
    }

    /// Index of the only op that reads `id`; `None` if there are none or several.
    pub fn sole_consumer(&self, id: TensorId) -> Option<usize> {
        let mut readers = self.consumers(id);
        let first = readers.next()?;
        readers.next().is_none().then_some(first)
    }

    /// The op at `index`, unless it is gone.
    pub fn op(&self, index: usize) -> Option<&Op> {
        self.ops.get(index)?.as_ref()
    }

    /// Like [`Self::producer`], if only one op reads `id`: then both can become one.
    pub fn private_producer(&self, id: TensorId) -> Option<(usize, &Op)> {
        self.sole_consumer(id)?;
        let index = self.producer(id)?;
        Some((index, self.op(index)?))
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: String, extent: Extent, width: usize) -> TensorId {
        self.plan.tensors.push(Tensor { name, extent, width });
        TensorId(self.plan.tensors.len() as u32 - 1)
    }

    pub fn kv(&self) -> KvShape {
        self.plan.kv
    }

    pub fn factors(&self) -> FactorType {
        self.plan.factors
    }

    pub fn tensor_of(&self, id: TensorId) -> &Tensor {
        self.plan.tensor(id)
    }

    pub fn tensor_mut(&mut self, id: TensorId) -> &mut Tensor {
        &mut self.plan.tensors[id.0 as usize]
    }

    /// Removes ops and puts `op` where `at` was.
    pub fn replace(&mut self, removed: &[usize], at: usize, op: Op) {
        for &index in removed {
            self.ops[index] = None;
        }
        self.ops[at] = Some(op);
    }

    /// Removes norms that nobody reads any more.
    fn drop_unread_norms(&mut self) {
        for index in (0..self.ops.len()).rev() {
            let Some(op) = self.op(index) else { continue };
            let norm = matches!(op.kind, OpKind::Norm(_));
            if norm && !op.outputs().any(|id| self.consumers(id).next().is_some()) {
                self.ops[index] = None;
            }
        }
    }

    /// The rewritten plan: holes closed, tensors that nobody writes dropped, the rest renumbered in order.
    pub fn finish(mut self) -> Plan {
        self.drop_unread_norms();
        let mut plan = self.plan;
        let mut ops: Vec<Op> = self.ops.into_iter().flatten().collect();
        let mut renumbered = vec![None; plan.tensors.len()];
        let mut tensors = Vec::new();
        for id in ops.iter().flat_map(Op::outputs) {
            renumbered[id.0 as usize] = Some(TensorId(tensors.len() as u32));
            tensors.push(plan.tensors[id.0 as usize].clone());
        }
        let new_id = |id: &mut TensorId| *id = renumbered[id.0 as usize].unwrap_or(*id);
        for op in &mut ops {
            let carried = op.carry.as_mut().map(|carry| &mut carry.t);
            op.inputs.iter_mut().chain(&mut op.output).chain(carried).for_each(new_id);
        }
        (plan.ops, plan.tensors) = (ops, tensors);
        plan
    }
}

/// The part of a name before its last dot, with `part` in its place: `layers.3.q` → `layers.3.part`.
pub(super) fn sibling(name: &str, part: &str) -> String {
    match name.rsplit_once('.') {
        Some((parent, _)) => format!("{parent}.{part}"),
        None => part.into(),
    }
}

/// Whether `op` is a bare W x + b (+ B t): nothing fused before or behind it yet.
pub(super) fn open_project(op: &Op) -> Option<&super::Project> {
    match &op.kind {
        OpKind::Project(project)
            if project.norm.is_none() && project.activation.is_none() && !project.residual =>
        {
            Some(project)
        }
        _ => None,
    }
}

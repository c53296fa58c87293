//! Bytes of every operand access of an op's plain twin: what caches, registers and workgroup memory serve where an
//! implementation reads DRAM only once.

use super::cost::{Coster, F32};
use super::{OpKind, Project, RopeKv, Site};
use crate::model::{Matrix, NormWeights};

impl Coster<'_> {
    /// Operand accesses of the op \[bytes\].
    pub(super) fn accesses(&self) -> u64 {
        let carried = self.op.carry.as_ref().map_or(0, |carry| self.down_accesses(&carry.site));
        carried + self.own_accesses()
    }

    fn own_accesses(&self) -> u64 {
        let (n, kv, out) = (self.n(), &self.plan.kv, self.output_width());
        match &self.op.kind {
            OpKind::Embed { table } => self.lines(table) + n * out * F32,
            OpKind::AddPosition { table, .. } => self.lines(table) + n * out * 2 * F32,
            OpKind::Norm(norm) => {
                let vectors = vectors(&norm.weights);
                n * out * (2 + vectors) * F32
            }
            OpKind::Project(project) => self.project_accesses(project),
            OpKind::GateUp(g) => {
                let biases = u64::from(g.gate_bias.is_some()) + u64::from(g.up_bias.is_some());
                let products = self.products(&[&*g.gate, &*g.up]);
                products + n * out * (1 + biases) * F32 + self.lora_accesses(g.lora.as_deref())
            }
            OpKind::LoraDown { site } => {
                let x = self.active_ranks(site) * (site.targets.len() * site.cols) as u64;
                x * F32 + self.down_accesses(site)
            }
            OpKind::LoraEmbed { site } => self.active_ranks(site) * (self.factor_bytes() + F32),
            OpKind::LoraUp { site } => n * out * 2 * F32 + self.lora_accesses(Some(site)),
            OpKind::Rope { heads, .. } => n * (2 * out + *heads as u64 * self.pairs() * 2) * F32,
            OpKind::KvWrite { .. } => n * 2 * (kv.width() as u64 * F32 + kv.position_bytes() as u64),
            OpKind::RopeKv(op) => self.rope_kv_accesses(op),
            OpKind::Attend(attend) => {
                // q, K and V (and their scales) for each position that a row sees, then y.
                let kv_bytes = kv.q_width() * kv.store.element_bytes() + kv.heads * kv.store.scale_bytes();
                let bytes = kv.q_width() as u64 * F32 + 2 * kv_bytes as u64;
                self.visible(attend.window) * bytes + n * out * F32
            }
            OpKind::Activate { gated, .. } => n * out * (2 + u64::from(*gated)) * F32,
            OpKind::Add => n * out * 3 * F32,
            OpKind::Select => n * out * 2 * F32,
            OpKind::Sample => n * self.width(0) * F32,
            OpKind::Gate(gate) => n * (self.width(0) + gate.weights.len() as u64 + 1) * F32,
        }
    }

    /// A row of a table for each line.
    fn lines(&self, table: &Matrix) -> u64 {
        (self.n() * table.format.row_bits(table.cols) as u64).div_ceil(8)
    }

    /// A weight and an input for each multiply-add; a scale with the first weight of its group.
    fn products(&self, matrices: &[&Matrix]) -> u64 {
        let bits: usize = matrices.iter().map(|m| m.bits() + 32 * m.rows * m.cols).sum();
        (self.n() * bits as u64).div_ceil(8)
    }

    fn project_accesses(&self, project: &Project) -> u64 {
        let per_output = 1 + u64::from(project.bias.is_some()) + u64::from(project.residual);
        let outputs = self.n() * self.output_width() * per_output * F32;
        let products = match &project.norm {
            None => self.products(&[&*project.weight]),
            // x is read once, to be normed.
            Some(norm) => {
                let weights = self.n() * project.weight.bits() as u64;
                weights.div_ceil(8) + self.n() * self.width(0) * (1 + vectors(&norm.weights)) * F32
            }
        };
        products + outputs + self.lora_accesses(project.lora.as_deref())
    }

    /// Ranks of the active rows, summed.
    fn active_ranks(&self, site: &Site) -> u64 {
        self.active(site).into_iter().map(|(slot, rows)| rows * self.rank(slot, site)).sum()
    }

    /// An element of A for each multiply-add of A x, and t.
    fn down_accesses(&self, site: &Site) -> u64 {
        let row = site.cols as u64 * self.factor_bytes() + site.partials() as u64 * F32;
        self.active_ranks(site) * site.targets.len() as u64 * row
    }

    /// An element of B and one of t (of each of its partial sums) for each multiply-add of B t.
    fn lora_accesses(&self, site: Option<&Site>) -> u64 {
        site.map_or(0, |site| {
            let outputs: u64 = site.targets.iter().map(|target| target.rows as u64).sum();
            self.active_ranks(site) * outputs * (self.factor_bytes() + site.partials() as u64 * F32)
        })
    }

    fn rope_kv_accesses(&self, op: &RopeKv) -> u64 {
        let kv = &self.plan.kv;
        let (q, k) = (kv.q_width() as u64, kv.width() as u64);
        let norms = [(&op.q_norm, q), (&op.k_norm, k)];
        let normed: u64 = norms.iter().map(|(norm, width)| norm.as_ref().map_or(0, vectors) * width).sum();
        let angles = if op.rotate { (kv.heads + kv.kv_heads) as u64 * self.pairs() * 2 } else { 0 };
        let lora = self.lora_accesses(op.lora.as_deref());
        let floats = q + 2 * k + q + normed + angles;
        self.n() * (floats * F32 + 2 * kv.position_bytes() as u64) + lora
    }
}

/// How many of weight and bias a norm has.
pub(super) fn vectors(weights: &NormWeights) -> u64 {
    u64::from(weights.weight.is_some()) + u64::from(weights.bias.is_some())
}

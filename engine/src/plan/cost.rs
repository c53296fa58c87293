//! What an op costs in a step: compulsory DRAM bytes, arithmetic, launches.
//!
//! DRAM bytes count every distinct element that the plain twin touches once; the tests compare them with what the
//! twins' counting views count. A multiply-add is two flops; elementwise functions count a handful, as noted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use wattle_policy::{CostSource, OpCost, RowShape, StepShape, layer_of};
use wattle_shaders::OUTSIDE_LAYERS;

use super::accesses::vectors;
use super::{Extent, Op, OpKind, Plan, Project, Site};
use crate::model::Matrix;

pub(super) const F32: u64 = 4;

impl CostSource for Plan {
    fn op_names(&self) -> Vec<&str> {
        self.ops.iter().map(|op| op.name.as_str()).collect()
    }

    fn cost(&self, index: usize, shape: &StepShape) -> OpCost {
        self.ops.get(index).map(|op| Coster::new(self, op, shape).cost()).unwrap_or_default()
    }

    fn mask_layer(&self, index: usize) -> Option<u32> {
        let op = self.ops.get(index)?;
        let layer = op.sites().next().map_or_else(|| layer_of(&op.name), |site| Some(site.layer));
        layer.filter(|&layer| layer != OUTSIDE_LAYERS)
    }
}

/// One op in one step.
pub(super) struct Coster<'a> {
    pub plan: &'a Plan,
    pub op: &'a Op,
    shape: &'a StepShape,
    /// The rows that the op works on.
    rows: Vec<&'a RowShape>,
}

impl<'a> Coster<'a> {
    fn new(plan: &'a Plan, op: &'a Op, shape: &'a StepShape) -> Self {
        let extent = match op.kind {
            OpKind::Sample => Extent::Samples,
            _ => op.output.map_or(Extent::Rows, |id| plan.tensor(id).extent),
        };
        let rows = shape.rows.iter().filter(|row| extent == Extent::Rows || row.sampled).collect();
        Self { plan, op, shape, rows }
    }

    pub fn n(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Width of input `index`.
    pub fn width(&self, index: usize) -> u64 {
        self.plan.tensor(self.op.inputs[index]).width as u64
    }

    pub fn output_width(&self) -> u64 {
        self.op.output.map_or(0, |id| self.plan.tensor(id).width as u64)
    }

    fn cost(&self) -> OpCost {
        if self.rows.is_empty() {
            return OpCost::default();
        }
        let (n, kv) = (self.n(), &self.plan.kv);
        let mut cost = match &self.op.kind {
            OpKind::Embed { table } => self.gather(table, |row| u64::from(row.token), 0),
            OpKind::AddPosition { table, .. } => self.gather(table, |row| u64::from(row.position), 1),
            OpKind::Norm(norm) => {
                let width = self.width(0);
                let vectors = norm.weights.weight.iter().chain(&norm.weights.bias);
                let weights: u64 = vectors.map(|v| v.values.len() as u64).sum();
                // Square, sum, scale, weight: about five per element.
                OpCost { weight_bytes: weights * F32, flops: 5 * n * width, ..self.elementwise(1) }
            }
            OpKind::Project(project) => self.project(project),
            OpKind::GateUp(g) => {
                let weights = (g.gate.bits() + g.up.bits()).div_ceil(8);
                let bias =
                    [&g.gate_bias, &g.up_bias].into_iter().flatten().map(|b| b.values.len()).sum::<usize>();
                let mut cost = self.matmul(&[&*g.gate, &*g.up], weights as u64 + bias as u64 * F32);
                cost.flops += 6 * n * self.output_width();
                cost + g.lora.as_ref().map(|site| self.lora_up(site)).unwrap_or_default()
            }
            OpKind::LoraDown { site } => self.lora_down(site),
            OpKind::LoraEmbed { site } => self.lora_embed(site),
            OpKind::LoraUp { site } => self.elementwise(1) + self.lora_up(site),
            OpKind::Rope { heads, .. } => {
                let rotated = *heads as u64 * self.pairs() * 2;
                OpCost { weight_bytes: self.table_bytes(), flops: 3 * n * rotated, ..self.elementwise(1) }
            }
            OpKind::KvWrite { .. } => {
                let read = n * 2 * kv.width() as u64 * F32;
                let written = n * 2 * kv.position_bytes() as u64;
                OpCost { activation_read_bytes: read, kv_write_bytes: written, ..OpCost::default() }
            }
            OpKind::RopeKv(rope_kv) => self.rope_kv(rope_kv),
            OpKind::Attend(attend) => self.attend(attend.window),
            OpKind::Activate { gated, .. } => {
                let inputs = 1 + u64::from(*gated);
                OpCost { flops: 6 * n * self.output_width(), ..self.elementwise(inputs) }
            }
            OpKind::Add => OpCost { flops: n * self.width(0), ..self.elementwise(2) },
            OpKind::Select => self.elementwise(1),
            OpKind::Gate(gate) => {
                let (width, hidden) = (self.width(0), gate.hidden as u64);
                OpCost {
                    weight_bytes: gate.weights.len() as u64 * F32,
                    activation_read_bytes: n * width * F32,
                    activation_write_bytes: n * F32,
                    // Square, sum, compare, and four for the distance; ten and an exponential for a unit.
                    flops: n * (8 * width + 11 * hidden),
                    ..OpCost::default()
                }
            }
            OpKind::Sample => OpCost {
                activation_read_bytes: n * self.width(0) * F32,
                // The largest logit and the sum of exponentials for the log-probability.
                flops: 3 * n * self.width(0),
                ..OpCost::default()
            },
        };
        if let Some(carry) = &self.op.carry {
            cost += self.carried(&carry.site);
        }
        cost.launches = 1;
        cost.on_chip_bytes = self.accesses();
        cost
    }

    /// Reads `inputs` rows of the output's width and writes one.
    fn elementwise(&self, inputs: u64) -> OpCost {
        let bytes = self.n() * self.output_width() * F32;
        OpCost { activation_read_bytes: inputs * bytes, activation_write_bytes: bytes, ..OpCost::default() }
    }

    /// Table rows, each distinct one read once; with `inputs` tensors added.
    fn gather(&self, table: &Matrix, key: impl Fn(&RowShape) -> u64, inputs: u64) -> OpCost {
        let distinct: BTreeSet<u64> = self.rows.iter().map(|row| key(row)).collect();
        let row_bits = table.format.row_bits(table.cols) as u64;
        let flops = inputs * self.n() * table.cols as u64;
        OpCost {
            weight_bytes: (distinct.len() as u64 * row_bits).div_ceil(8),
            flops,
            ..self.elementwise(inputs)
        }
    }

    fn project(&self, project: &Project) -> OpCost {
        let bias = project.bias.as_ref().map_or(0, |b| b.values.len() as u64 * F32);
        let mut cost = self.matmul(&[&*project.weight], project.weight.bytes() as u64 + bias);
        let outputs = self.n() * self.output_width();
        if project.residual {
            cost.activation_read_bytes += outputs * F32;
            cost.flops += outputs;
        }
        if project.activation.is_some() {
            cost.flops += 5 * outputs;
        }
        if let Some(norm) = &project.norm {
            let width = self.width(0);
            cost.weight_bytes += vectors(&norm.weights) * width * F32;
            cost.flops += 5 * self.n() * width;
        }
        cost + project.lora.as_ref().map(|site| self.lora_up(site)).unwrap_or_default()
    }

    fn matmul(&self, matrices: &[&Matrix], weight_bytes: u64) -> OpCost {
        let outputs: u64 = matrices.iter().map(|m| m.rows as u64).sum();
        let (n, inputs) = (self.n(), self.width(0));
        let macs = n * outputs * inputs;
        OpCost {
            weight_bytes,
            activation_read_bytes: n * inputs * F32,
            activation_write_bytes: n * self.output_width() * F32,
            flops: 2 * macs,
            ..OpCost::default()
        }
    }

    /// Rows for which LoRA is on at a site, and how many of them each slot has.
    pub fn active(&self, site: &Site) -> BTreeMap<u32, u64> {
        let mut slots = BTreeMap::new();
        for row in &self.rows {
            let on = row.lora >> site.layer.min(127) & 1 == 1;
            if let (true, Some(slot)) = (on, row.slot) {
                *slots.entry(slot).or_insert(0) += 1;
            }
        }
        slots
    }

    pub fn rank(&self, slot: u32, site: &Site) -> u64 {
        let rank = self.shape.ranks.get(slot as usize).copied().unwrap_or(0);
        u64::from(rank).min(site.capacity.rank as u64)
    }

    /// Bytes of an element of A or B.
    pub fn factor_bytes(&self) -> u64 {
        self.plan.factors.bytes() as u64
    }

    /// t = A x for active rows.
    fn lora_down(&self, site: &Site) -> OpCost {
        let ranked = self.active(site).into_iter().filter(|&(slot, _)| self.rank(slot, site) > 0);
        let read = ranked.map(|(_, rows)| rows * site.cols as u64 * F32).sum();
        OpCost { activation_read_bytes: read, ..OpCost::default() } + self.carried(site)
    }

    /// The same where x is at hand.
    fn carried(&self, site: &Site) -> OpCost {
        let (targets, cols) = (site.targets.len() as u64, site.cols as u64);
        let mut cost = OpCost::default();
        for (slot, rows) in self.active(site) {
            let rank = self.rank(slot, site);
            cost.lora_bytes += targets * rank * cols * self.factor_bytes();
            cost.activation_write_bytes += rows * targets * rank * site.partials() as u64 * F32;
            cost.flops += 2 * rows * targets * rank * cols;
        }
        cost.lora_flops = cost.flops;
        cost
    }

    /// t = a column of A per active row, each distinct one read once.
    fn lora_embed(&self, site: &Site) -> OpCost {
        let mut cost = OpCost::default();
        let active = self.rows.iter().filter(|row| row.lora >> site.layer.min(127) & 1 == 1);
        let columns: BTreeSet<(u32, u32)> =
            active.clone().filter_map(|row| Some((row.slot?, row.token))).collect();
        for (slot, _) in columns {
            cost.lora_bytes += self.rank(slot, site) * self.factor_bytes();
        }
        for slot in active.filter_map(|row| row.slot) {
            cost.activation_write_bytes += self.rank(slot, site) * F32;
        }
        cost
    }

    /// y += B t for active rows, without reading and writing y.
    fn lora_up(&self, site: &Site) -> OpCost {
        let outputs: u64 = site.targets.iter().map(|t| t.rows as u64).sum();
        let mut cost = OpCost::default();
        for (slot, rows) in self.active(site) {
            let rank = self.rank(slot, site);
            cost.lora_bytes += outputs * rank * self.factor_bytes();
            let t = rows * site.targets.len() as u64 * rank;
            let partials = site.partials() as u64;
            cost.activation_read_bytes += t * partials * F32;
            cost.flops += 2 * rows * outputs * rank + t * (partials - 1);
        }
        cost.lora_flops = cost.flops;
        cost
    }

    pub fn pairs(&self) -> u64 {
        self.plan.rope.as_ref().map_or(0, |table| table.pairs() as u64)
    }

    /// Cosines and sines of the step's distinct positions. Rows of longrope's long set share them too: a position
    /// is in one set within a step of one sequence.
    fn table_bytes(&self) -> u64 {
        let positions: BTreeSet<u32> = self.rows.iter().map(|row| row.position).collect();
        positions.len() as u64 * self.pairs() * 2 * F32
    }

    fn rope_kv(&self, op: &super::RopeKv) -> OpCost {
        let (n, kv) = (self.n(), &self.plan.kv);
        let (q, kv_width, head_dim) = (kv.q_width() as u64, kv.width() as u64, kv.head_dim as u64);
        let norms = [(&op.q_norm, q), (&op.k_norm, kv_width)];
        let vectors =
            norms.iter().filter_map(|(norm, _)| norm.as_ref()).flat_map(|n| n.weight.iter().chain(&n.bias));
        let norm_bytes: u64 = vectors.map(|v| v.values.len() as u64 * F32).sum();
        let normed: u64 = norms.iter().filter(|(norm, _)| norm.is_some()).map(|(_, width)| width).sum();
        let rotated = if op.rotate { (q + kv_width) / head_dim * self.pairs() * 2 } else { 0 };
        let cost = OpCost {
            weight_bytes: norm_bytes + if op.rotate { self.table_bytes() } else { 0 },
            activation_read_bytes: n * (q + 2 * kv_width) * F32,
            activation_write_bytes: n * q * F32,
            kv_write_bytes: n * 2 * kv.position_bytes() as u64,
            flops: n * (5 * normed + 3 * rotated),
            ..OpCost::default()
        };
        cost + op.lora.as_ref().map(|site| self.lora_up(site)).unwrap_or_default()
    }

    /// Each position is read once, however many rows attend to it, and however many sequences share it.
    fn attend(&self, window: Option<u32>) -> OpCost {
        let kv = &self.plan.kv;
        let mut seen: BTreeMap<u32, Vec<Range<u32>>> = BTreeMap::new();
        for row in &self.rows {
            for (holder, positions) in self.shape.held(row.sequence, span(row, window)) {
                seen.entry(holder).or_default().push(positions);
            }
        }
        let pairs = self.visible(window);
        let distinct: u64 = seen.into_values().map(covered).sum();
        let q_width = kv.q_width() as u64;
        OpCost {
            kv_read_bytes: distinct * 2 * kv.position_bytes() as u64,
            // q·k and p·v, and about four for each softmax weight.
            flops: pairs * (4 * q_width + 4 * kv.heads as u64),
            ..self.elementwise(1)
        }
    }

    /// Positions that rows see, summed.
    pub fn visible(&self, window: Option<u32>) -> u64 {
        self.rows.iter().map(|row| span(row, window).len() as u64).sum()
    }
}

/// The positions that a row sees.
fn span(row: &RowShape, window: Option<u32>) -> Range<u32> {
    let end = row.position.saturating_add(1);
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// How many positions there are in ranges that may overlap.
fn covered(mut ranges: Vec<Range<u32>>) -> u64 {
    ranges.sort_unstable_by_key(|range| range.start);
    let (mut sum, mut end) = (0, 0);
    for range in ranges {
        sum += u64::from(range.end.saturating_sub(range.start.max(end)));
        end = end.max(range.end);
    }
    sum
}

//! The same plan with room for other adapters, or for none: all share their weights.

use std::sync::Arc;

use super::graph::Graph;
use super::{LoraCapacity, Op, OpKind, Plan, Site, SiteTarget};
use crate::adapter::{Factors, Place};

impl Plan {
    /// This plan without LoRA: what runs when every mask is off.
    pub fn without_lora(&self) -> Plan {
        let mut graph = Graph::new(self);
        for op in &mut graph.ops {
            let Some(inner) = op else { continue };
            inner.carry = None;
            let site = match &mut inner.kind {
                OpKind::Project(project) => project.lora.take(),
                OpKind::GateUp(gate_up) => gate_up.lora.take(),
                OpKind::RopeKv(rope_kv) => rope_kv.lora.take(),
                OpKind::LoraDown { .. } | OpKind::LoraEmbed { .. } => {
                    *op = None;
                    continue;
                }
                _ => None,
            };
            if site.is_some() {
                inner.inputs.remove(1);
            }
        }
        graph.bypass_lora_up();
        graph.finish()
    }

    /// This plan with pools of another capacity.
    pub fn with_lora_capacity(&self, capacity: LoraCapacity) -> Plan {
        let mut plan = self.clone();
        for op in &mut plan.ops {
            for site in op.sites_mut() {
                *site = Arc::new(Site { capacity, ..(**site).clone() });
            }
            let made = matches!(op.kind, OpKind::LoraDown { .. } | OpKind::LoraEmbed { .. });
            let own = op.output.filter(|_| made).zip(op.sites().next());
            for (t, site) in own.into_iter().chain(op.carry.as_ref().map(|carry| (carry.t, &carry.site))) {
                plan.tensors[t.0 as usize].width = site.t_len();
            }
        }
        plan
    }

    /// This plan as it costs with an adapter of these factors: what a place without factors would read and compute is
    /// left out, its launches are not, because the engine's plan has them. Of places that share a launch the highest
    /// rank counts for all. To be asked for costs, not to be run.
    pub fn priced_for(&self, factors: &Factors) -> Plan {
        let mut plan = self.clone();
        for op in &mut plan.ops {
            for site in op.sites_mut() {
                let rank =
                    |target| factors.pairs().get(&Place { layer: site.layer, target }).map(|pair| pair.rank);
                let has = |t: &SiteTarget| rank(t.target).is_some();
                let targets: Vec<_> = site.targets.iter().copied().filter(has).collect();
                let rank = targets.iter().filter_map(|t| rank(t.target)).max().unwrap_or(0);
                let capacity = LoraCapacity { rank, ..site.capacity };
                *site = Arc::new(Site { targets, capacity, ..(**site).clone() });
            }
        }
        plan
    }

    /// Bytes of the biggest B pool and its table: they must fit one binding for a LoRA epilogue.
    pub fn max_b_pool_bytes(&self) -> u64 {
        let sites = self.ops.iter().flat_map(Op::sites);
        sites.map(|site| site.pool_bytes(self.factors)[1] as u64).max().unwrap_or(0)
    }
}

impl Graph {
    /// Removes every LoraUp: its base projection writes the result itself.
    fn bypass_lora_up(&mut self) {
        for index in 0..self.ops.len() {
            let Some(op) = self.op(index).filter(|op| matches!(op.kind, OpKind::LoraUp { .. })).cloned()
            else {
                continue;
            };
            let Some(base) = self.producer(op.inputs[0]) else { continue };
            let Some(mut project) = self.op(base).cloned() else { continue };
            (project.name, project.output) = (op.name, op.output);
            self.replace(&[index], base, project);
        }
    }
}

//! Cooperative kernels must get a projection right on this device before a plan runs them: drivers have returned wrong
//! sums (doubled ones, where the accumulator is carried through a loop).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wattle_shaders::Row;

use super::GpuBackend;
use crate::backend::{Backend, Capacity, Doors, Step};
use crate::error::Result;
use crate::model::Matrix;
use crate::plan::{Extent, KvShape, Op, OpKind, Plan, Project, Tensor, TensorId};

/// Rows, outputs and inputs: whole and partial tiles, several steps of inputs.
const SHAPE: [usize; 3] = [70, 130, 100];

/// Numbers in [-1, 1] that f16 holds, and whose products f32 sums without rounding: multiples of 1/64.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 129) as f32 / 64.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// W x, exactly.
fn products(w: &[f32], x: &[f32]) -> Vec<f32> {
    let [_, outputs, inputs] = SHAPE;
    let line = |x: &[f32]| -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        w.chunks_exact(inputs).take(outputs).map(dot).collect()
    };
    x.chunks_exact(inputs).flat_map(line).collect()
}

/// y = W x.
fn plan(weight: Arc<Matrix>) -> Plan {
    let [_, outputs, inputs] = SHAPE;
    let tensor = |name: &str, width| Tensor { name: name.into(), extent: Extent::Rows, width };
    let project = Project { norm: None, weight, bias: None, lora: None, activation: None, residual: false };
    let (kind, inputs_of) = (OpKind::Project(project), vec![TensorId(0)]);
    Plan {
        ops: vec![Op { name: "y".into(), kind, inputs: inputs_of, output: Some(TensorId(1)), carry: None }],
        tensors: vec![tensor("x", inputs), tensor("y", outputs)],
        kv: KvShape { layers: 1, heads: 1, kv_heads: 1, head_dim: 4 },
        rope: None,
        vocab: 1,
    }
}

impl GpuBackend {
    /// Runs them if the device has them; if they are wrong, says so, and they run no more.
    pub(super) fn test_cooperative_kernels(&self) {
        if !self.gpu.cooperative.load(Ordering::Relaxed) {
            return;
        }
        let device = &self.gpu.info.name;
        let refused = match self.project_cooperatively() {
            Ok(true) => return,
            Ok(false) => "they compute wrong products".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(device, reason = refused, "cooperative matrices are not used");
        self.gpu.cooperative.store(false, Ordering::Relaxed);
    }

    /// Whether a projection is what it must be, to the last bit.
    fn project_cooperatively(&self) -> Result<bool> {
        let [rows, outputs, inputs] = SHAPE;
        let (w, x) = (numbers(outputs * inputs, 1), numbers(rows * inputs, 2));
        let missing = || self.gpu.error("the matrix of a test was not made");
        let matrix = Matrix::from_f32("test", outputs, inputs, &w).ok_or_else(missing)?;
        let capacity = Capacity { sequences: 1, context: rows, rows, samples: 1 };
        let mut backend = Self::on(Arc::clone(&self.gpu), capacity)?;
        let handle = backend.prepare(&Arc::new(plan(Arc::new(matrix))))?;
        let rows = (0..rows as u32).map(|position| Row::prompt(0, position, 0)).collect();
        let step = Step { rows, samples: Vec::new() };
        let expected = products(&w, &x);
        let doors = Doors { range: 0..1, import: vec![(TensorId(0), x)], taps: vec![TensorId(1)] };
        let values = backend.run(handle, &step, &doors)?;
        Ok(values.get(&TensorId(1)) == Some(&expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_is_exact_and_notices_doubled_sums() {
        let [rows, outputs, inputs] = SHAPE;
        let (w, x) = (numbers(outputs * inputs, 1), numbers(rows * inputs, 2));
        let sums = products(&w, &x);
        let exact = |line: usize, output: usize| -> f64 {
            let terms = (0..inputs).map(|i| f64::from(w[output * inputs + i]) * f64::from(x[line * inputs + i]));
            terms.sum()
        };
        for (index, &sum) in sums.iter().enumerate() {
            assert_eq!(f64::from(sum), exact(index / outputs, index % outputs));
        }
        assert!(w.iter().chain(&x).all(|&v| half::f16::from_f32(v).to_f32() == v));
        assert!(sums.iter().filter(|&&sum| sum != 2.0 * sum).count() > sums.len() / 2);
    }
}

//! Cooperative kernels must get every kind of projection right on this device before a plan runs them: drivers have
//! returned wrong sums (doubled ones, where the accumulator is carried through a loop).

use std::sync::Arc;

use wattle_shaders::{LayerMask, Row};

use super::GpuBackend;
use crate::adapter::{Factors, Pair, Place, Target};
use crate::backend::{Backend, Capacity, Doors, Step};
use crate::cache::pages_for;
use crate::error::{Error, Result};
use crate::model::{Activation, BLOCK, Matrix, NormKind, NormWeights, PanelFormat, Q4_0, Q8_0, quantize};
use crate::plan::{
    Extent, FactorType, GateUp, KvShape, KvType, LoraCapacity, Norm, Op, OpKind, Plan, Project, Site,
    SiteTarget, Tensor, TensorId,
};

/// Whole and partial tiles, several steps of inputs.
const ROWS: usize = 70;
const OUTPUTS: usize = 130;
const INPUTS: usize = 100;
/// How often each projection runs.
const RUNS: usize = 3;

/// Multiples of 1 / `steps` from `least` to `largest` of them, every block of a row beginning with the least: f16 holds
/// them, formats of 4 or 8 bits too, and f32 sums their products without rounding.
fn numbers(rows: usize, seed: u64, [least, largest, steps]: [i64; 3]) -> Vec<f32> {
    let mut state = seed;
    let mut next = |column: usize| {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let any = (state >> 33) as i64 % (largest - least + 1) + least;
        (if column.is_multiple_of(BLOCK) { least } else { any }) as f32 / steps as f32
    };
    (0..rows).flat_map(|_| 0..INPUTS).map(&mut next).collect()
}

/// Numbers of 8 bits: their blocks have a step of 1/128.
const EIGHT_BITS: [i64; 3] = [-127, 127, 128];
/// Numbers of 4 bits: with a step of 1/8.
const FOUR_BITS: [i64; 3] = [-8, 7, 8];

/// W x, exactly.
fn products(w: &[f32], x: &[f32]) -> Vec<f32> {
    let line = |x: &[f32]| -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        w.chunks_exact(INPUTS).map(dot).collect()
    };
    x.chunks_exact(INPUTS).flat_map(line).collect()
}

/// The first columns of each line.
fn columns(values: &[f32], count: usize) -> Vec<f32> {
    values.chunks_exact(INPUTS).flat_map(|line| &line[..count]).copied().collect()
}

/// The rank of the factors: no whole vec4.
const RANK: usize = 6;
/// Projections that have them: o alone, gate and up together.
const TARGETS: [Target; 3] = [Target::O, Target::Gate, Target::Up];

/// Every third row has no LoRA.
fn rows() -> Vec<Row> {
    let row = |position| {
        let row = Row::prompt(0, position, 0);
        if position % 3 == 0 { row } else { Row { slot: 0, lora: LayerMask::of([0]).words(), ..row } }
    };
    (0..ROWS as u32).map(row).collect()
}

/// B of a target; A is not needed, t being given.
fn b_of(target: Target) -> Vec<f32> {
    columns(&numbers(OUTPUTS, 10 + target as u64, FOUR_BITS), RANK)
}

fn factors() -> Factors {
    let pair = |target| {
        let pair =
            Pair { rank: RANK, cols: INPUTS, rows: OUTPUTS, a: vec![0.0; RANK * INPUTS], b: b_of(target) };
        (Place { layer: 0, target }, pair)
    };
    Factors::new(TARGETS.map(pair).into())
}

/// Where these targets, which follow each other, have factors.
fn site(targets: &[Target]) -> Arc<Site> {
    let target = |(index, &target)| SiteTarget { target, rows: OUTPUTS, start: OUTPUTS * index };
    let targets = targets.iter().enumerate().map(target).collect();
    let capacity = LoraCapacity { slots: 1, rank: RANK, outside: false };
    Arc::new(Site { layer: 0, cols: INPUTS, targets, capacity, part: INPUTS })
}

/// B t of target `index` of a site, t being the rows' `width` numbers; 0 for rows without LoRA.
fn added(target: Target, index: usize, t: &[f32], width: usize) -> Vec<f32> {
    let b = b_of(target);
    let line = |(row, t): (Row, &[f32])| -> Vec<f32> {
        let t = &t[index * RANK..][..RANK];
        let dot = |b: &[f32]| b.iter().zip(t).map(|(b, t)| b * t).sum();
        if row.lora_in(0) { b.chunks_exact(RANK).map(dot).collect() } else { vec![0.0; OUTPUTS] }
    };
    rows().into_iter().zip(t.chunks_exact(width)).flat_map(line).collect()
}

/// One projection of x, and of t if it has factors, to y.
fn plan(kind: OpKind) -> Arc<Plan> {
    let tensor = |name: &str, width| Tensor { name: name.into(), extent: Extent::Rows, width };
    let mut tensors = vec![tensor("x", INPUTS)];
    let site = match &kind {
        OpKind::Project(Project { lora, .. }) | OpKind::GateUp(GateUp { lora, .. }) => lora.as_ref(),
        _ => None,
    };
    tensors.extend(site.map(|site| tensor("t", site.t_len())));
    let inputs = (0..tensors.len() as u32).map(TensorId).collect();
    let output = Some(TensorId(tensors.len() as u32));
    tensors.push(tensor("y", OUTPUTS));
    Arc::new(Plan {
        ops: vec![Op { name: "y".into(), kind, inputs, output, carry: None }],
        tensors,
        kv: KvShape { layers: 1, heads: 1, kv_heads: 1, head_dim: 4, store: KvType::F32 },
        factors: FactorType::F16,
        rope: None,
        vocab: 1,
    })
}

/// A projection, what goes in, and what must come out to the last bit.
struct Known {
    kind: OpKind,
    inputs: Vec<Vec<f32>>,
    y: Vec<f32>,
}

/// W x and max(G x, 0) U x, with and without factors, for weights of this format that it holds exactly; of dense ones
/// W norm(x) too, x being ones of either sign, so that their norm is 1.
fn known_of(format: Option<PanelFormat>) -> Result<Vec<Known>> {
    let of_weights = if format == Some(Q4_0) { FOUR_BITS } else { EIGHT_BITS };
    let [w, up] = [1, 2].map(|seed| numbers(OUTPUTS, seed, of_weights));
    let (x, t) = (numbers(ROWS, 3, EIGHT_BITS), numbers(ROWS, 4, FOUR_BITS));
    let matrix = |values: &[f32]| -> Result<Arc<Matrix>> {
        let no_memory = || Error::value("test", "no memory for the matrices of a test");
        let dense = Matrix::from_f32("test", OUTPUTS, INPUTS, values).map(Arc::new).ok_or_else(no_memory)?;
        format.map_or(Ok(Arc::clone(&dense)), |format| quantize(&dense, format))
    };
    let project = |norm, lora| -> Result<OpKind> {
        let weight = matrix(&w)?;
        let (bias, activation, residual) = (None, None, false);
        Ok(OpKind::Project(Project { norm, weight, bias, lora, activation, residual }))
    };
    let gate_up = |lora| -> Result<OpKind> {
        let (gate, up, function) = (matrix(&w)?, matrix(&up)?, Activation::Relu);
        Ok(OpKind::GateUp(GateUp { gate, gate_bias: None, up, up_bias: None, function, lora }))
    };
    let [one, other] = [&w, &up].map(|weights| products(weights, &x));
    let sum = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let gated = |g: &[f32], u: &[f32]| g.iter().zip(u).map(|(g, u)| g.max(0.0) * u).collect();
    let [t_one, t_both] = [RANK, 2 * RANK].map(|width| columns(&t, width));
    let [g, u] = [0, 1].map(|index| added(TARGETS[1 + index], index, &t_both, 2 * RANK));
    let with = sum(&one, &added(Target::O, 0, &t_one, RANK));
    let both = gated(&sum(&one, &g), &sum(&other, &u));
    let (o, pair) = (Some(site(&TARGETS[..1])), Some(site(&TARGETS[1..])));
    let mut known = vec![
        Known { kind: gate_up(None)?, inputs: vec![x.clone()], y: gated(&one, &other) },
        Known { kind: gate_up(pair)?, inputs: vec![x.clone(), t_both], y: both },
        Known { kind: project(None, o)?, inputs: vec![x.clone(), t_one], y: with },
        Known { kind: project(None, None)?, inputs: vec![x.clone()], y: one },
    ];
    if format.is_none() {
        let weights = NormWeights { weight: None, bias: None };
        let norm = Norm { kind: NormKind::Rms, weights, eps: 0.0, groups: 1 };
        let signs: Vec<f32> = x.iter().map(|x| 1.0_f32.copysign(*x)).collect();
        let y = products(&w, &signs);
        known.push(Known { kind: project(Some(norm), None)?, inputs: vec![signs], y });
    }
    Ok(known)
}

/// All of them: dense weights, and codes of 4 and of 8 bits.
fn known() -> Result<Vec<Known>> {
    let formats = [None, Some(Q4_0), Some(Q8_0)];
    Ok(formats.map(known_of).into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

impl GpuBackend {
    /// Whether the device's cooperative kernels may run; if they are wrong, says so.
    pub(super) fn may_cooperate(&self) -> bool {
        let reason = match self.projects_rightly() {
            Ok(true) => return true,
            Ok(false) => "they compute wrong products".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(device = self.gpu.info.name, reason, "cooperative matrices are not used");
        false
    }

    /// Whether prompts' projections are what they must be, as this device runs them.
    fn projects_rightly(&self) -> Result<bool> {
        let capacity =
            Capacity { sequences: 1, context: ROWS, pages: pages_for(ROWS), rows: ROWS, samples: 1 };
        let mut backend = self.sibling(capacity)?;
        backend.set_slot(0, Some(Arc::new(factors())))?;
        let step = Step { rows: rows(), samples: Vec::new() };
        for Known { kind, inputs, y } in known()? {
            let handle = backend.prepare(&plan(kind))?;
            let output = TensorId(inputs.len() as u32);
            let doors =
                Doors { range: 0..1, import: (0..).map(TensorId).zip(inputs).collect(), taps: vec![output] };
            // More than once: what is not ordered rightly may come out right by chance.
            for _ in 0..RUNS {
                if backend.run(handle, &step, &doors)?.get(&output) != Some(&y) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::device::Gpu;
    use super::super::{GpuOptions, tiles::Products};
    use super::*;
    use crate::error::Error;
    use crate::model::{Dtype, Format};
    use crate::options::Precision;
    use wattle_shaders::{Kernel, WeightType};

    /// A device, on which a kernel's text may be changed before it is compiled; `None`, with the reason printed, where there
    /// is none.
    pub(in super::super) fn gpu(
        change: Option<(&'static str, &'static str, &'static str)>,
    ) -> Option<GpuBackend> {
        let capacity = Capacity { sequences: 1, context: 1, pages: 1, rows: 1, samples: 1 };
        let asked =
            GpuOptions { allow_software: true, precision: Precision::Fast, ..GpuOptions::new(capacity) };
        let required = std::env::var_os("WATTLE_REQUIRE_GPU").is_some_and(|value| value == "1");
        let mut gpu = match Gpu::open(&asked, true) {
            Err(error @ Error::Device { .. }) if !required => {
                println!("skipped: {error}");
                return None;
            }
            other => other.unwrap(),
        };
        gpu.change = change;
        Some(GpuBackend::on(Arc::new(gpu), capacity).unwrap())
    }

    #[test]
    fn right_kernels_pass_and_each_broken_one_is_noticed() {
        let Some(right) = gpu(None) else { return };
        assert!(right.projects_rightly().unwrap() && right.may_cooperate());
        let suffix = right.gpu.products(Format::Dense(Dtype::F32)).suffix();
        let names = ["project__tiled", "project__normed_tiled", "gate_up__tiled"];
        let doubled = [("= acc[i][e]", "= 2.0 * acc[i][e]"), ("= (*acc)[i][e]", "= 2.0 * (*acc)[i][e]")];
        let summed = [("* u[e]", "+ u[e]")];
        for (name, (from, to)) in names.into_iter().zip(doubled.into_iter().chain(summed)) {
            let kernel = Kernel::named(&format!("{name}{suffix}")).unwrap();
            assert!(kernel.wgsl(true, WeightType::F32, FactorType::F32).contains(from), "{name}");
            let Some(broken) = gpu(Some((kernel.name, from, to))) else { return };
            assert!(!broken.projects_rightly().unwrap() && !broken.may_cooperate(), "{name}");
        }
    }

    #[test]
    fn factors_that_are_added_wrongly_are_noticed() {
        let Some(right) = gpu(None) else { return };
        let suffix = right.gpu.products(Format::Dense(Dtype::F32)).suffix();
        let lost = ("if o < part.rows && rank < ranks", "if o < part.rows && rank + 1u < ranks");
        for name in ["project__tiled", "gate_up__tiled"] {
            let kernel = Kernel::named(&format!("{name}{suffix}")).unwrap();
            let text = kernel.wgsl(true, WeightType::F32, FactorType::F16);
            assert!(text.contains(lost.0), "{name}: {text}");
            let Some(broken) = gpu(Some((kernel.name, lost.0, lost.1))) else { return };
            assert!(!broken.projects_rightly().unwrap(), "{name}");
        }
    }

    #[test]
    fn a_format_that_is_read_wrongly_is_noticed() {
        let Some(right) = gpu(None) else { return };
        let products = right.gpu.products(Format::Panels(Q4_0));
        let (from, to) = match products {
            Products::Codes => ("8.0 * scale", "7.0 * scale"),
            _ => ("c - 8.0", "c - 7.0"),
        };
        let kernel = Kernel::named(&format!("project__tiled{}", products.suffix())).unwrap();
        assert!(kernel.wgsl(true, WeightType::Nibbles, FactorType::F32).contains(from));
        let Some(broken) = gpu(Some((kernel.name, from, to))) else { return };
        assert!(!broken.projects_rightly().unwrap() && !broken.may_cooperate());
    }

    #[test]
    fn kernels_that_a_device_cannot_compile_are_refused() {
        let Some(backend) = gpu(Some(("project__tiled_half", "fn main(", "fn main(("))) else { return };
        if backend.gpu.products(Format::Dense(Dtype::F32)) == Products::Halves {
            assert!(backend.projects_rightly().is_err());
            assert!(!backend.may_cooperate());
        }
    }

    #[test]
    fn the_test_is_exact() {
        let (w, x) = (numbers(OUTPUTS, 1, EIGHT_BITS), numbers(ROWS, 2, EIGHT_BITS));
        let sums = products(&w, &x);
        let exact = |line: usize, output: usize| -> f64 {
            let terms =
                (0..INPUTS).map(|i| f64::from(w[output * INPUTS + i]) * f64::from(x[line * INPUTS + i]));
            terms.sum()
        };
        for (index, &sum) in sums.iter().enumerate() {
            assert_eq!(f64::from(sum), exact(index / OUTPUTS, index % OUTPUTS));
        }
        assert!(w.iter().chain(&x).all(|&v| half::f16::from_f32(v).to_f32() == v));
    }
}

//! The weights of the policy's and the value's network, and Adam.

use wattle_policy::{Network, Random};

use crate::error::Result;

/// Units of the two hidden layers of each network.
const HIDDEN: usize = 64;

/// A tensor by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    /// `policy.0.weight`, …
    pub name: String,
    /// \[outputs, inputs\], or \[outputs\].
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Both networks: three layers each, weight and bias in turn, the policy's first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters(pub Vec<Parameter>);

/// Tensors of one network.
pub(crate) const PER_NETWORK: usize = 6;

impl Parameters {
    /// Orthogonal weights with gain √2, 0.01 at the end of the policy and 1 at the end of the value; biases 0.
    pub fn new(features: usize, outputs: usize, random: &mut Random) -> Self {
        let mut all = Vec::new();
        for (network, last, gain) in [("policy", outputs, 0.01), ("value", 1, 1.0)] {
            let widths = [features, HIDDEN, HIDDEN, last];
            for layer in 0..3 {
                let (cols, rows) = (widths[layer], widths[layer + 1]);
                let gain = if layer == 2 { gain } else { 2f64.sqrt() };
                let name = |part| format!("{network}.{layer}.{part}");
                let values = orthogonal(rows, cols, gain, random);
                all.push(Parameter { name: name("weight"), shape: vec![rows, cols], values });
                all.push(Parameter { name: name("bias"), shape: vec![rows], values: vec![0.0; rows] });
            }
        }
        Self(all)
    }

    /// The networks as they run without candle: policy, value.
    pub fn networks(&self) -> Result<[Network; 2]> {
        let network = |parameters: &[Parameter]| -> Result<Network> {
            let layers = parameters.chunks(2).map(|pair| (pair[0].values.clone(), pair[1].values.clone()));
            Ok(Network::new(layers.collect())?)
        };
        let (policy, value) = self.0.split_at(PER_NETWORK.min(self.0.len()));
        Ok([network(policy)?, network(value)?])
    }

    /// Tensors of the policy: what a policy file has.
    pub fn policy(&self) -> impl Iterator<Item = (String, &[usize], &[f32])> {
        let policy = self.0.iter().take(PER_NETWORK);
        policy.map(|parameter| {
            (parameter.name.clone(), parameter.shape.as_slice(), parameter.values.as_slice())
        })
    }
}

/// A \[rows, cols\] matrix with orthonormal rows or columns, whichever are fewer, times `gain` (Saxe et al. 2014).
fn orthogonal(rows: usize, cols: usize, gain: f64, random: &mut Random) -> Vec<f32> {
    let (few, many) = (rows.min(cols), rows.max(cols));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(few);
    for _ in 0..few {
        let mut vector: Vec<f64> = (0..many).map(|_| random.normal()).collect();
        // Twice is enough (Gram–Schmidt; Giraud et al. 2005).
        for _ in 0..2 {
            for other in &basis {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        vector.iter_mut().for_each(|x| *x /= norm);
        basis.push(vector);
    }
    let at = |row: usize, col: usize| if rows <= cols { basis[row][col] } else { basis[col][row] };
    (0..rows * cols).map(|i| (gain * at(i / cols, i % cols)) as f32).collect()
}

/// Adam (Kingma & Ba 2015) with β 0.9 and 0.999.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adam {
    /// First and second moments, tensor by tensor.
    pub moments: [Vec<Vec<f32>>; 2],
    /// Updates so far.
    pub updates: u64,
}

impl Adam {
    const EPSILON: f32 = 1e-5;

    /// For these parameters.
    pub fn new(parameters: &Parameters) -> Self {
        let zeros = || parameters.0.iter().map(|parameter| vec![0.0; parameter.values.len()]).collect();
        Self { moments: [zeros(), zeros()], updates: 0 }
    }

    /// One update along gradients whose common norm is first cut to `max_norm`.
    pub fn update(&mut self, parameters: &mut Parameters, gradients: &[Vec<f32>], rate: f32, max_norm: f32) {
        let norm = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let scale = (max_norm / (norm as f32 + 1e-6)).min(1.0);
        self.updates += 1;
        let [first, second] = &mut self.moments;
        let [c1, c2] = [0.9f64, 0.999].map(|beta| (1.0 - beta.powf(self.updates as f64)) as f32);
        for (((parameter, gradient), m), v) in parameters.0.iter_mut().zip(gradients).zip(first).zip(second) {
            for (((x, &g), m), v) in parameter.values.iter_mut().zip(gradient).zip(m).zip(v) {
                let g = g * scale;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                *x -= rate * (*m / c1) / ((*v / c2).sqrt() + Self::EPSILON);
            }
        }
    }
}

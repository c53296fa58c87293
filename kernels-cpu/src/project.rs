//! y = activation(W x + b + B t) + r.

use wattle_shaders::Row;

use crate::activate::Function;
use crate::{Lora, Read, Write};

/// The operands besides x.
#[derive(Clone, Copy)]
pub struct Project<'a> {
    /// Columns of W.
    pub inputs: usize,
    /// Rows of W.
    pub outputs: usize,
    /// W: \[outputs, inputs\].
    pub weight: &'a dyn Read,
    /// b: \[outputs\].
    pub bias: Option<&'a dyn Read>,
    /// Factors, and t: \[rows, t width\].
    pub lora: Option<(&'a Lora<&'a dyn Read>, &'a dyn Read)>,
    /// Applied to the sum.
    pub activation: Option<Function>,
    /// r: \[rows, outputs\].
    pub residual: Option<&'a dyn Read>,
}

impl Project<'_> {
    /// (W x + b + B t)\[output\] for row `line`.
    pub fn linear(&self, line: usize, row: &Row, output: usize, x: &dyn Read) -> f64 {
        let product = |i| {
            f64::from(self.weight.get(output * self.inputs + i)) * f64::from(x.get(line * self.inputs + i))
        };
        let sum: f64 = (0..self.inputs).map(product).sum();
        let y = sum + self.bias.map_or(0.0, |b| f64::from(b.get(output)));
        self.lora.map_or(y, |(lora, t)| lora.add(y, output, line, row, t))
    }
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\].
pub fn plain(rows: &[Row], project: &Project, x: &dyn Read, y: &mut dyn Write) {
    for (line, row) in rows.iter().enumerate() {
        for output in 0..project.outputs {
            let mut value = project.linear(line, row, output, x);
            if let Some(function) = project.activation {
                value = function.apply(value);
            }
            let at = line * project.outputs + output;
            let residual = project.residual.map_or(0.0, |r| f64::from(r.get(at)));
            y.set(at, (value + residual) as f32);
        }
    }
}

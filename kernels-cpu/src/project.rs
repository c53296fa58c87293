//! y = activation(W x + b + B t) + r, with norm(x) for x if there is a norm.

use wattle_shaders::Row;

use crate::activate::Function;
use crate::norm::Norm;
use crate::{Carry, Lora, Read, Write};

/// The operands besides x.
#[derive(Clone, Copy)]
pub struct Project<'a> {
    /// Applied to the rows of x.
    pub norm: Option<Norm<&'a dyn Read>>,
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
    /// (W x + b + B t)\[output\] for row `line`, x being that row.
    pub fn linear(&self, line: usize, row: &Row, output: usize, x: &dyn Fn(usize) -> f64) -> f64 {
        let product = |i| f64::from(self.weight.get(output * self.inputs + i)) * x(i);
        let sum: f64 = (0..self.inputs).map(product).sum();
        let y = sum + self.bias.map_or(0.0, |b| f64::from(b.get(output)));
        self.lora.map_or(y, |(lora, t)| lora.add(y, output, line, row, t))
    }
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\]; what is carried has norm(x) as its input.
pub fn plain(rows: &[Row], project: &Project, x: &dyn Read, y: &mut dyn Write, mut carry: Option<Carry>) {
    for (line, row) in rows.iter().enumerate() {
        let x = |i| f64::from(x.get(line * project.inputs + i));
        let normed = project.norm.map(|norm| norm.apply(&(0..project.inputs).map(x).collect::<Vec<_>>()));
        let x = |i: usize| normed.as_ref().map_or_else(|| x(i), |normed| normed[i]);
        let carried = carry.as_mut().zip(normed.as_ref());
        carried.into_iter().for_each(|(carry, normed)| carry.row(line, normed));
        for output in 0..project.outputs {
            let mut value = project.linear(line, row, output, &x);
            if let Some(function) = project.activation {
                value = function.apply(value);
            }
            let at = line * project.outputs + output;
            let residual = project.residual.map_or(0.0, |r| f64::from(r.get(at)));
            y.set(at, (value + residual) as f32);
        }
    }
}

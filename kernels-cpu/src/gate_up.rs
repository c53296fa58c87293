//! y = f(G x + b_g + B_g t) · (U x + b_u + B_u t).

use wattle_shaders::Row;

use crate::activate::Function;
use crate::project::Project;
use crate::{Carry, Lora, Read, Write};

/// The operands besides x.
pub struct GateUp<'a> {
    /// Columns of G and U.
    pub inputs: usize,
    /// Rows of G and of U.
    pub outputs: usize,
    /// G and U: \[outputs, inputs\].
    pub weights: [&'a dyn Read; 2],
    /// b_g and b_u: \[outputs\].
    pub biases: [Option<&'a dyn Read>; 2],
    /// f.
    pub function: Function,
    /// Factors of outputs 0..outputs (gate) and outputs..2 outputs (up), and t: \[rows, t width\].
    pub lora: Option<(&'a Lora<&'a dyn Read>, &'a dyn Read)>,
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\]; what is carried has y as its input.
pub fn plain(rows: &[Row], op: &GateUp, x: &dyn Read, y: &mut dyn Write, mut carry: Option<Carry>) {
    let (inputs, outputs) = (op.inputs, op.outputs);
    for (line, row) in rows.iter().enumerate() {
        let x = |i| f64::from(x.get(line * inputs + i));
        let mut values = Vec::new();
        for output in 0..outputs {
            let half = |i: usize| {
                let (weight, bias) = (op.weights[i], op.biases[i]);
                let (norm, lora, activation, residual) = (None, None, None, None);
                let half = Project { norm, inputs, outputs, weight, bias, lora, activation, residual };
                let sum = half.linear(line, row, output, &x);
                op.lora.map_or(sum, |(lora, t)| lora.add(sum, i * outputs + output, line, row, t))
            };
            values.push(op.function.apply(half(0)) * half(1));
            y.set(line * outputs + output, values[output] as f32);
        }
        carry.iter_mut().for_each(|carry| carry.row(line, &values));
    }
}

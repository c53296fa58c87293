//! Activation functions.

use wattle_engine::model::Activation;
use wattle_engine::plan::{Extent, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, Random, rows, step};

/// Relative to the largest output. Measured on the CPU's f32 kernels: 1.3e-7 at most; WGSL lets exp be a few ulp off.
const TOLERANCE: f32 = 2e-6;

/// With inputs where exp overflows, where the functions turn, and around zero.
pub fn cases() -> Vec<Case> {
    let functions = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];
    let shapes = [(1, 1, 1.0), (63, 3, 8.0), (173, 9, 2.0), (65, 2, 120.0), (300, 33, 4.0)];
    let all = functions.iter().flat_map(|&f| shapes.iter().map(move |&shape| (f, shape)));
    all.flat_map(|(f, shape)| [false, true].map(|gated| case(f, gated, shape))).collect()
}

fn case(function: Activation, gated: bool, (width, n, scale): (usize, usize, f32)) -> Case {
    let random = &mut Random(width as u64);
    let inputs = vec![width; 1 + usize::from(gated)];
    let plan = Draft::new().map(OpKind::Activate { function, gated }, Extent::Rows, &inputs, width);
    let mut x = random.numbers(n * width, scale);
    x[n * width / 2] = 0.0;
    let mut import = vec![(TensorId(0), x)];
    if gated {
        import.push((TensorId(1), random.numbers(n * width, 1.0)));
    }
    let name =
        format!("{function:?}, {n} rows of {width} up to ±{scale}{}", if gated { ", gated" } else { "" });
    Case { tolerance: TOLERANCE, ..Case::new(name, plan, step(rows(n, random), 0, 1), import) }
}

//! Ops → launches: which kernel runs with which buffers, parameters and grid.

use wattle_shaders::params::{self, function};
use wattle_shaders::{Kernel, WeightType};

use super::compile::Compiler;
use super::split::Division;
use super::tiles::{FEW, Lines, Products, Shape, Tile, columns};
use crate::error::Result;
use crate::model::{Activation, Bits, Dtype, Format, Offset, PanelFormat};
use crate::plan::{Extent, FactorType};

/// Where kernels that carry LoRA bind t, the B pool and the site.
pub(super) const T: u32 = 6;
pub(super) const B_POOL: u32 = 7;
pub(super) const SITE: u32 = 8;
/// Where kernels that carry A x of the next projection bind its A pool, t and site.
pub(super) const A_POOL: u32 = 9;
pub(super) const T_OUT: u32 = 10;
pub(super) const NEXT: u32 = 11;

/// Invocations of a workgroup: `LANES` in `lane.wgsl`.
const LANES: u64 = 64;

/// The id of an `override`, and its value.
pub(super) type Constant = (&'static str, u32);

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Uniform,
    Read,
    Write,
}

/// Which rows a launch is for: projections have other kernels for each class, so that a row's sums never depend on what
/// else is in the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Rows of class generated, which come first; or all samples.
    Generated,
    /// Rows of class prompt; no samples.
    Prompt,
}

/// A storage buffer of a launch.
#[derive(Clone)]
pub(super) struct Binding {
    pub index: u32,
    pub buffer: wgpu::Buffer,
    pub access: Access,
}

pub(super) fn read(index: u32, buffer: &wgpu::Buffer) -> Binding {
    Binding { index, buffer: buffer.clone(), access: Access::Read }
}

pub(super) fn write(index: u32, buffer: &wgpu::Buffer) -> Binding {
    Binding { index, buffer: buffer.clone(), access: Access::Write }
}

/// The workgroups of a launch, for n lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// So many workgroups per line.
    Groups(u64),
    /// So many workgroups per item of attention, and per line that has none; with up to so many rows computed together.
    Items { groups: u64, together: u32 },
    /// So many invocations per line.
    Elements(u64),
    /// So many outputs of so many inputs per line, in panels of outputs and several lines; and `more` workgroups per line.
    Panels { outputs: u64, inputs: u64, more: u64 },
    /// So many outputs per line, in tiles; and for each of `slots` slots so many rank rows.
    Tiles { outputs: u64, slots: u64, ranks: u64 },
}

impl Grid {
    /// Workgroups for `lines` lines, with the lines (and outputs) of a tile per workgroup, in a step whose attention is
    /// divided so.
    pub fn workgroups(self, lines: u64, tile: Tile, division: Division) -> u64 {
        let columns = u64::from(tile.rows);
        match self {
            Self::Groups(groups) => lines * groups,
            Self::Items { groups, .. } => {
                (u64::from(division.items) + lines - u64::from(division.rows)) * groups
            }
            Self::Elements(elements) => (lines * elements).div_ceil(LANES),
            Self::Panels { outputs, more, .. } => {
                outputs.div_ceil(u64::from(tile.outputs)) * lines.div_ceil(columns) + more * lines
            }
            Self::Tiles { outputs, slots, ranks } => {
                let blocks = |outputs: u64| outputs.div_ceil(u64::from(tile.outputs));
                (blocks(outputs) + slots * blocks(ranks)) * lines.div_ceil(columns)
            }
        }
    }
}

/// One dispatch of an op.
#[derive(Clone)]
pub(super) struct Launch {
    pub kernel: &'static Kernel,
    pub weights: WeightType,
    /// How the factors that it reads are kept, if it reads any.
    pub factors: FactorType,
    /// The kernel's `override`s: their ids and values. Those of columns and tiles are not among them, and with
    /// [`Grid::Tiles`] there are no others.
    pub constants: Vec<Constant>,
    /// The bytes of binding 0.
    pub params: Vec<u8>,
    pub site: Option<params::Site>,
    /// The site that is carried; with no projections, nothing is.
    pub next: Option<params::Site>,
    pub bindings: Vec<Binding>,
    pub extent: Extent,
    /// `None`: all lines.
    pub class: Option<Class>,
    /// In tiles, how their products are made.
    pub products: Products,
    pub grid: Grid,
    /// Whether it writes to the step: a gate.
    pub closes: bool,
}

impl Launch {
    /// A launch over the rows of the step, of a kernel without weights or constants.
    pub fn new<P: bytemuck::Pod>(
        compiler: &Compiler,
        params: P,
        bindings: Vec<Binding>,
        grid: Grid,
    ) -> Result<Self> {
        Ok(Self {
            kernel: compiler.kernel()?,
            weights: WeightType::F32,
            factors: compiler.plan.factors,
            constants: Vec::new(),
            params: bytemuck::bytes_of(&params).to_vec(),
            site: None,
            next: None,
            bindings,
            extent: Extent::Rows,
            class: None,
            products: Products::Floats,
            grid,
            closes: false,
        })
    }

    /// The shapes that its tiles depend on, in steps of up to so many lines, and the lines of each.
    pub fn shapes(&self, lines: usize) -> Vec<(u32, Shape)> {
        let (kernel, products, weights) = (self.kernel.name, self.products, self.weights);
        let shape = |outputs, lines| Shape { kernel, products, weights, outputs, lines };
        match self.grid {
            Grid::Tiles { outputs, .. } => {
                let all = [(FEW, Lines::Few), (u32::MAX, Lines::Many)];
                let used = if lines > FEW as usize { 2 } else { 1 };
                all.into_iter().take(used).map(|(upto, lines)| (upto, shape(outputs, lines))).collect()
            }
            Grid::Panels { outputs, inputs, .. } => {
                let of = |columns| (columns, shape(outputs, Lines::Columns { columns, inputs }));
                columns(lines).into_iter().map(of).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Its `override`s in a tile.
    pub fn constants_in(&self, tile: Tile) -> Vec<Constant> {
        match self.grid {
            Grid::Tiles { .. } => tile.constants(),
            _ => self.constants.iter().copied().chain([("0", tile.rows)]).collect(),
        }
    }

    /// This launch for samples and for rows of class generated; for those of class prompt, in tiles by `tiled`, which
    /// has the same operands.
    pub fn by_class(self, (tiled, products): (&'static Kernel, Products), grid: Grid) -> Vec<Self> {
        let generated = Self { class: Some(Class::Generated), ..self.clone() };
        let prompt = Self { kernel: tiled, class: Some(Class::Prompt), products, grid, ..self };
        let launches = [generated, prompt];
        launches
            .into_iter()
            .filter(|l| (l.extent, l.class) != (Extent::Samples, Some(Class::Prompt)))
            .collect()
    }
}

/// Elements from one row of an activation to the next: whole vec4s.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// vec4s of a row.
pub(super) fn k4(width: usize) -> u32 {
    width.div_ceil(4) as u32
}

/// Elements used of the last vec4 of a row, 1 to 4.
pub(super) fn used(width: usize) -> u32 {
    ((width + 3) % 4 + 1) as u32
}

/// An extent as shaders write it.
pub(super) fn extent_code(extent: Extent) -> u32 {
    match extent {
        Extent::Rows => 0,
        Extent::Samples => 1,
    }
}

/// An activation as shaders write it.
pub(super) fn function_code(activation: Option<Activation>) -> u32 {
    match activation {
        None => function::NONE,
        Some(Activation::Gelu) => function::GELU,
        Some(Activation::GeluTanh) => function::GELU_TANH,
        Some(Activation::Relu) => function::RELU,
        Some(Activation::Silu) => function::SILU,
    }
}

/// Offsets as shaders write them.
pub(super) fn offset_code(offset: Offset) -> u32 {
    match offset {
        Offset::Middle => 0,
        Offset::Minimum => 1,
        Offset::Zero => 2,
        Offset::NormalFloat => 3,
    }
}

pub(super) fn weight_type(format: Format) -> WeightType {
    match format {
        Format::Dense(Dtype::F32) => WeightType::F32,
        Format::Dense(Dtype::F16) => WeightType::F16,
        Format::Dense(Dtype::Bf16) => WeightType::Bf16,
        Format::Panels(PanelFormat { bits: Bits::Four, .. }) => WeightType::Nibbles,
        Format::Panels(PanelFormat { bits: Bits::Eight, .. }) => WeightType::Bytes,
    }
}

//! Ops → launches: which kernel runs with which buffers, parameters and grid.

use wattle_shaders::params::{self, function};
use wattle_shaders::{Kernel, WeightType};

use super::compile::Compiler;
use crate::error::Result;
use crate::model::{Activation, Bits, Dtype, Format, PanelFormat};
use crate::plan::Extent;

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
/// Outputs that a projection computes at a time.
pub(super) const BLOCK: u64 = 4;

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Uniform,
    Read,
    Write,
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
    /// So many invocations per line.
    Elements(u64),
    /// So many outputs per line, in blocks of `block` outputs and several lines; and `more` workgroups per line.
    Blocks { outputs: u64, block: u64, more: u64 },
}

impl Grid {
    /// Workgroups for `lines` lines, with `columns` lines per workgroup.
    pub fn workgroups(self, lines: u64, columns: u64) -> u64 {
        match self {
            Self::Groups(groups) => lines * groups,
            Self::Elements(elements) => (lines * elements).div_ceil(LANES),
            Self::Blocks { outputs, block, more } => {
                outputs.div_ceil(block) * lines.div_ceil(columns) + more * lines
            }
        }
    }
}

/// One dispatch of an op.
pub(super) struct Launch {
    pub kernel: &'static Kernel,
    pub weights: WeightType,
    /// The kernel's `override`: its id and value. With [`Grid::Blocks`], id 0 is the columns.
    pub constant: Option<(&'static str, u32)>,
    /// The bytes of binding 0.
    pub params: Vec<u8>,
    pub site: Option<params::Site>,
    /// The site that is carried; with no projections, nothing is.
    pub next: Option<params::Site>,
    pub bindings: Vec<Binding>,
    pub extent: Extent,
    pub grid: Grid,
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
            constant: None,
            params: bytemuck::bytes_of(&params).to_vec(),
            site: None,
            next: None,
            bindings,
            extent: Extent::Rows,
            grid,
        })
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

pub(super) fn weight_type(format: Format) -> WeightType {
    match format {
        Format::Dense(Dtype::F32) => WeightType::F32,
        Format::Dense(Dtype::F16) => WeightType::F16,
        Format::Dense(Dtype::Bf16) => WeightType::Bf16,
        Format::Panels(PanelFormat { bits: Bits::Four, .. }) => WeightType::Nibbles,
        Format::Panels(PanelFormat { bits: Bits::Eight, .. }) => WeightType::Bytes,
    }
}

//! A plan with everything that its steps need: steps only bind and dispatch.

use std::sync::{Arc, OnceLock};

use wattle_shaders::{Kernel, params};

use super::device::Gpu;
use super::launch::{Class, Constant, Grid, Launch, NEXT, SITE, stride};
use super::split::Division;
use super::tiles::Tile;
use crate::backend::validate::{self, StepLimits};
use crate::backend::{Capacity, Step, Timing};
use crate::error::Result;
use crate::plan::{Extent, Plan, Tensor};

/// Where the bytes of a uniform lie: offset and size.
type Place = (u64, Option<std::num::NonZeroU64>);

/// A launch, ready to be dispatched.
pub(super) struct Dispatch {
    /// By ascending lines; one where the grid has no tiles.
    pub variants: Vec<Variant>,
    pub bindings: wgpu::BindGroup,
    pub launch: Launch,
}

/// How a launch runs with up to so many lines (attention: rows of an item). Its pipeline is made when a step first needs it: most engines never see
/// most widths, and compilers take seconds and megabytes.
pub(super) struct Variant {
    upto: u32,
    tile: Tile,
    kernel: &'static Kernel,
    constants: Vec<Constant>,
    pipeline: OnceLock<wgpu::ComputePipeline>,
}

impl Variant {
    fn new(upto: u32, tile: Tile, kernel: &'static Kernel, constants: Vec<Constant>) -> Self {
        Self { upto, tile, kernel, constants, pipeline: OnceLock::new() }
    }
}

impl Dispatch {
    /// The pipeline and the workgroups for a step whose attention is divided so; `None` if there is nothing to do. Every
    /// pipeline sums in the same order.
    pub fn of(&self, gpu: &Gpu, step: &Step, division: Division) -> Option<(&wgpu::ComputePipeline, u64)> {
        let all = validate::lines(self.launch.extent, step);
        let lines = match (self.launch.class, self.launch.extent) {
            (None, _) | (Some(Class::Generated), Extent::Samples) => all,
            (Some(Class::Generated), Extent::Rows) => step.generated(),
            (Some(Class::Prompt), Extent::Samples) => 0,
            (Some(Class::Prompt), Extent::Rows) => all - step.generated(),
        };
        let size = match self.launch.grid {
            Grid::Items { .. } => division.most as usize,
            _ => lines,
        };
        let enough = self.variants.partition_point(|variant| (variant.upto as usize) < size);
        let variant = self.variants.get(enough).or(self.variants.last())?;
        let groups = self.launch.grid.workgroups(lines as u64, variant.tile, division);
        let make = || gpu.pipelines.pipeline(gpu, &self.launch, variant.kernel, &variant.constants);
        (groups > 0).then(|| (variant.pipeline.get_or_init(make), groups))
    }
}

/// A plan that was prepared.
pub(super) struct Prepared {
    /// Also keeps the weights in host memory where they are, see [`super::weights`].
    pub plan: Arc<Plan>,
    pub limits: StepLimits,
    /// Per op.
    pub ops: Vec<Vec<Dispatch>>,
    /// Per tensor.
    pub activations: Vec<wgpu::Buffer>,
    /// Per op.
    pub timings: Vec<Timing>,
}

/// The capacity, with no more rows and samples than a binding can hold of the plan's tensors.
pub(super) fn fitting(gpu: &Gpu, plan: &Plan, capacity: Capacity) -> Result<Capacity> {
    let mut fitting = capacity;
    for tensor in &plan.tensors {
        let lines = gpu.limits.max_rows(tensor.width);
        let most = match tensor.extent {
            Extent::Rows => &mut fitting.rows,
            Extent::Samples => &mut fitting.samples,
        };
        *most = lines.min(*most);
        if lines == 0 {
            let (bytes, limit) = (stride(tensor.width) * 4, gpu.limits.binding);
            return Err(
                gpu.error(format!("one row of {} takes {bytes} bytes, a binding holds {limit}", tensor.name))
            );
        }
    }
    Ok(fitting)
}

/// Bytes of a tensor in the largest step.
pub(super) fn tensor_bytes(tensor: &Tensor, capacity: Capacity) -> u64 {
    let lines = match tensor.extent {
        Extent::Rows => capacity.rows,
        Extent::Samples => capacity.samples,
    };
    (lines * stride(tensor.width) * 4) as u64
}

/// Makes the pipelines and bind groups of a plan's launches. Their parameters lie in one uniform buffer.
pub(super) fn dispatches(
    gpu: &Gpu,
    launches: &[Vec<Launch>],
    capacity: Capacity,
) -> Result<Vec<Vec<Dispatch>>> {
    let align = gpu.device.limits().min_uniform_buffer_offset_alignment as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut place = |data: &[u8]| {
        let start = bytes.len().next_multiple_of(align);
        bytes.resize(start, 0);
        bytes.extend_from_slice(data);
        (start as u64, std::num::NonZeroU64::new(data.len() as u64))
    };
    let places: Vec<Vec<_>> = launches
        .iter()
        .map(|op| {
            let of = |launch: &Launch| {
                let mut site =
                    |site: &Option<params::Site>| site.as_ref().map(|s| place(bytemuck::bytes_of(s)));
                let sites = [site(&launch.site), site(&launch.next)];
                (place(&launch.params), sites)
            };
            op.iter().map(of).collect()
        })
        .collect();
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    bytes.resize(bytes.len().next_multiple_of(16).max(16), 0);
    let uniforms = gpu.buffer("parameters", bytes.len() as u64, usage);
    gpu.queue.write_buffer(&uniforms, 0, &bytes);
    let uniform = |binding, (offset, size)| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &uniforms, offset, size }),
    };
    let dispatch = |(launch, (params, [site, next])): (&Launch, (Place, [Option<Place>; 2]))| {
        let mut entries = vec![uniform(0, params)];
        entries.extend(launch.bindings.iter().map(|binding| wgpu::BindGroupEntry {
            binding: binding.index,
            resource: binding.buffer.as_entire_binding(),
        }));
        entries.extend(site.map(|site| uniform(SITE, site)));
        entries.extend(next.map(|next| uniform(NEXT, next)));
        let bindings = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(launch.kernel.name),
            layout: &gpu.pipelines.bindings(gpu, launch),
            entries: &entries,
        });
        Dispatch { variants: variants(gpu, launch, capacity), bindings, launch: launch.clone() }
    };
    let all = launches.iter().zip(places).map(|(op, places)| op.iter().zip(places).map(dispatch).collect());
    let all = all.collect();
    gpu.check()?;
    Ok(all)
}

/// The lines of a launch in the largest step.
pub(super) fn most_lines(launch: &Launch, capacity: Capacity) -> usize {
    match (launch.extent, launch.class) {
        // One row per sequence is generated in a step; more take several workgroups each.
        (Extent::Rows, Some(Class::Generated)) => capacity.sequences.min(capacity.rows),
        (Extent::Rows, _) => capacity.rows,
        (Extent::Samples, _) => capacity.samples,
    }
}

/// How a launch runs, as far as steps of this capacity need it.
pub(super) fn variants(gpu: &Gpu, launch: &Launch, capacity: Capacity) -> Vec<Variant> {
    let kernel = launch.kernel;
    match launch.grid {
        Grid::Tiles { .. } | Grid::Panels { .. } => {
            let of_shape = |(upto, shape)| {
                let tile = gpu.table().tile(&shape);
                Variant::new(upto, tile, tile.kernel(kernel), launch.constants_in(tile))
            };
            launch.shapes(most_lines(launch, capacity)).into_iter().map(of_shape).collect()
        }
        Grid::Items { together, .. } => {
            // Where rows share nothing, room for several of them would be wasted.
            let of_rows = |(upto, rows): (u32, u32)| {
                let constants = launch.constants.iter().copied().chain([("2", rows)]).collect();
                Variant::new(upto, Tile::ONE, kernel, constants)
            };
            let mut widths = vec![(1, 1), (u32::MAX, together)];
            widths.dedup_by_key(|(_, rows)| *rows);
            widths.into_iter().map(of_rows).collect()
        }
        _ => vec![Variant::new(u32::MAX, Tile::ONE, kernel, launch.constants.clone())],
    }
}

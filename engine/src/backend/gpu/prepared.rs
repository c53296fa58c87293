//! A plan with everything that its steps need: steps only bind and dispatch.

use std::sync::Arc;

use wattle_shaders::params;

use super::device::Gpu;
use super::launch::{Grid, Launch, NEXT, SITE, stride};
use crate::backend::validate::StepLimits;
use crate::backend::{Capacity, Timing};
use crate::error::Result;
use crate::plan::{Extent, Plan, Tensor};

/// The columns that a block of a projection may have; each has its own pipeline.
const COLUMNS: [u32; 4] = [1, 2, 4, 8];

/// Where the bytes of a uniform lie: offset and size.
type Place = (u64, Option<std::num::NonZeroU64>);

/// A launch, ready to be dispatched.
pub(super) struct Dispatch {
    /// Columns and pipeline; one entry with 1 where the grid has no columns.
    pub pipelines: Vec<(u32, wgpu::ComputePipeline)>,
    pub bindings: wgpu::BindGroup,
    pub extent: Extent,
    pub grid: Grid,
}

impl Dispatch {
    /// The pipeline and the workgroups for `lines` lines: the narrowest that takes all of them at once, else the
    /// widest. Every one of them sums in the same order.
    pub fn of(&self, lines: usize) -> (&wgpu::ComputePipeline, u64) {
        let enough = self.pipelines.partition_point(|&(columns, _)| (columns as usize) < lines);
        let (columns, pipeline) = &self.pipelines[enough.min(self.pipelines.len() - 1)];
        (pipeline, self.grid.workgroups(lines as u64, u64::from(*columns)))
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
        Dispatch {
            pipelines: pipelines(gpu, launch, capacity),
            bindings,
            extent: launch.extent,
            grid: launch.grid,
        }
    };
    let all = launches.iter().zip(places).map(|(op, places)| op.iter().zip(places).map(dispatch).collect());
    let all = all.collect();
    gpu.check()?;
    Ok(all)
}

fn pipelines(gpu: &Gpu, launch: &Launch, capacity: Capacity) -> Vec<(u32, wgpu::ComputePipeline)> {
    let Grid::Blocks { .. } = launch.grid else {
        return vec![(1, gpu.pipelines.pipeline(gpu, launch, launch.constant))];
    };
    let lines = match launch.extent {
        Extent::Rows => capacity.rows,
        Extent::Samples => capacity.samples,
    };
    // Those that are wider than the largest step would never run.
    let widest = COLUMNS.partition_point(|&columns| (columns as usize) < lines) + 1;
    let columns = COLUMNS.iter().take(widest);
    columns.map(|&columns| (columns, gpu.pipelines.pipeline(gpu, launch, Some(("0", columns))))).collect()
}

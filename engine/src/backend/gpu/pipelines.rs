//! Shader modules, layouts and pipelines, made once per device and shared by all plans.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use wattle_shaders::{FactorType, Kernel, WeightType};

use super::device::Gpu;
use super::launch::{Access, Constant, Launch};

/// What a kernel's text depends on: its name, and how weights and factors are stored.
type Text = (&'static str, WeightType, FactorType);

/// What a pipeline is made of: the constants are the kernel's `override`s.
type Key = (Text, Vec<Constant>);

#[derive(Clone)]
struct Layout {
    bindings: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

#[derive(Default)]
struct Made {
    modules: HashMap<Text, wgpu::ShaderModule>,
    layouts: HashMap<&'static str, Layout>,
    pipelines: HashMap<Key, wgpu::ComputePipeline>,
}

/// All that was made so far.
pub(super) struct Pipelines {
    /// Group 0 of kernels: the step buffer, read or (gates) written.
    pub step: [wgpu::BindGroupLayout; 2],
    made: Mutex<Made>,
}

impl Pipelines {
    pub fn new(device: &wgpu::Device) -> Self {
        let step = [Access::Read, Access::Write].map(|access| {
            let entries = [entry(0, access)];
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some("step"), entries: &entries };
            device.create_bind_group_layout(&descriptor)
        });
        Self { step, made: Mutex::default() }
    }

    /// The pipeline of a launch by a kernel that has the operands of its own, with these constants.
    pub fn pipeline(
        &self,
        gpu: &Gpu,
        launch: &Launch,
        kernel: &'static Kernel,
        constants: &[Constant],
    ) -> wgpu::ComputePipeline {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { modules, layouts, pipelines } = &mut *made;
        let name = kernel.name;
        let text = (name, launch.weights, launch.factors);
        let make = || {
            let module = modules.entry(text).or_insert_with(|| module(gpu, launch, kernel));
            let layout = layouts.entry(launch.kernel.name).or_insert_with(|| self.layout(gpu, launch));
            let values: Vec<_> = constants.iter().map(|&(id, value)| (id, f64::from(value))).collect();
            gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&layout.pipeline),
                module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &values,
                    // No kernel uses workgroup memory that it has not written.
                    zero_initialize_workgroup_memory: gpu.checked,
                },
                cache: None,
            })
        };
        pipelines.entry((text, constants.to_vec())).or_insert_with(make).clone()
    }

    /// The bind group layout of a launch.
    pub fn bindings(&self, gpu: &Gpu, launch: &Launch) -> wgpu::BindGroupLayout {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = made.layouts.entry(launch.kernel.name).or_insert_with(|| self.layout(gpu, launch));
        layout.bindings.clone()
    }

    /// All launches of a kernel have the same bindings, so the first one tells the layout.
    fn layout(&self, gpu: &Gpu, launch: &Launch) -> Layout {
        let label = Some(launch.kernel.name);
        let mut entries = vec![entry(0, Access::Uniform)];
        entries.extend(launch.bindings.iter().map(|binding| entry(binding.index, binding.access)));
        if launch.site.is_some() {
            entries.push(entry(super::launch::SITE, Access::Uniform));
        }
        if launch.next.is_some() {
            entries.push(entry(super::launch::NEXT, Access::Uniform));
        }
        let bindings = gpu
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&self.step[usize::from(launch.closes)]), Some(&bindings)],
            immediate_size: 0,
        });
        Layout { bindings, pipeline }
    }
}

fn entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform => wgpu::BufferBindingType::Uniform,
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

fn module(gpu: &Gpu, launch: &Launch, kernel: &Kernel) -> wgpu::ShaderModule {
    let text = Cow::Borrowed(kernel.wgsl(gpu.limits.subgroups, launch.weights, launch.factors));
    #[cfg(test)]
    let text = match gpu.change {
        Some((name, from, to)) if name == kernel.name => Cow::Owned(text.replace(from, to)),
        _ => text,
    };
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(text) };
    if gpu.checked {
        return gpu.device.create_shader_module(descriptor);
    }
    // SAFETY: the kernels are this workspace's own. Plans, steps, doors and factors are checked before they run, so
    // that every index lies in its buffer; loops are bounded by uniforms; divisors are sizes, never 0. The kernel cases
    // also run with checks and guard words.
    unsafe { gpu.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}

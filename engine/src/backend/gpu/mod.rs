//! The GPU backend: WGSL through wgpu. The only place that names wgpu.
//!
//! A plan is compiled to launches (`compile`, `linear`), these to pipelines and bind groups (`prepared`); a step
//! then only writes its rows, encodes dispatches into one pass and submits once (`step`).

mod assign;
mod backend;
mod ceilings;
mod compile;
mod device;
mod kv;
mod launch;
mod linear;
mod lora;
mod order;
mod panels;
mod pipelines;
mod prepared;
mod selftest;
mod sequences;
mod split;
mod step;
mod tiles;
mod timing;
mod tuning;
mod upload;
mod weights;

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::pages::PageTables;
use super::{Capacity, Counters, Limits, PlanHandle};
use crate::error::{Error, Result};
use crate::options::Precision;
use crate::plan::{Plan, RopeTable};

pub use ceilings::Ceilings;
pub use device::{DeviceInfo, devices};
pub use tiles::{Tile, tiles};

use device::Gpu;
use lora::Pools;
use prepared::Prepared;
use sequences::Sequences;
use step::InFlight;
use weights::Weights;

/// How to open a GPU.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// What to stay within; the device's own limits hold anyway.
    pub limits: Limits,
    /// What to make room for.
    pub capacity: Capacity,
    /// Whether a software adapter will do.
    pub allow_software: bool,
    /// Take an adapter whose name contains this, whatever the case of its letters.
    pub device: Option<String>,
    /// For tests: shaders check their bounds, and workgroup memory is zeroed.
    pub checked: bool,
    /// What activations of prompts may be rounded to.
    pub precision: Precision,
    /// Where measured choices are kept; `None` takes the defaults.
    pub tuning: Option<PathBuf>,
    /// For tests: the tile of all projections of its kind, of [`tiles`].
    pub tile: Option<Tile>,
}

impl GpuOptions {
    /// The first real GPU, in exact precision, with nothing measured.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            limits: Limits::default(),
            capacity,
            allow_software: false,
            device: None,
            checked: false,
            precision: Precision::Exact,
            tuning: None,
            tile: None,
        }
    }
}

/// Runs plans on a GPU.
pub struct GpuBackend {
    gpu: Arc<Gpu>,
    capacity: Capacity,
    plans: Vec<Prepared>,
    weights: Weights,
    pools: Pools,
    /// Made by the first prepared plan; all others must have its shape.
    sequences: Option<Sequences>,
    /// Tables of angles, shared by plans.
    angles: Vec<(RopeTable, wgpu::Buffer)>,
    /// Activation buffers and their bytes without guard words. No tensor outlives its step, so plans share them.
    activations: Vec<(wgpu::Buffer, u64)>,
    tables: PageTables,
    /// Whether the device has older ones.
    tables_changed: Cell<bool>,
    /// Header, rows and samples of the step and how its attention is divided, and the page tables behind the most that
    /// there may be of these. One is enough for any number of steps in flight: a write is a copy that the queue makes
    /// between the steps.
    step: wgpu::Buffer,
    /// Room for what is written there.
    words: Cell<Vec<u32>>,
    /// To read it, and to write it.
    step_bindings: [wgpu::BindGroup; 2],
    /// [`wattle_shaders::Sampled`] of the step's samples.
    results: wgpu::Buffer,
    /// Bound where an op lacks an operand that it reads.
    nothing: wgpu::Buffer,
    /// Bound where an op carries no A x.
    nowhere: wgpu::Buffer,
    /// Copies of pages, which go to the device with the next step.
    copies: Option<wgpu::CommandEncoder>,
    in_flight: VecDeque<InFlight>,
    /// Staging buffers that no step uses.
    staging: Vec<wgpu::Buffer>,
    timing: bool,
    counters: Counters,
    /// Where measured choices are kept.
    tuning: Option<PathBuf>,
}

impl GpuBackend {
    /// Opens a device. Memory for the KV cache is taken with the first plan.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no such adapter, or only a software one and it is not allowed.
    pub fn new(options: &GpuOptions) -> Result<Self> {
        let open = |cooperative| Self::on(Arc::new(Gpu::open(options, cooperative)?), options.capacity);
        // A test that failed may have cost the device.
        let tested = open(true).ok().filter(|backend| !backend.gpu.cooperative || backend.may_cooperate());
        let backend = tested.map_or_else(|| open(false), Ok)?;
        Ok(Self { tuning: options.tuning.clone(), ..backend })
    }

    /// Another backend on the same device, with the same limits and the pipelines that were made already.
    ///
    /// # Errors
    /// [`Error::Device`] when the device has no room.
    pub fn sibling(&self, capacity: Capacity) -> Result<Self> {
        Self::on(Arc::clone(&self.gpu), capacity)
    }

    /// What is known of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    fn on(gpu: Arc<Gpu>, capacity: Capacity) -> Result<Self> {
        let tables = PageTables::new(&capacity)?;
        let step_bytes = step::tables_at(&capacity) + size_of_val(tables.all()) as u64;
        let step = gpu.storage("step", step_bytes)?;
        let results = gpu.storage("results", (capacity.samples * step::SAMPLED) as u64)?;
        let (nothing, nowhere) = (gpu.storage("nothing", 16)?, gpu.storage("nowhere", 16)?);
        let entries = [wgpu::BindGroupEntry { binding: 0, resource: step.as_entire_binding() }];
        let step_bindings = gpu.pipelines.step.each_ref().map(|layout| {
            let label = Some("step");
            gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout, entries: &entries })
        });
        gpu.check()?;
        Ok(Self {
            gpu,
            capacity,
            plans: Vec::new(),
            weights: Weights::default(),
            pools: Pools::default(),
            sequences: None,
            angles: Vec::new(),
            activations: Vec::new(),
            tables,
            tables_changed: Cell::new(true),
            step,
            words: Cell::default(),
            step_bindings,
            results,
            nothing,
            nowhere,
            copies: None,
            in_flight: VecDeque::new(),
            staging: Vec::new(),
            timing: false,
            counters: Counters::default(),
            tuning: None,
        })
    }

    fn prepared(&self, plan: PlanHandle) -> Result<&Prepared> {
        let count = self.plans.len();
        let unknown = || Error::value("plan", format!("handle {}, but {count} plans were prepared", plan.0));
        self.plans.get(plan.0).ok_or_else(unknown)
    }

    fn sequences(&self) -> Result<&Sequences> {
        let missing = || Error::value("sequence", "no plan was prepared yet, so there is no KV cache");
        self.sequences.as_ref().ok_or_else(missing)
    }

    /// The table of angles, shared with earlier plans of the same angles.
    fn angles(&mut self, plan: &Plan) -> Result<Option<wgpu::Buffer>> {
        let Some(table) = &plan.rope else { return Ok(None) };
        if let Some((_, known)) = self.angles.iter().find(|(known, _)| known == table) {
            return Ok(Some(known.clone()));
        }
        let buffer = self.weights.values(&self.gpu, "angles", &table.values(self.capacity.context))?;
        self.angles.push((table.clone(), buffer.clone()));
        Ok(Some(buffer))
    }

    /// Buffers of at least these sizes: each the smallest that there is, else a new one.
    fn activations(&mut self, sizes: &[u64]) -> Result<Vec<wgpu::Buffer>> {
        let mut taken = vec![false; self.activations.len()];
        let mut buffers = Vec::new();
        for &size in sizes {
            let fits = |&index: &usize| !taken[index] && self.activations[index].1 >= size;
            let smallest = (0..taken.len()).filter(fits).min_by_key(|&index| self.activations[index].1);
            let index = match smallest {
                Some(index) => index,
                None => {
                    self.activations.push((self.guarded(size)?, size));
                    taken.push(false);
                    taken.len() - 1
                }
            };
            taken[index] = true;
            buffers.push(self.activations[index].0.clone());
        }
        Ok(buffers)
    }
}

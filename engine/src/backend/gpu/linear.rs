//! The launches of ops with weights or LoRA factors: one per buffer that they are split over.

use std::sync::Arc;

use wattle_shaders::{Kernel, params};

use super::compile::Compiler;
use super::launch::{
    A_POOL, B_POOL, Binding, Class, Grid, Launch, T, T_OUT, extent_code, function_code, k4, read, stride,
    used, weight_type, write,
};
use super::lora::Pool;
use super::tiles::{Products, matrix_constants};
use crate::error::{Error, Result};
use crate::model::{Format, Matrix};
use crate::plan::{GATE_UP_PART, GateUp, Norm, Project, Site};

/// All launches, or the first error.
fn collected(launches: impl Iterator<Item = Result<Vec<Launch>>>) -> Result<Vec<Launch>> {
    Ok(launches.collect::<Result<Vec<_>>>()?.concat())
}

impl Compiler<'_> {
    pub fn embed(&mut self, table: &Matrix) -> Result<Vec<Launch>> {
        let device = self.weights.matrix(self.gpu, table)?;
        let launch = |chunk: &super::weights::Chunk| {
            let params = params::Embed {
                panels: chunk.panels,
                k4: k4(table.cols),
                first: chunk.first as u32,
                rows: chunk.rows as u32,
                state_stride: self.sequences.state_stride() as u32,
            };
            let bindings =
                vec![read(1, &chunk.buffer), write(2, &self.sequences.state), write(3, self.output()?)];
            let launch = Launch::new(self, params, bindings, Grid::Groups(1))?;
            Ok(Launch { weights: weight_type(table.format), ..launch })
        };
        device.chunks.iter().map(launch).collect()
    }

    pub fn add_position(&mut self, table: &Matrix, offset: u32) -> Result<Vec<Launch>> {
        if let Format::Panels(_) = table.format {
            return Err(Error::value(&self.op.name, "position tables are not read quantized"));
        }
        let device = self.weights.matrix(self.gpu, table)?;
        let launch = |chunk: &super::weights::Chunk| {
            let (first, rows) = (chunk.first as u32, chunk.rows as u32);
            let params = params::AddPosition { k4: k4(table.cols), first, rows, offset };
            let bindings = vec![read(1, &chunk.buffer), read(2, self.input(0)), write(3, self.output()?)];
            let launch = Launch::new(self, params, bindings, Grid::Groups(1))?;
            Ok(Launch { weights: weight_type(table.format), ..launch })
        };
        device.chunks.iter().map(launch).collect()
    }

    pub fn project(&mut self, project: &Project) -> Result<Vec<Launch>> {
        if let Some(norm) = &project.norm {
            return self.project_normed(project, norm);
        }
        let matrix = &*project.weight;
        let device = self.weights.matrix(self.gpu, matrix)?;
        let bias = self.vectors(&[project.bias.as_deref()], matrix.rows)?;
        let (site, lora) = self.epilogue(project.lora.as_ref())?;
        let tiled = self.tiled("project__tiled", matrix.format)?;
        let residual = self.op.inputs.len() - 1;
        let residual = if project.residual { self.input(residual) } else { self.nothing };
        let launch = |chunk: &super::weights::Chunk| {
            let params = params::Project {
                panels: chunk.panels,
                k4: k4(matrix.cols),
                used: used(matrix.cols),
                rows: chunk.rows as u32,
                first: chunk.first as u32,
                stride: stride(matrix.rows) as u32,
                extent: extent_code(self.extent()),
                function: function_code(project.activation),
                biased: u32::from(project.bias.is_some()),
                residual: u32::from(project.residual),
            };
            let operands =
                [read(1, &chunk.buffer), read(2, self.input(0)), read(3, &bias), read(4, residual)];
            let mut bindings: Vec<Binding> = operands.into_iter().chain([write(5, self.output()?)]).collect();
            bindings.extend([read(T, &lora.0), read(B_POOL, &lora.1)]);
            let grid = Grid::Panels { outputs: chunk.rows as u64, inputs: matrix.cols as u64, more: 0 };
            let launch = Launch::new(self, params, bindings, grid)?;
            let weights = weight_type(matrix.format);
            let constants = matrix_constants(matrix.format, matrix.cols);
            let launch = Launch { constants, weights, extent: self.extent(), site: Some(site), ..launch };
            Ok(launch.by_class(tiled, Grid::Tiles { outputs: chunk.rows as u64, slots: 0, ranks: 0 }))
        };
        collected(device.chunks.iter().map(launch))
    }

    /// The tiled variant for weights of this format, and how it makes products.
    fn tiled(&self, name: &str, format: Format) -> Result<(&'static Kernel, Products)> {
        let products = self.gpu.products(format);
        Ok((self.variant(&format!("{name}{}", products.suffix()))?, products))
    }

    /// Of a projection with a norm: the variant that sums the squares of x beside the products.
    fn project_normed(&mut self, project: &Project, norm: &Norm) -> Result<Vec<Launch>> {
        let matrix = &*project.weight;
        let device = self.weights.matrix(self.gpu, matrix)?;
        let (cols, bias) = (stride(matrix.cols), project.bias.as_deref());
        let mut vectors = match &norm.weights.weight {
            Some(weight) => weight.values.clone(),
            None => vec![1.0; matrix.cols],
        };
        vectors.resize(cols, 0.0);
        vectors.extend(bias.iter().flat_map(|bias| &bias.values));
        vectors.resize(stride(vectors.len()), 0.0);
        let vectors = self.weights.values(self.gpu, "norm and bias", &vectors)?;
        let (next, carried) = self.carried()?;
        let kernel = self.variant("project__normed")?;
        let tiled = self.tiled("project__normed_tiled", matrix.format)?;
        let floats = (self.variant("project__normed_tiled")?, Products::Floats);
        let launch = |(index, chunk): (usize, &super::weights::Chunk)| {
            // Of several dispatches the first has the rank rows.
            let more = if index == 0 { next.parts * next.rank } else { 0 };
            let params = |rows: usize, carried: u32| params::ProjectNormed {
                panels: chunk.panels,
                k4: k4(matrix.cols),
                used: used(matrix.cols),
                rows: rows as u32,
                first: chunk.first as u32,
                stride: stride(matrix.rows) as u32,
                extent: extent_code(self.extent()),
                biased: u32::from(bias.is_some()),
                width: matrix.cols as u32,
                carried,
                eps: norm.eps,
            };
            let operands =
                [read(1, &chunk.buffer), read(2, self.input(0)), read(3, &vectors), write(5, self.output()?)];
            let bindings = operands.into_iter().chain(carried.clone()).collect();
            let grid = Grid::Panels {
                outputs: chunk.rows as u64,
                inputs: matrix.cols as u64,
                more: u64::from(more),
            };
            let launch = Launch::new(self, params(chunk.rows, more), bindings, grid)?;
            let weights = weight_type(matrix.format);
            let constants = matrix_constants(matrix.format, matrix.cols);
            let extent = self.extent();
            let launch = Launch { kernel, constants, weights, extent, next: Some(next), ..launch };
            let (outputs, slots, ranks) = (chunk.rows as u64, u64::from(next.slots), u64::from(more));
            if tiled.1 != Products::Codes || more == 0 {
                return Ok(launch.by_class(tiled, Grid::Tiles { outputs, slots, ranks }));
            }
            // Factors are no codes: their products are made in f32, by a launch of their own.
            let bytes = |params| bytemuck::bytes_of::<params::ProjectNormed>(&params).to_vec();
            let own = Launch { params: bytes(params(0, more)), ..launch.clone() };
            let own = own.by_class(floats, Grid::Tiles { outputs: 0, slots, ranks });
            let mut launches = launch.by_class(tiled, Grid::Tiles { outputs, slots: 0, ranks: 0 });
            for prompt in launches.iter_mut().filter(|launch| launch.class == Some(Class::Prompt)) {
                prompt.params = bytes(params(chunk.rows, 0));
            }
            launches.extend(own.into_iter().filter(|launch| launch.class == Some(Class::Prompt)));
            Ok(launches)
        };
        collected(device.chunks.iter().enumerate().map(launch))
    }

    pub fn gate_up(&mut self, op: &GateUp) -> Result<Vec<Launch>> {
        let matrix = &*op.gate;
        if op.up.format != matrix.format {
            return Err(Error::value(&self.op.name, "gate and up are stored in different formats"));
        }
        let gate = self.weights.matrix(self.gpu, matrix)?;
        let up = self.weights.matrix(self.gpu, &op.up)?;
        let bias = self.vectors(&[op.gate_bias.as_deref(), op.up_bias.as_deref()], matrix.rows)?;
        let (site, lora) = self.epilogue(op.lora.as_ref())?;
        let (next, carried) = self.carried()?;
        let tiled = self.tiled("gate_up__tiled", matrix.format)?;
        let split = gate.chunks.iter().any(|chunk| !chunk.first.is_multiple_of(GATE_UP_PART));
        if next.parts > 0 && split {
            let reason = "its matrix is split within a partial sum: fuse without `carry`";
            return Err(self.gpu.error(format!("{}: {reason}", self.op.name)));
        }
        // Same shape and format: both are split at the same rows.
        let launch = |(gate, up): (&super::weights::Chunk, &super::weights::Chunk)| {
            let params = params::GateUp {
                panels: gate.panels,
                k4: k4(matrix.cols),
                used: used(matrix.cols),
                rows: gate.rows as u32,
                first: gate.first as u32,
                outputs: matrix.rows as u32,
                stride: stride(matrix.rows) as u32,
                extent: extent_code(self.extent()),
                function: function_code(Some(op.function)),
                biased: u32::from(op.gate_bias.is_some() || op.up_bias.is_some()),
            };
            let operands =
                [read(1, &gate.buffer), read(2, self.input(0)), read(3, &up.buffer), read(4, &bias)];
            let mut bindings: Vec<Binding> = operands.into_iter().chain([write(5, self.output()?)]).collect();
            bindings.extend([read(T, &lora.0), read(B_POOL, &lora.1)]);
            bindings.extend(carried.clone());
            let grid = Grid::Panels { outputs: gate.rows as u64, inputs: matrix.cols as u64, more: 0 };
            let launch = Launch::new(self, params, bindings, grid)?;
            let weights = weight_type(matrix.format);
            let constants = matrix_constants(matrix.format, matrix.cols);
            let (extent, site, next) = (self.extent(), Some(site), Some(next));
            let launch = Launch { constants, weights, extent, site, next, ..launch };
            Ok(launch.by_class(tiled, Grid::Tiles { outputs: 2 * gate.rows as u64, slots: 0, ranks: 0 }))
        };
        collected(gate.chunks.iter().zip(&up.chunks).map(launch))
    }

    /// The site, t and B pool of a launch that adds B t itself; a site of no projections if there is no LoRA.
    pub fn epilogue(
        &mut self,
        site: Option<&Arc<Site>>,
    ) -> Result<(params::Site, (wgpu::Buffer, wgpu::Buffer))> {
        let Some(site) = site else {
            return Ok((params::Site::default(), (self.nothing.clone(), self.nothing.clone())));
        };
        let pool = self.pools.of(self.gpu, site, self.plan.factors)?;
        let [chunk] = pool.b.as_slice() else {
            let [_, bytes] = site.pool_bytes(self.plan.factors);
            let reason =
                format!("its B pool of {bytes} bytes does not fit one binding: fuse without `lora_epilogue`");
            return Err(self.gpu.error(format!("{}: {reason}", self.op.name)));
        };
        Ok((pool.params(chunk), (self.input(1).clone(), chunk.buffer.clone())))
    }

    /// The site that a launch carries, and its A pool and t; a site of no projections if it carries nothing.
    pub fn carried(&mut self) -> Result<(params::Site, [Binding; 2])> {
        let Some(carry) = &self.op.carry else {
            return Ok((params::Site::default(), [read(A_POOL, self.nothing), write(T_OUT, self.nowhere)]));
        };
        let pool = self.pools.of(self.gpu, &carry.site, self.plan.factors)?;
        let [chunk] = pool.a.as_slice() else {
            let [bytes, _] = carry.site.pool_bytes(self.plan.factors);
            let reason =
                format!("its A pool of {bytes} bytes does not fit one binding: fuse without `carry`");
            return Err(self.gpu.error(format!("{}: {reason}", self.op.name)));
        };
        let t = &self.activations[carry.t.0 as usize];
        Ok((pool.params(chunk), [read(A_POOL, &chunk.buffer), write(T_OUT, t)]))
    }

    pub fn lora_down(&mut self, site: &Arc<Site>) -> Result<Vec<Launch>> {
        let params =
            params::LoraDown { k4: k4(site.cols), used: used(site.cols), extent: extent_code(self.extent()) };
        let pool = self.pools.of(self.gpu, site, self.plan.factors)?;
        self.per_a(&pool, |this, a| {
            let bindings = vec![read(A_POOL, a), read(2, this.input(0)), write(3, this.output()?)];
            Launch::new(this, params, bindings, Grid::Groups(site.t_width() as u64))
        })
    }

    pub fn lora_embed(&mut self, site: &Arc<Site>) -> Result<Vec<Launch>> {
        let params = params::LoraEmbed {
            stride: stride(site.cols) as u32,
            state_stride: self.sequences.state_stride() as u32,
        };
        let pool = self.pools.of(self.gpu, site, self.plan.factors)?;
        self.per_a(&pool, |this, a| {
            let bindings = vec![read(A_POOL, a), write(2, &this.sequences.state), write(3, this.output()?)];
            Launch::new(this, params, bindings, Grid::Elements(site.t_width() as u64))
        })
    }

    /// One launch per buffer of the A pool.
    fn per_a(
        &self,
        pool: &Pool,
        launch: impl Fn(&Self, &wgpu::Buffer) -> Result<Launch>,
    ) -> Result<Vec<Launch>> {
        let with_site = |chunk: &super::lora::Chunk| {
            let launch = launch(self, &chunk.buffer)?;
            Ok(Launch { extent: self.extent(), site: Some(pool.params(chunk)), ..launch })
        };
        pool.a.iter().map(with_site).collect()
    }

    pub fn lora_up(&mut self, site: &Arc<Site>) -> Result<Vec<Launch>> {
        let pool = self.pools.of(self.gpu, site, self.plan.factors)?;
        let width = self.tensor_in(0).width;
        let launch = |(index, chunk): (usize, &super::lora::Chunk)| {
            let params = params::LoraUp {
                width: width as u32,
                stride: stride(width) as u32,
                extent: extent_code(self.extent()),
                further: u32::from(index > 0),
            };
            let operands = [read(1, self.input(0)), write(2, self.output()?)];
            let factors = [read(T, self.input(1)), read(B_POOL, &chunk.buffer)];
            let bindings = operands.into_iter().chain(factors).collect();
            let launch = Launch::new(self, params, bindings, Grid::Elements(width as u64))?;
            Ok(Launch { extent: self.extent(), site: Some(pool.params(chunk)), ..launch })
        };
        pool.b.iter().enumerate().map(launch).collect()
    }
}

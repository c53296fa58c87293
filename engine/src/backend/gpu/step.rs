//! One step: rows in, one pass, one submit, samples out.

use std::collections::HashMap;
use std::ops::Range;

use wattle_shaders::params::STEP_HEADER;
use wattle_shaders::{Row, Sample, Sampled};

use super::GpuBackend;
use super::device::Mapped;
use super::kv::chunk_bytes;
use super::launch::stride;
use super::prepared::Prepared;
use super::split::{self, Division};
use super::timing::{Stamped, Stamps};
use crate::backend::{Capacity, Doors, PlanHandle, Step, Ticket, validate};
use crate::error::{Error, Result};
use crate::plan::TensorId;

/// Bytes of a sample's result.
pub(super) const SAMPLED: usize = size_of::<Sampled>();
/// Steps that may be submitted and not collected.
const IN_FLIGHT: usize = 3;
/// Bytes of guard words behind an activation buffer, and what they hold.
const GUARD: u64 = 64;
const GUARD_BYTE: u8 = 0xA5;

/// Where the step buffer has the page tables: behind all else that steps have at most.
pub(super) fn tables_at(capacity: &Capacity) -> u64 {
    let words = STEP_HEADER + split::words(capacity);
    (words * 4 + capacity.rows * size_of::<Row>() + capacity.samples * size_of::<Sample>()) as u64
}

/// A step that was submitted and not collected.
pub(super) struct InFlight {
    ticket: u64,
    plan: PlanHandle,
    submission: wgpu::SubmissionIndex,
    results: Mapped,
    stamps: Option<Stamped>,
}

impl GpuBackend {
    pub(super) fn submit_step(&mut self, handle: PlanHandle, step: &Step) -> Result<Ticket> {
        let prepared = self.prepared(handle)?;
        let range = 0..prepared.plan.ops.len();
        prepared.limits.check(step)?;
        self.tables.check_step(step)?;
        validate::doors(&prepared.plan, step, &Doors { range: range.clone(), ..Doors::default() })?;
        if self.in_flight.len() >= IN_FLIGHT {
            return Err(Error::value("step", format!("{IN_FLIGHT} steps are in flight: collect one first")));
        }
        if self.gpu.limits.lost_after == Some(self.counters.steps) {
            self.gpu.device.destroy();
        }
        self.gpu.check()?;
        let division = self.write_step(step);
        let mut stamps = if self.timing { Stamps::new(&self.gpu, range.len()) } else { None };
        let mut encoder = self.encoder();
        let launches =
            self.pass(&mut encoder, self.prepared(handle)?, step, division, range, stamps.as_mut())?;
        let bytes = (step.samples.len() * SAMPLED) as u64;
        let staging = self.staging.pop();
        let staging = staging.unwrap_or_else(|| self.gpu.staging((self.capacity.samples * SAMPLED) as u64));
        if bytes > 0 {
            encoder.copy_buffer_to_buffer(&self.results, 0, &staging, 0, bytes);
        }
        let stamps = stamps.map(|stamps| stamps.resolve(&self.gpu, &mut encoder));
        let copies = self.copies.take();
        let submission = self.gpu.queue.submit(copies.into_iter().chain([encoder]).map(|e| e.finish()));
        let results = Mapped::start(staging, bytes);
        let stamps = stamps.map(Stamped::start);
        self.counters.steps += 1;
        self.counters.rows += step.rows.len() as u64;
        self.counters.ahead += u64::from(!self.in_flight.is_empty());
        self.counters.submits += 1;
        self.counters.passes += 1;
        self.counters.launches += launches;
        self.counters.kv_read_bytes += division.chunks * chunk_bytes(&self.sequences()?.shape);
        let ticket = self.counters.steps;
        self.in_flight.push_back(InFlight { ticket, plan: handle, submission, results, stamps });
        self.gpu.check()?;
        Ok(Ticket(ticket))
    }

    pub(super) fn collect_step(&mut self, ticket: &Ticket) -> Result<Vec<Sampled>> {
        let at = self.in_flight.iter().position(|step| step.ticket == ticket.0);
        let unknown = || Error::value("ticket", format!("{} was never given out or is collected", ticket.0));
        let step = at.and_then(|at| self.in_flight.remove(at)).ok_or_else(unknown)?;
        self.gpu.wait(Some(step.submission))?;
        let (bytes, staging) = step.results.finish(&self.gpu)?;
        self.staging.push(staging);
        if let Some(stamps) = step.stamps {
            self.add_times(step.plan, 0, stamps)?;
        }
        self.counters.readback_bytes += bytes.len() as u64;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// Adds what timestamps say about the ops of a plan from `first` on.
    fn add_times(&mut self, plan: PlanHandle, first: usize, stamped: Stamped) -> Result<()> {
        let (bytes, _) = stamped.stamps.finish(&self.gpu)?;
        let period = f64::from(self.gpu.queue.get_timestamp_period());
        super::timing::add(&mut self.plans[plan.0], first, &stamped.launches, &bytes, period);
        Ok(())
    }

    pub(super) fn run_range(
        &mut self,
        handle: PlanHandle,
        step: &Step,
        doors: &Doors,
    ) -> Result<HashMap<TensorId, Vec<f32>>> {
        self.flush();
        let prepared = self.prepared(handle)?;
        prepared.limits.check(step)?;
        self.tables.check_step(step)?;
        validate::doors(&prepared.plan, step, doors)?;
        self.gpu.check()?;
        if self.gpu.limits.guards {
            self.poison(prepared);
        }
        self.import(prepared, doors);
        let division = self.write_step(step);
        let mut encoder = self.encoder();
        let mut start = doors.range.start;
        let mut taps = Vec::new();
        for index in doors.range.clone() {
            for id in prepared.plan.ops[index].outputs().filter(|id| doors.taps.contains(id)) {
                self.pass(&mut encoder, prepared, step, division, start..index + 1, None)?;
                start = index + 1;
                let tensor = prepared.plan.tensor(id);
                let bytes = (validate::lines(tensor.extent, step) * stride(tensor.width) * 4) as u64;
                let staging = self.gpu.staging(bytes);
                if bytes > 0 {
                    let buffer = &prepared.activations[id.0 as usize];
                    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
                }
                taps.push((id, tensor.width, bytes, staging));
            }
        }
        // Taps break the pass, and what breaks a pass is no part of the ops' times.
        let timed = self.timing && taps.is_empty();
        let mut stamps = if timed { Stamps::new(&self.gpu, doors.range.len()) } else { None };
        self.pass(&mut encoder, prepared, step, division, start..doors.range.end, stamps.as_mut())?;
        let stamps = stamps.map(|stamps| stamps.resolve(&self.gpu, &mut encoder));
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let stamps = stamps.map(Stamped::start);
        let taps: Vec<_> =
            taps.into_iter().map(|(id, width, bytes, s)| (id, width, Mapped::start(s, bytes))).collect();
        self.gpu.wait(Some(submission))?;
        if let Some(stamps) = stamps {
            self.add_times(handle, doors.range.start, stamps)?;
        }
        let mut values = HashMap::new();
        for (id, width, mapped) in taps {
            let padded: Vec<f32> = bytemuck::pod_collect_to_vec(&mapped.finish(&self.gpu)?.0);
            let lines = padded.chunks_exact(stride(width)).flat_map(|line| &line[..width]);
            values.insert(id, lines.copied().collect());
        }
        Ok(values)
    }

    /// Copies the pages that are to be copied now, where no step follows.
    pub(super) fn flush(&mut self) {
        if let Some(copies) = self.copies.take() {
            self.gpu.queue.submit([copies.finish()]);
            self.counters.submits += 1;
        }
    }

    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") })
    }

    /// Writes header, rows, samples and how attention is divided, and the page tables if they changed.
    pub(super) fn write_step(&self, step: &Step) -> Division {
        let mut words = self.words.take();
        words.clear();
        words.resize(STEP_HEADER, 0);
        words.extend_from_slice(bytemuck::cast_slice(&step.rows));
        words.extend_from_slice(bytemuck::cast_slice(&step.samples));
        let split = self.sequences.as_ref().and_then(|sequences| sequences.split.as_ref());
        let division = match split {
            Some(split) => split.divide(step, &self.tables, &mut words),
            None => Division::whole(&step.rows),
        };
        let counts = [step.rows.len() as u32, step.samples.len() as u32, step.generated() as u32];
        words[..3].copy_from_slice(&counts);
        words[3..5].copy_from_slice(&[division.items, division.rows]);
        self.gpu.queue.write_buffer(&self.step, 0, bytemuck::cast_slice(&words));
        self.words.set(words);
        if self.tables_changed.take() {
            let at = tables_at(&self.capacity);
            self.gpu.queue.write_buffer(&self.step, at, bytemuck::cast_slice(self.tables.all()));
        }
        division
    }

    /// Encodes ops as one pass; how many launches that were.
    fn pass(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        prepared: &Prepared,
        step: &Step,
        division: Division,
        range: Range<usize>,
        mut stamps: Option<&mut Stamps>,
    ) -> Result<u64> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let mut closes = None;
        let mut launches = 0;
        for op in &prepared.ops[range] {
            if let Some(stamps) = &mut stamps {
                stamps.write(&mut pass);
            }
            for dispatch in op {
                let Some((pipeline, groups)) = dispatch.of(&self.gpu, step, division) else { continue };
                let [x, y, z] = self.fold(groups)?;
                pass.set_pipeline(pipeline);
                if closes.replace(dispatch.launch.closes) != Some(dispatch.launch.closes) {
                    pass.set_bind_group(0, &self.step_bindings[usize::from(dispatch.launch.closes)], &[]);
                }
                pass.set_bind_group(1, &dispatch.bindings, &[]);
                pass.dispatch_workgroups(x, y, z);
                launches += 1;
                if let Some(stamps) = &mut stamps {
                    stamps.count();
                }
            }
        }
        if let Some(stamps) = stamps {
            stamps.finish(&mut pass);
        }
        Ok(launches)
    }

    /// So many workgroups (or a few more) as x, y, z under the limit per dimension.
    pub(super) fn fold(&self, groups: u64) -> Result<[u32; 3]> {
        let limit = u64::from(self.gpu.limits.workgroups);
        let x = groups.min(limit);
        let y = groups.div_ceil(x).min(limit);
        let z = groups.div_ceil(x * y);
        // Kernels count workgroups in u32.
        if z > limit || x * y * z > u64::from(u32::MAX) {
            return Err(self.gpu.error(format!("{groups} workgroups, with at most {limit} per dimension")));
        }
        Ok([x as u32, y as u32, z as u32])
    }

    fn import(&self, prepared: &Prepared, doors: &Doors) {
        for (id, values) in &doors.import {
            let width = prepared.plan.tensor(*id).width;
            // What pads a row is undefined, and no kernel may depend on it.
            let mut padded = vec![f32::NAN; values.len() / width.max(1) * stride(width)];
            for (to, from) in padded.chunks_exact_mut(stride(width)).zip(values.chunks_exact(width)) {
                to[..width].copy_from_slice(from);
            }
            let buffer = &prepared.activations[id.0 as usize];
            self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&padded));
        }
    }

    /// An activation buffer, followed by guard words if they are on.
    pub(super) fn guarded(&self, bytes: u64) -> Result<wgpu::Buffer> {
        if !self.gpu.limits.guards {
            return self.gpu.storage("activations", bytes);
        }
        let buffer = self.gpu.storage("activations", bytes + GUARD)?;
        let guard = vec![GUARD_BYTE; (buffer.size() - bytes) as usize];
        self.gpu.queue.write_buffer(&buffer, bytes, &guard);
        Ok(buffer)
    }

    fn poison(&self, prepared: &Prepared) {
        for (buffer, bytes) in &self.activations {
            if prepared.activations.contains(buffer) {
                let poison = vec![f32::NAN; (bytes / 4) as usize];
                self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&poison));
            }
        }
    }

    pub(super) fn guards(&self) -> Result<()> {
        if !self.gpu.limits.guards {
            return Ok(());
        }
        for (index, (buffer, bytes)) in self.activations.iter().enumerate() {
            let guard = self.gpu.read(&[(buffer, *bytes, buffer.size() - bytes)])?;
            if guard.iter().any(|&byte| byte != GUARD_BYTE) {
                let named = |prepared: &Prepared| {
                    let tensors = prepared.plan.tensors.iter().zip(&prepared.activations);
                    let users =
                        tensors.filter(|(_, used)| *used == buffer).map(|(tensor, _)| tensor.name.clone());
                    users.collect::<Vec<_>>()
                };
                let names = self.plans.iter().flat_map(named).collect::<Vec<_>>().join(", ");
                return Err(self
                    .gpu
                    .error(format!("guard words overwritten behind buffer {index} ({names})")));
            }
        }
        Ok(())
    }
}

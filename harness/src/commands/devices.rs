//! `wattle devices`.

use std::io::Write;

use serde::Serialize;

use super::write_json;
use crate::bandwidth;
use crate::common::Common;
use crate::devices::{Cpu, Gpu, gpus};
use crate::error::Result;
use crate::progress::Progress;
use crate::report::Bytes;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Bytes that are read to measure memory: more than caches hold.
const FOOTPRINT: u64 = 512 << 20;

/// What is printed.
#[derive(Serialize)]
struct Devices {
    cpu: Cpu,
    threads: usize,
    /// Measured, all threads together, over a buffer larger than the caches.
    read_bytes_per_second: f64,
    gpus: Vec<Gpu>,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let threads = common.thread_count();
    let read_bytes_per_second = {
        let _progress = Progress::spinner("measuring memory");
        bandwidth::read(FOOTPRINT, threads)?
    };
    let devices = Devices { cpu: Cpu::find(), threads, read_bytes_per_second, gpus: gpus() };
    if args.json { write_json(&devices, out) } else { Ok(devices.write(out)?) }
}

impl Devices {
    /// For a reader.
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let (cpu, rate) = (&self.cpu, self.read_bytes_per_second / 1e9);
        writeln!(out, "cpu  {} ({}: {}), {} cores", cpu.name, cpu.arch, cpu.simd.join(" "), cpu.cores)?;
        writeln!(out, "     reads {rate:.1} GB/s with {} threads (measured)", self.threads)?;
        for gpu in &self.gpus {
            let kind = if gpu.software { ", software" } else { "" };
            writeln!(out, "gpu  {} ({}, {}{kind})", gpu.name, gpu.api, gpu.driver)?;
            let subgroups = match gpu.subgroups {
                Some((low, high)) if low == high => format!("subgroups of {low}"),
                Some((low, high)) => format!("subgroups of {low} to {high}"),
                None => "no subgroups".to_owned(),
            };
            let has = |there: bool, name: &str| format!("{}{name}", if there { "" } else { "no " });
            let (f16, timestamps) = (has(gpu.f16, "f16"), has(gpu.timestamps, "timestamps"));
            let cooperative = has(gpu.cooperative, "cooperative matrices");
            writeln!(out, "     {subgroups}, {f16}, {cooperative}, {timestamps}")?;
            let (binding, buffer) = (Bytes(gpu.max_binding), Bytes(gpu.max_buffer));
            writeln!(
                out,
                "     bindings to {binding}, buffers to {buffer}, {} workgroups",
                gpu.max_workgroups
            )?;
        }
        if self.gpus.is_empty() {
            writeln!(out, "gpu  none found (Vulkan, Metal or DX12)")?;
        }
        Ok(())
    }
}

//! What a generation cost, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;
use wattle_engine::backend::Timing;
use wattle_engine::model::{Format, Matrix};
use wattle_engine::plan::{OpKind, Plan};
use wattle_engine::{Engine, Generation, Path};
use wattle_policy::Tier;

use crate::energy::{Energy, Joules};
use crate::policy::PolicyReport;

/// Kernels that a report names.
const TOP: usize = 5;

/// What all launches of a kernel took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct KernelTime {
    pub kernel: &'static str,
    pub seconds: f64,
    /// Of the time of all kernels, 0 to 1.
    pub share: f64,
    pub launches: u64,
}

/// What is reported of a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PathReport {
    /// Of all drawn tokens together, natural log.
    pub logprob: f64,
    /// Per drawn token.
    pub mean_logprob: f64,
    /// Tokens that the closing prompt put there, and how many came before them; `null` where none was needed.
    pub closing: Option<[usize; 2]>,
}

impl PathReport {
    fn new(path: &Path) -> Self {
        let closing = (!path.forced.is_empty()).then(|| [path.forced.len(), path.forced.start]);
        Self { logprob: path.logprob(), mean_logprob: path.mean_logprob(), closing }
    }
}

/// A generation's report, with what it ran on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    pub prompt_tokens: usize,
    /// Prompt tokens that paths found in the cache instead of running them.
    pub cached_tokens: usize,
    pub new_tokens: usize,
    pub paths: Vec<PathReport>,
    pub prompt_tokens_per_second: f64,
    /// Summed over paths.
    pub decode_tokens_per_second: f64,
    pub time_to_first_token_seconds: f64,
    /// (row, layer) pairs in which LoRA was on.
    pub lora_layers_run: u64,
    /// (row, layer) pairs in which a mask kept it off.
    pub lora_layers_skipped: u64,
    /// (row, layer) pairs in which a gate turned it off, of rows that drew a token; they are among those run.
    pub lora_layers_closed: u64,
    /// The process's largest resident size; `null` where the system does not tell.
    pub peak_bytes: Option<u64>,
    pub backend: &'static str,
    pub device: String,
    /// Empty where the device cannot time kernels.
    pub kernels: Vec<KernelTime>,
    /// Of the proxy.
    pub joules: f64,
    pub tier: Tier,
    pub energy: Energy,
    /// What a counter of the machine counted meanwhile, idle power and other programs included.
    pub counter: Option<Counted>,
    /// What a policy chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyReport>,
}

/// What a counter of the machine counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Counted {
    pub counter: String,
    pub joules: f64,
    pub tier: Tier,
}

impl Report {
    /// The report of what `engine` has just generated.
    pub fn new(
        generation: &Generation,
        engine: &mut Engine,
        energy: Energy,
        counter: Option<Counted>,
    ) -> Self {
        let (report, backend) = (&generation.report, engine.backend());
        Self {
            prompt_tokens: report.prompt_tokens,
            cached_tokens: report.cached_tokens,
            new_tokens: report.new_tokens,
            paths: generation.paths.iter().map(PathReport::new).collect(),
            prompt_tokens_per_second: report.prompt_rate(),
            decode_tokens_per_second: report.decode_rate(generation.paths.len()),
            time_to_first_token_seconds: report.first_token.as_secs_f64(),
            lora_layers_run: report.lora_layers_run,
            lora_layers_skipped: report.lora_layers_skipped,
            lora_layers_closed: report.lora_layers_closed,
            peak_bytes: peak_bytes(),
            backend: backend.kind(),
            device: backend.device().to_owned(),
            kernels: top_kernels(&report.timings),
            joules: energy.joules,
            tier: energy.tier,
            energy,
            counter,
            policy: None,
        }
    }

    /// Writes it for a reader.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let memory = self.peak_bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string());
        writeln!(
            out,
            "prompt   {} tokens, {:.0} tokens/s, first new token after {:.3} s",
            self.prompt_tokens, self.prompt_tokens_per_second, self.time_to_first_token_seconds
        )?;
        if self.cached_tokens > 0 {
            writeln!(out, "shared   {} tokens of prompts were not run again", self.cached_tokens)?;
        }
        writeln!(out, "decode   {} tokens, {:.1} tokens/s", self.new_tokens, self.decode_tokens_per_second)?;
        let (run, skipped) = (self.lora_layers_run, self.lora_layers_skipped);
        let closed = match self.lora_layers_closed {
            0 => String::new(),
            closed => format!(", {closed} of those that drew closed by gates"),
        };
        writeln!(out, "LoRA     {run} token-layers run, {skipped} skipped{closed}")?;
        writeln!(out, "device   {}: {}, peak memory {memory}", self.backend, self.device)?;
        self.energy.write(out)?;
        if let Some(Counted { counter, joules, tier }) = &self.counter {
            writeln!(out, "counter  {} ({tier}, {counter}; idle power included)", Joules(*joules))?;
        }
        if let Some(policy) = &self.policy {
            policy.write(out)?;
        }
        let kernel = |k: &KernelTime| format!("{} {:.0} % ({}×)", k.kernel, k.share * 100.0, k.launches);
        let kernels: Vec<_> = self.kernels.iter().map(kernel).collect();
        let none = "not timed on this device".to_owned();
        writeln!(out, "kernels  {}", if kernels.is_empty() { none } else { kernels.join(", ") })
    }
}

/// The kernels that took most, longest first.
fn top_kernels(timings: &[Timing]) -> Vec<KernelTime> {
    let mut sums: BTreeMap<&'static str, (f64, u64)> = BTreeMap::new();
    for timing in timings {
        let (seconds, launches) = sums.entry(timing.kernel).or_default();
        *seconds += timing.seconds;
        *launches += timing.launches;
    }
    let total: f64 = sums.values().map(|(seconds, _)| seconds).sum();
    let share = |seconds: f64| if total > 0.0 { seconds / total } else { 0.0 };
    let mut kernels: Vec<KernelTime> = sums
        .into_iter()
        .map(|(kernel, (seconds, launches))| KernelTime { kernel, seconds, share: share(seconds), launches })
        .collect();
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kernels.truncate(TOP);
    kernels
}

/// What most of the bytes of a plan's projections are kept in, the head apart: `none` for dense ones.
pub(crate) fn quant_name(plan: &Plan) -> String {
    let mut sums: BTreeMap<String, usize> = BTreeMap::new();
    let mut add = |matrix: &Matrix| {
        let name = match matrix.format {
            Format::Dense(_) => "none".to_owned(),
            Format::Panels(_) => matrix.format.to_string(),
        };
        *sums.entry(name).or_default() += matrix.bytes();
    };
    for op in plan.ops.iter().filter(|op| op.name != "head") {
        match &op.kind {
            OpKind::Project(project) => add(&project.weight),
            OpKind::GateUp(gate_up) => {
                add(&gate_up.gate);
                add(&gate_up.up);
            }
            _ => {}
        }
    }
    let most = sums.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or_else(|| "none".to_owned(), |(name, _)| name)
}

/// The most memory that the process had resident so far (Linux: VmHWM, mapped files included).
pub(crate) fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Shows a number of bytes with a binary unit.
pub(crate) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(f, "{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
            bytes if bytes >= 1 << 20 => write!(f, "{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
            bytes if bytes >= 1 << 10 => write!(f, "{:.1} KiB", bytes as f64 / 1024.0),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_summed_over_ops_and_the_longest_come_first() {
        let timing =
            |kernel, seconds| Timing { op: format!("an op of {kernel}"), kernel, seconds, launches: 2 };
        let kernels = top_kernels(&[timing("norm", 1.0), timing("project", 2.0), timing("norm", 5.0)]);
        assert_eq!(kernels[0], KernelTime { kernel: "norm", seconds: 6.0, share: 0.75, launches: 4 });
        assert_eq!(kernels[1].kernel, "project");
        assert!(top_kernels(&[]).is_empty());
    }
}

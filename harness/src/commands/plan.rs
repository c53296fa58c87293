//! `wattle plan`.

use std::io::Write;

use serde::Serialize;
use wattle_engine::model::{Dtype, Model};
use wattle_engine::plan::{Extent, LoraCapacity, Op, Plan, TensorId};
use wattle_engine::{EngineOptions, Gate, PlanKind};
use wattle_policy::energy::{memory_pressure, thermal_yield};
use wattle_policy::{CostSource, OpCost, Profile, StepShape};

use super::write_json;
use crate::common::Common;
use crate::error::Result;
use crate::report::Bytes;
use crate::session::Source;
use crate::simulated::weight_bytes;
use crate::table::Table;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rows (tokens) of the step: one token of so many sequences
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    rows: u32,
    /// Positions that are in the cache before the step
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16777216))]
    depth: u32,
    /// The rows are consecutive tokens of one prompt, of which the last is sampled
    #[arg(long)]
    prefill: bool,
    /// Positions that all sequences share, as paths of one prompt do
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "prefill", value_parser = clap::value_parser!(u32).range(0..=16777216))]
    shared: u32,
    /// Rank of the adapter that all rows use, 0 for none [default: that of --adapter]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(0..=4096))]
    adapter_rank: Option<u32>,
    /// A model of a known shape instead of --model, without weights of meaning
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// Also time, energy and the use of this simulated device by every op
    #[arg(long, value_name = "NAME|FILE")]
    device: Option<String>,
    /// The plan of one mathematical step per op, before it is fused
    #[arg(long)]
    plain: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs it: reads the model, but starts no device.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let (model, lora) = model(args, common)?;
    let kind = if args.plain { PlanKind::Plain } else { PlanKind::Fused };
    let options = EngineOptions { plan: kind, ..common.engine_options() };
    let (base, mut adapted) = wattle_engine::compile(&model, &options, lora);
    if let Some(path) = &common.gate {
        let gate = Gate::load(path)?;
        gate.check(&model.spec)?;
        adapted = adapted.with_gate(&gate);
    }
    let shape = step(args, lora.rank as u32, common.lora_layers.mask(model.spec.layers)?.0);
    let active = shape.rows.iter().any(|row| row.slot.is_some() && row.lora != 0);
    let mut listing = Listing::new(args, lora.rank, if active { &adapted } else { &base }, &shape);
    if let Some(device) = &args.device {
        listing.simulate(&crate::energy::profile(device)?, weight_bytes(&model.weights));
    }
    if args.json { write_json(&listing, out) } else { Ok(listing.write(out)?) }
}

/// The model, and the adapter to assume: one slot, unless its rank is 0.
fn model(args: &Args, common: &Common) -> Result<(Model, LoraCapacity)> {
    let slot = |rank, outside| LoraCapacity { slots: usize::from(rank > 0), rank, outside };
    let given = args.adapter_rank.map(|rank| slot(rank as usize, false));
    if let Some(shape) = &args.shape {
        let model = common.quantized(Model::random(shape, Dtype::Bf16, 0)?)?;
        return Ok((model, given.unwrap_or_default()));
    }
    let source = Source::find(common)?;
    let model = common.quantized(Model::load(&source.model)?)?;
    if let Some(lora) = given.or(source.adapters.is_empty().then(LoraCapacity::default)) {
        return Ok((model, lora));
    }
    let adapter = source.load_adapter(&model.spec)?;
    let lora = slot(adapter.rank(), adapter.has_factors_outside_layers());
    Ok((model, lora))
}

/// The step that is asked for.
fn step(args: &Args, rank: u32, mask: u128) -> StepShape {
    let shape = match args.prefill {
        true => StepShape::prefill(args.rows, args.depth),
        false => StepShape::decode(args.rows, args.depth).with_shared_prefix(args.shared),
    };
    if rank == 0 {
        return shape;
    }
    let mut shape = shape.with_adapter(rank);
    shape.rows.iter_mut().for_each(|row| row.lora = mask);
    shape
}

/// What is printed.
#[derive(Serialize)]
struct Listing {
    rows: u32,
    depth: u32,
    prefill: bool,
    adapter_rank: usize,
    plan: &'static str,
    ops: Vec<OpLine>,
    total: CostJson,
    /// On which device ops are simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// CPQ of the device's memory under the weights; `null` where they do not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_pressure: Option<f64>,
}

/// An op on a simulated device; the definitions of the last two are wattle's own.
#[derive(Clone, Copy, Serialize)]
struct Simulated {
    seconds: f64,
    joules: f64,
    /// DASI: how much of the arithmetic units it can use, 0 to 1.
    utilisation: f64,
    /// Φ: the share of power that does work, at 25 °C.
    thermal_yield: f64,
}

impl Simulated {
    fn new(cost: &OpCost, profile: &Profile) -> Self {
        let seconds = profile.roofline.seconds(cost);
        let energy = profile.coefficients.energy(cost, seconds, profile.idle_w + profile.leak_w);
        let dynamic_w = if seconds > 0.0 { energy.dynamic_j() / seconds } else { 0.0 };
        Self {
            seconds,
            joules: energy.total_j(),
            utilisation: profile.roofline.utilisation(cost),
            thermal_yield: thermal_yield(dynamic_w, profile.leak_w),
        }
    }
}

/// One op.
#[derive(Serialize)]
struct OpLine {
    name: String,
    kernel: &'static str,
    inputs: Vec<Shape>,
    /// `None` for ops that write the cache or the sampled tokens.
    output: Option<Shape>,
    #[serde(flatten)]
    cost: CostJson,
    #[serde(flatten)]
    simulated: Option<Simulated>,
    #[serde(skip)]
    raw: OpCost,
}

/// A tensor in this step.
#[derive(Serialize)]
struct Shape {
    tensor: String,
    /// Rows, width.
    shape: [usize; 2],
}

/// [`OpCost`] as it is printed; `dram_bytes` is the sum of the bytes before it.
#[derive(Serialize)]
struct CostJson {
    weight_bytes: u64,
    lora_bytes: u64,
    kv_read_bytes: u64,
    kv_write_bytes: u64,
    activation_read_bytes: u64,
    activation_write_bytes: u64,
    dram_bytes: u64,
    on_chip_bytes: u64,
    flops: u64,
    lora_flops: u64,
    launches: u64,
}

impl From<OpCost> for CostJson {
    fn from(cost: OpCost) -> Self {
        Self {
            weight_bytes: cost.weight_bytes,
            lora_bytes: cost.lora_bytes,
            kv_read_bytes: cost.kv_read_bytes,
            kv_write_bytes: cost.kv_write_bytes,
            activation_read_bytes: cost.activation_read_bytes,
            activation_write_bytes: cost.activation_write_bytes,
            dram_bytes: cost.dram_bytes(),
            on_chip_bytes: cost.on_chip_bytes,
            flops: cost.flops,
            lora_flops: cost.lora_flops,
            launches: cost.launches,
        }
    }
}

impl Listing {
    fn new(args: &Args, rank: usize, plan: &Plan, shape: &StepShape) -> Self {
        let tensor = |id: &TensorId| {
            let tensor = plan.tensor(*id);
            let rows = match tensor.extent {
                Extent::Rows => shape.rows.len(),
                Extent::Samples => shape.sampled(),
            };
            Shape { tensor: tensor.name.clone(), shape: [rows, tensor.width] }
        };
        let costs: Vec<OpCost> = (0..plan.ops.len()).map(|index| plan.cost(index, shape)).collect();
        let line = |(op, cost): (&Op, &OpCost)| OpLine {
            name: op.name.clone(),
            kernel: op.kind.kernel(),
            inputs: op.inputs.iter().map(tensor).collect(),
            output: op.output.as_ref().map(tensor),
            cost: (*cost).into(),
            simulated: None,
            raw: *cost,
        };
        Self {
            rows: args.rows,
            depth: args.depth,
            prefill: args.prefill,
            adapter_rank: rank,
            plan: if args.plain { "plain" } else { "fused" },
            ops: plan.ops.iter().zip(&costs).map(line).collect(),
            total: costs.iter().copied().sum::<OpCost>().into(),
            device: None,
            memory_pressure: None,
        }
    }

    fn simulate(&mut self, profile: &Profile, weight_bytes: u64) {
        self.ops.iter_mut().for_each(|op| op.simulated = Some(Simulated::new(&op.raw, profile)));
        self.memory_pressure = memory_pressure(weight_bytes as f64, profile.memory_bytes);
        self.device = Some(profile.name.clone());
    }

    /// The table for a reader.
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let header = ["op", "kernel", "output", "weights", "LoRA", "KV", "activations", "kflop", "launches"];
        let mut table = Table::new(header);
        let line = |name: &str, kernel: &str, output: String, cost: &CostJson| {
            let bytes = |bytes: u64| Bytes(bytes).to_string();
            [
                name.to_owned(),
                kernel.to_owned(),
                output,
                bytes(cost.weight_bytes),
                bytes(cost.lora_bytes),
                bytes(cost.kv_read_bytes + cost.kv_write_bytes),
                bytes(cost.activation_read_bytes + cost.activation_write_bytes),
                format!("{:.1}", cost.flops as f64 / 1e3),
                cost.launches.to_string(),
            ]
        };
        for op in &self.ops {
            let output = op.output.as_ref().map(|o| format!("[{}, {}]", o.shape[0], o.shape[1]));
            table.row(line(&op.name, op.kernel, output.unwrap_or_default(), &op.cost));
        }
        table.row(line("total", "", String::new(), &self.total));
        let Some(device) = &self.device else { return table.write(out) };
        let simulated: Vec<Simulated> = self.ops.iter().filter_map(|op| op.simulated).collect();
        let total = |of: fn(&Simulated) -> f64| simulated.iter().map(of).sum::<f64>();
        let (seconds, joules) = (total(|s| s.seconds), total(|s| s.joules));
        let with_total = |of: fn(&Simulated) -> f64, total: f64, digits: usize| {
            let cell = move |value: f64| format!("{value:.digits$}");
            simulated.iter().map(move |s| cell(of(s))).chain([cell(total)]).collect::<Vec<_>>().into_iter()
        };
        table.column("µs", with_total(|s| s.seconds * 1e6, seconds * 1e6, 1));
        table.column("µJ", with_total(|s| s.joules * 1e6, joules * 1e6, 1));
        let share = |of: fn(&Simulated) -> f64| simulated.iter().map(move |s| format!("{:.3}", of(s)));
        table.column("DASI", share(|s| s.utilisation).chain([String::new()]));
        table.column("Φ", share(|s| s.thermal_yield).chain([String::new()]));
        table.write(out)?;
        let pressure = self.memory_pressure.map_or("does not fit".to_owned(), |cpq| format!("{cpq:.2}"));
        writeln!(
            out,
            "\nsimulated on {device} (proxy, tier C or B); CPQ of its memory under the weights: {pressure}"
        )
    }
}

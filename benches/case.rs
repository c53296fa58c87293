//! What is timed: a model's shape and format, and a step's rows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use wattle_engine::adapter::{Factors, Pair, Place, Target};
use wattle_engine::model::{Dtype, Linear, Model, Quant};
use wattle_engine::plan::{LoraCapacity, Plan};
use wattle_engine::{BackendChoice, EngineOptions, Feature, Gate, LayerMask, PlanKind, Precision, compile};
use wattle_policy::{RowShape, StepShape};

/// A measurement of the ops of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// A name that [`Model::random`] knows.
    pub shape: &'static str,
    /// How weights are kept; `None` is bf16.
    pub quant: Option<Quant>,
    /// Rows of the step: of one sequence each, or, beyond eight, of one prompt.
    pub rows: u32,
    /// Position of the first row; the rows before it are in the cache.
    pub depth: u32,
    /// Rank of the adapter that all rows name; 0 for none.
    pub rank: usize,
    /// Masks keep the adapter off in all layers.
    pub masked: bool,
    /// Sequences have the positions before the first row in common: a whole number of pages.
    pub shared: bool,
}

/// A matrix of no gate, with biases, and one with.
pub const DENSE: &str = "gpt2";
/// A gated MLP, rotation, grouped heads.
pub const GATED: &str = "qwen2.5-0.5b";
/// The other models that are named most, one of each family and size, for `WATTLE_BENCH_FULL`.
const OTHERS: [&str; 7] =
    ["opt-125m", "opt-350m", "qwen2.5-1.5b", "llama-3.2-1b", "phi-3-mini", "mistral-7b", "llama-3-8b"];
/// What decoding is measured on first.
pub const QUANTIZED: Case = Case::decode(GATED).quant(Quant::Q4_0);

/// Models with one layer: all layers have the same shapes.
static MODELS: Mutex<BTreeMap<String, Model>> = Mutex::new(BTreeMap::new());

impl Case {
    /// One row at the start of a sequence.
    pub const fn decode(shape: &'static str) -> Self {
        Self { shape, quant: None, rows: 1, depth: 0, rank: 0, masked: false, shared: false }
    }

    /// With another number of rows.
    pub const fn rows(self, rows: u32) -> Self {
        Self { rows, ..self }
    }

    /// At another position.
    pub const fn depth(self, depth: u32) -> Self {
        Self { depth, ..self }
    }

    /// With weights of another format.
    pub const fn quant(self, quant: Quant) -> Self {
        Self { quant: Some(quant), ..self }
    }

    /// With an adapter.
    pub const fn rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }

    /// With an adapter that masks keep off.
    pub const fn masked(self) -> Self {
        Self { masked: true, ..self }
    }

    /// Behind a prefix that all sequences share.
    pub const fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    /// One to eight rows, and a chunk of a prompt; without `WATTLE_BENCH_FULL` one, four and eight in the format that is
    /// measured first, and one in others.
    pub fn columns(self) -> Vec<Self> {
        let columns = match (*crate::FULL, self.quant == QUANTIZED.quant) {
            (true, _) => (1..=8).collect(),
            (false, true) => vec![1, 4, 8],
            (false, false) => vec![1],
        };
        columns.into_iter().chain([128]).map(|rows| self.rows(rows)).collect()
    }

    /// One row and eight of the other models.
    pub(crate) fn others() -> impl Iterator<Item = Self> {
        let of = |shape| Self { shape, ..QUANTIZED };
        OTHERS.into_iter().flat_map(move |shape| [of(shape), of(shape).rows(8)])
    }

    /// Fast with quantized weights.
    pub(crate) fn precision(&self) -> Precision {
        if self.quant.is_some() { Precision::Fast } else { Precision::Exact }
    }

    /// Name of the format.
    pub fn format(&self) -> &'static str {
        self.quant.map_or("bf16", Quant::name)
    }

    /// Name of shape and format.
    pub(crate) fn model(&self) -> String {
        format!("{}/{}", self.shape, self.format())
    }

    /// Name of the rows.
    pub(crate) fn rows_name(&self) -> String {
        let rank = if self.rank > 0 { format!(",r{}", self.rank) } else { String::new() };
        let masked = if self.masked { ",masked" } else { "" };
        let shared = if self.shared { ",shared" } else { "" };
        format!("{}r@{}{rank}{masked}{shared}", self.rows, self.depth)
    }

    pub(crate) fn sequences(&self) -> usize {
        if self.rows <= 8 { self.rows as usize } else { 1 }
    }

    /// Positions that a sequence has room for.
    pub(crate) fn context(&self) -> usize {
        (self.depth + self.rows + 1) as usize
    }

    fn load(&self) -> Option<Model> {
        let mut models = MODELS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(&self.model()) {
            return Some(model.clone());
        }
        let mut model = Model::random_layer(self.shape, Dtype::Bf16, 1).ok()?;
        if let Some(quant) = self.quant {
            model = model.quantized(quant).ok()?;
        }
        models.insert(self.model(), model.clone());
        Some(model)
    }

    /// The plan of a backend in which `kernel` occurs: fused, or plain for the kernels that fusing leaves out there.
    pub(crate) fn plan(&self, kernel: &str, backend: BackendChoice) -> Option<Arc<Plan>> {
        let model = self.load()?;
        let slots = usize::from(self.rank > 0);
        let lora = LoraCapacity { slots, rank: self.rank, outside: kernel == "lora_embed" };
        let plan = |plan| {
            let options =
                EngineOptions { backend, plan, precision: self.precision(), ..EngineOptions::default() };
            let (base, adapted) = compile(&model, &options, lora);
            match kernel {
                "gate" => adapted.with_gate(&Gate::above(model.spec.width, [0], Feature::Length, 1.0)),
                _ if slots > 0 => adapted,
                _ => base,
            }
        };
        let has = |plan: &Plan| plan.ops.iter().any(|op| op.kind.kernel() == kernel);
        [PlanKind::Fused, PlanKind::Plain].into_iter().map(plan).find(has).map(Arc::new)
    }

    /// Factors of ones on every projection of the layer, and on the embedding.
    pub(crate) fn factors(&self) -> Factors {
        let mut pairs = BTreeMap::new();
        let Some(model) = self.load() else { return Factors::new(pairs) };
        let pair = |rows: usize, cols: usize| {
            let (a, b) = (vec![1.0; self.rank * cols], vec![1.0; rows * self.rank]);
            Pair { rank: self.rank, cols, rows, a, b }
        };
        let embed = Place { layer: wattle_engine::OUTSIDE_LAYERS, target: Target::Embed };
        pairs.insert(embed, pair(model.spec.embed_width, model.spec.vocab));
        for layer in &model.weights.layers {
            let targets = [
                (Target::Q, Some(&layer.q)),
                (Target::K, Some(&layer.k)),
                (Target::V, Some(&layer.v)),
                (Target::O, Some(&layer.o)),
                (Target::Gate, layer.gate.as_ref()),
                (Target::Up, Some(&layer.up)),
                (Target::Down, Some(&layer.down)),
            ];
            let of = |(target, linear): (Target, Option<&Linear>)| {
                let weight = &linear?.weight;
                Some((Place { layer: 0, target }, pair(weight.rows, weight.cols)))
            };
            pairs.extend(targets.into_iter().filter_map(of));
        }
        Factors::new(pairs)
    }

    /// The step: every row sampled.
    pub(crate) fn step(&self) -> StepShape {
        let slot = (self.rank > 0).then_some(0);
        let lora = if self.masked || slot.is_none() { LayerMask::NONE } else { LayerMask::ALL }.0;
        let row = |i| {
            let (sequence, position) = if self.rows <= 8 { (i, self.depth) } else { (0, self.depth + i) };
            RowShape { token: i, sequence, position, sampled: true, slot, lora }
        };
        let ranks = vec![self.rank as u32; usize::from(self.rank > 0)];
        let shape = StepShape { rows: (0..self.rows).map(row).collect(), ranks, ..StepShape::default() };
        shape.with_shared_prefix(if self.shared { self.depth } else { 0 })
    }
}

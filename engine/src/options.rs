//! How an engine is set up.

use std::path::PathBuf;
use std::sync::Arc;

pub use wattle_kernels_cpu::cache::KvType;
pub use wattle_kernels_cpu::fast::Precision;

use crate::backend::Limits;
use crate::gate::Gate;
use crate::model::Quant;

/// Which backend runs the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// A real GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU; a software one if there is no other.
    Gpu,
}

/// Which plan runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlanKind {
    /// The fused plan.
    #[default]
    Fused,
    /// One mathematical step per op: what the fused plan is tested against.
    Plain,
}

/// Which CPU kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuKernels {
    /// The fast ones.
    #[default]
    Fast,
    /// The plain twins: slow, in f64, what everything else is tested against.
    Plain,
}

/// Room for adapters on the device: slots of equal size, in which factors up to a rank fit.
///
/// What is reserved here is there from the beginning, so that adapters load while requests run without a pause. An
/// adapter that needs more (a higher rank, factors outside the layers, a slot where their number is not fixed) makes
/// the device's side anew: requests that run then encode again what they have, and go on. Pools of another rank may need
/// another plan (on a GPU from rank 64 or so on, where partial sums of A x would be too many), which sums in another
/// order: who wants the same bits whoever else comes reserves the highest rank here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterRoom {
    /// Slots. More adapters can be loaded than there are slots: those that no request uses make room, and requests wait
    /// for a slot where all are in use. `None`: every loaded adapter gets one.
    pub slots: Option<usize>,
    /// The rank to reserve for.
    pub rank: usize,
    /// Bytes that all slots together may take on the device: with the rank it bounds their number.
    pub bytes: Option<u64>,
}

/// How an engine is set up. The defaults suit one user with a few parallel paths.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Which backend.
    pub backend: BackendChoice,
    /// Which plan.
    pub plan: PlanKind,
    /// Which CPU kernels.
    pub cpu_kernels: CpuKernels,
    /// What dense weights are quantized to when the engine is made; `None` leaves them as they are.
    pub quant: Option<Quant>,
    /// What activations are rounded to before they meet quantized weights (on a GPU: those of prompts, and for weights that
    /// are no integers of 4 or 8 bits both to f16), and how LoRA factors are kept.
    pub precision: Precision,
    /// CPU threads; `None` takes one per core.
    pub threads: Option<usize>,
    /// Sequences that run at the same time; more wait.
    pub sequences: usize,
    /// Positions of KV cache per sequence to begin with; that grows, up to the model's context, when a request needs
    /// more.
    pub context: usize,
    /// What keys and values are stored as.
    pub kv: KvType,
    /// Bytes of KV cache for all sequences together; `None` has room for `sequences` × `context`. What a request cannot
    /// have now it waits for.
    pub kv_bytes: Option<u64>,
    /// Whether a prompt's beginning is looked for among what is still in the cache, and paths share their prompt's.
    pub share_prefixes: bool,
    /// Rows of a step at most: a longer prompt runs in chunks of this size.
    pub rows: usize,
    /// Room for adapters on the device.
    pub adapters: AdapterRoom,
    /// Gates that requests may obey ([`crate::Lora::gated`]).
    pub gate: Option<Arc<Gate>>,
    /// Whether ops are timed.
    pub timing: bool,
    /// A file in which a GPU's measured choices are kept; `None` takes the defaults, which are good.
    pub tuning: Option<PathBuf>,
    /// Whether choices that were not measured yet are, when the engine is made. No choice changes a result.
    pub autotune: bool,
    /// Whether the shapes of steps are kept until [`crate::Engine::take_steps`] is called.
    pub keep_steps: bool,
    /// Artificial limits, for tests.
    pub limits: Limits,
    /// Validated shaders and bounds checks on the GPU, for tests.
    pub checked: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            plan: PlanKind::Fused,
            cpu_kernels: CpuKernels::Fast,
            quant: None,
            precision: Precision::Exact,
            threads: None,
            sequences: 4,
            context: 1024,
            kv: KvType::F32,
            kv_bytes: None,
            share_prefixes: true,
            rows: 256,
            adapters: AdapterRoom::default(),
            gate: None,
            timing: false,
            tuning: None,
            autotune: false,
            keep_steps: false,
            limits: Limits::default(),
            checked: false,
        }
    }
}

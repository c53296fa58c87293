//! Which layers of a request carry LoRA, from which token on, and how many paths it gets.

/// What is known of a request when it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens per path at most.
    pub max_new_tokens: usize,
    /// Paths that were asked for.
    pub paths: u32,
    /// Layers of the model.
    pub layers: usize,
    /// The highest rank of the request's adapter; `None` without an adapter.
    pub rank: Option<usize>,
    /// The first position on which the request has its adapter on; 0 is everywhere.
    pub from: usize,
}

/// What was decided. The request's own limits hold too: LoRA is on where both have it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoraDecision {
    /// One bit for each layer: may LoRA be on there? Bit 127 stands for what lies outside the layers.
    pub layers: u128,
    /// The first position of the sequence on which it may be on; 0 is everywhere.
    pub from: usize,
    /// How many paths to run; `None` runs as many as were asked for.
    pub paths: Option<u32>,
}

impl LoraDecision {
    /// As the request has it.
    pub const AS_ASKED: Self = Self { layers: u128::MAX, from: 0, paths: None };
}

/// Decides for every request, when it is submitted.
pub trait LoraPolicy: Send {
    /// The decision for one request.
    fn decide(&mut self, request: &RequestFacts) -> LoraDecision;
}

/// Decides the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedPolicy(pub LoraDecision);

impl LoraPolicy for FixedPolicy {
    fn decide(&mut self, _request: &RequestFacts) -> LoraDecision {
        self.0
    }
}

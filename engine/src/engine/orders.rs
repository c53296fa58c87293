//! From a request to the scheduler: everything is checked and looked up; and the engine's step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_policy::{LoraDecision, RequestFacts};
use wattle_shaders::LayerMask;

use super::Engine;
use super::adapters::not_loaded;
use crate::adapter::{ActivationRule, Residency};
use crate::error::{Error, Result};
use crate::generation::{Control, Event};
use crate::model::{Positions, Spec};
use crate::request::{ActiveFrom, Lora, Request};
use crate::schedule::{Choice, Order, PathLimits, Scheduler};

impl Engine {
    /// A scheduler for this engine's sequences.
    pub(crate) fn scheduler(&self) -> Scheduler {
        Scheduler::new(self.runtime.capacity.sequences, self.model.spec.layers, self.rebuilds)
    }

    /// Takes a request into a scheduler. When it needs more room than there is, everything is made anew, and what runs
    /// encodes again what it has.
    pub(crate) fn submit(
        &mut self,
        scheduler: &mut Scheduler,
        request: &Request,
        now: Duration,
    ) -> Result<u64> {
        let order = self.order(request)?;
        self.make_room(order.positions())?;
        Ok(scheduler.submit(order, now))
    }

    /// Runs one step; `false` when nothing is left to do. A device that fails is made anew, a few times until another
    /// token comes, and running requests go on from their tokens.
    pub(crate) fn step(
        &mut self,
        scheduler: &mut Scheduler,
        now: &dyn Fn() -> Duration,
        observer: &mut dyn FnMut(&Event<'_>) -> Control,
    ) -> Result<bool> {
        let mut result = self.try_step(scheduler, now, observer);
        while let Err(error @ Error::Device { .. }) = &result {
            let Some(pause) = scheduler.revive_after() else { break };
            tracing::warn!(%error, ?pause, "the device failed: it is made anew, and requests go on from their tokens");
            std::thread::sleep(pause);
            result = self.revive().map(|()| true);
        }
        result
    }

    fn try_step(
        &mut self,
        scheduler: &mut Scheduler,
        now: &dyn Fn() -> Duration,
        observer: &mut dyn FnMut(&Event<'_>) -> Control,
    ) -> Result<bool> {
        if scheduler.epoch != self.rebuilds {
            scheduler.epoch = self.rebuilds;
            scheduler.restart(&mut self.host())?;
        }
        let (started, device) = (Instant::now(), self.runtime.device_time);
        let result = scheduler.step(&mut self.host(), now, observer);
        self.times.steps += 1;
        self.times.total += started.elapsed();
        self.times.device += self.runtime.device_time - device;
        result
    }

    /// A request, checked, with what the policy decides.
    pub(crate) fn order(&mut self, request: &Request) -> Result<Order> {
        let order = self.checked(request)?;
        let Some(policy) = &mut self.policy else { return Ok(order) };
        let facts = RequestFacts {
            prompt_tokens: request.ids.len(),
            max_new_tokens: request.max_new_tokens,
            paths: request.paths,
            layers: self.model.spec.layers,
            rank: order.lora.adapter.as_ref().map(|adapter| adapter.rank()),
            from: order.lora.from,
        };
        let panicked = |_| Error::value("policy", "it panicked");
        let decision = catch_unwind(AssertUnwindSafe(|| policy.decide(&facts))).map_err(panicked)?;
        let LoraDecision { layers, from, paths } = decision;
        let lora = Choice {
            layers: LayerMask(order.lora.layers.0 & layers),
            from: order.lora.from.max(from),
            ..order.lora
        };
        let paths = paths.unwrap_or(request.paths);
        check_paths(paths)?;
        Ok(Order { request: Arc::new(Request { paths, ..request.clone() }), lora, ..order })
    }

    /// Checks everything about a request that can be wrong.
    pub(crate) fn checked(&self, request: &Request) -> Result<Order> {
        let (spec, prompt) = (&self.model.spec, request.ids.len());
        if prompt == 0 {
            return Err(Error::value("prompt", "it has no tokens; at least one is needed"));
        }
        if prompt > spec.context {
            let reason = format!("{prompt} tokens are longer than the model's context of {}", spec.context);
            return Err(Error::value("prompt", reason));
        }
        check_ids(&request.ids, spec)?;
        check_paths(request.paths)?;
        if self.tokenizer.is_none() {
            let needs = [("stop", "stop texts need", !request.stop.is_empty())];
            let needs = needs.into_iter().chain([("vote", "votes need", request.vote.is_some())]);
            if let Some((name, what, _)) = needs.into_iter().find(|(_, _, asked)| *asked) {
                let reason = format!("{what} a tokenizer, and the model's directory has none");
                return Err(Error::value(name, reason));
            }
        }
        request.sampling.check()?;
        let limits = PathLimits {
            context: spec.context,
            original_context: original_context(spec),
            tokenizer: self.tokenizer.clone(),
            eos: if request.ignore_eos { Arc::default() } else { spec.eos.as_slice().into() },
        };
        check_closing(request, &limits, spec)?;
        let lora = choice(&request.lora, &self.adapters, self.runtime.gates(), Some(request))?;
        Ok(Order { request: Arc::new(request.clone()), lora, limits })
    }
}

fn check_ids(ids: &[u32], spec: &Spec) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= spec.vocab) {
        Some(id) => {
            let reason = format!("{id} is no token of the model: ids are below {}", spec.vocab);
            Err(Error::value("token id", reason))
        }
        None => Ok(()),
    }
}

fn check_paths(paths: u32) -> Result<()> {
    if (1..=1024).contains(&paths) {
        return Ok(());
    }
    Err(Error::value("paths", format!("{paths} is not between 1 and 1024")))
}

/// The budget must have room for a token of the path's own, the closing prompt and the answer.
fn check_closing(request: &Request, limits: &PathLimits, spec: &Spec) -> Result<()> {
    let Some(closing) = &request.closing else { return Ok(()) };
    if closing.ids.is_empty() || closing.answer_tokens == 0 {
        return Err(Error::value("closing prompt", "it needs at least one token, and one for the answer"));
    }
    check_ids(&closing.ids, spec)?;
    let (needed, room) = (closing.tokens(), limits.tokens(request).saturating_sub(request.ids.len()));
    if needed >= room {
        let reason =
            format!("it and the answer take {needed} tokens, of a budget of {room}; one must be left");
        return Err(Error::value("closing prompt", reason));
    }
    Ok(())
}

/// Tokens above which longrope uses its long factors; without longrope no sequence has so many.
fn original_context(spec: &Spec) -> usize {
    match &spec.positions {
        Positions::Rope(rope) => rope.long.as_ref().map_or(usize::MAX, |long| long.original_context),
        Positions::Learned { .. } => usize::MAX,
    }
}

/// Looks up the adapter, and from which position on it is active; without a request (a switch in the middle) it is
/// active at once. A mask of some layers leaves out what lies outside the layers, as PEFT's layers_to_transform does.
pub(super) fn choice(
    lora: &Lora,
    adapters: &Residency,
    gates: bool,
    request: Option<&Request>,
) -> Result<Choice> {
    if lora.gated && !gates {
        return Err(Error::value("gated", "the engine has no gate"));
    }
    let Some(id) = lora.adapter else {
        return Ok(Choice { adapter: None, layers: lora.layers, from: 0, gated: false });
    };
    let adapter = adapters.get(id).ok_or_else(not_loaded)?;
    let from = match (lora.from, request) {
        (ActiveFrom::Position(from), _) => from,
        (ActiveFrom::Generated, Some(request)) => request.ids.len(),
        (ActiveFrom::Adapter, Some(request)) => match &adapter.rule {
            ActivationRule::Always => 0,
            rule @ ActivationRule::AfterInvocation(_) => {
                rule.first_active(&request.ids).unwrap_or(usize::MAX)
            }
        },
        (_, None) => 0,
    };
    Ok(Choice { adapter: Some(Arc::clone(adapter)), layers: lora.layers, from, gated: lora.gated })
}

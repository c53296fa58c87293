//! What a service tells the [`metrics`] facade (the table is [`super::Service`]'s); without a recorder it costs next to
//! nothing.

use metrics::{counter, gauge, histogram};

use super::ServiceLoad;
use crate::adapter::ResidencyCounts;
use crate::cache::PageStats;
use crate::error::Result;
use crate::generation::{Finish, Generation};
use crate::schedule::Load;

/// What was told so far, of what others count: counters of several services add up.
pub(super) struct Published {
    load: Load,
    adapters: ResidencyCounts,
    pages: PageStats,
}

impl Published {
    /// Of an engine that did something before there was this service.
    pub fn after(adapters: ResidencyCounts, pages: PageStats) -> Self {
        Self { load: Load::default(), adapters, pages }
    }

    /// Tells what is new.
    pub fn update(&mut self, public: &ServiceLoad, load: &Load, adapters: ResidencyCounts) {
        gauge!("wattle_queued_requests").set(public.queued as f64);
        gauge!("wattle_running_paths").set(public.paths as f64);
        gauge!("wattle_adapters_loaded").set(public.adapters as f64);
        gauge!("wattle_adapter_slots").set(public.slots as f64);
        gauge!("wattle_adapter_slots_held").set(public.slots_held as f64);
        let pages = public.pages;
        gauge!("wattle_pages").set(pages.pages as f64);
        gauge!("wattle_pages_used").set(pages.used as f64);
        gauge!("wattle_pages_cached").set(pages.cached as f64);
        if load.steps > self.load.steps {
            histogram!("wattle_step_rows").record(load.rows as f64);
            histogram!("wattle_step_samples").record(load.samples as f64);
        }
        let counts = [
            (counter!("wattle_shared_positions_total"), load.shared_positions, self.load.shared_positions),
            (counter!("wattle_pages_copied_total"), pages.copied, self.pages.copied),
            (counter!("wattle_pages_evicted_total"), pages.evicted, self.pages.evicted),
            (counter!("wattle_device_restarts_total"), load.restarts, self.load.restarts),
            (counter!("wattle_adapter_loads_total"), adapters.loads, self.adapters.loads),
            (counter!("wattle_adapter_evictions_total"), adapters.evictions, self.adapters.evictions),
        ];
        for (counter, now, before) in counts {
            counter.increment(now.saturating_sub(before));
        }
        (self.load, self.adapters, self.pages) = (*load, adapters, pages);
    }
}

pub(super) fn done(result: &Result<Generation>) {
    ended(result.as_ref().map_or("error", outcome));
    if let Ok(Generation { report, .. }) = result {
        counter!("wattle_new_tokens_total").increment(report.new_tokens as u64);
        counter!("wattle_prompt_tokens_total").increment(report.prompt_tokens as u64);
        // Of requests that never began, or gave no token, there is nothing to record.
        if !report.queued.is_zero() {
            histogram!("wattle_queue_seconds").record(report.queued);
        }
        if report.new_tokens > 0 {
            histogram!("wattle_first_token_seconds").record(report.first_token);
        }
    }
}

/// How a request ended that gave no error.
fn outcome(generation: &Generation) -> &'static str {
    let any = |finish| generation.paths.iter().any(|path| path.finish == finish);
    match (any(Finish::Deadline), any(Finish::Cancelled)) {
        (true, _) => "deadline",
        (_, true) => "cancelled",
        _ => "ok",
    }
}

pub(super) fn refused() {
    ended("refused");
}

pub(super) fn busy() {
    ended("busy");
}

fn ended(outcome: &'static str) {
    counter!("wattle_requests_total", "outcome" => outcome).increment(1);
}

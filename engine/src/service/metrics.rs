//! What a service tells the [`metrics`] facade; without a recorder it costs next to nothing.
//!
//! | name | kind | is |
//! |---|---|---|
//! | `wattle_queued_requests`, `wattle_running_paths` | gauge | after the last step |
//! | `wattle_adapters_loaded`, `wattle_adapter_slots`, `wattle_adapter_slots_held` | gauge | residency |
//! | `wattle_step_rows`, `wattle_step_samples` | histogram | rows and samples of a step |
//! | `wattle_requests_total` (label `outcome`: `ok`, `error`, `refused`) | counter | requests that ended |
//! | `wattle_new_tokens_total`, `wattle_prompt_tokens_total` | counter | of requests that ended |
//! | `wattle_shared_positions_total` | counter | prompt positions that were taken from a cache and not run |
//! | `wattle_queue_seconds`, `wattle_first_token_seconds` | histogram | from submission |
//! | `wattle_adapter_loads_total`, `wattle_adapter_evictions_total` | counter | adapters put into slots, and out again |
//! | `wattle_device_restarts_total` | counter | devices that were made anew while requests ran |

use metrics::{counter, gauge, histogram};

use super::ServiceLoad;
use crate::adapter::ResidencyCounts;
use crate::error::Result;
use crate::generation::Generation;
use crate::schedule::Load;

/// What was told so far, of what others count: counters of several services add up.
#[derive(Default)]
pub(super) struct Published {
    load: Load,
    adapters: ResidencyCounts,
}

impl Published {
    /// Tells what is new.
    pub fn update(&mut self, public: &ServiceLoad, load: &Load, adapters: ResidencyCounts) {
        gauge!("wattle_queued_requests").set(public.queued as f64);
        gauge!("wattle_running_paths").set(public.paths as f64);
        gauge!("wattle_adapters_loaded").set(public.adapters as f64);
        gauge!("wattle_adapter_slots").set(public.slots as f64);
        gauge!("wattle_adapter_slots_held").set(public.slots_held as f64);
        if load.steps > self.load.steps {
            histogram!("wattle_step_rows").record(load.rows as f64);
            histogram!("wattle_step_samples").record(load.samples as f64);
        }
        let counts = [
            (counter!("wattle_shared_positions_total"), load.shared_positions, self.load.shared_positions),
            (counter!("wattle_device_restarts_total"), load.restarts, self.load.restarts),
            (counter!("wattle_adapter_loads_total"), adapters.loads, self.adapters.loads),
            (counter!("wattle_adapter_evictions_total"), adapters.evictions, self.adapters.evictions),
        ];
        for (counter, now, before) in counts {
            counter.increment(now.saturating_sub(before));
        }
        (self.load, self.adapters) = (*load, adapters);
    }
}

pub(super) fn done(result: &Result<Generation>) {
    let outcome = if result.is_ok() { "ok" } else { "error" };
    counter!("wattle_requests_total", "outcome" => outcome).increment(1);
    if let Ok(Generation { report, .. }) = result {
        counter!("wattle_new_tokens_total").increment(report.new_tokens as u64);
        counter!("wattle_prompt_tokens_total").increment(report.prompt_tokens as u64);
        histogram!("wattle_queue_seconds").record(report.queued);
        histogram!("wattle_first_token_seconds").record(report.first_token);
    }
}

pub(super) fn refused() {
    counter!("wattle_requests_total", "outcome" => "refused").increment(1);
}

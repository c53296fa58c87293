//! One step: admit → rows → submit → collect → deliver.

use std::time::Duration;

use crate::backend::Step;
use crate::error::Result;
use crate::schedule::host::Host;
use crate::schedule::order;
use crate::schedule::scheduler::{InFlight, Observer, Scheduler};

impl Scheduler {
    /// Runs one step; `false` when nothing is left to do. `now` is asked before the step and after it.
    pub fn step(
        &mut self,
        host: &mut dyn Host,
        now: &dyn Fn() -> Duration,
        observer: Observer,
    ) -> Result<bool> {
        self.expire(now(), host);
        self.admit(now(), host)?;
        let (step, draws) = self.rows(host);
        if !step.rows.is_empty() {
            let size = [step.rows.len(), step.samples.len()];
            let ticket = host.submit(&step)?;
            self.in_flight.push_back(InFlight { ticket, draws, size });
            self.copy_prompts(host)?;
            // While the device runs a step the host writes the next.
            if self.in_flight.len() < host.depth() {
                return Ok(true);
            }
        }
        if let Some(InFlight { ticket, draws, size }) = self.in_flight.pop_front() {
            let sampled = host.collect(ticket)?;
            self.collected += 1;
            self.last_step = size;
            for (serial, sampled) in draws.into_iter().zip(sampled) {
                self.deliver(serial, sampled, now(), host, observer)?;
            }
        }
        Ok(!self.is_idle())
    }

    /// The rows of the next step: every draw has one, so that nobody waits for a long prompt; then prompts have each its
    /// share. Rows of class generated come first.
    fn rows(&mut self, host: &dyn Host) -> (Step, Vec<u64>) {
        let (capacity, depth) = (host.capacity(), host.depth());
        let (mut step, mut draws) = (Step::default(), Vec::new());
        let copied: Vec<u64> = self.running.iter().filter(|s| s.waits_for_copy).map(|s| s.job).collect();
        let (mut drawing, mut known) = (Vec::new(), Vec::new());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let mut count = sequence.rows_wanted(depth);
            if sequence.path == 0 && copied.contains(&sequence.job) {
                count = count.min(sequence.before_copy());
            }
            match count {
                0 => {}
                1 => drawing.push((index, 1)),
                _ => known.push((index, count)),
            }
        }
        drawing.truncate(capacity.rows.min(capacity.samples));
        let wants: Vec<usize> = known.iter().map(|&(_, count)| count).collect();
        let shares = order::deal(capacity.rows - drawing.len(), &wants);
        let known = known.into_iter().zip(shares).map(|((index, _), share)| (index, share));
        let mut dealt: Vec<(usize, usize)> = drawing.into_iter().chain(known).collect();
        dealt.sort_by_key(|&(index, _)| self.running[index].in_prompt());
        for (index, count) in dealt {
            if count == 0 || step.samples.len() == capacity.samples {
                continue;
            }
            let sequence = &mut self.running[index];
            if sequence.push_rows(count, self.layers, &mut step.rows, &mut step.samples) {
                draws.push(sequence.serial);
            }
        }
        (step, draws)
    }

    /// Paths that wait for their prompt get it as soon as the first path has run it.
    fn copy_prompts(&mut self, host: &mut dyn Host) -> Result<()> {
        let source = |s: &crate::schedule::sequence::Sequence| {
            Some((s.job, s.id, (s.path == 0).then(|| s.copyable())??))
        };
        let sources: Vec<(u64, u32, usize)> = self.running.iter().filter_map(source).collect();
        for (job, from, positions) in sources {
            for path in self.running.iter_mut().filter(|s| s.job == job && s.waits_for_copy) {
                host.copy(from, path.id, positions)?;
                path.copied();
                self.shared_positions += positions as u64;
                self.jobs.get_mut(&job).into_iter().for_each(|job| job.cached(positions));
            }
        }
        Ok(())
    }
}

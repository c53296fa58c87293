//! Drawn tokens on their way to their paths and to the observer.

use std::time::Duration;

use wattle_shaders::Sampled;

use crate::error::{Error, Result};
use crate::generation::{Control, Event, Finish};
use crate::schedule::host::Host;
use crate::schedule::scheduler::{Observer, Scheduler};

/// A token on its way to the observer.
#[derive(Debug, PartialEq)]
pub(crate) struct Delivered {
    pub token: u32,
    pub logprob: f32,
    pub text: String,
    pub finish: Option<Finish>,
}

impl Scheduler {
    /// Hands a token to its path and to the observer; ends the path where it ends.
    pub(super) fn deliver(
        &mut self,
        serial: u64,
        sampled: Sampled,
        now: Duration,
        host: &mut dyn Host,
        observer: Observer,
    ) -> Result<()> {
        // A step may have been ahead of a path that ended meanwhile.
        let Some(at) = self.running.iter().position(|s| s.serial == serial) else { return Ok(()) };
        let sequence = &mut self.running[at];
        let (job, path) = (sequence.job, sequence.path);
        if sampled.invalid != 0 {
            let reason =
                "the model computed a value that is not finite; its weights or the adapter's are damaged";
            self.fail_job(job, Error::value("logits", reason), host);
            return Ok(());
        }
        self.drawn += 1;
        // Whoever has a prompt like this one's can share it from now on.
        self.released += u64::from(!std::mem::replace(&mut sequence.shareable, true));
        let (mut end, mut cancelled) = (None, false);
        let mut next = Some(sequence.accept(sampled, now));
        while let Some(Delivered { token, logprob, text, finish }) = next {
            let request = job as usize;
            end = end.or(finish);
            match observer(&Event { request, path, token, logprob, text: &text, finish }) {
                Control::Continue => {}
                Control::Stop => end = end.or(Some(Finish::Stop)),
                Control::Cancel => cancelled = true,
                // It has said all that it will.
                Control::Switch(_) if end.is_some() => {}
                Control::Switch(lora) => match host.resolve(&lora) {
                    Ok(choice) => self.running[at].switch(choice, host.depth()),
                    Err(error) => {
                        self.fail_job(job, error, host);
                        return Ok(());
                    }
                },
            }
            // A closing prompt follows only where the path goes on.
            next = if end.is_none() && !cancelled { self.running[at].force() } else { None };
        }
        if let Some(finish) = end {
            self.end_path(at, finish, true, host);
            if self.jobs.get(&job).is_some_and(|job| job.is_decided()) {
                self.end_job(job, Finish::Stop, true, host);
            }
            self.retire(job);
        }
        // A path that has come to its own end keeps it.
        if cancelled {
            self.cancel(job, host);
        }
        Ok(())
    }
}

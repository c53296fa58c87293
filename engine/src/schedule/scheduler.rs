//! The scheduler's state: who waits, who runs, what is under way.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::backend::Ticket;
use crate::error::{Error, Result};
use crate::generation::{Control, Event, Finish};
use crate::schedule::host::Host;
use crate::schedule::job::{Done, Job, Order};
use crate::schedule::order::{self, Candidate};
use crate::schedule::sequence::Sequence;
use crate::schedule::slots::{Seat, never, seat};

/// Waiting requests that are tried in a step: a long queue for what is taken must not take the step's time.
const TRIES: usize = 32;

/// Sees every token.
pub(crate) type Observer<'o> = &'o mut dyn FnMut(&Event<'_>) -> Control;

/// A step that was submitted: whose samples it has, in order, by serial number of the sequence.
pub(super) struct InFlight {
    pub ticket: Ticket,
    pub draws: Vec<u64>,
    /// Rows and samples.
    pub size: [usize; 2],
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests of which no path has begun.
    pub queued: usize,
    /// Requests that have not ended.
    pub requests: usize,
    /// Paths that run.
    pub running: usize,
    /// Steps so far, and rows and samples of the last.
    pub steps: u64,
    pub rows: usize,
    pub samples: usize,
    /// Prompt positions so far that were copied from another path instead of being run.
    pub shared_positions: u64,
    /// How often everything was encoded again, because the device was made anew.
    pub restarts: u64,
}

/// How long to wait before a device that failed is made anew, time after time until a token comes: a driver may need a
/// moment, and a long prompt may meet a second failure. One that always fails is not tried for ever.
const REVIVALS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_secs(1)];

/// Takes requests at any time and runs them to their ends. It has no clock: times are arguments, counted from any fixed
/// moment.
pub(crate) struct Scheduler {
    /// By number; numbers ascend in the order of submission.
    pub(super) jobs: BTreeMap<u64, Job>,
    /// In the order in which they began.
    pub(super) running: Vec<Sequence>,
    /// Sequences of the device that nobody uses.
    free: Vec<u32>,
    pub(super) in_flight: VecDeque<InFlight>,
    done: Vec<Done>,
    next_job: u64,
    next_serial: u64,
    /// Of the model, for the report's counts.
    pub(super) layers: usize,
    /// How often the device had been made anew when [`Self::restart`] was last called.
    pub epoch: u64,
    /// Steps that were collected.
    pub(super) collected: u64,
    /// Tokens that were drawn and delivered.
    pub(super) drawn: u64,
    /// Rows and samples of the last of these.
    pub(super) last_step: [usize; 2],
    pub(super) shared_positions: u64,
    restarts: u64,
    /// [`Self::drawn`] when a failed device was last made anew, and how often it was since that token.
    revived: (u64, usize),
    /// Counts what may make room: paths that ended, prompts that can be shared. Who found none waits for the next.
    pub(super) released: u64,
    /// Whether a running path waits for a slot, see [`Self::change_slots`].
    pub(super) slot_wanted: bool,
    /// [`Self::released`] when a path last found no room to begin again.
    pub(super) room_wanted: Option<u64>,
}

/// What became of a path that was to begin.
enum Begin {
    Begun,
    /// It has to wait: something that it needs is taken.
    Later,
    /// Its request has ended with an error.
    Failed,
}

impl Scheduler {
    /// With so many sequences on a device of this age.
    pub fn new(sequences: usize, layers: usize, epoch: u64) -> Self {
        Self {
            epoch,
            jobs: BTreeMap::new(),
            running: Vec::new(),
            free: (0..sequences as u32).rev().collect(),
            in_flight: VecDeque::new(),
            done: Vec::new(),
            next_job: 0,
            next_serial: 0,
            layers,
            collected: 0,
            drawn: 0,
            last_step: [0; 2],
            shared_positions: 0,
            restarts: 0,
            revived: (0, 0),
            released: 0,
            slot_wanted: false,
            room_wanted: None,
        }
    }

    /// Takes a request; returns its number. Numbers are given from 0 on.
    pub fn submit(&mut self, order: Order, now: Duration) -> u64 {
        let number = self.next_job;
        self.next_job += 1;
        let full = order.positions() == 0;
        let mut job = Job::new(order, now);
        if full {
            job.close(Finish::Length, false);
        }
        self.jobs.insert(number, job);
        self.retire(number);
        number
    }

    /// Ends a request wherever it is; its sequences and slots are free at once, for the next step.
    pub fn cancel(&mut self, job: u64, host: &mut dyn Host) {
        self.end_job(job, Finish::Cancelled, false, host);
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.in_flight.is_empty()
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        Load {
            queued: self.jobs.values().filter(|job| job.next_path == 0).count(),
            requests: self.jobs.len(),
            running: self.running.len(),
            steps: self.collected,
            rows: self.last_step[0],
            samples: self.last_step[1],
            shared_positions: self.shared_positions,
            restarts: self.restarts,
        }
    }

    /// Whether no path of a request that has not ended has begun.
    pub fn is_queued(&self, job: u64) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.next_path == 0)
    }

    /// Requests that have ended since the last call.
    pub fn take_done(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// Ends requests whose deadline has passed.
    pub(super) fn expire(&mut self, now: Duration, host: &mut dyn Host) {
        let late = |(&number, job): (&u64, &Job)| job.deadline().filter(|&at| at <= now).map(|_| number);
        let late: Vec<u64> = self.jobs.iter().filter_map(late).collect();
        late.into_iter().for_each(|job| self.end_job(job, Finish::Deadline, false, host));
    }

    /// Gives free sequences to waiting paths, in the order that [`order`] states.
    pub(super) fn admit(&mut self, now: Duration, host: &mut dyn Host) -> Result<()> {
        self.change_slots(host)?;
        if !self.begin_again(host)? {
            return Ok(());
        }
        while !self.free.is_empty() {
            let candidates = self.jobs.iter().filter_map(|(&number, job)| job.candidate(number));
            let mut candidates: Vec<Candidate> = candidates.collect();
            order::sort(&mut candidates);
            candidates.retain(|candidate| candidate.is_overdue() || !self.waits(candidate.job));
            candidates.truncate(TRIES);
            let mut progress = false;
            for candidate in candidates {
                match self.begin(candidate.job, now, host)? {
                    Begin::Begun | Begin::Failed => progress = true,
                    Begin::Later if candidate.is_overdue() => {}
                    Begin::Later => continue,
                }
                break;
            }
            if !progress {
                break;
            }
        }
        Ok(())
    }

    /// Begins a request's next path, if what it needs is to be had. That is not asked again before there may be more room:
    /// asking fills a slot and looks through a whole prompt.
    fn begin(&mut self, number: u64, now: Duration, host: &mut dyn Host) -> Result<Begin> {
        if self.waits(number) {
            return Ok(Begin::Later);
        }
        let released = self.released;
        let begin = self.try_begin(number, now, host)?;
        if let Some(job) = self.jobs.get_mut(&number) {
            job.waits_since = matches!(begin, Begin::Later).then_some(released);
        }
        Ok(begin)
    }

    /// Whether there was no room for a request, and is no more since.
    fn waits(&self, number: u64) -> bool {
        self.jobs.get(&number).is_some_and(|job| job.waits_since == Some(self.released))
    }

    fn try_begin(&mut self, number: u64, now: Duration, host: &mut dyn Host) -> Result<Begin> {
        let (Some(&id), Some(job)) = (self.free.last(), self.jobs.get_mut(&number)) else {
            return Ok(Begin::Later);
        };
        if self.slot_wanted && job.order.lora.adapter.is_some() {
            return Ok(Begin::Later);
        }
        let alone = self.running.is_empty();
        let (order, numbers) = (&job.order, [self.next_serial, number]);
        let mut sequence = Sequence::new(numbers, (job.next_path, id), order);
        // Later paths take the prompt from the first one, if that one is still at it.
        let first = self.running.iter().find(|s| s.job == number && s.path == 0);
        sequence.waits_for_copy = first.is_some_and(Sequence::will_be_copyable);
        match seat(&mut sequence, host) {
            Ok(Seat::Taken(positions)) => {
                job.cached(positions);
                self.shared_positions += positions as u64;
            }
            Ok(Seat::NoSlot) if alone => return Ok(self.fail(number, never("adapter slot"), host)),
            Ok(Seat::NoRoom) if alone => return Ok(self.fail(number, never("room"), host)),
            Ok(Seat::NoSlot | Seat::NoRoom) => return Ok(Begin::Later),
            Err(error @ Error::Device { .. }) => return Err(error),
            Err(error) => return Ok(self.fail(number, error, host)),
        }
        self.free.pop();
        job.begin(now);
        job.overtaken = 0;
        self.running.push(sequence);
        self.next_serial += 1;
        self.jobs
            .range_mut(..number)
            .for_each(|(_, older)| older.overtaken += u32::from(older.has_waiting()));
        Ok(Begin::Begun)
    }

    fn fail(&mut self, number: u64, error: Error, host: &mut dyn Host) -> Begin {
        self.fail_job(number, error, host);
        Begin::Failed
    }

    /// Ends a path, which leaves the running ones.
    pub(super) fn end_path(&mut self, at: usize, finish: Finish, voted: bool, host: &mut dyn Host) {
        let mut sequence = self.running.remove(at);
        host.end(sequence.id);
        self.free.push(sequence.id);
        self.released += 1;
        sequence.loras.leave().into_iter().for_each(|slot| host.give_slot(slot));
        if let Some(job) = self.jobs.get_mut(&sequence.job) {
            job.take(sequence, finish, voted);
        }
    }

    /// Ends a request's running and waiting paths. `spared`: because its vote was decided.
    pub(super) fn end_job(&mut self, number: u64, finish: Finish, spared: bool, host: &mut dyn Host) {
        while let Some(at) = self.running.iter().position(|s| s.job == number) {
            self.end_path(at, finish, false, host);
            if let Some(job) = self.jobs.get_mut(&number) {
                job.abstain(spared);
            }
        }
        if let Some(job) = self.jobs.get_mut(&number) {
            job.close(finish, spared);
        }
        self.retire(number);
    }

    /// Ends a request with an error.
    pub(super) fn fail_job(&mut self, number: u64, error: Error, host: &mut dyn Host) {
        while let Some(at) = self.running.iter().position(|s| s.job == number) {
            self.end_path(at, Finish::Cancelled, false, host);
        }
        if self.jobs.remove(&number).is_some() {
            self.done.push(Done { job: number, result: Err(error) });
        }
    }

    /// Ends all requests with an error, and waits for what is under way.
    pub fn fail_all(&mut self, error: impl Fn() -> Error, host: &mut dyn Host) {
        for step in self.in_flight.drain(..) {
            // There is an error already: it is the first one that callers should see.
            let _ = host.collect(step.ticket);
        }
        self.revived = (self.drawn, 0);
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        all.into_iter().for_each(|job| self.fail_job(job, error(), host));
    }

    /// After which time a device that fails now should be made anew; `None`: it was often enough without a token between
    /// (see [`REVIVALS`]).
    pub fn revive_after(&mut self) -> Option<Duration> {
        let before = if self.revived.0 == self.drawn { self.revived.1 } else { 0 };
        self.revived = (self.drawn, before + 1);
        REVIVALS.get(before).copied()
    }

    /// The device under the host was made anew, with empty caches: every path runs again what it has, with the class,
    /// adapters and masks that its tokens had, and goes on.
    pub fn restart(&mut self, host: &mut dyn Host) -> Result<()> {
        self.in_flight.clear();
        self.restarts += 1;
        self.released += 1;
        let slots: Vec<u32> = self.running.iter_mut().filter_map(Sequence::restart).collect();
        slots.into_iter().for_each(|slot| host.give_slot(slot));
        self.begin_again(host).map(drop)
    }

    /// Moves a request that has ended to the done ones.
    pub(super) fn retire(&mut self, number: u64) {
        if self.jobs.get(&number).is_some_and(Job::is_done)
            && let Some(job) = self.jobs.remove(&number)
        {
            self.done.push(Done { job: number, result: Ok(job.finish()) });
        }
    }
}

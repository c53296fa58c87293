//! The scheduler on a device without a model: what it draws is a hash of the sequence's rows, as a model's would be.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use wattle_shaders::{FROM_STATE, LayerMask, NO_INDEX, Row, Sampled};

use super::job::{Choice, Done, Order};
use super::scheduler::Scheduler;
use super::{Host, PathLimits, Room};
use crate::adapter::{ActivationRule, Adapter, Factors, Residency};
use crate::backend::{Capacity, Step, Ticket};
use crate::error::{Error, Result};
use crate::generation::{Control, Event, Finish, Generation};
use crate::request::{Closing, Lora, Priority, Request};

/// Rows that a sequence has run: (token, adapter slot's content, mask).
type Cache = Vec<(u32, u64)>;

/// A device whose draws depend on all that a sequence has run, and that checks what it is told.
struct Device {
    capacity: Capacity,
    depth: usize,
    adapters: Residency,
    /// What is in the slots.
    contents: BTreeMap<u32, u64>,
    caches: Vec<Cache>,
    last: Vec<u32>,
    begun: Vec<bool>,
    /// Pages of 4 positions; each path reserves what it may need.
    pages: usize,
    reserved: BTreeMap<u32, usize>,
    steps: VecDeque<(u64, Vec<Sampled>)>,
    submitted: u64,
    rows: Vec<usize>,
    /// Fails at this step, once.
    lost_at: Option<u64>,
}

impl Device {
    fn new(sequences: usize, rows: usize, depth: usize) -> Self {
        Self {
            capacity: Capacity { sequences, context: 64, rows, samples: rows },
            depth,
            adapters: Residency::default(),
            contents: BTreeMap::new(),
            caches: vec![Vec::new(); sequences],
            last: vec![0; sequences],
            begun: vec![false; sequences],
            pages: usize::MAX,
            reserved: BTreeMap::new(),
            steps: VecDeque::new(),
            submitted: 0,
            rows: Vec::new(),
            lost_at: None,
        }
    }

    fn draw(&self, sequence: usize, sample: &wattle_shaders::Sample) -> u32 {
        let seed = u64::from(sample.path) << 32 | u64::from(sample.seed[0]);
        let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        let hash = self.caches[sequence]
            .iter()
            .fold(seed, |hash, &(token, lora)| mix(mix(hash, u64::from(token)), lora));
        (hash >> 40) as u32 % 50
    }

    /// What a row's adapter does to it.
    fn content(&self, row: &Row) -> u64 {
        let active = row.slot != NO_INDEX && row.lora != [0; 4];
        if active { self.contents[&row.slot] } else { 0 }
    }

    fn forget(&mut self) {
        self.steps.clear();
        self.caches.iter_mut().for_each(Vec::clear);
        self.begun.fill(false);
    }
}

impl Host for Device {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn resolve(&self, lora: &Lora) -> Result<Choice> {
        let adapter = lora.adapter.and_then(|id| self.adapters.get(id)).cloned();
        Ok(Choice { adapter, layers: lora.layers, from: 0 })
    }

    fn take_slot(&mut self, adapter: &Arc<Adapter>) -> Result<Option<u32>> {
        let Some(taken) = self.adapters.take(adapter) else { return Ok(None) };
        self.contents.insert(taken.slot as u32, adapter.name.parse().expect("a number"));
        Ok(Some(taken.slot as u32))
    }

    fn give_slot(&mut self, slot: u32) -> Result<()> {
        self.adapters.give(slot as usize);
        for slot in self.adapters.sweep() {
            self.contents.remove(&(slot as u32));
        }
        Ok(())
    }

    fn begin(&mut self, sequence: u32, rows: Vec<Row>, room: Room) -> Result<Option<usize>> {
        let pages = room.positions.div_ceil(4);
        self.reserved.remove(&sequence);
        if self.reserved.values().sum::<usize>() + pages > self.pages {
            return Ok(None);
        }
        self.reserved.insert(sequence, pages);
        self.begun[sequence as usize] = true;
        // The longest beginning that any other sequence has in its cache, but for the last row.
        let content = |row: &Row| (row.token, self.content(row));
        let wanted: Cache = rows.iter().map(content).collect();
        let same = |cache: &Cache| cache.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let found = self.caches.iter().map(same).max().unwrap_or(0).min(wanted.len().saturating_sub(1));
        self.caches[sequence as usize] = wanted[..found].to_vec();
        Ok(Some(found))
    }

    fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        assert!(self.begun[from as usize] && self.begun[to as usize]);
        self.caches[to as usize] = self.caches[from as usize][..positions].to_vec();
        Ok(())
    }

    fn end(&mut self, sequence: u32) {
        assert!(std::mem::take(&mut self.begun[sequence as usize]), "ended twice");
        self.reserved.remove(&sequence);
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        if self.lost_at == Some(self.submitted) {
            self.lost_at = None;
            return Err(Error::device("fake", "lost"));
        }
        assert!(step.rows.len() <= self.capacity.rows && step.samples.len() <= self.capacity.samples);
        let mut sampled = Vec::new();
        let mut samples = step.samples.iter().peekable();
        for (index, row) in step.rows.iter().enumerate() {
            let sequence = row.sequence as usize;
            let mut token = row.token;
            if row.flags & FROM_STATE != 0 {
                token = self.last[sequence];
            }
            let lora = self.content(row);
            let cache = &mut self.caches[sequence];
            assert!(row.position as usize <= cache.len(), "a gap before position {}", row.position);
            cache.truncate(row.position as usize);
            cache.push((token, lora));
            if let Some(sample) = samples.next_if(|sample| sample.row as usize == index) {
                assert_eq!(sample.position as usize, self.caches[sequence].len());
                let token = self.draw(sequence, sample);
                self.last[sequence] = token;
                sampled.push(Sampled { token, logprob: -1.0, invalid: 0, _pad: 0 });
            }
        }
        self.rows.push(step.rows.len());
        self.submitted += 1;
        self.steps.push_back((self.submitted, sampled));
        assert!(self.steps.len() <= self.depth);
        Ok(Ticket(self.submitted))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        let (number, sampled) = self.steps.pop_front().expect("a step under way");
        assert_eq!(number, ticket.0);
        Ok(sampled)
    }
}

fn adapter(content: u64) -> Arc<Adapter> {
    let factors = Arc::new(Factors::default());
    Arc::new(Adapter { name: content.to_string(), factors, rule: ActivationRule::Always })
}

fn order(request: Request, adapter: Option<&Arc<Adapter>>) -> Order {
    let layers = if adapter.is_some() { LayerMask::ALL } else { LayerMask::NONE };
    let eos = if request.ignore_eos { Vec::new() } else { vec![7] };
    let limits = PathLimits { context: 64, original_context: usize::MAX, tokenizer: None, eos: eos.into() };
    let lora = Choice { adapter: adapter.cloned(), layers, from: request.ids.len() / 2 };
    Order { request: Arc::new(request), lora, limits }
}

/// Steps until nothing is left to do; a lost device is made anew.
fn run(scheduler: &mut Scheduler, device: &mut Device, observer: &mut dyn FnMut(&Event<'_>) -> Control) {
    let now = Cell::new(0);
    let clock = || {
        now.set(now.get() + 1);
        Duration::from_millis(now.get())
    };
    for _ in 0..10_000 {
        match scheduler.step(device, &clock, observer) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                device.forget();
                scheduler.restart(device).expect("room as before");
            }
        }
    }
    panic!("not idle after 10,000 steps");
}

fn results(done: Vec<Done>) -> BTreeMap<u64, Generation> {
    done.into_iter().map(|done| (done.job, done.result.expect("a generation"))).collect()
}

/// What a request gives when nothing else runs.
fn alone(request: &Request, adapter: Option<&Arc<Adapter>>) -> Generation {
    let mut device = Device::new(1, 64, 1);
    device.adapters.resize(1);
    let mut scheduler = Scheduler::new(1, 2, 0);
    scheduler.submit(order(request.clone(), adapter), Duration::ZERO);
    run(&mut scheduler, &mut device, &mut |_| Control::Continue);
    results(scheduler.take_done()).remove(&0).expect("the request")
}

fn request(prompt: usize, new: usize, paths: u32) -> Request {
    let ids: Vec<u32> = (0..prompt as u32).map(|i| i % 50).collect();
    Request { paths, ..Request::new(ids, new) }
}

fn any_request() -> impl Strategy<Value = (Request, Option<usize>, Option<u64>)> {
    let priority = prop::sample::select(vec![Priority::Low, Priority::Normal, Priority::High]);
    let request = (1usize..40, 0usize..12, 1u32..5, priority, any::<bool>(), 0u64..9).prop_map(
        |(prompt, new, paths, priority, closes, seed)| {
            let mut request = Request { priority, ..request(prompt, new, paths) };
            request.sampling.seed = seed;
            request.closing = (closes && new > 4).then(|| Closing { ids: vec![1, 2], answer_tokens: 2 });
            request
        },
    );
    (request, prop::option::of(0usize..3), prop::option::of(0u64..30))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever runs beside it, with few slots and pages, on a device that is lost: a request gives what it gives
    /// alone, unless it was cancelled; and at the end everything is free.
    #[test]
    fn every_request_ends_as_it_would_alone_and_nothing_leaks(
        requests in prop::collection::vec(any_request(), 1..10),
        (sequences, rows, depth) in (1usize..5, 5usize..40, 1usize..3),
        (slots, pages) in (1usize..4, 13usize..60),
        lost_at in prop::option::of(0u64..40),
    ) {
        let adapters = [adapter(1), adapter(2), adapter(3)];
        let mut device = Device { pages, lost_at, ..Device::new(sequences, rows, depth) };
        device.adapters.resize(slots);
        let ids: Vec<_> = adapters.iter().map(|adapter| device.adapters.add(Arc::clone(adapter))).collect();
        let mut scheduler = Scheduler::new(sequences, 2, 0);
        for (request, adapter, _) in &requests {
            scheduler.submit(order(request.clone(), adapter.map(|i| &adapters[i])), Duration::ZERO);
        }
        // An adapter that is forgotten while requests run stays with those that were submitted.
        device.adapters.replace(ids[0], None);
        let mut tokens = 0;
        let mut cancelled = Vec::new();
        run(&mut scheduler, &mut device, &mut |event| {
            tokens += 1;
            let cancel = requests[event.request].2.is_some_and(|at| at < tokens);
            if cancel {
                cancelled.push(event.request as u64);
            }
            if cancel { Control::Cancel } else { Control::Continue }
        });
        let results = results(scheduler.take_done());
        prop_assert_eq!(results.len(), requests.len());
        for (number, generation) in &results {
            let (request, adapter, _) = &requests[*number as usize];
            let alone = alone(request, adapter.map(|i| &adapters[i]));
            prop_assert_eq!(generation.paths.len(), request.paths as usize);
            if cancelled.contains(number) {
                for (path, alone) in generation.paths.iter().zip(&alone.paths) {
                    prop_assert!(alone.token_ids.starts_with(&path.token_ids));
                }
            } else {
                prop_assert_eq!(&generation.paths, &alone.paths);
                let closes = generation.paths.iter().filter(|path| path.finish == Finish::Length);
                for path in closes.filter(|_| request.closing.is_some()) {
                    prop_assert_eq!(&path.token_ids[path.forced.clone()], &[1, 2][..]);
                    prop_assert_eq!(path.token_ids.len(), path.forced.end + 2);
                }
            }
        }
        prop_assert!(device.begun.iter().all(|begun| !begun) && device.reserved.is_empty());
        prop_assert_eq!(device.adapters.slots(), [slots, 0]);
        prop_assert!(scheduler.is_idle() && device.steps.is_empty());
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_others() {
    let mut device = Device::new(3, 10, 1);
    let mut scheduler = Scheduler::new(3, 2, 0);
    let steady = Request { ignore_eos: true, ..request(1, 30, 1) };
    scheduler.submit(order(steady, None), Duration::ZERO);
    let mut tokens = Vec::new();
    let clock = || Duration::ZERO;
    for step in 0..12 {
        if step == 3 {
            scheduler.submit(order(request(45, 1, 1), None), Duration::ZERO);
            scheduler.submit(order(request(8, 1, 1), None), Duration::ZERO);
        }
        let mut drawn = [0; 3];
        scheduler
            .step(&mut device, &clock, &mut |event| {
                drawn[event.request] += 1;
                Control::Continue
            })
            .expect("a step");
        tokens.push(drawn);
    }
    // Of ten rows one is the steady one's; the two prompts get 5 and 4, then 5 and 4 of the 8: done in two steps.
    assert!(tokens.iter().all(|drawn| drawn[0] == 1), "{tokens:?}");
    assert_eq!(tokens.iter().position(|drawn| drawn[2] == 1), Some(4), "{tokens:?}");
    assert_eq!(tokens.iter().position(|drawn| drawn[1] == 1), Some(8), "{tokens:?}");
    assert!(device.rows[3..8].iter().all(|&rows| rows == 10), "{:?}", device.rows);
}

#[test]
fn cancelling_frees_within_a_step_and_deadlines_end_with_what_there_is() {
    let mut device = Device::new(2, 16, 2);
    let mut scheduler = Scheduler::new(2, 2, 0);
    let now = Cell::new(Duration::ZERO);
    let clock = || now.get();
    let long = |deadline| Request { ignore_eos: true, deadline, ..request(4, 40, 2) };
    let mut step = |scheduler: &mut Scheduler| {
        scheduler.step(&mut device, &clock, &mut |_| Control::Continue).expect("a step");
    };
    let submit = |scheduler: &mut Scheduler, deadline: Option<u64>| {
        scheduler.submit(order(long(deadline.map(Duration::from_secs)), None), Duration::ZERO)
    };
    let first = submit(&mut scheduler, None);
    step(&mut scheduler);
    let [second, third, fourth] = [5, 3, 3].map(|seconds| submit(&mut scheduler, Some(seconds)));
    (0..3).for_each(|_| step(&mut scheduler));
    assert_eq!((scheduler.load().running, scheduler.load().queued), (2, 3));
    let mut other = Device::new(2, 16, 2);
    other.begun = vec![true; 2];
    scheduler.cancel(first, &mut other).expect("no slots to give back");
    assert_eq!(scheduler.load().running, 0, "at once");
    step(&mut scheduler);
    assert_eq!(scheduler.load().running, 2, "the next step has the next requests, a path of each");
    (0..3).for_each(|_| step(&mut scheduler));
    now.set(Duration::from_secs(6));
    step(&mut scheduler);
    assert_eq!(scheduler.load().requests, 0);
    let results = results(scheduler.take_done());
    let finishes = |job| {
        let paths = results[&job].paths.iter();
        paths.map(|path| (path.finish, !path.token_ids.is_empty())).collect::<Vec<_>>()
    };
    assert_eq!(finishes(first), [(Finish::Cancelled, true); 2]);
    assert_eq!(finishes(second), [(Finish::Deadline, true), (Finish::Deadline, false)]);
    assert_eq!(finishes(third), finishes(second));
    assert_eq!(finishes(fourth), [(Finish::Deadline, false); 2]);
}

#[test]
fn a_request_that_waits_for_a_slot_is_overtaken_only_so_often() {
    let mut device = Device::new(2, 16, 1);
    device.adapters.resize(1);
    let (one, two) = (adapter(1), adapter(2));
    let mut scheduler = Scheduler::new(2, 2, 0);
    let clock = || Duration::ZERO;
    let short = || Request { ignore_eos: true, ..request(2, 2, 1) };
    scheduler.submit(order(short(), Some(&one)), Duration::ZERO);
    let waiting = scheduler.submit(order(short(), Some(&two)), Duration::ZERO);
    let mut ended_before = 0;
    // The first adapter never runs out of requests.
    for _ in 0..200 {
        while scheduler.load().queued < 3 {
            scheduler.submit(order(short(), Some(&one)), Duration::ZERO);
        }
        scheduler.step(&mut device, &clock, &mut |_| Control::Continue).expect("a step");
        let done = scheduler.take_done();
        if done.iter().any(|done| done.job == waiting) {
            assert!(ended_before <= super::order::PATIENCE as usize + 2, "{ended_before}");
            return;
        }
        ended_before += done.len();
    }
    panic!("it never began");
}

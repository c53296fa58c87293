//! The scheduler on a device without a model.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use wattle_shaders::LayerMask;

use super::PathLimits;
use super::fake::{BROKEN, Device, MOST_PAGES};
use super::job::{Done, Order};
use super::loras::Choice;
use super::scheduler::Scheduler;
use crate::adapter::{ActivationRule, Adapter, Factors};
use crate::generation::{Control, Event, Finish, Generation};
use crate::request::{AdapterId, Closing, Lora, Priority, Request};

fn adapter(content: u64) -> Arc<Adapter> {
    let factors = Arc::new(Factors::default());
    Arc::new(Adapter { name: content.to_string(), factors, rule: ActivationRule::Always })
}

fn order(request: Request, adapter: Option<&Arc<Adapter>>) -> Order {
    let layers = if adapter.is_some() { LayerMask::ALL } else { LayerMask::NONE };
    let eos = if request.ignore_eos { Vec::new() } else { vec![7] };
    let limits = PathLimits { context: 64, original_context: usize::MAX, tokenizer: None, eos: eos.into() };
    let lora = Choice { adapter: adapter.cloned(), layers, from: request.ids.len() / 2, gated: false };
    Order { request: Arc::new(request), lora, limits }
}

/// Tokens from which on a model of [`longrope`] uses its long factors.
const ORIGINAL: usize = 24;

/// An order for a model with two sets of factors.
fn longrope(order: Order) -> Order {
    let limits = PathLimits { original_context: ORIGINAL, ..order.limits };
    Order { limits, ..order }
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
    alone_switched(request, adapter, 1, None)
}

/// After so many tokens of a path another adapter, and after the next one perhaps a third.
type Switch<A> = Option<(usize, A, Option<A>)>;

/// What a request gives when nothing else runs, on a device of this depth with one slot, of a model with two sets of
/// factors.
fn alone_switched(
    request: &Request,
    adapter: Option<&Arc<Adapter>>,
    depth: usize,
    switch: Switch<Arc<Adapter>>,
) -> Generation {
    let mut device = Device::new(1, 64, depth);
    device.adapters.resize(1);
    let mut scheduler = Scheduler::new(1, 2, 0);
    scheduler.submit(longrope(order(request.clone(), adapter)), Duration::ZERO);
    let mut seen = BTreeMap::new();
    let mut add = |adapter| device.adapters.add(adapter);
    let switch = switch.map(|(at, one, other)| (at, add(one), other.map(add)));
    run(&mut scheduler, &mut device, &mut |event| switched(event, &mut seen, switch));
    results(scheduler.take_done()).remove(&0).expect("the request")
}

/// Counts a path's tokens, and switches it where it should be.
fn switched(
    event: &Event<'_>,
    seen: &mut BTreeMap<(usize, u32), usize>,
    switch: Switch<AdapterId>,
) -> Control {
    let count = seen.entry((event.request, event.path)).or_default();
    *count += 1;
    match switch {
        Some((at, id, _)) if at == *count => Control::Switch(Lora::new(id)),
        Some((at, _, Some(id))) if at + 1 == *count => Control::Switch(Lora::new(id)),
        _ => Control::Continue,
    }
}

fn request(prompt: usize, new: usize, paths: u32) -> Request {
    let ids: Vec<u32> = (0..prompt as u32).map(|i| i % 50).collect();
    Request { paths, ..Request::new(ids, new) }
}

/// A request, its adapter, after how many tokens of all it is cancelled, and how its paths are switched.
type Case = (Request, Option<usize>, Option<u64>, Switch<usize>);

fn any_request() -> impl Strategy<Value = Case> {
    let priority = prop::sample::select(vec![Priority::Low, Priority::Normal, Priority::High]);
    let request = (1usize..40, 0usize..12, 1u32..5, priority, any::<bool>(), 0u64..9).prop_map(
        |(prompt, new, paths, priority, closes, seed)| {
            let mut request = Request { priority, ..request(prompt, new, paths) };
            request.sampling.seed = seed;
            request.closing = (closes && new > 4).then(|| Closing { ids: vec![1, 2], answer_tokens: 2 });
            request
        },
    );
    let switch = prop::option::of((1usize..8, 1usize..3, prop::option::of(1usize..3)));
    (request, prop::option::of(0usize..3), prop::option::of(0u64..30), switch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever runs beside it, with few slots and pages, on a device that is lost: a request gives what it gives
    /// alone, switched to another adapter or not, unless it was cancelled; and at the end everything is free.
    #[test]
    fn every_request_ends_as_it_would_alone_and_nothing_leaks(
        requests in prop::collection::vec(any_request(), 1..10),
        (sequences, rows, depth) in (1usize..5, 5usize..40, 1usize..3),
        (slots, pages) in (1usize..4, MOST_PAGES..60),
        lost_at in prop::option::of(0u64..40),
    ) {
        let adapters = [adapter(1), adapter(2), adapter(3)];
        let mut device = Device { pages, lost_at, ..Device::new(sequences, rows, depth) };
        device.adapters.resize(slots);
        let ids: Vec<_> = adapters.iter().map(|adapter| device.adapters.add(Arc::clone(adapter))).collect();
        let mut scheduler = Scheduler::new(sequences, 2, 0);
        for (request, adapter, ..) in &requests {
            scheduler.submit(longrope(order(request.clone(), adapter.map(|i| &adapters[i]))), Duration::ZERO);
        }
        // An adapter that is forgotten while requests run stays with those that were submitted.
        device.adapters.replace(ids[0], None);
        let mut tokens = 0;
        let (mut cancelled, mut seen) = (Vec::new(), BTreeMap::new());
        run(&mut scheduler, &mut device, &mut |event| {
            tokens += 1;
            let (_, _, cancel, switch) = &requests[event.request];
            if cancel.is_some_and(|at| at < tokens) {
                cancelled.push(event.request as u64);
                return Control::Cancel;
            }
            switched(event, &mut seen, switch.map(|(at, one, other)| (at, ids[one], other.map(|i| ids[i]))))
        });
        let results = results(scheduler.take_done());
        prop_assert_eq!(results.len(), requests.len());
        for (number, generation) in &results {
            let (request, adapter, _, switch) = &requests[*number as usize];
            let of = |i: usize| Arc::clone(&adapters[i]);
            let switch = switch.map(|(at, one, other)| (at, of(one), other.map(of)));
            let alone = alone_switched(request, adapter.map(|i| &adapters[i]), depth, switch);
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
    scheduler.cancel(first, &mut other);
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
    let short = || Request { ignore_eos: true, ..request(2, 2, 1) };
    scheduler.submit(order(short(), Some(&one)), Duration::ZERO);
    let waiting = scheduler.submit(order(short(), Some(&two)), Duration::ZERO);
    let mut ended_before = 0;
    // The first adapter never runs out of requests.
    for _ in 0..200 {
        while scheduler.load().queued < 3 {
            scheduler.submit(order(short(), Some(&one)), Duration::ZERO);
        }
        scheduler.step(&mut device, &|| Duration::ZERO, &mut |_| Control::Continue).expect("a step");
        let done = scheduler.take_done();
        if done.iter().any(|done| done.job == waiting) {
            assert!(ended_before <= super::order::PATIENCE as usize + 2, "{ended_before}");
            return;
        }
        ended_before += done.len();
    }
    panic!("it never began");
}

#[test]
fn a_path_that_is_switched_waits_for_a_slot_and_goes_before_requests_with_adapters() {
    let mut device = Device::new(3, 16, 1);
    device.adapters.resize(1);
    let (one, two) = (adapter(1), adapter(2));
    let id = device.adapters.add(Arc::clone(&two));
    let mut scheduler = Scheduler::new(3, 2, 0);
    let long = |new| Request { ignore_eos: true, ..request(2, new, 1) };
    let holder = scheduler.submit(order(long(12), Some(&one)), Duration::ZERO);
    let switched = scheduler.submit(order(long(6), None), Duration::ZERO);
    let mut ended = Vec::new();
    for step in 0..60 {
        if step == 4 {
            scheduler.submit(order(long(3), Some(&one)), Duration::ZERO);
            scheduler.submit(order(long(3), None), Duration::ZERO);
        }
        let control = |event: &Event<'_>| {
            let switch = event.request as u64 == switched && step == 2;
            if switch { Control::Switch(Lora::new(id)) } else { Control::Continue }
        };
        let mut control = control;
        scheduler.step(&mut device, &|| Duration::ZERO, &mut control).expect("a step");
        ended.extend(scheduler.take_done().into_iter().map(|done| (done.job, step, done.result.is_ok())));
    }
    // Three tokens of its six before the switch; then it waits for the holder's twelfth; the one without an adapter does not.
    assert_eq!(ended, [(3, 6, true), (holder, 11, true), (switched, 14, true), (2, 17, true)]);
}

#[test]
fn a_path_that_waits_for_a_slot_is_not_overtaken_for_ever_by_others_that_are_switched() {
    let mut device = Device::new(4, 16, 1);
    device.adapters.resize(1);
    let ids = [1, 2].map(|content| device.adapters.add(adapter(content)));
    let mut scheduler = Scheduler::new(4, 2, 0);
    let base = |new| Request { ignore_eos: true, ..request(2, new, 1) };
    // The first is switched to one adapter, the second, while that runs, to the other; all that follow to the first's.
    scheduler.submit(order(base(8), None), Duration::ZERO);
    let waits = scheduler.submit(order(base(9), None), Duration::ZERO);
    let mut lengths = [11, 5].into_iter().cycle();
    for _ in 0..200 {
        while scheduler.load().queued < 2 {
            // Of different lengths, so that one always holds the slot when another ends.
            scheduler.submit(order(base(lengths.next().unwrap_or(5)), None), Duration::ZERO);
        }
        let mut switch = |event: &Event<'_>| {
            let to = ids[usize::from(event.request as u64 == waits)];
            Control::Switch(Lora::new(to))
        };
        scheduler.step(&mut device, &|| Duration::ZERO, &mut switch).expect("a step");
        if scheduler.take_done().iter().any(|done| done.job == waits) {
            return;
        }
    }
    panic!("it waits for ever");
}

#[test]
fn a_request_without_room_is_tried_again_only_when_there_may_be_more() {
    let mut device = Device { pages: 6, ..Device::new(2, 16, 1) };
    let mut scheduler = Scheduler::new(2, 2, 0);
    let long = |seed: u32| Request { ids: vec![seed; 4], ignore_eos: true, ..request(4, 16, 1) };
    let numbers = [1, 2].map(|seed| scheduler.submit(order(long(seed), None), Duration::ZERO));
    run(&mut scheduler, &mut device, &mut |_| Control::Continue);
    // Each takes five pages of six. The second asks beside the first, when the first's prompt was run, and at its end.
    assert_eq!(device.asked, 4);
    assert_eq!(results(scheduler.take_done()).into_keys().collect::<Vec<_>>(), numbers);
}

#[test]
fn an_adapter_that_no_slot_takes_fails_its_request_alone() {
    let mut device = Device::new(2, 16, 1);
    device.adapters.resize(1);
    let mut scheduler = Scheduler::new(2, 2, 0);
    let healthy = scheduler.submit(order(request(4, 6, 1), Some(&adapter(1))), Duration::ZERO);
    let broken = scheduler.submit(order(request(4, 6, 3), Some(&adapter(BROKEN))), Duration::ZERO);
    run(&mut scheduler, &mut device, &mut |_| Control::Continue);
    let mut done: BTreeMap<u64, _> = scheduler.take_done().into_iter().map(|d| (d.job, d.result)).collect();
    let error = done.remove(&broken).expect("it ended").expect_err("no slot takes it");
    assert!(error.to_string().contains("too large"), "{error}");
    let paths = done.remove(&healthy).expect("it ended").expect("a generation").paths;
    assert_eq!(paths, alone(&request(4, 6, 1), Some(&adapter(1))).paths);
}

#[test]
fn a_device_is_made_anew_so_often_without_a_token_and_as_often_again_after_one() {
    let mut device = Device::new(1, 16, 1);
    let mut scheduler = Scheduler::new(1, 2, 0);
    let attempts = |scheduler: &mut Scheduler| (0..9).map_while(|_| scheduler.revive_after()).count();
    assert_eq!((attempts(&mut scheduler), attempts(&mut scheduler)), (3, 0));
    scheduler.submit(order(request(4, 2, 1), None), Duration::ZERO);
    run(&mut scheduler, &mut device, &mut |_| Control::Continue);
    assert_eq!(attempts(&mut scheduler), 3);
}

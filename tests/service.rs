//! The service: many threads, adapters that come and go, cancels, deadlines, panics, lost devices.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Expected, engine, fixtures, options};
use wattle_engine::adapter::Adapter;
use wattle_engine::backend::Limits;
use wattle_engine::{
    ActiveFrom, AdapterId, AdapterRoom, BackendChoice, Client, Control, Engine, EngineOptions, Error, Finish,
    FixedPolicy, LayerMask, Lora, LoraDecision, Path, Request, Sampling, Service, ServiceOptions,
};

const ADAPTERS: [&str; 3] = ["q-v", "rank-16", "all-linear"];

fn model() -> PathBuf {
    fixtures().join("models/llama")
}

fn adapter(name: &str) -> PathBuf {
    model().join("adapters").join(name)
}

fn ids() -> Vec<u32> {
    Expected::read(&model()).ids("ids").expect("ids")
}

/// Runs a check on the CPU, and on the GPU where there is one.
fn on_both(check: impl Fn(&EngineOptions)) {
    common::on_both(&model(), |options| check(&EngineOptions { sequences: 3, rows: 16, ..options.clone() }));
}

fn open(options: &EngineOptions) -> Engine {
    engine(&model(), options.clone()).expect("the backend was there a moment ago")
}

fn serve(options: &EngineOptions) -> Service {
    Service::start(open(options), ServiceOptions::default()).expect("a thread")
}

fn request(prompt: usize, new: usize, seed: u64) -> Request {
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed, ..Sampling::GREEDY };
    Request { sampling, ignore_eos: true, ..Request::new(&ids()[..prompt], new) }
}

/// What a fresh engine gives for a request, alone, with this adapter.
fn alone(options: &EngineOptions, request: &Request, name: Option<&str>, lora: Lora) -> Vec<Path> {
    let mut engine = open(options);
    let id = name.map(|name| engine.load_adapter(adapter(name), 1.0).expect("an adapter"));
    let request = request.clone().with_lora(Lora { adapter: id, ..lora });
    engine.generate(&request).expect("a generation").paths
}

/// Waits until the service has nothing to do.
fn settled(client: &Client) {
    for _ in 0..20_000 {
        let load = client.load();
        if (load.requests, load.slots_held) == (0, 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{:?}", client.load());
}

#[test]
fn handles_go_to_other_threads() {
    fn check<T: Send + Sync + Clone>() {}
    check::<Client>();
    fn send<T: Send>() {}
    send::<(Service, wattle_engine::Tokens)>();
}

#[test]
fn requests_of_many_threads_get_what_they_get_alone_while_adapters_take_turns_in_two_slots() {
    on_both(|options| {
        let room = AdapterRoom { slots: Some(2), rank: 16, bytes: None };
        let service = serve(&EngineOptions { adapters: room, ..options.clone() });
        let user = |number: usize| {
            let client = service.client();
            let options = options.clone();
            move || {
                let name = ADAPTERS.get(number).copied();
                let id = name.map(|name| client.load_adapter(adapter(name), 1.0).expect("an adapter"));
                let lora = Lora { from: ActiveFrom::Generated, layers: LayerMask::ALL, ..Lora::BASE };
                for turn in 0..2 {
                    let request = Request { paths: 2, ..request(3 + 5 * number, 6, number as u64 + turn) };
                    let mut tokens = client
                        .submit(request.clone().with_lora(Lora { adapter: id, ..lora }))
                        .expect("a place");
                    let seen: Vec<_> = tokens.by_ref().collect();
                    let paths = tokens.wait().expect("a generation").paths;
                    for path in 0..2 {
                        let seen = seen.iter().filter(|token| token.path == path).map(|token| token.token);
                        assert_eq!(seen.collect::<Vec<_>>(), paths[path as usize].token_ids);
                    }
                    assert_eq!(paths, alone(&options, &request, name, lora), "user {number}");
                }
            }
        };
        let users: Vec<_> = (0..4).map(|number| std::thread::spawn(user(number))).collect();
        users.into_iter().for_each(|user| user.join().expect("no panic"));
        settled(&service.client());
        let engine = service.stop().expect("the engine");
        assert_eq!(engine.adapter_slots(), (3, [2, 0]));
        assert!(engine.adapter_counts().evictions > 0, "{:?}", engine.adapter_counts());
    });
}

#[test]
fn a_running_request_keeps_the_adapter_that_it_began_with() {
    on_both(|options| {
        let room = AdapterRoom { slots: Some(2), rank: 16, bytes: None };
        let options = EngineOptions { adapters: room, ..options.clone() };
        let service = serve(&options);
        let client = service.client();
        let id = client.load_adapter(adapter("q-v"), 1.0).expect("an adapter");
        let long = request(5, 40, 1).with_lora(Lora::new(id));
        let mut first = client.submit(long.clone()).expect("a place");
        first.next().expect("a token");
        client.replace_adapter(id, adapter("all-linear"), 1.0).expect("an adapter");
        let second = client.generate(long.clone()).expect("a generation").paths;
        client.remove_adapter(id).expect("it was loaded");
        let error = client.generate(long.clone()).expect_err("it is forgotten");
        assert!(error.to_string().contains("adapter"), "{error}");
        let first = first.wait().expect("a generation").paths;
        assert_eq!(first, alone(&options, &long, Some("q-v"), Lora::new(id)));
        assert_eq!(second, alone(&options, &long, Some("all-linear"), Lora::new(id)));
        assert_ne!(first, second);
        settled(&client);
        let mut engine = service.stop().expect("the engine");
        assert_eq!(
            (engine.adapter_slots(), engine.backend().memory().lora > 0),
            ((0, [2, 0]), options.backend == BackendChoice::Gpu)
        );
    });
}

#[test]
fn an_adapter_that_needs_more_room_makes_what_runs_encode_again_and_go_on() {
    on_both(|options| {
        let service = serve(options);
        let client = service.client();
        let long = Request { paths: 2, ..request(5, 40, 1) };
        let mut tokens = client.submit(long.clone()).expect("a place");
        tokens.next().expect("a token");
        client.load_adapter(adapter("rank-16"), 1.0).expect("an adapter");
        assert_eq!(tokens.wait().expect("a generation").paths, alone(options, &long, None, Lora::BASE));
    });
}

#[test]
fn a_request_that_waits_keeps_the_room_that_its_forgotten_adapter_needs() {
    on_both(|options| {
        let options = &EngineOptions { sequences: 1, context: 16, ..options.clone() };
        let service = serve(options);
        let client = service.client();
        let id = client.load_adapter(adapter("rank-16"), 1.0).expect("an adapter");
        let mut first = client.submit(request(4, 12, 1)).expect("a place");
        first.next().expect("a token");
        let waits = client.submit(request(5, 6, 2).with_lora(Lora::new(id))).expect("a place");
        client.remove_adapter(id).expect("it was loaded");
        // More positions than there is room for: all is made anew.
        let longer = client.submit(request(10, 20, 3)).expect("a place");
        let [_, waits, longer] =
            [first, waits, longer].map(|tokens| tokens.wait().expect("a generation").paths);
        assert_eq!(waits, alone(options, &request(5, 6, 2), Some("rank-16"), Lora::new(id)));
        assert_eq!(longer, alone(options, &request(10, 20, 3), None, Lora::BASE));
    });
}

#[test]
fn dropping_or_cancelling_ends_a_request_and_no_other() {
    on_both(|options| {
        let service = serve(options);
        let client = service.client();
        let other = client.submit(request(4, 20, 2)).expect("a place");
        let mut dropped = client.submit(Request { paths: 4, ..request(6, 50, 1) }).expect("a place");
        dropped.next().expect("a token");
        drop(dropped);
        let cancelled = client.submit(request(6, 50, 1)).expect("a place");
        cancelled.cancel();
        let paths = cancelled.wait().expect("what there is").paths;
        assert_eq!(paths[0].finish, Finish::Cancelled);
        let late = Request { deadline: Some(Duration::ZERO), ..request(4, 9, 1) };
        let late = client.generate(late).expect("what there is").paths;
        assert_eq!((late[0].finish, late[0].token_ids.len()), (Finish::Deadline, 0));
        let paths = other.wait().expect("a generation").paths;
        assert_eq!(paths, alone(options, &request(4, 20, 2), None, Lora::BASE));
        settled(&client);
    });
}

#[test]
fn a_full_queue_refuses_and_bad_requests_are_told_apart() {
    let options = EngineOptions { sequences: 1, ..options(BackendChoice::Cpu) };
    let service = Service::start(open(&options), ServiceOptions { queue: 1 }).expect("a thread");
    let client = service.client();
    let long = Request { paths: 500, ..request(4, 40, 1) };
    let mut running = client.submit(long).expect("a place");
    running.next().expect("it runs, and waits no more");
    // Ends of requests free places only after a step: until then the second place may be taken.
    let waiting = client.submit_within(request(4, 2, 1), Duration::from_secs(60)).expect("a place");
    let refused: Vec<_> = (0..3).filter_map(|_| client.submit(request(4, 2, 1)).err()).collect();
    assert!(refused.iter().all(|error| matches!(error, Error::Busy(_))), "{refused:?}");
    assert!(!refused.is_empty());
    running.cancel();
    waiting.wait().expect("a generation");
    let bad = client.submit_within(Request::new(vec![9999], 2), Duration::from_secs(60)).expect("a place");
    assert!(bad.wait().expect_err("no such token").to_string().contains("9999"));
    assert!(service.stop().is_some());
    assert!(matches!(client.submit(request(4, 2, 1)), Err(Error::Stopped(_))));
}

#[test]
fn a_panic_in_a_callback_fails_its_request_alone() {
    let options = options(BackendChoice::Cpu);
    let service = serve(&options);
    let client = service.client();
    let other = client.submit(request(4, 30, 2)).expect("a place");
    let panics = client.submit_with(request(5, 30, 1), |event| {
        assert!(event.path > 0, "the callback's own mistake");
        Control::Continue
    });
    let error = panics.expect("a place").wait().expect_err("it panicked");
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(
        other.wait().expect("a generation").paths,
        alone(&options, &request(4, 30, 2), None, Lora::BASE)
    );
    let stops = client.submit_with(request(4, 30, 2), |_| Control::Stop).expect("a place");
    assert_eq!(stops.wait().expect("a generation").paths[0].token_ids.len(), 1);
}

#[test]
fn a_panic_in_an_observer_leaves_the_engine_usable() {
    on_both(|options| {
        let mut engine = open(options);
        for _ in 0..4 {
            let mut calls = 0;
            let run = std::panic::AssertUnwindSafe(|| {
                engine.stream_all(&[request(5, 30, 1), request(6, 30, 1)], |_| {
                    calls += 1;
                    panic!("the observer's own mistake")
                })
            });
            assert!(std::panic::catch_unwind(run).is_err());
            assert_eq!(calls, 1);
        }
        let paths = engine.generate(&request(4, 9, 2)).expect("a generation").paths;
        assert_eq!(paths, alone(options, &request(4, 9, 2), None, Lora::BASE));
    });
}

#[test]
fn a_device_that_is_lost_again_and_again_is_made_anew_and_requests_go_on_from_their_tokens() {
    on_both(|options| {
        let limits = Limits { lost_after: Some(12), ..Limits::default() };
        let mut engine = open(&EngineOptions { limits, ..options.clone() });
        let id = engine.load_adapter(adapter("all-linear"), 1.0).expect("an adapter");
        let lora = Lora { from: ActiveFrom::Generated, ..Lora::new(id) };
        let sampling = Sampling { penalty: 1.3, ..request(1, 1, 1).sampling };
        let adapted = Request { sampling, ..request(9, 12, 1) }.with_lora(lora);
        let base = Request { paths: 2, ..request(17, 12, 2) };
        let mut tokens = 0;
        let generations = engine
            .stream_all(&[adapted.clone(), base.clone()], |_| {
                tokens += 1;
                Control::Continue
            })
            .expect("generations");
        assert_eq!(generations[0].paths, alone(options, &adapted, Some("all-linear"), lora));
        assert_eq!(generations[1].paths, alone(options, &base, None, Lora::BASE));
        assert_eq!(tokens, 36, "no token is told twice");
    });
}

#[test]
fn a_device_that_can_never_run_a_step_gives_an_error_and_no_endless_loop() {
    let limits = Limits { lost_after: Some(0), ..Limits::default() };
    let options = EngineOptions { limits, ..options(BackendChoice::Cpu) };
    let service = serve(&options);
    for _ in 0..2 {
        let error = service.client().generate(request(4, 4, 1)).expect_err("no step ever");
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
}

#[test]
fn a_policy_narrows_what_a_request_asks_for() {
    let options = options(BackendChoice::Cpu);
    let mut engine = open(&options);
    let id = engine.load_adapter(adapter("all-linear"), 1.0).expect("an adapter");
    let asked = request(6, 8, 3);
    let layer_0 = Lora { layers: LayerMask::of([0]), from: ActiveFrom::Position(8), ..Lora::new(id) };
    let expected = engine.generate(&Request { paths: 2, ..asked.clone() }.with_lora(layer_0)).expect("one");
    let unchanged = engine.generate(&asked.clone().with_lora(Lora::new(id))).expect("one");
    let decision = LoraDecision { layers: 1, from: 8, paths: Some(2) };
    engine.set_policy(Some(Box::new(FixedPolicy(decision))));
    let decided = engine.generate(&asked.clone().with_lora(Lora::new(id))).expect("one");
    assert_eq!(decided.paths, expected.paths);
    assert_ne!(decided.paths[0], unchanged.paths[0]);
    struct Broken;
    impl wattle_engine::LoraPolicy for Broken {
        fn decide(&mut self, _: &wattle_engine::RequestFacts) -> LoraDecision {
            panic!("the policy's own mistake")
        }
    }
    engine.set_policy(Some(Box::new(Broken)));
    assert!(engine.generate(&asked).expect_err("it panics").to_string().contains("policy"));
    engine.set_policy(None);
    assert_eq!(engine.generate(&asked.with_lora(Lora::new(id))).expect("one").paths, unchanged.paths);
}

#[test]
fn a_byte_budget_bounds_the_slots_and_an_adapter_that_never_fits_is_refused() {
    let base = options(BackendChoice::Cpu);
    let with = |bytes| {
        let adapters = AdapterRoom { slots: None, rank: 0, bytes: Some(bytes) };
        open(&EngineOptions { adapters, ..base.clone() })
    };
    let mut small = with(16);
    let error = small.load_adapter(adapter("rank-16"), 1.0).expect_err("16 bytes hold no slot").to_string();
    assert!(error.contains("budget is 16"), "{error}");
    let each: u64 = error.split(' ').find_map(|word| word.parse().ok().filter(|&n| n > 1000)).expect("bytes");
    let mut engine = with(2 * each + 5);
    let load = |engine: &mut Engine, name| -> AdapterId {
        engine.load_adapter(adapter(name), 1.0).expect("an adapter")
    };
    let adapters: Vec<AdapterId> = ["rank-16", "rank-16", "rank-16", "rank-16", "rank-16", "rank-16", "q-v"]
        .map(|name| load(&mut engine, name))
        .to_vec();
    assert_eq!(engine.adapter_slots(), (7, [2, 0]));
    let requests: Vec<Request> =
        adapters.iter().map(|&id| request(4, 5, 1).with_lora(Lora::new(id))).collect();
    let together = engine.generate_all(&requests).expect("generations");
    assert_eq!(together[0].paths, together[3].paths);
    assert_eq!(together[6].paths, alone(&base, &requests[6], Some("q-v"), requests[6].lora));
    assert!(engine.adapter_counts().evictions > 0);
    let whole = Adapter::load(&adapter("rank-16"), engine.spec()).expect("it loads");
    engine.replace_adapter(adapters[0], whole).expect("room as before");
}

/// Keeps what the service tells, by name.
#[derive(Default)]
struct Recorder(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Recorder {
    fn of(&self, name: &str) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().expect("no panic").entry(name.into()).or_default())
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.of(key.name()))
    }

    fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.of(key.name()))
    }

    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

#[test]
fn what_happens_is_told_to_the_metrics_facade() {
    let recorder: &'static Recorder = Box::leak(Box::default());
    metrics::set_global_recorder(recorder).expect("no other test sets one");
    let adapters = AdapterRoom { slots: Some(1), rank: 16, bytes: None };
    let service = serve(&EngineOptions { adapters, ..options(BackendChoice::Cpu) });
    let client = service.client();
    for name in ["q-v", "rank-16"] {
        let id = client.load_adapter(adapter(name), 1.0).expect("an adapter");
        let request = Request { paths: 2, ..request(6, 5, 1) };
        client.generate(request.with_lora(Lora::new(id))).expect("a generation");
    }
    settled(&client);
    drop(service.stop());
    let value = |name: &str| recorder.of(name).load(Ordering::Relaxed);
    // Other tests of this process may add to the counters, and set the gauges.
    assert!(value("wattle_new_tokens_total") >= 20 && value("wattle_prompt_tokens_total") >= 12);
    assert!(value("wattle_requests_total") >= 2 && value("wattle_shared_positions_total") >= 10);
    assert!(value("wattle_adapter_loads_total") >= 2 && value("wattle_adapter_evictions_total") >= 1);
    assert!(value("wattle_pages_copied_total") >= 2);
    let gauge = |name| f64::from_bits(value(name));
    assert!(gauge("wattle_adapter_slots") >= 1.0 && gauge("wattle_pages") >= 1.0);
}

//! Adapters of running requests: switched, with few slots; and requests beside which others are wrong or changed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::{Expected, engine, fixtures, options};
use wattle_engine::{
    AdapterRoom, BackendChoice, Control, Engine, EngineOptions, Finish, Generation, Lora, Request, Service,
    ServiceOptions,
};

fn model() -> PathBuf {
    fixtures().join("models/llama")
}

fn adapter(name: &str) -> PathBuf {
    model().join("adapters").join(name)
}

fn request(prompt: usize, new: usize) -> Request {
    let ids = Expected::read(&model()).ids("ids").expect("ids");
    Request { ignore_eos: true, ..Request::new(&ids[..prompt], new) }
}

/// Runs a check on the CPU, and on the GPU where there is one.
fn on_both(check: impl Fn(&EngineOptions)) {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        if engine(&model(), options(backend)).is_some() {
            check(&options(backend));
        }
    }
}

fn open(options: &EngineOptions) -> Engine {
    engine(&model(), options.clone()).expect("the backend was there a moment ago")
}

/// Three requests in an engine with so many slots: each is switched from one adapter to the other, or from none, and one
/// to a mask of what it has.
fn switched(options: &EngineOptions, slots: usize) -> Vec<Generation> {
    let room = AdapterRoom { slots: Some(slots), rank: 16, bytes: None };
    let mut engine = open(&EngineOptions { adapters: room, ..options.clone() });
    let [one, other] =
        ["all-linear", "rank-16"].map(|name| engine.load_adapter(adapter(name), 1.0).expect("an adapter"));
    let requests = [
        request(9, 14).with_lora(Lora::new(one)),
        request(6, 14).with_lora(Lora::new(other)),
        Request { paths: 2, ..request(12, 14) },
    ];
    let masked = Lora { layers: wattle_engine::LayerMask::of([1]), ..Lora::new(other) };
    let to = [Lora::new(other), masked, Lora::new(one)];
    let mut seen = [[0; 2]; 3];
    let switch = |event: &wattle_engine::Event<'_>| {
        let count = &mut seen[event.request][event.path as usize];
        *count += 1;
        if *count == 4 { Control::Switch(to[event.request]) } else { Control::Continue }
    };
    engine.stream_all(&requests, switch).expect("generations")
}

#[test]
fn with_one_slot_switched_paths_wait_for_each_other_and_give_the_same() {
    on_both(|options| {
        let [few, many] = [1, 4].map(|slots| switched(options, slots));
        for (few, many) in few.iter().zip(&many) {
            assert_eq!(few.paths, many.paths, "on {:?}", options.backend);
        }
        let base = open(options).generate(&request(12, 14)).expect("a generation");
        assert_ne!(few[2].paths[0].token_ids, base.paths[0].token_ids, "the switch is felt");
    });
}

#[test]
fn a_request_that_no_cache_holds_is_refused_and_nobody_else_starts_again() {
    let sprout = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/sprout");
    on_both(|options| {
        let open = |options: &EngineOptions| Engine::load(&sprout, options.clone()).expect("sprout");
        let page = open(options).page_bytes();
        let options = EngineOptions { kv_bytes: Some(2 * page), context: 32, ..options.clone() };
        let request = || Request { ignore_eos: true, ..Request::new(vec![3, 1, 4, 1, 5], 60) };
        let alone = open(&options).generate(&request()).expect("a generation");
        let service = Service::start(open(&options), ServiceOptions::default()).expect("a thread");
        let client = service.client();
        let mut other = client.submit(request()).expect("a place");
        other.next().expect("a token");
        let restarts = client.load().restarts;
        let error = client.generate(Request::new(vec![1; 140], 4)).expect_err("two pages are 128 positions");
        assert!(error.to_string().contains("pages"), "{error}");
        assert_eq!(other.wait().expect("a generation").paths, alone.paths);
        assert_eq!(client.load().restarts, restarts);
    });
}

#[test]
fn a_cancel_does_not_wait_behind_changes_of_adapters() {
    let options = options(BackendChoice::Cpu);
    let service = Service::start(open(&options), ServiceOptions::default()).expect("a thread");
    let client = service.client();
    let id = client.load_adapter(adapter("q-v"), 1.0).expect("an adapter");
    // Holds the engine's thread at the first token of another request, until told.
    let (told, wait) = mpsc::channel::<()>();
    let (begun, began) = mpsc::channel();
    let wait = Mutex::new(wait);
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let cancelled = client.submit_with(request(4, 50), move |_| {
        counting.fetch_add(1, Ordering::SeqCst);
        Control::Continue
    });
    let cancelled = cancelled.expect("a place");
    let holds = client
        .submit_with(request(3, 1), move |_| {
            begun.send(()).expect("the test listens");
            wait.lock().expect("no panic").recv().expect("the test tells");
            Control::Continue
        })
        .expect("a place");
    began.recv().expect("it begins");
    let before = count.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| client.replace_adapter(id, adapter("rank-1"), 1.0).expect("it is replaced"));
        }
        // Long enough for the changes to be asked for, nearly always; where not, the test says less.
        std::thread::sleep(std::time::Duration::from_millis(300));
        cancelled.cancel();
        told.send(()).expect("it waits");
    });
    holds.wait().expect("a generation");
    let path = &cancelled.wait().expect("what there is").paths[0];
    assert_eq!(path.finish, Finish::Cancelled);
    let after = path.token_ids.len() - before;
    assert!(after <= 1, "{after} more tokens: only the step that was under way has one");
}

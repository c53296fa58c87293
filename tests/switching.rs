//! Adapters of running requests: switched, with few slots; and requests beside which others are wrong or changed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

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
    common::on_both(&model(), check);
}

fn open(options: &EngineOptions) -> Engine {
    engine(&model(), options.clone()).expect("the backend was there a moment ago")
}

/// Three requests in an engine with so many slots: each is switched from one adapter to the other, or from none, and one
/// to a mask of what it has. With how often an adapter was put into a slot.
fn switched(options: &EngineOptions, slots: usize) -> (Vec<Generation>, u64) {
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
    let generations = engine.stream_all(&requests, switch).expect("generations");
    (generations, engine.adapter_counts().loads)
}

#[test]
fn with_one_slot_switched_paths_wait_for_each_other_and_give_the_same() {
    on_both(|options| {
        let [(few, turns), (many, loads)] = [1, 4].map(|slots| switched(options, slots));
        assert_eq!(loads, 2, "each has a slot of its own");
        assert!(turns >= 3, "{turns}: the adapters take turns in the only slot");
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
        let options = EngineOptions { kv_bytes: Some(2 * page), context: 65, ..options.clone() };
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
    // The engine's thread stays at the request's first token until told.
    let (told, wait) = mpsc::channel::<()>();
    let (begun, began) = mpsc::channel();
    let request = client.submit_with(request(4, 50), move |_| {
        begun.send(()).ok();
        wait.recv().ok();
        Control::Continue
    });
    let request = request.expect("a place");
    began.recv().expect("it begins");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| client.replace_adapter(id, adapter("rank-1"), 1.0).expect("it is replaced"));
        }
        // Long enough for the changes to be asked for, nearly always; where not, the test says less.
        std::thread::sleep(Duration::from_millis(300));
        request.cancel();
        drop(told);
    });
    let path = &request.wait().expect("what there is").paths[0];
    assert_eq!((path.finish, path.token_ids.len()), (Finish::Cancelled, 1), "no step came between");
}

//! LoRA factors as they are kept: f32 in exact precision, binary16 times a power of two in fast precision.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Expected, engine, error, fixtures, options};
use wattle_engine::adapter::{Adapter, Pair};
use wattle_engine::plan::FactorType;
use wattle_engine::{AdapterId, BackendChoice, Engine, EngineOptions, Lora, Precision};
use wattle_policy::{CostSource, OpCost, StepShape};

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Cpu, BackendChoice::Gpu];

fn dir(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn ids(name: &str) -> Vec<u32> {
    Expected::read(&dir(name)).ids("ids").expect("ids")
}

/// The engine of a model, and its adapter with the factors changed; `None` where it needs a GPU and there is none.
fn adapted(
    backend: BackendChoice,
    precision: Precision,
    (name, adapter): (&str, &str),
    change: impl Fn(&mut Pair),
) -> Option<(Engine, AdapterId)> {
    let mut engine = engine(&dir(name), EngineOptions { precision, ..options(backend) })?;
    let mut adapter = Adapter::load(&dir(name).join("adapters").join(adapter), engine.spec()).expect("loads");
    Arc::make_mut(&mut adapter.factors).pairs_mut().values_mut().for_each(change);
    let id = engine.add_adapter(adapter).expect("a slot");
    Some((engine, id))
}

/// Multiplies A by a power of two and divides B by it: the same adapter.
fn shifted(exponent: i32) -> impl Fn(&mut Pair) {
    move |pair| {
        pair.a.iter_mut().for_each(|a| *a *= 2.0_f32.powi(exponent));
        pair.b.iter_mut().for_each(|b| *b *= 2.0_f32.powi(-exponent));
    }
}

const ADAPTERS: [(&str, &str); 3] =
    [("llama", "all-linear"), ("gpt2-prefix", "c-attn-c-proj-c-fc"), ("phi3", "fused")];

#[test]
fn the_size_of_factors_changes_no_bit() {
    for backend in BACKENDS {
        for precision in [Precision::Exact, Precision::Fast] {
            for of in ADAPTERS {
                let logits = |exponent| {
                    let (mut engine, id) = adapted(backend, precision, of, shifted(exponent))?;
                    Some(engine.logits(&ids(of.0), &Lora::new(id)).expect("logits"))
                };
                let Some(expected) = logits(0) else { continue };
                // Beyond what binary16 holds, and below it, as A and as B.
                for exponent in [40, -40] {
                    let seen = logits(exponent).expect("the backend was there a moment ago");
                    assert!(seen == expected, "{of:?} by 2^{exponent} on {backend:?}, {precision:?}");
                }
            }
        }
    }
}

#[test]
fn factors_as_f16_stay_close_to_those_as_f32() {
    for backend in BACKENDS {
        for of in ADAPTERS {
            let logits = |precision| {
                let (mut engine, id) = adapted(backend, precision, of, |_| {})?;
                let base = engine.logits(&ids(of.0), &Lora::BASE).expect("logits");
                Some((base, engine.logits(&ids(of.0), &Lora::new(id)).expect("logits")))
            };
            let (Some((base, exact)), Some((_, fast))) = (logits(Precision::Exact), logits(Precision::Fast))
            else {
                continue;
            };
            let (effect, error) = (error(&exact, &base), error(&fast, &exact));
            println!("{of:?} on {backend:?}: {error:.1e}, the adapter's effect being {effect:.1e}");
            // A and B are each off by at most 2^-11 of every element: 2^-10 of what the adapter adds in a place, if
            // nothing cancels there. The layers behind it make at most 1.3 times that of it, as measured.
            assert!(
                error > 0.0 && error < 4.0 * effect * 2.0_f32.powi(-10),
                "{of:?} on {backend:?}: {error:.1e}"
            );
        }
    }
}

#[test]
fn f16_halves_what_an_adapter_takes_and_costs() {
    for backend in BACKENDS {
        let run = |precision| {
            let (mut engine, id) = adapted(backend, precision, ADAPTERS[0], |_| {})?;
            let (plan, shape) = (engine.priced_plan(id)?, StepShape::decode(1, 7).with_adapter(4));
            let cost: OpCost = (0..plan.ops.len()).map(|op| plan.cost(op, &shape)).sum();
            Some((plan.factors, engine.backend().memory().lora, cost))
        };
        let (Some(exact), Some(fast)) = (run(Precision::Exact), run(Precision::Fast)) else { continue };
        assert_eq!((exact.0, fast.0), (FactorType::F32, FactorType::F16));
        assert_eq!((2 * fast.2.lora_bytes, fast.2.weight_bytes), (exact.2.lora_bytes, exact.2.weight_bytes));
        // On a GPU with tables of ranks and scales, which are small.
        let share = fast.1 as f64 / exact.1 as f64;
        let tables = if backend == BackendChoice::Cpu { 0.0 } else { 0.05 };
        assert!((share - 0.5).abs() <= tables, "{share} on {backend:?}");
    }
}

//! Models without weights, and with wider ones.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use wattle_engine::model::{Dtype, Model, Quant};
use wattle_engine::plan::{self, LoraCapacity, Plan};
use wattle_engine::{BackendChoice, Engine, EngineOptions, Lora};
use wattle_policy::{CostSource, StepShape};

const LORA: LoraCapacity = LoraCapacity { slots: 1, rank: 16, outside: true };

fn ops(plan: &Plan) -> Vec<&str> {
    plan.ops.iter().map(|op| op.name.as_str()).collect()
}

#[test]
fn a_model_without_weights_costs_what_one_with_weights_costs() {
    let shape = StepShape::prefill(5, 3).with_adapter(4);
    for (name, quant) in [("tiny", Some(Quant::Q4_0)), ("tiny", Some(Quant::Int8)), ("tiny", None)] {
        let random = Model::random(name, Dtype::F16, 0).expect("a shape");
        let random =
            quant.map_or(Ok(random.clone()), |quant| random.quantized(quant)).expect("finite weights");
        let blank = Model::blank(name, quant).expect("a shape");
        let [random, blank] = [random, blank].map(|model| plan::build(&model.spec, &model.weights, LORA));
        let costs = |plan: &Plan| (0..plan.ops.len()).map(|i| plan.cost(i, &shape)).collect::<Vec<_>>();
        assert_eq!(ops(&random), ops(&blank));
        assert_eq!(costs(&random), costs(&blank), "{name} {quant:?}");
    }
    assert!(Model::blank("nothing", None).is_err());
}

#[test]
fn a_widened_model_has_the_same_numbers_in_more_bytes() {
    let half = Model::random("tiny", Dtype::F16, 3).expect("a shape");
    let wide = half.widened().expect("memory");
    let [half_q, wide_q] = [&half, &wide].map(|model| &model.weights.layers[1].q.weight);
    assert_eq!(wide_q.bytes(), 2 * half_q.bytes());
    let logits = |model: Model| {
        let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::default() };
        let mut engine = Engine::from_model(model, options).expect("an engine");
        engine.logits(&[1, 2, 3], &Lora::BASE).expect("logits")
    };
    assert_eq!(logits(half), logits(wide));
}

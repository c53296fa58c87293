//! Tests of the backend itself; its kernels are tested in `tests/kernels`.

use std::sync::Arc;

use wattle_kernels_cpu::fast::Precision;
use wattle_policy::{CostSource, OpCost, RowShape, StepShape};
use wattle_shaders::{FROM_STATE, LayerMask, Row, Sample};

use super::{CpuBackend, CpuOptions, Mode};
use crate::adapter::{Factors, Pair};
use crate::backend::{Backend, Capacity, Doors, Limits, PlanHandle, Step};
use crate::error::Error;
use crate::model::{Dtype, Model};
use crate::plan::{self, Extent, FactorType, FuseOptions, LoraCapacity, Op, Plan, TensorId};

const CAPACITY: Capacity = Capacity { sequences: 3, context: 32, pages: 3, rows: 8, samples: 4 };

/// The plain plan, the CPU's, and a GPU's; the CPU's keeps factors as f16.
fn plans() -> [Arc<Plan>; 3] {
    let model = Model::random("tiny", Dtype::Bf16, 7).expect("a known shape");
    let lora = LoraCapacity { slots: 2, rank: 4, outside: true };
    let plain = plan::build(&model.spec, &model.weights, lora);
    let fused = [FuseOptions::CPU, FuseOptions::gpu(1 << 20)].map(|options| plan::fuse(&plain, options));
    let [cpu, gpu] = fused;
    [plain, cpu.with_factors(FactorType::F16), gpu].map(Arc::new)
}

fn backend(mode: Mode, plan: &Arc<Plan>) -> (CpuBackend, PlanHandle) {
    let limits = Limits { guards: true, ..Limits::default() };
    let options =
        CpuOptions { mode, precision: Precision::Exact, threads: Some(2), limits, capacity: CAPACITY };
    let mut backend = CpuBackend::new(options).expect("threads");
    let handle = backend.prepare(plan).expect("a plan");
    (backend, handle)
}

fn sample(row: u32, sequence: u32) -> Sample {
    Sample { row, sequence, top_p: 1.0, penalty: 1.0, ..bytemuck::Zeroable::zeroed() }
}

/// Two sequences in the middle of their texts, with and without LoRA.
fn step() -> Step {
    let row = |i: u32| {
        let row = Row::prompt(i * 7 % 5, 4 + i / 2, i % 2);
        if i.is_multiple_of(3) {
            Row { slot: i % 2, lora: LayerMask::of([0, 2]).words(), ..row }
        } else {
            row
        }
    };
    Step { rows: (0..8).map(row).collect(), samples: vec![sample(3, 1), sample(6, 0)] }
}

fn factors(plan: &Plan, rank: usize) -> Arc<Factors> {
    let mut factors = Factors::default();
    for site in plan.ops.iter().flat_map(Op::sites) {
        for target in &site.targets {
            let values = |len: usize| (0..len).map(|i| (i % 11) as f32 * 0.02 - 0.1).collect();
            let (cols, rows) = (site.cols, target.rows);
            let pair = Pair { rank, cols, rows, a: values(rank * cols), b: values(rows * rank) };
            factors
                .pairs_mut()
                .insert(crate::adapter::Place { layer: site.layer, target: target.target }, pair);
        }
    }
    Arc::new(factors)
}

/// With two slots of different ranks, partly masked, and sites outside the layers; `tests/plan.rs` has whole models.
#[test]
fn costs_are_what_the_twins_count() {
    for plan in plans() {
        let (mut backend, handle) = backend(Mode::Plain, &plan);
        for slot in 0..2 {
            backend.set_slot(slot, Some(factors(&plan, 1 + 2 * slot))).expect("factors");
        }
        let step = step();
        let row = |(index, row): (usize, &Row)| RowShape {
            token: row.token,
            sequence: row.sequence,
            position: row.position,
            sampled: step.samples.iter().any(|sample| sample.row as usize == index),
            slot: (row.slot < 2).then_some(row.slot),
            lora: LayerMask::from_words(row.lora).0,
        };
        let shape = StepShape {
            rows: step.rows.iter().enumerate().map(row).collect(),
            ranks: vec![1, 3],
            ..StepShape::default()
        };
        let doors = Doors { range: 0..plan.ops.len(), ..Doors::default() };
        let counted = backend.count(handle, &step, &doors).expect("a count");
        for (index, counted) in counted.into_iter().enumerate() {
            let bytes = OpCost { flops: 0, lora_flops: 0, launches: 0, ..plan.cost(index, &shape) };
            assert_eq!(counted, bytes, "{}", plan.ops[index].name);
        }
    }
}

#[test]
fn a_step_through_doors_is_the_step() {
    for (plan, mode) in plans().into_iter().zip([Mode::Plain, Mode::Fast, Mode::Fast]) {
        let (mut backend, handle) = backend(mode, &plan);
        let everything: Vec<TensorId> = plan.ops.iter().flat_map(Op::outputs).collect();
        let whole = Doors { range: 0..plan.ops.len(), taps: everything, ..Doors::default() };
        let taps = backend.run(handle, &step(), &whole).expect("a run");
        for cut in 1..plan.ops.len() {
            let import =
                plan.live_in(cut..plan.ops.len()).into_iter().map(|id| (id, taps[&id].clone())).collect();
            let range = cut..plan.ops.len();
            let written: Vec<_> = plan.ops[range.clone()].iter().flat_map(Op::outputs).collect();
            let rest = backend.run(handle, &step(), &Doors { range, import, taps: written });
            for (id, values) in rest.expect("a run") {
                let same = values.iter().zip(&taps[&id]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} after a cut before {}", plan.tensor(id).name, plan.ops[cut].name);
            }
        }
        backend.check_guards().expect("guards");
    }
}

#[test]
fn rows_that_are_not_sampled_end_behind_the_last_attention() {
    let [plain, early, _] = plans();
    let options = FuseOptions { early_select: false, ..FuseOptions::CPU };
    let late = Arc::new(plan::fuse(&plain, options).with_factors(FactorType::F16));
    let of_samples = |op: &&Op| op.output.is_some_and(|id| early.tensor(id).extent == Extent::Samples);
    let layers: Vec<&str> =
        early.ops.iter().filter(of_samples).filter_map(|op| op.name.strip_prefix("layers.")).collect();
    let loras = ["o.lora_down", "o", "mlp_norm", "gate_up.lora_down", "gate_up", "down.lora_down", "down"];
    assert_eq!(layers, loras.map(|name| format!("{}.{name}", early.kv.layers - 1)));
    let mut from_the_start = step();
    from_the_start.rows.iter_mut().for_each(|row| row.position -= 4);
    for samples in 0..=2 {
        let step = Step { samples: from_the_start.samples[..samples].to_vec(), ..from_the_start.clone() };
        let [early, late] = [&early, &late].map(|plan| {
            let (mut backend, handle) = backend(Mode::Fast, plan);
            for slot in 0..2 {
                backend.set_slot(slot, Some(factors(plan, 1 + 2 * slot))).expect("factors");
            }
            let logits = plan.find("head").expect("logits");
            let doors = Doors { range: 0..plan.ops.len(), taps: vec![logits], ..Doors::default() };
            backend.run(handle, &step, &doors).expect("a run").remove(&logits).expect("a tap")
        });
        assert_eq!(early.len(), samples * plain.vocab);
        assert!(early.iter().all(|logit| logit.is_finite()) && early == late, "{samples} samples");
    }
}

#[test]
fn wrong_steps_are_refused_by_name() {
    let [plan, ..] = plans();
    let (mut backend, handle) = backend(Mode::Fast, &plan);
    let wrong = |change: &dyn Fn(&mut Step)| {
        let mut step = step();
        change(&mut step);
        step
    };
    let steps = [
        ("step.rows[2].token", wrong(&|s| s.rows[2].token = 173)),
        ("step.rows[1].position", wrong(&|s| s.rows[1].position = 32)),
        ("step.rows[2].position", wrong(&|s| s.rows[2].position = 4)),
        ("step.rows[0].sequence", wrong(&|s| s.rows[0].sequence = 3)),
        ("step.rows[3].slot", wrong(&|s| s.rows[3].slot = 2)),
        ("step.rows[5].flags", wrong(&|s| s.rows[5].flags = wattle_shaders::LONG_ROPE)),
        ("step.rows[5].flags", wrong(&|s| s.rows[5].flags = wattle_shaders::GENERATED)),
        ("step.samples[1].row", wrong(&|s| s.samples[1].row = 8)),
        ("step.samples[1].row", wrong(&|s| s.samples[1].row = 3)),
        ("step.samples[0].sequence", wrong(&|s| s.samples[0].sequence = 0)),
        ("step.samples[0].temperature", wrong(&|s| s.samples[0].temperature = f32::NAN)),
        ("step.samples[0].penalty", wrong(&|s| s.samples[0].penalty = 0.0)),
        ("step.rows", wrong(&|s| s.rows.extend_from_within(..))),
        ("step.samples", wrong(&|s| s.samples = vec![s.samples[0]; 5])),
    ];
    for (field, step) in steps {
        match backend.submit(handle, &step) {
            Err(Error::Value { name, .. }) => assert_eq!(name, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    let ticket = backend.submit(handle, &wrong(&|s| (s.rows[2].token, s.rows[2].flags) = (999, FROM_STATE)));
    let ticket = ticket.expect("a token from the state is not looked at");
    assert_eq!(backend.collect(ticket).expect("a result").len(), 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let [plan, ..] = plans();
    let (mut backend, handle) = backend(Mode::Fast, &plan);
    assert!(backend.set_slot(0, Some(factors(&plan, 5))).is_err(), "rank 5 of 4");
    assert!(backend.set_slot(2, Some(factors(&plan, 1))).is_err(), "slot 2 of 2");
    let mut other = (*factors(&plan, 2)).clone();
    other.pairs_mut().values_mut().for_each(|pair| pair.cols += 1);
    assert!(backend.set_slot(0, Some(Arc::new(other))).is_err(), "factors of another model");
    let missing = Doors { range: 2..3, ..Doors::default() };
    assert!(backend.run(handle, &step(), &missing).is_err(), "nothing imported");
    assert!(backend.run(handle, &step(), &Doors { range: 0..999, ..Doors::default() }).is_err());
    assert!(backend.export_kv(3, 0, 1).is_err() && backend.export_kv(0, 0, 33).is_err());
    assert!(backend.import_kv(0, 0, &[vec![0.0; 3], vec![0.0; 3]]).is_err());
    assert!(backend.reset_sequence(3, &[]).is_err() && backend.reset_sequence(0, &[173]).is_err());
    assert!(backend.copy_page(0, 3).is_err() && backend.copy_page(3, 0).is_err());
    assert!(backend.set_pages(0, &[3]).is_err(), "page 3 of 3");
    assert!(backend.set_pages(0, &[0, 1]).is_err(), "two pages for 32 positions");
    assert!(backend.set_pages(3, &[0]).is_err(), "sequence 3 of 3");
    backend.set_pages(0, &[]).expect("a table");
    let error = backend.submit(handle, &step()).expect_err("no page for a position").to_string();
    assert!(error.contains("step.rows[0].position"), "{error}");
    let mut broken = (*plan).clone();
    broken.tensors[3].width += 1;
    assert!(backend.prepare(&Arc::new(broken)).is_err(), "widths contradict each other");
    let options = CpuOptions {
        mode: Mode::Fast,
        precision: Precision::Exact,
        threads: None,
        limits: Limits::default(),
        capacity: Capacity { sequences: 1, context: 64, pages: 1 << 50, rows: 1, samples: 1 },
    };
    let error = CpuBackend::new(options).expect("no memory yet").prepare(&plan).expect_err("2^56 positions");
    assert!(error.to_string().contains("KV cache"), "{error}");
}

#[test]
fn a_sequence_that_shares_a_page_or_has_a_copy_goes_on_like_its_source() {
    let [_, plan, _] = plans();
    let (mut backend, handle) = backend(Mode::Fast, &plan);
    let rows = (0..8).map(|i| Row::prompt(i * 3, i, 0)).collect();
    backend.submit(handle, &Step { rows, samples: Vec::new() }).expect("a prompt");
    let seen: Vec<u32> = (0..8).map(|i| i * 3).collect();
    backend.copy_page(0, 2).expect("a copy");
    backend.reset_sequence(1, &seen).expect("a state");
    backend.reset_sequence(2, &seen).expect("a state");
    backend.set_pages(1, &[0]).expect("a table");
    let mut next = |sequence| {
        let row = Row::prompt(24, 8, sequence);
        let step = Step { rows: vec![row], samples: vec![Sample { penalty: 2.0, ..sample(0, sequence) }] };
        let ticket = backend.submit(handle, &step).expect("a step");
        backend.collect(ticket).expect("a token")
    };
    let drawn = [0, 1, 2].map(&mut next);
    assert!(drawn[0] == drawn[1] && drawn[0] == drawn[2], "{drawn:?}");
    let counters = backend.counters();
    assert_eq!((counters.readback_bytes, counters.steps, counters.rows), (48, 4, 11));
}

#[test]
fn timings_name_every_op_once() {
    let [_, plan, _] = plans();
    let (mut backend, handle) = backend(Mode::Fast, &plan);
    backend.submit(handle, &step()).expect("a step");
    assert!(backend.take_timings().is_empty(), "off at first");
    backend.set_timing(true);
    backend.submit(handle, &step()).expect("a step");
    let timings = backend.take_timings();
    assert_eq!(timings.len(), plan.ops.len());
    assert!(timings.iter().all(|timing| timing.launches == 1));
    assert!(backend.take_timings().is_empty());
}

//! The GPU backend: every kernel's cases on it, with all that the device has, without subgroups, and within tiny
//! limits; steps in flight; timing; refusals.
//!
//! Without an adapter the tests say so and pass; under `WATTLE_REQUIRE_GPU=1` they fail.
#![cfg(feature = "gpu")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use wattle_engine::backend::gpu::{Ceilings, GpuBackend, GpuOptions, devices};
use wattle_engine::backend::{Backend, Capacity, Limits, Step, Ticket};
use wattle_engine::plan::{Op, OpKind};
use wattle_engine::{Error, Result};
use wattle_tests::{Act, Case, Failure, Make, kernels};

fn options(limits: Limits, checked: bool) -> GpuOptions {
    let capacity = Capacity { sequences: 1, context: 1, rows: 1, samples: 1 };
    let limits = Limits { guards: true, ..limits };
    GpuOptions { limits, capacity, allow_software: true, device: None, checked }
}

/// A backend with these limits, on any adapter; its siblings share the device and the pipelines.
fn device(limits: Limits, checked: bool) -> Result<Option<GpuBackend>> {
    let required = std::env::var_os("WATTLE_REQUIRE_GPU").is_some_and(|value| value == "1");
    match GpuBackend::new(&options(limits, checked)) {
        Err(error @ Error::Device { .. }) if !required => {
            println!("skipped: {error}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// What is varied, the limits, and whether shaders check their bounds (they do not in production).
fn variants() -> [(&'static str, Limits, bool); 3] {
    let all = Limits::default();
    let without = Limits { subgroups: false, f16: false, ..all };
    [
        ("all features", all, false),
        ("no subgroups, no f16", without, true),
        ("tiny limits", Limits::tiny(), true),
    ]
}

/// The least binding that a case runs with: its activations, one head's keys of one sequence, one row of a matrix, the
/// B pool of a projection and the A pool of what is carried are not split. A power of two, so that cases share devices.
fn least_binding(case: &Case) -> u64 {
    let rows = |width: usize| case.capacity.rows.max(case.capacity.samples) * width.next_multiple_of(4);
    let activations = rows(case.plan.max_width());
    let keys = case.capacity.context * case.plan.kv.head_dim.next_multiple_of(4);
    let pool = |op: &Op| match &op.kind {
        OpKind::LoraDown { .. } | OpKind::LoraEmbed { .. } | OpKind::LoraUp { .. } => 0,
        _ => op.sites().map(|site| site.ranks_len() + site.b_len()).max().unwrap_or(0),
    };
    let carried = |op: &Op| op.carry.as_ref().map_or(0, |carry| carry.site.a_pool_len());
    // A matrix whose launches carry partial sums is not split within one.
    let matrix = |op: &Op| match &op.kind {
        OpKind::GateUp(g) if op.carry.is_some() => (g.gate.rows + 16) * (g.gate.cols + 128),
        _ => 0,
    };
    let pools = case.plan.ops.iter().map(|op| pool(op).max(carried(op)).max(matrix(op)));
    let elements = pools.max().unwrap_or(0).max(activations).max(keys);
    (elements as u64 * 4).next_power_of_two()
}

/// Runs `check` on every case with every variant of limits; what failed.
fn every_case(check: impl Fn(&Case, Make) -> Result<f32, Failure>) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for (variant, limits, checked) in variants() {
        let mut devices = BTreeMap::new();
        for (kernel, cases) in kernels() {
            let mut largest = 0.0_f32;
            for case in cases() {
                let limits = Limits { binding: limits.binding.max(least_binding(&case)), ..limits };
                let device = match devices.entry(limits.binding) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => match device(limits, checked)? {
                        Some(device) => new.insert(device),
                        None => return Ok(failures),
                    },
                };
                let make = |case: &Case| -> Result<Box<dyn Backend>> {
                    Ok(Box::new(device.sibling(case.capacity)?))
                };
                match check(&case, &make) {
                    Ok(error) => largest = largest.max(error),
                    Err(failure) => failures.push(format!("{variant}: {kernel}: {failure}")),
                }
            }
            println!("{variant}: {kernel}: largest error {largest:.1e}");
        }
    }
    Ok(failures)
}

#[test]
fn kernels_are_their_twins() {
    let failures = every_case(|case, make| Ok(case.check(make)?.error)).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rows_and_masks_are_exact() {
    let failures = every_case(|case, make| case.check_exact(make).map(|()| 0.0)).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A case whose acts are all whole steps, and these steps.
fn steps() -> Option<(Case, Vec<Step>)> {
    let step = |act: &Act| match act {
        Act::Submit(step) => Some(step.clone()),
        Act::Run { .. } => None,
    };
    let cases = kernels().into_iter().flat_map(|(_, cases)| cases());
    let whole = cases.filter_map(|case| {
        let steps = case.acts.iter().map(step).collect::<Option<Vec<_>>>()?;
        Some((case, steps))
    });
    whole.max_by_key(|(_, steps)| steps.len())
}

#[test]
fn steps_in_flight_do_not_disturb_each_other() {
    let Some(device) = device(Limits::default(), false).unwrap() else { return };
    let (case, steps) = steps().unwrap();
    let mut one = device.sibling(case.capacity).unwrap();
    let mut many = device.sibling(case.capacity).unwrap();
    let plan = one.prepare(&case.plan).unwrap();
    assert_eq!(many.prepare(&case.plan).unwrap(), plan);
    let three: Vec<_> = steps.iter().cycle().take(3).collect();
    let expected: Vec<_> = three
        .iter()
        .map(|step| {
            let ticket = one.submit(plan, step).unwrap();
            one.collect(ticket).unwrap()
        })
        .collect();
    let tickets: Vec<_> = three.iter().map(|step| many.submit(plan, step).unwrap()).collect();
    assert!(matches!(many.submit(plan, three[0]), Err(Error::Value { .. })), "a fourth step in flight");
    let mut collected: Vec<_> =
        tickets.into_iter().rev().map(|ticket| many.collect(ticket).unwrap()).collect();
    collected.reverse();
    assert_eq!(collected, expected);
    assert!(matches!(many.collect(Ticket(1)), Err(Error::Value { .. })), "collected twice");
    let counters = many.counters();
    assert_eq!((counters.steps, counters.submits, counters.passes, counters.host_ops), (3, 3, 3, 0));
}

#[test]
fn ops_are_timed_where_the_device_can() {
    let Some(device) = device(Limits::default(), false).unwrap() else { return };
    let (case, steps) = steps().unwrap();
    let mut backend = device.sibling(case.capacity).unwrap();
    let plan = backend.prepare(&case.plan).unwrap();
    backend.set_timing(true);
    let ticket = backend.submit(plan, &steps[0]).unwrap();
    backend.collect(ticket).unwrap();
    let timings = backend.take_timings();
    if backend.info().timestamps {
        assert_eq!(timings.len(), case.plan.ops.len());
        assert!(timings.iter().map(|timing| timing.seconds).sum::<f64>() > 0.0);
    }
    assert!(backend.take_timings().is_empty());
}

#[test]
fn devices_that_are_not_there_are_refused_by_name() {
    let named = GpuOptions { device: Some("abacus".into()), ..options(Limits::default(), false) };
    let message = GpuBackend::new(&named).err().unwrap().to_string();
    assert!(message.contains("abacus") && message.contains("found"), "{message}");
    if devices().iter().all(|device| device.software) {
        let hard = GpuOptions { allow_software: false, ..options(Limits::default(), false) };
        assert!(matches!(GpuBackend::new(&hard), Err(Error::Device { .. })));
    }
}

#[test]
fn a_device_measures_what_it_reads_and_multiplies() {
    let required = std::env::var_os("WATTLE_REQUIRE_GPU").is_some_and(|value| value == "1");
    let ceilings = match Ceilings::open(&options(Limits::default(), false)) {
        Err(error @ Error::Device { .. }) if !required => return println!("skipped: {error}"),
        other => other.unwrap(),
    };
    for rate in [ceilings.read(0), ceilings.read(1 << 20), ceilings.multiply_adds()] {
        let rate = rate.unwrap();
        assert!(rate.is_finite() && rate > 1e6, "{rate}");
    }
}

//! The GPU backend: every kernel's cases on it, with all that the device has, without subgroups, and within tiny
//! limits; steps in flight; timing; refusals.
//!
//! Without an adapter the tests say so and pass; under `WATTLE_REQUIRE_GPU=1` they fail.
#![cfg(feature = "gpu")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use wattle_engine::backend::gpu::{Ceilings, GpuBackend, GpuOptions, Tile, devices, tiles};
use wattle_engine::backend::{Backend, Capacity, Limits, Step, Ticket};
use wattle_engine::cache::PAGE;
use wattle_engine::model::{Dtype, Format, Q4_0};
use wattle_engine::plan::{FactorType, Op, OpKind};
use wattle_engine::{Error, Precision, Result};
use wattle_tests::{Act, Case, Failure, Make, Rounded, kept, kernels, rounded};

fn options(limits: Limits, checked: bool) -> GpuOptions {
    let capacity = Capacity { sequences: 1, context: 1, pages: 1, rows: 1, samples: 1 };
    let limits = Limits { guards: true, ..limits };
    GpuOptions { limits, allow_software: true, checked, ..GpuOptions::new(capacity) }
}

/// A backend with these limits, on any adapter; its siblings share the device and the pipelines.
fn device(limits: Limits, checked: bool) -> Result<Option<GpuBackend>> {
    opened(&options(limits, checked))
}

/// The same, with these options.
fn opened(options: &GpuOptions) -> Result<Option<GpuBackend>> {
    let required = std::env::var_os("WATTLE_REQUIRE_GPU").is_some_and(|value| value == "1");
    match GpuBackend::new(options) {
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
    let without = Limits { subgroups: false, f16: false, coherent: false, ..all };
    [
        ("all features", all, false),
        ("no subgroups, no f16, nothing coherent", without, true),
        ("tiny limits", Limits::tiny(), true),
    ]
}

/// The least binding that a case runs with: its activations, one head's keys of all pages, one row of a matrix, the
/// B pool of a projection and the A pool of what is carried are not split. A power of two, so that cases share devices.
fn least_binding(case: &Case) -> u64 {
    let rows = |width: usize| case.capacity.rows.max(case.capacity.samples) * width.next_multiple_of(4);
    let activations = rows(case.plan.max_width());
    let keys = case.capacity.pages * PAGE * case.plan.kv.head_dim.next_multiple_of(4);
    let pool = |op: &Op| match &op.kind {
        OpKind::LoraDown { .. } | OpKind::LoraEmbed { .. } | OpKind::LoraUp { .. } => 0,
        _ => op.sites().map(|site| site.pool_bytes(case.plan.factors)[1]).max().unwrap_or(0),
    };
    let carried = |op: &Op| op.carry.as_ref().map_or(0, |carry| carry.site.pool_bytes(case.plan.factors)[0]);
    // A matrix whose launches carry partial sums is not split within one.
    let matrix = |op: &Op| match &op.kind {
        OpKind::GateUp(g) if op.carry.is_some() => 4 * (g.gate.rows + 16) * (g.gate.cols + 128),
        _ => 0,
    };
    let pools = case.plan.ops.iter().map(|op| pool(op).max(carried(op)).max(matrix(op)));
    let bytes = pools.max().unwrap_or(0).max(4 * activations).max(4 * keys);
    (bytes as u64).next_power_of_two()
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

#[test]
fn fast_precision_of_prompts_keeps_its_bound_and_is_exact_in_rows_and_masks() {
    check_bounds(&rounded(), Precision::Fast).unwrap();
}

#[test]
fn factors_of_any_size_keep_the_bound_of_f16_and_are_exact_in_rows_and_masks() {
    check_bounds(&kept(), Precision::Exact).unwrap();
}

/// Checks what is rounded on every variant.
fn check_bounds(cases: &[Rounded], precision: Precision) -> Result<()> {
    for (variant, limits, checked) in variants() {
        let options = GpuOptions { precision, ..options(limits, checked) };
        let limits = Limits { binding: limits.binding.max(1 << 17), ..options.limits };
        let Some(device) = opened(&GpuOptions { limits, ..options })? else { return Ok(()) };
        let make = |case: &Case| -> Result<Box<dyn Backend>> { Ok(Box::new(device.sibling(case.capacity)?)) };
        let check = |rounded: &Rounded| {
            rounded.case().check_exact(&make)?;
            rounded.check(&make)
        };
        let (shares, failures): (Vec<_>, Vec<_>) = cases.iter().map(check).partition(Result::is_ok);
        let failures: Vec<_> = failures.into_iter().filter_map(Result::err).map(|f| f.to_string()).collect();
        assert!(failures.is_empty(), "{variant}: {}", failures.join("\n"));
        let largest = shares.into_iter().filter_map(Result::ok).fold(0.0, f64::max);
        println!("{variant}: at most {largest:.2} of the bound");
    }
    Ok(())
}

/// What cases compute on a backend with these options.
fn computed(options: &GpuOptions, cases: &[Case]) -> Result<Option<Vec<Vec<f32>>>> {
    let Some(device) = opened(options)? else { return Ok(None) };
    let run = |case: &Case| case.values(&|case| Ok(Box::new(device.sibling(case.capacity)?)));
    cases.iter().map(run).collect::<Result<_>>().map(Some)
}

/// Checks that cases compute the same in each of these tiles.
fn check_tiles(tiles: &[Tile], options: &GpuOptions, cases: &[Case]) -> Result<()> {
    let Some(expected) = computed(options, cases)? else { return Ok(()) };
    for &tile in tiles {
        let options = GpuOptions { tile: Some(tile), ..options.clone() };
        let seen = computed(&options, cases)?.unwrap_or_default();
        assert_eq!(expected.len(), seen.len());
        for (case, (expected, seen)) in cases.iter().zip(expected.iter().zip(&seen)) {
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(expected) == bits(seen), "{} in {tile:?}", case.name);
        }
    }
    Ok(())
}

/// Cases of kernels with f32 factors.
fn float_cases(of: &[&str]) -> Vec<Case> {
    let cases = kernels().into_iter().filter(|(kernel, _)| of.contains(kernel));
    let cases = cases.flat_map(|(_, cases)| cases());
    cases.filter(|case| case.plan.factors == FactorType::F32).collect()
}

/// The tiles of prompts, and those of matrix-vector kernels that are no default.
fn two_kinds() -> (Vec<Tile>, Vec<Tile>) {
    tiles().into_iter().partition(|tile| !tile.is_vectors())
}

#[test]
fn no_tile_changes_a_bit() {
    let many = |case: &Case| case.capacity.rows > 64 && !case.name.ends_with("generated");
    let cases: Vec<Case> = float_cases(&["project", "gate_up"]).into_iter().filter(many).collect();
    assert!(cases.len() > 6);
    check_tiles(&two_kinds().0, &options(Limits::default(), false), &cases).unwrap();
}

#[test]
fn nor_does_one_in_fast_precision() {
    // In integers, and of f16.
    let formats = [Format::from(Q4_0), Format::Dense(Dtype::F16)].map(|format| format!(", {format}"));
    let many = |case: &Case| {
        case.capacity.rows > 64 && formats.iter().any(|format| case.name.ends_with(format.as_str()))
    };
    let cases: Vec<Case> = rounded().iter().map(|r| r.case().clone()).filter(many).collect();
    assert_eq!(cases.len(), 6, "three projections of each");
    let fast = GpuOptions { precision: Precision::Fast, ..options(Limits::default(), false) };
    check_tiles(&two_kinds().0, &fast, &cases).unwrap();
}

#[test]
fn two_panels_in_a_workgroup_change_no_bit() {
    let cases = float_cases(&["project"]);
    assert!(cases.len() > 20);
    for ((_, limits, checked), step) in variants().into_iter().zip([1, 4, 4]) {
        let limits = Limits { binding: limits.binding.max(1 << 17), ..limits };
        let some: Vec<Case> = cases.iter().step_by(step).cloned().collect();
        check_tiles(&two_kinds().1, &options(limits, checked), &some).unwrap();
    }
}

#[test]
fn what_was_measured_is_kept_and_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tuning.json");
    let with_file = GpuOptions { tuning: Some(file.clone()), ..options(Limits::default(), false) };
    let Some(device) = opened(&with_file).unwrap() else { return };
    let project = kernels().into_iter().find(|(kernel, _)| *kernel == "project").unwrap().1;
    let case = project().into_iter().find(|case| case.capacity.rows > 64).unwrap();
    let expected = case.values(&|case| Ok(Box::new(device.sibling(case.capacity)?))).unwrap();
    let tuned = |expected_choices: usize| {
        let mut backend = GpuBackend::new(&GpuOptions { capacity: case.capacity, ..with_file.clone() })?;
        backend.prepare(&case.plan)?;
        if backend.info().timestamps {
            assert_eq!(backend.tune()?, expected_choices);
        }
        case.values(&|_| {
            Ok(Box::new(GpuBackend::new(&GpuOptions { capacity: case.capacity, ..with_file.clone() })?))
        })
    };
    // For few rows of a prompt and for many, and for 1, 2 and 4 generated ones.
    assert_eq!(case.capacity.sequences, 3);
    assert!(tuned(5).unwrap() == expected);
    assert_eq!(file.exists(), device.info().timestamps);
    assert!(tuned(0).unwrap() == expected);
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
        let launches: u64 = timings.iter().map(|timing| timing.launches).sum();
        assert_eq!(launches, backend.counters().launches);
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

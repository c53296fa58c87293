//! Every kernel's cases on the GPU backend: with all that the device has, without subgroups, and within tiny limits.
//!
//! Without an adapter the tests say so and pass; under `WATTLE_REQUIRE_GPU=1` they fail.
#![cfg(feature = "gpu")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use wattle_engine::backend::gpu::{GpuBackend, GpuOptions};
use wattle_engine::backend::{Backend, Capacity, Limits};
use wattle_engine::plan::{GateUp, OpKind, Project};
use wattle_engine::{Error, Result};
use wattle_tests::{Case, Failure, kernels};

/// A backend with these limits, on any adapter; its siblings share the device and the pipelines.
fn device(limits: Limits, checked: bool) -> Option<GpuBackend> {
    let capacity = Capacity { sequences: 1, context: 1, rows: 1, samples: 1 };
    let limits = Limits { guards: true, ..limits };
    let options = GpuOptions { limits, capacity, allow_software: true, device: None, checked };
    match GpuBackend::new(&options) {
        Ok(backend) => Some(backend),
        Err(error @ Error::Device { .. }) if std::env::var_os("WATTLE_REQUIRE_GPU").is_none() => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
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

/// The least binding that a case runs with: its activations, one head's keys of one sequence, one row of a matrix and
/// the B pool of a projection are not split. A power of two, so that cases share devices.
fn least_binding(case: &Case) -> u64 {
    let rows = |width: usize| case.capacity.rows.max(case.capacity.samples) * width.next_multiple_of(4);
    let activations = rows(case.plan.max_width());
    let keys = case.capacity.context * case.plan.kv.head_dim.next_multiple_of(4);
    let pools = case.plan.ops.iter().map(|op| match &op.kind {
        OpKind::Project(Project { lora: Some(site), .. })
        | OpKind::GateUp(GateUp { lora: Some(site), .. }) => site.ranks_len() + site.b_len(),
        _ => 0,
    });
    let elements = pools.max().unwrap_or(0).max(activations).max(keys);
    (elements as u64 * 4).next_power_of_two()
}

/// Runs `check` on every case with every variant of limits.
fn every_case(check: impl Fn(&Case, &dyn Fn(&Case) -> Result<Box<dyn Backend>>) -> Result<f32, Failure>) {
    let mut failures = Vec::new();
    for (variant, limits, checked) in variants() {
        let mut devices = BTreeMap::new();
        for (kernel, cases) in kernels() {
            let mut largest = 0.0_f32;
            for case in cases() {
                let limits = Limits { binding: limits.binding.max(least_binding(&case)), ..limits };
                let device = match devices.entry(limits.binding) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => match device(limits, checked) {
                        Some(device) => new.insert(device),
                        None => return,
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
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn kernels_are_their_twins() {
    every_case(|case, make| Ok(case.check(make)?.error));
}

#[test]
fn rows_and_masks_are_exact() {
    every_case(|case, make| case.check_exact(make).map(|()| 0.0));
}

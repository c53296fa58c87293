//! Every kernel's cases on the GPU backend: with all that the device has, without subgroups, and within tiny limits.
//!
//! Without an adapter the tests say so and pass; under `WATTLE_REQUIRE_GPU=1` they fail.
#![allow(clippy::panic, reason = "tests fail by panicking")]
#![cfg(feature = "gpu")]

use wattle_engine::backend::gpu::{GpuBackend, GpuOptions};
use wattle_engine::backend::{Backend, Capacity, Limits};
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

/// Runs `check` on every case with every variant of limits.
fn every_case(check: impl Fn(&Case, &dyn Fn(&Case) -> Result<Box<dyn Backend>>) -> Result<f32, Failure>) {
    let mut failures = Vec::new();
    for (variant, limits, checked) in variants() {
        let Some(device) = device(limits, checked) else { return };
        println!("{}, {variant}", device.info().name);
        let make = |case: &Case| -> Result<Box<dyn Backend>> { Ok(Box::new(device.sibling(case.capacity)?)) };
        for (kernel, cases) in kernels() {
            let mut largest = 0.0_f32;
            for case in cases() {
                match check(&case, &make) {
                    Ok(error) => largest = largest.max(error),
                    Err(failure) => failures.push(format!("{variant}: {kernel}: {failure}")),
                }
            }
            println!("{kernel}: largest error {largest:.1e}");
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

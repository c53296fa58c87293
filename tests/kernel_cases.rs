//! Every kernel's cases on the CPU. The same cases run on any backend: a test needs only another `make`.

use wattle_engine::backend::cpu::{CpuBackend, CpuOptions, Mode};
use wattle_engine::backend::{Backend, Limits};
use wattle_engine::plan::Op;
use wattle_engine::{Precision, Result};
use wattle_tests::{Case, Rounded, kept, kernels};

fn fast(case: &Case) -> Result<Box<dyn Backend>> {
    let limits = Limits { guards: true, ..Limits::default() };
    let options = CpuOptions {
        mode: Mode::Fast,
        precision: Precision::Exact,
        threads: Some(2),
        limits,
        capacity: case.capacity,
    };
    Ok(Box::new(CpuBackend::new(options)?))
}

#[test]
fn fast_kernels_are_their_twins() {
    let mut failures = Vec::new();
    for (kernel, cases) in kernels() {
        let mut largest = 0.0_f32;
        for case in cases() {
            match case.check(&fast) {
                Ok(checked) => largest = largest.max(checked.error),
                Err(failure) => failures.push(format!("{kernel}: {failure}")),
            }
        }
        println!("{kernel}: largest error {largest:.1e}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rows_and_masks_are_exact() {
    let cases =
        kernels().into_iter().flat_map(|(kernel, cases)| cases().into_iter().map(move |case| (kernel, case)));
    let check = |(kernel, case): (&str, Case)| {
        case.check_exact(&fast).err().map(|failure| format!("{kernel}: {failure}"))
    };
    let failures: Vec<_> = cases.filter_map(check).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn factors_of_any_size_keep_the_bound_of_f16() {
    let check = |rounded: &Rounded| {
        rounded.case().check_exact(&fast)?;
        rounded.check(&fast)
    };
    // What reads t in parts, which GPUs alone make, is run by its twin.
    let whole = |rounded: &&Rounded| {
        rounded.case().plan.ops.iter().flat_map(Op::sites).all(|site| site.partials() == 1)
    };
    let cases = kept();
    let failures: Vec<_> =
        cases.iter().filter(whole).filter_map(|case| check(case).err()).map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn case_names_are_unique() {
    for (kernel, cases) in kernels() {
        let mut names: Vec<_> = cases().into_iter().map(|case| case.name).collect();
        assert!(!names.is_empty(), "{kernel}");
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{kernel}: {names:?}");
    }
}

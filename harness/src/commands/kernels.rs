//! `wattle kernels`.

use std::io::Write;
use std::time::Instant;

use wattle_engine::{BackendChoice, EngineOptions};
use wattle_tests::{Case, Checked, Failure};

use crate::common::{Backend, Common, Name};
use crate::devices;
use crate::error::{Error, Result};
use crate::fresh::Fresh;

/// Arguments of `kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

/// What to do with kernels.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print the names of all kernels
    List,
    /// Run every case of a kernel, or of all, and compare with its plain twin; `--backend auto` is the CPU, and every
    /// GPU there is, also a software one
    Check {
        /// The kernel [default: all]
        name: Option<String>,
    },
    /// Say how kernels are timed
    Bench {
        /// The kernel [default: all]
        name: Option<String>,
    },
}

/// A kernel's name and what makes its cases.
type Kernel = (&'static str, fn() -> Vec<Case>);

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    match &args.action {
        Action::List => wattle_tests::kernels().iter().try_for_each(|(name, _)| Ok(writeln!(out, "{name}")?)),
        Action::Check { name } => check(name.as_deref(), common, out),
        Action::Bench { name } => {
            let filter = name.iter().map(|name| format!(" -- {name}")).collect::<String>();
            chosen(name.as_deref())?;
            Ok(writeln!(out, "kernels are timed by: cargo bench -p wattle-benches --bench kernels{filter}")?)
        }
    }
}

/// The kernel of this name, or all.
fn chosen(name: Option<&str>) -> Result<Vec<Kernel>> {
    let mut kernels = wattle_tests::kernels();
    let Some(wanted) = name else { return Ok(kernels) };
    let names: Vec<_> = kernels.iter().map(|(name, _)| *name).collect();
    kernels.retain(|(name, _)| *name == wanted);
    if kernels.is_empty() {
        let reason = format!("{wanted:?} is not in the list; accepted: {}", names.join(", "));
        return Err(Error::value("kernel", reason));
    }
    Ok(kernels)
}

/// Checks kernels on one backend after the other; prints one line per case.
fn check(name: Option<&str>, common: &Common, out: &mut dyn Write) -> Result<()> {
    let kernels = chosen(name)?;
    let backends = match common.backend {
        Backend::Auto if devices::gpus().is_empty() => vec![Backend::Cpu],
        Backend::Auto => vec![Backend::Cpu, Backend::Gpu],
        one => vec![one],
    };
    let (mut cases, mut failed) = (0, 0);
    for &backend in &backends {
        let options = EngineOptions { backend: BackendChoice::from(backend), ..common.engine_options() };
        let fresh = Fresh::open(options)?;
        for (kernel, make_cases) in &kernels {
            for case in make_cases() {
                cases += 1;
                failed += usize::from(!print_case(kernel, &case, backend, &fresh, out)?);
                out.flush()?;
            }
        }
    }
    writeln!(out, "{cases} cases, {failed} failed")?;
    if failed > 0 {
        return Err(Error::Failed(format!("{failed} of {cases} kernel cases failed")));
    }
    Ok(())
}

/// Checks and prints one case; returns whether it passed.
fn print_case(
    kernel: &str,
    case: &Case,
    backend: Backend,
    fresh: &Fresh,
    out: &mut dyn Write,
) -> Result<bool> {
    let started = Instant::now();
    let result = check_case(case, fresh);
    let seconds = started.elapsed().as_secs_f64();
    let (verdict, detail) = match &result {
        Ok(checked) => (
            "ok",
            format!("error {:.1e} of {:.1e}, {} values", checked.error, case.tolerance, checked.elements),
        ),
        Err(failure) => ("FAILED", failure.what.clone()),
    };
    let backend = Name(backend).to_string();
    writeln!(out, "{verdict:<6} {backend:<3} {kernel:<12} {:<44} {seconds:>6.3} s  {detail}", case.name)?;
    Ok(result.is_ok())
}

/// Compares a case with its plain twin, and checks what must hold bit for bit.
pub(super) fn check_case(case: &Case, fresh: &Fresh) -> std::result::Result<Checked, Failure> {
    let make = |case: &Case| fresh.backend(case.capacity);
    case.check(&make).and_then(|checked| case.check_exact(&make).map(|()| checked))
}

//! What was measured, beside what the machine can do.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use wattle_policy::OpCost;

use crate::Case;
use crate::ceilings::{self, Ceilings};

/// One op on one backend.
pub(crate) struct Line {
    kernel: &'static str,
    op: String,
    pub backend: &'static str,
    pub case: Case,
    pub cost: OpCost,
    seconds: f64,
    /// What reading as many bytes gave right afterwards \[bytes/s\].
    read: f64,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());
/// Names of cases for which there was no time.
static LEFT_OUT: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Line {
    /// The median of what the iterations of each sample took; `None` where a filter left the case out.
    pub(crate) fn new(
        kernel: &'static str,
        case: &Case,
        op: &str,
        backend: &'static str,
        cost: OpCost,
        mut seconds: Vec<f64>,
    ) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let seconds = *seconds.get(seconds.len() / 2)?;
        let read = ceilings::read(backend, cost.dram_bytes());
        Some(Self { kernel, op: op.to_owned(), backend, case: *case, cost, seconds, read })
    }
}

pub(crate) fn add(line: Line) {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

pub(crate) fn leave_out(name: String) {
    LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner).push(name);
}

/// Prints a table of all that was measured: time, bytes and arithmetic per second, and their shares of what the same
/// device gave when it read as many bytes right after, and in this run when it did nothing but multiply and add.
/// `$WATTLE_BENCH_RECORD` names a CSV file for the same.
///
/// # Errors
/// When the file cannot be written.
pub fn finish() -> std::io::Result<()> {
    let lines = std::mem::take(&mut *LINES.lock().unwrap_or_else(PoisonError::into_inner));
    if lines.is_empty() {
        return Ok(());
    }
    let ceilings = Ceilings::new(&lines);
    let mut record = std::env::var_os("WATTLE_BENCH_RECORD").map(File::create).transpose()?;
    let header = "kernel,shape,format,op,backend,rows,depth,rank,masked,shared,seconds,bytes,bytes_per_second,read_share,\
                  multiply_adds_per_second,arithmetic_share";
    if let Some(record) = &mut record {
        writeln!(record, "{header}")?;
    }
    println!("\n| op | model | rows | time | GB/s | of reading | GMAC/s | of arithmetic |");
    println!("|---|---|---|---:|---:|---:|---:|---:|");
    for line in &lines {
        let (bytes, seconds) = (line.cost.dram_bytes(), line.seconds);
        let rate = bytes as f64 / seconds;
        let dots = (line.cost.flops + line.cost.lora_flops) as f64 / 2.0 / seconds;
        let shares = [rate / line.read, dots / ceilings.peak(line)];
        let percent = |index: usize| format!("{:.0} %", shares[index] * 100.0);
        let Line { kernel, op, backend, case, .. } = line;
        println!(
            "| {op} ({kernel}, {backend}) | {} | {} | {:.1} us | {:.1} | {} | {:.1} | {} |",
            case.model(),
            case.rows_name(),
            seconds * 1e6,
            rate / 1e9,
            percent(0),
            dots / 1e9,
            percent(1)
        );
        if let Some(record) = &mut record {
            let share = |index: usize| format!("{:.4}", shares[index]);
            let Case { shape, rows, depth, rank, masked, shared, .. } = case;
            writeln!(
                record,
                "{kernel},{shape},{},{op},{backend},{rows},{depth},{rank},{masked},{shared},{seconds:.3e},{bytes},{rate:.4e},{},\
                 {dots:.4e},{}",
                case.format(),
                share(0),
                share(1)
            )?;
        }
    }
    ceilings.print();
    let left_out = std::mem::take(&mut *LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner));
    if !left_out.is_empty() {
        println!("\nleft out, for want of time (WATTLE_BENCH_FULL=1 takes it): {}", left_out.join(", "));
    }
    Ok(())
}

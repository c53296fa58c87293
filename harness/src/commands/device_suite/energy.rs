//! Joules of whole tests, by the GPU's own counter.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::commands::bench::runner::{Runner, Test};
use crate::error::Result;
use crate::meters::{NvmlCounter, Window};
use crate::table::Table;

/// What a test took.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    /// The model's shape.
    pub shape: String,
    /// `decode` or `prompt`.
    pub test: &'static str,
    pub paths: u32,
    /// Rank of the adapter; 0 for none.
    pub rank: u32,
    /// Mean over the window.
    pub tokens_per_second: f64,
    /// Of the whole board.
    pub watts: f64,
    /// Of the whole board with the model loaded and nothing running.
    pub idle_watts: f64,
    pub joules_per_token: f64,
    /// Without what the board takes anyway.
    pub joules_per_token_above_idle: f64,
}

/// Counts while a test is repeated.
pub(super) struct Energy {
    counter: NvmlCounter,
    /// How long a test is repeated.
    window: Duration,
}

impl Energy {
    /// With the counter of this GPU.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn open(pci: &str, name: &str, window: Duration) -> Result<Self> {
        Ok(Self { counter: NvmlCounter::open(pci, name)?, window })
    }

    /// How long a test takes.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Watts while nothing runs.
    pub fn idle(&mut self) -> Result<f64> {
        let window = self.window;
        let sleep = || {
            std::thread::sleep(window);
            Ok(())
        };
        Ok(Window::during(&mut self.counter, sleep)?.1?.watts())
    }

    /// A test's line.
    pub fn line(&mut self, shape: &str, runner: &mut Runner, test: &Test, idle_watts: f64) -> Result<Line> {
        let window = self.window;
        let (rates, counted) = Window::during(&mut self.counter, || {
            let (started, mut rates) = (Instant::now(), Vec::new());
            while started.elapsed() < window {
                rates.push(runner.rate(test)?);
            }
            Ok(rates)
        })?;
        let watts = counted?.watts();
        let tokens_per_second = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        Ok(Line {
            shape: shape.to_owned(),
            test: if test.paths.is_some() { "decode" } else { "prompt" },
            paths: test.paths.unwrap_or(1),
            rank: if test.adapters > 0 { runner.settings.rank } else { 0 },
            tokens_per_second,
            watts,
            idle_watts,
            joules_per_token: watts / tokens_per_second,
            joules_per_token_above_idle: (watts - idle_watts) / tokens_per_second,
        })
    }
}

/// The lines for a reader.
pub(super) fn table(lines: &[Line]) -> Table {
    let mut table =
        Table::new(["shape", "test", "paths", "rank", "tokens/s", "watts", "idle", "J/token", "above idle"]);
    for line in lines {
        table.row([
            line.shape.clone(),
            line.test.to_owned(),
            line.paths.to_string(),
            line.rank.to_string(),
            format!("{:.1}", line.tokens_per_second),
            format!("{:.1}", line.watts),
            format!("{:.1}", line.idle_watts),
            format!("{:.4}", line.joules_per_token),
            format!("{:.4}", line.joules_per_token_above_idle),
        ]);
    }
    table
}

//! Progress on stderr. indicatif draws nothing unless stderr is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows that something is going on, until it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// For what takes an unknown time.
    pub fn spinner(message: impl Into<String>) -> Self {
        let bar = ProgressBar::new_spinner().with_message(message.into());
        // A thread of its own, for which a process that nobody watches need not have room.
        if std::io::stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self(bar)
    }

    /// For `total` things of a kind.
    pub fn bar(message: impl Into<String>, total: usize) -> Self {
        let bar = ProgressBar::new(total as u64).with_message(message.into());
        // The template is a constant; without it the default style says the same less well.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// One more is done.
    pub fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

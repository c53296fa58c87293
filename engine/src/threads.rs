//! The threads that loading and the CPU backend share.

use std::error::Error as _;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Starts rayon's global threads, unless they run or the caller is on threads of its own: where none can be started,
/// rayon would otherwise panic at their first use.
///
/// # Errors
/// [`Error::Device`] with the system's reason.
pub(crate) fn ready() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a source it says that they run already.
        Err(error) if error.source().is_some() => Err(error.to_string()),
        _ => Ok(()),
    };
    let started = STARTED.get_or_init(start);
    started.as_ref().copied().map_err(|reason| Error::device("cpu", format!("no threads: {reason}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_are_started_once() {
        for _ in 0..2 {
            super::ready().unwrap();
        }
        assert!(rayon::ThreadPoolBuilder::new().build_global().is_err(), "they run already");
        rayon::scope(|_| super::ready().unwrap());
    }
}

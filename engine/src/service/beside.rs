//! Work beside the engine's thread.

use std::panic::resume_unwind;
use std::thread;

use crate::error::{Error, Result};

/// Does work on a thread that gives way to the engine's, where the system allows that, and waits for it: with no
/// processor to spare a usual thread takes a few milliseconds at a time from a step, a thread of the engine's waits for
/// that one, and so do all who run.
///
/// # Errors
/// [`Error::Stopped`] when the system starts no thread.
pub(super) fn beside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let lowered = || {
        if let Err(error) = give_way() {
            tracing::debug!(?error, "a thread keeps its priority");
        }
        work()
    };
    // Nothing in `work` may be the first to use a pool of threads: they would give way for ever.
    let builder = thread::Builder::new().name("wattle-adapter".into());
    let joined =
        thread::scope(|scope| builder.spawn_scoped(scope, lowered).map(thread::ScopedJoinHandle::join));
    let joined = joined.map_err(|error| Error::Stopped(format!("no thread for an adapter: {error}")))?;
    Ok(joined.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// From now on this thread runs where no other wants to: a processor that runs nothing else counts as free when the
/// engine's threads wake up.
#[cfg(target_os = "linux")]
fn give_way() -> Result<(), thread_priority::Error> {
    use thread_priority::{
        NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
        thread_native_id,
    };
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
}

/// From now on this thread has the lowest priority.
#[cfg(not(target_os = "linux"))]
fn give_way() -> Result<(), thread_priority::Error> {
    thread_priority::set_current_thread_priority(thread_priority::ThreadPriority::Min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_work_gives_or_panics_with_comes_back() {
        let here = thread::current().id();
        assert_ne!(beside(|| thread::current().id()).unwrap(), here);
        let work = || -> Result<()> { beside(|| resume_unwind(Box::new("its own mistake"))) };
        let panic = std::panic::catch_unwind(work).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"its own mistake"));
    }
}

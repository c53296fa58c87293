//! Work beside the engine's thread.

use std::panic::resume_unwind;
use std::thread;

/// Does work on a thread that gives way to the engine's, where the system allows that, and waits for it: with no
/// processor to spare a usual thread takes a few milliseconds at a time from a step, a thread of the engine's waits for
/// that one, and so do all who run.
pub(super) fn beside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let lowered = || {
        if let Err(error) = give_way() {
            tracing::debug!(?error, "a thread keeps its priority");
        }
        work()
    };
    thread::scope(|scope| scope.spawn(lowered).join()).unwrap_or_else(|panic| resume_unwind(panic))
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
        assert_ne!(beside(|| thread::current().id()), here);
        let panic = std::panic::catch_unwind(|| beside(|| resume_unwind(Box::new("its own mistake"))));
        let panic: Result<(), _> = panic;
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"its own mistake"));
    }
}

//! Where the processor's time goes, sampled and drawn as a flamegraph.

#[cfg(all(unix, feature = "profile"))]
pub(crate) use sampled::Profile;

#[cfg(all(unix, feature = "profile"))]
mod sampled {
    use std::fs::File;
    use std::path::{Path, PathBuf};

    use crate::error::{Error, Result};

    /// Samples a second: no multiple of what timers of the system tick at.
    const FREQUENCY: i32 = 997;

    /// Samples all threads until it is written.
    pub(crate) struct Profile {
        path: PathBuf,
        file: File,
        guard: pprof::ProfilerGuard<'static>,
    }

    impl Profile {
        /// Begins to sample, for a file that is made at once.
        pub fn start(path: &Path) -> Result<Self> {
            let file = File::create(path).map_err(|error| Error::file(path, error))?;
            // Inside these a signal may find locks that walking the stack needs.
            let blocked = ["libc", "libgcc", "pthread", "vdso"];
            let guard =
                pprof::ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&blocked).build();
            let guard = guard.map_err(|error| Error::value("--profile", error))?;
            Ok(Self { path: path.to_owned(), file, guard })
        }

        /// Ends, and draws.
        pub fn write(self) -> Result<()> {
            let failed = |error: pprof::Error| Error::file(&self.path, error);
            let report = self.guard.report().build().map_err(failed)?;
            report.flamegraph(&self.file).map_err(failed)
        }
    }
}

/// Stands for a profile in builds that cannot make one.
#[cfg(not(all(unix, feature = "profile")))]
pub(crate) enum Profile {}

#[cfg(not(all(unix, feature = "profile")))]
impl Profile {
    /// Says how to build one that can.
    pub fn start(_path: &std::path::Path) -> crate::error::Result<Self> {
        let reason = "this build cannot sample itself; on Unix, one from `cargo build --release -p wattle --features \
                      profile` can";
        Err(crate::error::Error::value("--profile", reason))
    }

    /// There is none.
    pub fn write(self) -> crate::error::Result<()> {
        match self {}
    }
}

//! The energy counter of NVIDIA GPUs, through NVML: the driver's library, which is looked for at run time.

use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// How often the counter is looked at. It changes about ten times a second (Volta and later have it).
const EVERY: Duration = Duration::from_millis(10);

/// Counts what a GPU takes, all of the board.
pub(crate) struct NvmlCounter {
    nvml: Nvml,
    index: u32,
}

impl NvmlCounter {
    /// The counter of the GPU at this place of the PCI bus; where that is not known, of the only one of this name.
    ///
    /// # Errors
    /// Why there is none, for a reader.
    pub fn open(pci: &str, name: &str) -> Result<Self, String> {
        let nvml = Nvml::init().map_err(|error| format!("NVML: {error}"))?;
        let index = find(&nvml, pci, name).map_err(|error| format!("NVML: {error}"))?;
        let index = index.ok_or_else(|| format!("NVML knows no GPU, or several, of the name {name:?}"))?;
        let counter = Self { nvml, index };
        counter.joules()?;
        Ok(counter)
    }

    /// Joules since the driver was loaded.
    ///
    /// # Errors
    /// When the GPU does not count, for a reader.
    pub fn joules(&self) -> Result<f64, String> {
        let millijoules =
            self.nvml.device_by_index(self.index).and_then(|gpu| gpu.total_energy_consumption());
        millijoules.map(|mj| mj as f64 / 1e3).map_err(|error| format!("NVML: energy counter: {error}"))
    }

    /// Watts that the GPU takes while `work` runs: what was counted between the counter's first change and its last.
    ///
    /// # Errors
    /// Those of `work` inside; outside, when there is no counter, or it changed too seldom.
    pub fn watts<T>(&self, work: impl FnOnce() -> T) -> (T, Result<f64, String>) {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| self.changes(&done));
            let result = work();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            let changes =
                watcher.join().unwrap_or_else(|_| Err("NVML: the reader of the counter failed".into()));
            (result, changes.and_then(|changes| slope(&changes)))
        })
    }

    /// When the counter changed, and to what.
    fn changes(&self, done: &std::sync::atomic::AtomicBool) -> Result<Vec<(f64, f64)>, String> {
        let (started, mut last, mut changes) = (Instant::now(), self.joules()?, Vec::new());
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(EVERY);
            let now = self.joules()?;
            if now > last {
                changes.push((started.elapsed().as_secs_f64(), now));
                last = now;
            }
        }
        Ok(changes)
    }
}

/// The index of the GPU, if NVML knows it.
fn find(nvml: &Nvml, pci: &str, name: &str) -> Result<Option<u32>, NvmlError> {
    if !pci.is_empty()
        && let Ok(index) = nvml.device_by_pci_bus_id(pci).and_then(|gpu| gpu.index())
    {
        return Ok(Some(index));
    }
    let mut named = Vec::new();
    for index in 0..nvml.device_count()? {
        if nvml.device_by_index(index)?.name()? == name {
            named.push(index);
        }
    }
    Ok(if named.len() == 1 { named.pop() } else { None })
}

/// Joules per second between the first change and the last.
fn slope(changes: &[(f64, f64)]) -> Result<f64, String> {
    /// The fewest changes that a claim rests on.
    const LEAST: usize = 10;
    match (changes.first(), changes.last()) {
        (Some(first), Some(last)) if changes.len() >= LEAST => Ok((last.1 - first.1) / (last.0 - first.0)),
        _ => Err(format!("NVML: the counter changed {} times; {LEAST} are needed", changes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_what_was_counted_between_the_first_change_and_the_last() {
        let steady: Vec<_> =
            (0..20).map(|i| (0.05 + f64::from(i) * 0.1, 1000.0 + f64::from(i) * 25.0)).collect();
        assert!((slope(&steady).unwrap() - 250.0).abs() < 1e-9);
        assert!(slope(&steady[..9]).unwrap_err().contains("9 times"));
    }

    #[test]
    fn without_a_driver_the_reason_is_said() {
        if let Err(reason) = NvmlCounter::open("ffff:ff:1f.7", "no such GPU") {
            assert!(reason.contains("NVML"), "{reason}");
        }
    }
}

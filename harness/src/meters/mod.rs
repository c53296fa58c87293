//! Energy counters of the machine, and what a window of their readings says.

mod battery;
#[cfg(feature = "gpu")]
mod nvml;
mod rapl;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) use battery::Battery;
#[cfg(feature = "gpu")]
pub(crate) use nvml::NvmlCounter;
pub(crate) use rapl::Rapl;

use wattle_engine::Engine;
use wattle_policy::Tier;

use crate::error::{Error, Result};
use crate::report::Counted;

/// Between readings \[s\].
const EVERY_S: f64 = 0.01;

/// A counter of energy.
pub(crate) trait EnergyCounter {
    /// What it counts, for reports.
    fn name(&self) -> String;
    /// About how long it stands still between changes \[s\].
    fn period_s(&self) -> f64;
    /// Joules since some moment, by its own rules for wrapping around. Readings grow or stay.
    fn joules(&mut self) -> Result<f64>;
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    /// The GPU that the GPU backend takes.
    Gpu,
}

impl Device {
    /// What this engine runs on.
    pub fn of(engine: &mut Engine) -> Self {
        if engine.backend().kind() == "gpu" { Self::Gpu } else { Self::Cpu }
    }
}

/// The first counter of a device that this machine lets us read, or why there is none.
pub(crate) fn find(device: Device) -> Result<Box<dyn EnergyCounter>> {
    #[cfg(feature = "gpu")]
    if device == Device::Gpu
        && let Some(gpu) = crate::devices::gpus().first().filter(|gpu| !gpu.software)
    {
        return Ok(Box::new(NvmlCounter::open(&gpu.pci, &gpu.name)?));
    }
    #[cfg(not(feature = "gpu"))]
    let _ = device;
    let rapl = Rapl::open(Path::new("/sys/class/powercap"));
    match rapl {
        Ok(rapl) => Ok(Box::new(rapl)),
        Err(rapl) => match Battery::open(Path::new("/sys/class/power_supply")) {
            Ok(battery) => Ok(Box::new(battery)),
            Err(battery) => Err(Error::Failed(format!("no energy counter: {rapl}; {battery}"))),
        },
    }
}

/// What a counter counts over something that runs once: all of the machine or the GPU, idle power included.
pub(crate) struct Total {
    counter: Box<dyn EnergyCounter>,
    start: Instant,
    start_j: f64,
}

impl Total {
    /// So many changes of the counter have to lie in the time: then it is right to about a tenth.
    const CHANGES: f64 = 10.0;

    /// Begins to count what a device takes, where there is a counter.
    pub fn begin(device: Device) -> Option<Self> {
        let mut counter = find(device).ok()?;
        let start_j = counter.joules().ok()?;
        Some(Self { counter, start: Instant::now(), start_j })
    }

    /// What was counted since then; `None` where that was too short for this counter.
    pub fn end(&mut self) -> Option<Counted> {
        if self.start.elapsed().as_secs_f64() < Self::CHANGES * self.counter.period_s() {
            return None;
        }
        let joules = self.counter.joules().ok()? - self.start_j;
        let counted = Counted { counter: self.counter.name(), joules, tier: Tier::Counter };
        (joules > 0.0).then_some(counted)
    }
}

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    /// Since the window began \[s\].
    pub seconds: f64,
    /// [`EnergyCounter::joules`].
    pub joules: f64,
}

/// What a counter counted while the same work was repeated.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Window {
    /// Between the first and the last change of the counter \[s\].
    pub seconds: f64,
    /// Counted in that time \[J\].
    pub joules: f64,
}

impl Window {
    /// The least time that a claim about repeated work rests on \[s\].
    pub const MIN_SECONDS: f64 = 5.0;
    /// The fewest changes of the counter that a claim rests on.
    const MIN_UPDATES: usize = 10;

    /// The window of these readings. A counter changes now and then and stands still in between: only the time between
    /// its first and its last change says what was counted in which time.
    ///
    /// # Errors
    /// When the time is too short or the counter changed too seldom.
    pub fn of(readings: &[Reading]) -> Result<Self> {
        let changes: Vec<&Reading> =
            readings.windows(2).filter(|pair| pair[1].joules > pair[0].joules).map(|pair| &pair[1]).collect();
        let error = |reason: String| Err(Error::Failed(format!("energy counter: {reason}")));
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
            return error("it did not change".into());
        };
        let seconds = last.seconds - first.seconds;
        if changes.len() < Self::MIN_UPDATES || seconds < Self::MIN_SECONDS {
            return error(format!(
                "{} changes in {seconds:.1} s; at least {} in {} s are needed",
                changes.len(),
                Self::MIN_UPDATES,
                Self::MIN_SECONDS
            ));
        }
        Ok(Self { seconds, joules: last.joules - first.joules })
    }

    /// What a counter counted while `work` ran, looked at from another thread. The outer error is `work`'s, the inner
    /// one says that the counter did not say enough.
    ///
    /// # Errors
    /// Those of `work`.
    #[cfg_attr(
        not(any(feature = "gpu", test)),
        allow(dead_code, reason = "only the device suite has work to measure")
    )]
    pub fn during<T>(
        counter: &mut (impl EnergyCounter + Send),
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Result<Self>)> {
        let (start, done) = (Instant::now(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<Vec<Reading>> {
                let mut readings = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let seconds = start.elapsed().as_secs_f64();
                    readings.push(Reading { seconds, joules: counter.joules()? });
                    std::thread::sleep(Duration::from_secs_f64(EVERY_S));
                }
                Ok(readings)
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            let broken = |_| Err(Error::Failed("energy counter: its reader failed".into()));
            let readings = watcher.join().unwrap_or_else(broken);
            Ok((result?, readings.and_then(|readings| Self::of(&readings))))
        })
    }

    /// Mean power \[W\].
    pub fn watts(&self) -> f64 {
        self.joules / self.seconds
    }

    /// Repeats work until the counter has said enough about it; returns the window and the repetitions per second.
    /// `now` is the time in seconds.
    ///
    /// # Errors
    /// Those of the work and the counter, and when the counter has not said enough after a minute.
    pub fn amplify(
        counter: &mut dyn EnergyCounter,
        now: &mut dyn FnMut() -> f64,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Self, f64)> {
        /// The longest that is waited \[s\].
        const LONGEST: f64 = 60.0;
        let start = now();
        let (mut readings, mut repetitions, mut checked) = (Vec::<Reading>::new(), 0u64, 0.0);
        loop {
            work()?;
            repetitions += 1;
            let seconds = now() - start;
            if readings.last().is_none_or(|last| seconds - last.seconds >= EVERY_S) {
                readings.push(Reading { seconds, joules: counter.joules()? });
            }
            if seconds < Self::MIN_SECONDS || seconds - checked < 1.0 {
                continue;
            }
            checked = seconds;
            match Self::of(&readings) {
                Ok(window) => return Ok((window, repetitions as f64 / seconds)),
                Err(error) if seconds > LONGEST => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Joules of one of the repetitions that ran at this rate \[1/s\], without what the idle machine draws.
    pub fn joules_each(&self, idle: &Window, repetitions_per_s: f64) -> f64 {
        (self.watts() - idle.watts()) / repetitions_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that is updated every `period` seconds, read every 10 ms.
    fn recorded(watts: f64, period: f64, seconds: f64) -> Vec<Reading> {
        let at = |i: usize| i as f64 * 0.01;
        (0..(seconds / 0.01) as usize)
            .map(|i| Reading { seconds: at(i), joules: (at(i) / period).floor() * period * watts })
            .collect()
    }

    #[test]
    fn gaps_between_updates_do_not_count() {
        // Updated every 0.7 s: the naive quotient of 6.3 J/W over 6.99 s would be a tenth too low.
        let window = Window::of(&recorded(20.0, 0.7, 7.69)).map(|window| window.watts());
        assert!((window.unwrap() - 20.0).abs() < 0.5);
        let (busy, idle) = (Window { seconds: 10.0, joules: 500.0 }, Window { seconds: 5.0, joules: 100.0 });
        // 50 W − 20 W at 600 repetitions a second.
        assert!((busy.joules_each(&idle, 600.0) - 0.05).abs() < 1e-12);
    }

    /// 30 W, counted in steps of 0.3 J.
    struct Steady {
        clock: std::rc::Rc<std::cell::Cell<f64>>,
        watts: f64,
    }

    impl EnergyCounter for Steady {
        fn name(&self) -> String {
            "steady".into()
        }

        fn period_s(&self) -> f64 {
            0.01
        }

        fn joules(&mut self) -> Result<f64> {
            Ok((self.clock.get() * self.watts / 0.3).floor() * 0.3)
        }
    }

    #[test]
    fn work_is_repeated_until_the_counter_has_said_enough() {
        let clock = std::rc::Rc::new(std::cell::Cell::new(0.0));
        let amplify = |watts: f64| {
            let mut counter = Steady { clock: std::rc::Rc::clone(&clock), watts };
            // A repetition takes 2 ms.
            let mut work = || {
                clock.set(clock.get() + 2e-3);
                Ok(())
            };
            Window::amplify(&mut counter, &mut || clock.get(), &mut work)
        };
        let (window, rate) = amplify(30.0).unwrap();
        assert!((window.watts() - 30.0).abs() < 0.1 && (rate - 500.0).abs() < 1.0, "{window:?} {rate}");
        assert!(window.seconds >= Window::MIN_SECONDS);
        assert!(amplify(0.0).unwrap_err().to_string().contains("did not change"));
    }

    #[test]
    fn too_short_or_too_coarse_is_refused() {
        let message = |readings: &[Reading]| Window::of(readings).unwrap_err().to_string();
        assert!(message(&recorded(20.0, 0.1, 3.0)).contains("at least 10 in 5 s"));
        assert!(message(&recorded(20.0, 2.0, 9.0)).contains("changes"));
        assert!(message(&[]).contains("did not change"));
    }
}

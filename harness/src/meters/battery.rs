//! A laptop's battery: `/sys/class/power_supply/BAT*` (Linux). It counts the whole machine, and coarsely.

use std::fs;
use std::path::{Path, PathBuf};

use super::EnergyCounter;
use crate::error::{Error, Result};

/// A battery that is being emptied.
#[derive(Debug)]
pub(crate) struct Battery {
    dir: PathBuf,
    name: String,
    first_j: f64,
}

impl Battery {
    /// The first battery below `root` that is discharging.
    ///
    /// # Errors
    /// Says that there is none, or that it is being charged: then it says nothing about what the machine draws.
    pub fn open(root: &Path) -> Result<Self> {
        let entries = fs::read_dir(root).map_err(|error| Error::file(root, error))?;
        let mut dirs: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        dirs.sort();
        let battery = |dir: &PathBuf| text(dir, "type").is_ok_and(|kind| kind == "Battery");
        let dir = dirs.into_iter().find(battery).ok_or_else(|| Error::file(root, "no battery"))?;
        let status = text(&dir, "status")?;
        if status != "Discharging" {
            return Err(Error::file(&dir, format!("{status}: it counts only while it is discharging")));
        }
        let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let first_j = energy_j(&dir)?;
        Ok(Self { dir, name, first_j })
    }

    /// Charge of the first battery below `root`, 0 to 1.
    pub fn charge(root: &Path) -> Option<f64> {
        let entries = fs::read_dir(root).ok()?;
        let mut dirs: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        dirs.sort();
        let percent: f64 = dirs.iter().find_map(|dir| text(dir, "capacity").ok()?.parse().ok())?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    }
}

impl EnergyCounter for Battery {
    fn name(&self) -> String {
        format!("battery {}", self.name)
    }

    fn period_s(&self) -> f64 {
        10.0
    }

    fn joules(&mut self) -> Result<f64> {
        Ok((self.first_j - energy_j(&self.dir)?).max(0.0))
    }
}

/// What is left \[J\]: from µWh, or from µAh at the present voltage.
fn energy_j(dir: &Path) -> Result<f64> {
    const J_PER_UWH: f64 = 3600e-6;
    if let Ok(uwh) = number(dir, "energy_now") {
        return Ok(uwh * J_PER_UWH);
    }
    let (uah, uv) = (number(dir, "charge_now")?, number(dir, "voltage_now")?);
    Ok(uah * uv * 1e-6 * J_PER_UWH)
}

fn text(dir: &Path, name: &str) -> Result<String> {
    let file = dir.join(name);
    let text = fs::read_to_string(&file).map_err(|error| Error::file(&file, error))?;
    Ok(text.trim().to_owned())
}

fn number(dir: &Path, name: &str) -> Result<f64> {
    let text = text(dir, name)?;
    text.parse().map_err(|_| Error::file(dir.join(name), format!("{text:?} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn battery(root: &Path, values: &[(&str, &str)]) -> PathBuf {
        let dir = root.join("BAT0");
        fs::create_dir_all(&dir).unwrap();
        values.iter().for_each(|(name, value)| fs::write(dir.join(name), value).unwrap());
        dir
    }

    #[test]
    fn what_was_taken_out_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let values = [
            ("type", "Battery\n"),
            ("status", "Discharging\n"),
            ("energy_now", "50000000"),
            ("capacity", "87"),
        ];
        let dir = battery(root.path(), &values);
        let mut counter = Battery::open(root.path()).unwrap();
        assert_eq!((counter.name().as_str(), counter.joules().unwrap()), ("battery BAT0", 0.0));
        fs::write(dir.join("energy_now"), "49990000").unwrap();
        // 10 mWh are 36 J.
        assert!((counter.joules().unwrap() - 36.0).abs() < 1e-9);
        assert_eq!(Battery::charge(root.path()), Some(0.87));
    }

    #[test]
    fn charge_counters_are_taken_at_the_present_voltage() {
        let root = tempfile::tempdir().unwrap();
        let values = [
            ("type", "Battery"),
            ("status", "Discharging"),
            ("charge_now", "1000000"),
            ("voltage_now", "12000000"),
        ];
        let dir = battery(root.path(), &values);
        let mut counter = Battery::open(root.path()).unwrap();
        fs::write(dir.join("charge_now"), "999000").unwrap();
        assert!((counter.joules().unwrap() - 43.2).abs() < 1e-6, "1 mAh at 12 V");
    }

    #[test]
    fn a_battery_that_is_charged_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert!(Battery::open(root.path()).unwrap_err().to_string().contains("no battery"));
        battery(root.path(), &[("type", "Battery"), ("status", "Charging"), ("energy_now", "5")]);
        assert!(Battery::open(root.path()).unwrap_err().to_string().contains("Charging"));
        assert_eq!(Battery::charge(root.path()), None);
    }
}

//! RAPL through Linux' powercap: `/sys/class/powercap/intel-rapl:*` (Intel, and AMD since Linux 5.8).

use std::fs;
use std::path::{Path, PathBuf};

use super::EnergyCounter;
use crate::error::{Error, Result};

/// One domain's counter.
#[derive(Debug)]
struct Zone {
    name: String,
    file: PathBuf,
    /// The counter goes from this back to 0 \[µJ\].
    range_uj: u64,
    last_uj: u64,
    /// Since it was opened \[µJ\].
    sum_uj: u128,
}

/// The whole machine where it counts that (psys), else all packages and their memory.
#[derive(Debug)]
pub(crate) struct Rapl {
    zones: Vec<Zone>,
}

impl Rapl {
    /// Opens the domains below `root`. Domains nest: psys holds everything, a package holds its cores and graphics but
    /// not its memory (dram), so that only some of them may be added up.
    ///
    /// # Errors
    /// Says that there is none, or that only root may read it.
    pub fn open(root: &Path) -> Result<Self> {
        let mut psys = Vec::new();
        let mut rest = Vec::new();
        for zone in children(root)? {
            let name = text(&zone.join("name"))?;
            if name == "psys" {
                psys.push(Zone::open(name, &zone)?);
            } else if name.starts_with("package") {
                for inner in children(&zone)? {
                    if text(&inner.join("name"))? == "dram" {
                        rest.push(Zone::open(format!("{name} dram"), &inner)?);
                    }
                }
                rest.push(Zone::open(name, &zone)?);
            }
        }
        let zones = if psys.is_empty() { rest } else { psys };
        if zones.is_empty() {
            return Err(Error::file(root, "no RAPL domains"));
        }
        Ok(Self { zones })
    }
}

impl EnergyCounter for Rapl {
    fn name(&self) -> String {
        let names: Vec<&str> = self.zones.iter().map(|zone| zone.name.as_str()).collect();
        format!("RAPL ({})", names.join(", "))
    }

    fn period_s(&self) -> f64 {
        1e-3
    }

    fn joules(&mut self) -> Result<f64> {
        let mut sum = 0.0;
        for zone in &mut self.zones {
            zone.update()?;
            sum += zone.sum_uj as f64 * 1e-6;
        }
        Ok(sum)
    }
}

impl Zone {
    fn open(name: String, dir: &Path) -> Result<Self> {
        let file = dir.join("energy_uj");
        let range_uj = number(&dir.join("max_energy_range_uj"))?;
        let last_uj = number(&file)?;
        Ok(Self { name, file, range_uj, last_uj, sum_uj: 0 })
    }

    /// Adds what was counted since the last reading; a smaller reading has gone past the range once.
    fn update(&mut self) -> Result<()> {
        let now_uj = number(&self.file)?;
        let delta = match now_uj.checked_sub(self.last_uj) {
            Some(delta) => delta,
            None => (self.range_uj.saturating_sub(self.last_uj)).saturating_add(now_uj).saturating_add(1),
        };
        self.sum_uj += u128::from(delta);
        self.last_uj = now_uj;
        Ok(())
    }
}

/// Directories of domains directly below this one, sorted.
fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|error| Error::file(dir, error))?;
    let is_zone = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intel-rapl:"))
    };
    let mut zones: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_zone).collect();
    zones.sort();
    Ok(zones)
}

fn text(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).map_err(|error| refusal(file, &error))?;
    Ok(text.trim().to_owned())
}

/// Since 2020 kernels let only root read these counters, because they leak what others compute (CVE-2020-8694).
fn refusal(file: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Error::file(file, "only root may read it, or whom root allows to")
        }
        _ => Error::file(file, error),
    }
}

fn number(file: &Path) -> Result<u64> {
    let text = text(file)?;
    text.parse().map_err(|_| Error::file(file, format!("{text:?} is no number of microjoules")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(root: &Path, path: &str, name: &str, energy_uj: u64) -> PathBuf {
        let dir = root.join(path);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("name"), format!("{name}\n")).unwrap();
        fs::write(dir.join("max_energy_range_uj"), "1000\n").unwrap();
        fs::write(dir.join("energy_uj"), format!("{energy_uj}\n")).unwrap();
        dir.join("energy_uj")
    }

    #[test]
    fn packages_and_their_memory_are_added_up_and_wrap_around() {
        let root = tempfile::tempdir().unwrap();
        let package = zone(root.path(), "intel-rapl:0", "package-0", 900);
        zone(root.path(), "intel-rapl:0/intel-rapl:0:0", "core", 500);
        let dram = zone(root.path(), "intel-rapl:0/intel-rapl:0:1", "dram", 10);
        let mut rapl = Rapl::open(root.path()).unwrap();
        assert_eq!(rapl.name(), "RAPL (package-0 dram, package-0)");
        assert_eq!(rapl.joules().unwrap(), 0.0);
        fs::write(&package, "990").unwrap();
        fs::write(&dram, "20").unwrap();
        assert!((rapl.joules().unwrap() - 100e-6).abs() < 1e-15);
        // From 990 over 1000 to 0 (one more) and on to 39.
        fs::write(&package, "39").unwrap();
        assert!((rapl.joules().unwrap() - 150e-6).abs() < 1e-15);
    }

    #[test]
    fn the_whole_machine_goes_before_its_packages() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "package-0", 1);
        zone(root.path(), "intel-rapl:1", "psys", 1);
        assert_eq!(Rapl::open(root.path()).unwrap().name(), "RAPL (psys)");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert!(Rapl::open(root.path()).unwrap_err().to_string().contains("no RAPL"));
        assert!(Rapl::open(&root.path().join("none")).is_err());
        let file = zone(root.path(), "intel-rapl:0", "package-0", 1);
        fs::write(&file, "many").unwrap();
        assert!(Rapl::open(root.path()).unwrap_err().to_string().contains("energy_uj"));
        // Root reads everything, so that missing rights are tested as the message that they become.
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let message = refusal(&file, &denied).to_string();
        assert!(message.contains("energy_uj") && message.contains("only root"), "{message}");
    }
}

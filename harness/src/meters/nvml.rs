//! The energy counter of NVIDIA GPUs, through NVML: the driver's library, which is looked for at run time.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::EnergyCounter;
use crate::error::{Error, Result};

/// Counts what a GPU takes, all of the board (Volta and later).
pub(crate) struct NvmlCounter {
    nvml: Nvml,
    index: u32,
    name: String,
}

impl NvmlCounter {
    /// The counter of the GPU at this place of the PCI bus; where that is not known, of the only one of this name.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn open(pci: &str, name: &str) -> Result<Self> {
        let nvml = Nvml::init().map_err(failed)?;
        let unknown = || Error::Failed(format!("NVML knows no GPU, or several, of the name {name:?}"));
        let index = find(&nvml, pci, name).map_err(failed)?.ok_or_else(unknown)?;
        let mut counter = Self { nvml, index, name: name.to_owned() };
        counter.joules()?;
        Ok(counter)
    }
}

impl EnergyCounter for NvmlCounter {
    fn name(&self) -> String {
        format!("NVML ({})", self.name)
    }

    fn period_s(&self) -> f64 {
        0.1
    }

    fn joules(&mut self) -> Result<f64> {
        let gpu = self.nvml.device_by_index(self.index);
        let millijoules = gpu.and_then(|gpu| gpu.total_energy_consumption()).map_err(failed)?;
        Ok(millijoules as f64 / 1e3)
    }
}

fn failed(error: NvmlError) -> Error {
    Error::Failed(format!("NVML: {error}"))
}

/// The index of the GPU, if NVML knows it.
fn find(nvml: &Nvml, pci: &str, name: &str) -> std::result::Result<Option<u32>, NvmlError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_reason_is_said() {
        if let Err(reason) = NvmlCounter::open("ffff:ff:1f.7", "no such GPU") {
            assert!(reason.to_string().contains("NVML"), "{reason}");
        }
    }
}

//! What the device can do at most, measured once for each footprint.

use std::collections::BTreeMap;

use wattle_engine::backend::gpu;

use crate::devices;
use crate::error::Result;

/// Footprints that differ by less are one.
const GRAIN: u64 = 1 << 20;
/// More than any device's caches.
pub(super) const LARGE: u64 = 512 << 20;

/// The device's limits.
pub(super) struct Ceilings {
    device: gpu::Ceilings,
    /// Multiply-adds per second.
    pub multiply_adds: f64,
    reads: BTreeMap<u64, f64>,
}

impl Ceilings {
    /// Opens the device, and measures its arithmetic.
    pub fn open() -> Result<Self> {
        let device = devices::ceilings(None)?;
        let multiply_adds = device.multiply_adds()?;
        Ok(Self { device, multiply_adds, reads: BTreeMap::new() })
    }

    /// The device.
    pub fn info(&self) -> &gpu::DeviceInfo {
        self.device.info()
    }

    /// Bytes per second at which so many bytes are read.
    pub fn read(&mut self, bytes: u64) -> Result<f64> {
        let bytes = bytes.min(LARGE).next_multiple_of(GRAIN);
        if let Some(rate) = self.reads.get(&bytes) {
            return Ok(*rate);
        }
        let rate = self.device.read(bytes)?;
        self.reads.insert(bytes, rate);
        Ok(rate)
    }
}

//! The energy proxy of an op: what it moves and computes, times what that costs, plus static power over its time.
//!
//! E = e_F·arithmetic + e_D·DRAM bytes + e_S·on-chip bytes + e_L·launches + static power·time. The form is the usual one
//! of roofline energy models (Choi et al., IPDPS 2013); the choice of terms is wattle's own (`qeil_inspired`).

use std::fmt;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::OpCost;

/// How sure an energy figure is; every printed figure carries one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// Read from a counter of the machine, over a window long enough for it.
    #[serde(rename = "A")]
    Counter,
    /// The proxy with coefficients fitted to a counter of this machine.
    #[serde(rename = "B")]
    Calibrated,
    /// The proxy with coefficients from publications.
    #[serde(rename = "C")]
    Literature,
}

impl Tier {
    /// The letter that reports print.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Counter => "A",
            Self::Calibrated => "B",
            Self::Literature => "C",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "tier A: counter",
            Self::Calibrated => "tier B: proxy, calibrated",
            Self::Literature => "tier C: proxy, literature",
        })
    }
}

/// What a device spends per unit of work. All are at least 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// e_F \[J per f32 operation\].
    pub flop_j: f64,
    /// e_D \[J per byte to or from DRAM\].
    pub dram_byte_j: f64,
    /// e_S \[J per byte of an operand access served on chip\].
    pub on_chip_byte_j: f64,
    /// e_L \[J per launch\].
    pub launch_j: f64,
}

/// The energy of an op, by cause \[J\].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OpEnergy {
    /// Arithmetic.
    pub arithmetic_j: f64,
    /// DRAM traffic.
    pub dram_j: f64,
    /// On-chip traffic.
    pub on_chip_j: f64,
    /// Launches.
    pub launch_j: f64,
    /// Static power over the op's time.
    pub static_j: f64,
}

impl Coefficients {
    /// The proxy for work of this cost that takes `seconds` on a device that draws `static_w` whatever it does.
    pub fn energy(&self, cost: &OpCost, seconds: f64, static_w: f64) -> OpEnergy {
        OpEnergy {
            arithmetic_j: self.flop_j * cost.flops as f64,
            dram_j: self.dram_byte_j * cost.dram_bytes() as f64,
            on_chip_j: self.on_chip_byte_j * cost.on_chip_bytes as f64,
            launch_j: self.launch_j * cost.launches as f64,
            static_j: static_w * seconds,
        }
    }
}

impl OpEnergy {
    /// Everything but static power \[J\].
    pub fn dynamic_j(&self) -> f64 {
        self.arithmetic_j + self.dram_j + self.on_chip_j + self.launch_j
    }

    /// All of it \[J\].
    pub fn total_j(&self) -> f64 {
        self.dynamic_j() + self.static_j
    }
}

impl Add for OpEnergy {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            arithmetic_j: self.arithmetic_j + other.arithmetic_j,
            dram_j: self.dram_j + other.dram_j,
            on_chip_j: self.on_chip_j + other.on_chip_j,
            launch_j: self.launch_j + other.launch_j,
            static_j: self.static_j + other.static_j,
        }
    }
}

impl AddAssign for OpEnergy {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for OpEnergy {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// How long work takes where nobody measured it: the slower of arithmetic and DRAM traffic, and a launch's own time
/// (Williams et al., CACM 2009).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// F_peak \[f32 operations per second\], above 0.
    pub flops_per_s: f64,
    /// BW \[bytes per second\], above 0.
    pub bytes_per_s: f64,
    /// t0, of one launch \[s\].
    pub launch_s: f64,
}

impl Roofline {
    /// Time of one op \[s\].
    pub fn seconds(&self, cost: &OpCost) -> f64 {
        let (arithmetic, traffic) =
            (cost.flops as f64 / self.flops_per_s, cost.dram_bytes() as f64 / self.bytes_per_s);
        arithmetic.max(traffic) + cost.launches as f64 * self.launch_s
    }

    /// DASI, how much of the arithmetic units an op can use: min(1, (F/B) / (F_peak/BW)); *wattle's definition*
    /// (`qeil_inspired`). 1 for an op that moves nothing, 0 for one that does nothing.
    pub fn utilisation(&self, cost: &OpCost) -> f64 {
        let (flops, bytes) = (cost.flops as f64, cost.dram_bytes() as f64);
        match (flops > 0.0, bytes > 0.0) {
            (false, _) => 0.0,
            (true, false) => 1.0,
            _ => (flops / bytes / (self.flops_per_s / self.bytes_per_s)).min(1.0),
        }
    }
}

/// CPQ, memory pressure: 1 + κ·max(0, (ρ − ρ0)/(1 − ρ0))² with ρ = `used`/`capacity`, ρ0 = 0.8, κ = 1; `None` where
/// ρ ≥ 1: it does not fit. *Wattle's definition* (`qeil_inspired`).
pub fn memory_pressure(used_bytes: f64, capacity_bytes: f64) -> Option<f64> {
    const START: f64 = 0.8;
    let share = used_bytes / capacity_bytes;
    let over = ((share - START) / (1.0 - START)).max(0.0);
    (share < 1.0).then_some(1.0 + over * over)
}

/// Φ, thermal yield: the share of the power that does work, P_dyn / (P_dyn + P_leak); 0 without any. *Wattle's
/// definition* (`qeil_inspired`).
pub fn thermal_yield(dynamic_w: f64, leak_w: f64) -> f64 {
    let total = dynamic_w + leak_w;
    if total > 0.0 { dynamic_w / total } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: OpCost = OpCost {
        weight_bytes: 600,
        lora_bytes: 100,
        kv_read_bytes: 100,
        kv_write_bytes: 50,
        activation_read_bytes: 100,
        activation_write_bytes: 50,
        on_chip_bytes: 4000,
        flops: 2000,
        lora_flops: 200,
        launches: 2,
    };

    #[test]
    fn the_proxy_by_hand() {
        // 2000 · 1 pJ, 1000 · 60 pJ, 4000 · 0.5 pJ, 2 · 1 µJ, 3 W · 1 ms.
        let e = Coefficients { flop_j: 1e-12, dram_byte_j: 60e-12, on_chip_byte_j: 0.5e-12, launch_j: 1e-6 };
        let energy = e.energy(&COST, 1e-3, 3.0);
        assert!((energy.arithmetic_j - 2e-9).abs() < 1e-20);
        assert!((energy.dram_j - 60e-9).abs() < 1e-20);
        assert!((energy.on_chip_j - 2e-9).abs() < 1e-20);
        assert!((energy.launch_j - 2e-6).abs() < 1e-18);
        assert!((energy.static_j - 3e-3).abs() < 1e-15);
        assert!((energy.total_j() - (2e-9 + 60e-9 + 2e-9 + 2e-6 + 3e-3)).abs() < 1e-15);
        let twice: OpEnergy = [energy, energy].into_iter().sum();
        assert!((twice.total_j() - 2.0 * energy.total_j()).abs() < 1e-15);
    }

    #[test]
    fn time_and_utilisation_by_hand() {
        // 1000 bytes at 1 GB/s are 1 µs, 2000 operations at 10 G/s are 0.2 µs; two launches of 3 µs.
        let device = Roofline { flops_per_s: 10e9, bytes_per_s: 1e9, launch_s: 3e-6 };
        assert!((device.seconds(&COST) - 7e-6).abs() < 1e-15);
        // Two operations a byte where ten would keep the units busy.
        assert!((device.utilisation(&COST) - 0.2).abs() < 1e-12);
        assert_eq!(device.utilisation(&OpCost { flops: 100_000, ..COST }), 1.0);
        assert_eq!(device.utilisation(&OpCost { flops: 5, ..OpCost::default() }), 1.0);
        assert_eq!(device.utilisation(&OpCost::default()), 0.0);
    }

    #[test]
    fn pressure_and_yield_by_hand() {
        assert_eq!(memory_pressure(80.0, 100.0), Some(1.0));
        assert!((memory_pressure(90.0, 100.0).unwrap_or(0.0) - 1.25).abs() < 1e-12);
        assert_eq!(memory_pressure(100.0, 100.0), None);
        assert_eq!(thermal_yield(3.0, 1.0), 0.75);
        assert_eq!(thermal_yield(0.0, 0.0), 0.0);
    }
}

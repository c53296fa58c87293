//! Carbon of an inference: what its energy emits, and its share of what making the device emitted.
//!
//! C_op = E·I_grid, C_man = C_device·1000/N_lifetime (carbon-first LoRA scaling, equation 4). The two are kept apart: no
//! choice of layers changes the second.

use serde::Serialize;

const J_PER_WH: f64 = 3600.0;

/// Carbon of one inference \[mg CO2e\].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Carbon {
    /// From the energy that it took.
    pub operational_mg: f64,
    /// Its share of making the device.
    pub embodied_mg: f64,
}

impl Carbon {
    /// Of an inference of `energy_j` on a grid of `grid_mg_per_wh` (the same figure as g/kWh).
    pub fn new(energy_j: f64, grid_mg_per_wh: f64, embodied_mg: f64) -> Self {
        Self { operational_mg: operational_mg(energy_j, grid_mg_per_wh), embodied_mg }
    }

    /// Both.
    pub fn total_mg(&self) -> f64 {
        self.operational_mg + self.embodied_mg
    }
}

/// Carbon of energy from a grid \[mg CO2e\]; mg/Wh is the same as g/kWh.
pub fn operational_mg(energy_j: f64, grid_mg_per_wh: f64) -> f64 {
    energy_j / J_PER_WH * grid_mg_per_wh
}

/// An inference's share of what making the device emitted \[mg CO2e\].
pub fn embodied_mg(device_kg: f64, lifetime_inferences: f64) -> f64 {
    device_kg * 1e6 / lifetime_inferences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carbon_by_hand() {
        // 7.2 J are 2 mWh; at 475 mg/Wh that is 0.95 mg.
        assert!((operational_mg(7.2, 475.0) - 0.95).abs() < 1e-12);
        // 33 kg × 0.74 over 3.5 years of 100 inferences a day: 191.1 mg each.
        let share = embodied_mg(33.0 * 0.74, 3.5 * 365.25 * 100.0);
        assert!((share - 191.03).abs() < 0.01, "{share}");
        let carbon = Carbon::new(7.2, 475.0, share);
        assert_eq!(carbon.total_mg(), carbon.operational_mg + share);
    }
}

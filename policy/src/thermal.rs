//! Heat: a junction and a surface, each with a heat capacity, joined by thermal resistances (two-node RC).
//!
//! C_j·dT_j/dt = P − (T_j − T_s)/R_js and C_s·dT_s/dt = (T_j − T_s)/R_js − (T_s − T_amb)/R_sa. In the steady state
//! T_s = T_amb + P·R_sa, which is the carbon paper's equation 5.

use serde::Serialize;

/// Heat capacities and resistances; all above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThermalModel {
    /// C_j \[J/K\].
    pub junction_j_per_k: f64,
    /// C_s \[J/K\].
    pub surface_j_per_k: f64,
    /// R_js \[K/W\].
    pub junction_surface_k_per_w: f64,
    /// R_sa \[K/W\].
    pub surface_ambient_k_per_w: f64,
}

/// Temperatures \[°C\].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Temperatures {
    /// Of the chip.
    pub junction_c: f64,
    /// Of what is touched.
    pub surface_c: f64,
}

impl Temperatures {
    /// Everything at one temperature.
    pub fn even(temperature_c: f64) -> Self {
        Self { junction_c: temperature_c, surface_c: temperature_c }
    }
}

impl ThermalModel {
    /// The shorter of the two time constants \[s\]: of the junction against the surface.
    pub fn junction_s(&self) -> f64 {
        self.junction_j_per_k * self.junction_surface_k_per_w
    }

    /// The longer one \[s\]: of the surface against the air.
    pub fn surface_s(&self) -> f64 {
        self.surface_j_per_k * self.surface_ambient_k_per_w
    }

    /// The longest step that [`Self::advance`] takes at once \[s\]: a twentieth of the fastest time constant.
    pub fn max_step_s(&self) -> f64 {
        let surface = self.surface_j_per_k * self.junction_surface_k_per_w;
        self.junction_s().min(surface).min(self.surface_s()) / 20.0
    }

    /// Where `power_w` leads in the end.
    pub fn steady(&self, power_w: f64, ambient_c: f64) -> Temperatures {
        let surface_c = ambient_c + power_w * self.surface_ambient_k_per_w;
        Temperatures { junction_c: surface_c + power_w * self.junction_surface_k_per_w, surface_c }
    }

    /// One explicit Euler step of at most [`Self::max_step_s`]; returns the temperatures after it and the heat that
    /// left to the air \[J\].
    pub fn advance(
        &self,
        now: Temperatures,
        power_w: f64,
        ambient_c: f64,
        seconds: f64,
    ) -> (Temperatures, f64) {
        let inner_w = (now.junction_c - now.surface_c) / self.junction_surface_k_per_w;
        let outer_w = (now.surface_c - ambient_c) / self.surface_ambient_k_per_w;
        let next = Temperatures {
            junction_c: now.junction_c + (power_w - inner_w) * seconds / self.junction_j_per_k,
            surface_c: now.surface_c + (inner_w - outer_w) * seconds / self.surface_j_per_k,
        };
        (next, outer_w * seconds)
    }

    /// Heat stored above what `from` holds \[J\].
    pub fn stored_j(&self, from: Temperatures, to: Temperatures) -> f64 {
        (to.junction_c - from.junction_c) * self.junction_j_per_k
            + (to.surface_c - from.surface_c) * self.surface_j_per_k
    }
}

/// A limit, and how a device slows down before it is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// The junction's limit \[°C\].
    pub junction_limit_c: f64,
    /// The surface's limit \[°C\].
    pub surface_limit_c: f64,
}

impl Throttle {
    /// Slowing down begins so far below a limit \[K\] (*ours*).
    pub const BAND_K: f64 = 2.0;
    /// A device never stops altogether (*ours*).
    pub const SLOWEST: f64 = 0.02;

    /// How far below the nearer limit it is \[K\].
    pub fn room_k(&self, now: Temperatures) -> f64 {
        (self.junction_limit_c - now.junction_c).min(self.surface_limit_c - now.surface_c)
    }

    /// The share of its full speed at which a device works, 0.02 to 1: full below the band, falling linearly to the
    /// limit.
    pub fn speed(&self, now: Temperatures) -> f64 {
        (self.room_k(now) / Self::BAND_K).clamp(Self::SLOWEST, 1.0)
    }
}

/// Leakage at a junction temperature \[W\]: `leak_w` at 25 °C, doubling every 25 K (MISSION's β = ln 2 / 25 K).
pub fn leakage_w(leak_w: f64, junction_c: f64) -> f64 {
    const T0_C: f64 = 25.0;
    leak_w * ((junction_c - T0_C) * std::f64::consts::LN_2 / 25.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: ThermalModel = ThermalModel {
        junction_j_per_k: 1.0,
        surface_j_per_k: 20.0,
        junction_surface_k_per_w: 6.0,
        surface_ambient_k_per_w: 18.0,
    };

    #[test]
    fn the_steady_state_is_the_closed_form_and_energy_is_kept() {
        let (start, power_w, ambient_c) = (Temperatures::even(22.0), 0.75, 22.0);
        let (mut now, mut lost_j, mut seconds) = (start, 0.0, 0.0);
        let dt = WATCH.max_step_s();
        while seconds < 20.0 * WATCH.surface_s() {
            let (next, heat_j) = WATCH.advance(now, power_w, ambient_c, dt);
            (now, lost_j, seconds) = (next, lost_j + heat_j, seconds + dt);
        }
        let steady = WATCH.steady(power_w, ambient_c);
        assert_eq!(steady.surface_c, 22.0 + 0.75 * 18.0);
        assert_eq!(steady.junction_c, 22.0 + 0.75 * 24.0);
        assert!((now.surface_c - steady.surface_c).abs() < 1e-4, "{now:?} {steady:?}");
        assert!((now.junction_c - steady.junction_c).abs() < 1e-4, "{now:?} {steady:?}");
        let given_j = power_w * seconds;
        let kept_j = WATCH.stored_j(start, now) + lost_j;
        assert!((given_j - kept_j).abs() < 1e-9 * given_j, "{given_j} {kept_j}");
    }

    #[test]
    fn a_first_step_by_hand() {
        // 2 W for 0.1 s into 1 J/K: 0.2 K; the surface has not noticed yet.
        let (next, lost_j) = WATCH.advance(Temperatures::even(25.0), 2.0, 25.0, 0.1);
        assert!((next.junction_c - 25.2).abs() < 1e-12);
        assert_eq!((next.surface_c, lost_j), (25.0, 0.0));
    }

    #[test]
    fn speed_falls_before_the_limit() {
        let throttle = Throttle { junction_limit_c: 90.0, surface_limit_c: 42.0 };
        let at = |surface_c| throttle.speed(Temperatures { junction_c: 50.0, surface_c });
        assert_eq!((at(30.0), at(40.0), at(41.0), at(60.0)), (1.0, 1.0, 0.5, Throttle::SLOWEST));
        let hot = throttle.speed(Temperatures { junction_c: 89.0, surface_c: 30.0 });
        assert_eq!(hot, 0.5);
    }

    #[test]
    fn leakage_doubles_every_25_kelvin() {
        assert_eq!(leakage_w(0.1, 25.0), 0.1);
        assert!((leakage_w(0.1, 75.0) - 0.4).abs() < 1e-12);
    }
}

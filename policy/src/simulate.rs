//! Running an inference on a device that is not there: time, energy, heat, memory and carbon. *Simulated*, never measured.

use serde::Serialize;

use crate::Carbon;
use crate::energy::{memory_pressure, thermal_yield};
use crate::profile::Profile;
use crate::thermal::{Temperatures, Throttle, leakage_w};
use crate::workload::{Inference, Priced, Slice};

/// Steps of the heat model at most; work that is left then (days on a device that is far too slow) ends at the last
/// speed and power.
const MAX_STEPS: usize = 200_000;

/// Below this share of the battery a device halves its power limit (low-power mode; *ours*).
pub const LOW_BATTERY: f64 = 0.2;

/// What a device is in when a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Conditions {
    /// Before the inference \[°C\].
    pub temperatures: Temperatures,
    /// Of the air \[°C\].
    pub ambient_c: f64,
    /// Charge, 0 to 1.
    pub battery: f64,
    /// Grid intensity \[mg CO2e/Wh\]; on battery, that of the grid that charged it.
    pub grid_mg_per_wh: f64,
}

impl Conditions {
    /// Of a device that has rested in this air, with a full battery.
    pub fn rested(ambient_c: f64, grid_mg_per_wh: f64) -> Self {
        Self { temperatures: Temperatures::even(ambient_c), ambient_c, battery: 1.0, grid_mg_per_wh }
    }
}

/// What an inference took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Until the first new token \[s\].
    pub first_token_s: f64,
    /// Until the last \[s\].
    pub latency_s: f64,
    /// Without static power \[J\].
    pub dynamic_j: f64,
    /// All of it \[J\].
    pub energy_j: f64,
    /// Mean power \[W\].
    pub power_w: f64,
    /// After the inference \[°C\].
    pub temperatures: Temperatures,
    /// The hottest that the surface was \[°C\].
    pub hottest_surface_c: f64,
    /// The hottest that the junction was \[°C\].
    pub hottest_junction_c: f64,
    /// Time lost to slowing down, as a share of the latency.
    pub throttled: f64,
    /// Held \[bytes\].
    pub memory_bytes: f64,
    /// CPQ; `None` where it does not fit.
    pub memory_pressure: Option<f64>,
    /// Φ at the mean power and the last junction temperature.
    pub thermal_yield: f64,
    /// Operational and embodied.
    pub carbon: Carbon,
}

impl Outcome {
    /// Inferences per joule.
    pub fn per_joule(&self) -> f64 {
        if self.energy_j > 0.0 { 1.0 / self.energy_j } else { 0.0 }
    }
}

/// A device that works and heats up.
struct Run<'a> {
    profile: &'a Profile,
    ambient_c: f64,
    now: Temperatures,
    hottest: Temperatures,
    seconds: f64,
    static_j: f64,
    steps: usize,
}

/// Runs an inference with LoRA in these layers.
pub fn run(
    profile: &Profile,
    priced: &Priced,
    inference: &Inference,
    layers: u128,
    conditions: &Conditions,
) -> Outcome {
    let mut run = Run::new(profile, conditions);
    let [prompt, decode] = priced.phases(layers);
    run.work(&prompt);
    let first_token_s = run.seconds;
    run.work(&decode);
    let (full_s, dynamic_j) = (prompt.seconds + decode.seconds, prompt.dynamic_j + decode.dynamic_j);
    let (latency_s, energy_j) = (run.seconds, dynamic_j + run.static_j);
    let rate = |j: f64| if latency_s > 0.0 { j / latency_s } else { 0.0 };
    let memory_bytes = priced.memory_bytes(inference, layers);
    Outcome {
        first_token_s,
        latency_s,
        dynamic_j,
        energy_j,
        power_w: rate(energy_j),
        temperatures: run.now,
        hottest_surface_c: run.hottest.surface_c,
        hottest_junction_c: run.hottest.junction_c,
        throttled: if latency_s > 0.0 { 1.0 - full_s / latency_s } else { 0.0 },
        memory_bytes,
        memory_pressure: memory_pressure(memory_bytes, profile.memory_bytes),
        thermal_yield: thermal_yield(rate(dynamic_j), leakage_w(profile.leak_w, run.now.junction_c)),
        carbon: Carbon::new(energy_j, conditions.grid_mg_per_wh, profile.embodied_mg),
    }
}

/// A device that idles for some time: where its temperatures go, and what it draws \[J\].
pub fn idle(profile: &Profile, conditions: &Conditions, seconds: f64) -> (Temperatures, f64) {
    let mut run = Run::new(profile, conditions);
    while run.seconds < seconds && run.steps < MAX_STEPS {
        run.step(0.0, (seconds - run.seconds).min(profile.thermal.max_step_s()));
    }
    (run.now, run.static_j)
}

impl<'a> Run<'a> {
    fn new(profile: &'a Profile, conditions: &Conditions) -> Self {
        let now = conditions.temperatures;
        Self {
            profile,
            ambient_c: conditions.ambient_c,
            now,
            hottest: now,
            seconds: 0.0,
            static_j: 0.0,
            steps: 0,
        }
    }

    /// Does the work of a phase, as fast as heat allows.
    fn work(&mut self, slice: &Slice) {
        let dynamic_w = if slice.seconds > 0.0 { slice.dynamic_j / slice.seconds } else { 0.0 };
        let mut left_s = slice.seconds;
        while left_s > 0.0 {
            let speed = self.profile.throttle.speed(self.now);
            let step_s = match self.steps < MAX_STEPS {
                true => (left_s / speed).min(self.longest_s(dynamic_w * speed)),
                false => left_s / speed,
            };
            // What is left after the last step is exactly nothing.
            left_s = if step_s * speed >= left_s { 0.0 } else { left_s - step_s * speed };
            if self.steps < MAX_STEPS {
                self.step(dynamic_w * speed, step_s);
            } else {
                self.seconds += step_s;
                self.static_j += self.static_w() * step_s;
            }
        }
    }

    /// The longest step at this power \[s\]: the junction must not jump over the band in which it slows down.
    fn longest_s(&self, dynamic_w: f64) -> f64 {
        let room_k = self.profile.throttle.room_k(self.now);
        let jump_k = (room_k / 4.0).max(Throttle::BAND_K / 10.0);
        let power_w = (dynamic_w + self.static_w()).max(1e-9);
        let thermal = &self.profile.thermal;
        thermal.max_step_s().min(jump_k * thermal.junction_j_per_k / power_w)
    }

    fn static_w(&self) -> f64 {
        self.profile.idle_w + leakage_w(self.profile.leak_w, self.now.junction_c)
    }

    fn step(&mut self, dynamic_w: f64, seconds: f64) {
        let static_w = self.static_w();
        let (next, _) = self.profile.thermal.advance(self.now, dynamic_w + static_w, self.ambient_c, seconds);
        self.now = next;
        self.hottest.junction_c = self.hottest.junction_c.max(next.junction_c);
        self.hottest.surface_c = self.hottest.surface_c.max(next.surface_c);
        self.seconds += seconds;
        self.static_j += static_w * seconds;
        self.steps += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::workload;

    fn conditions(temperature_c: f64) -> Conditions {
        Conditions::rested(temperature_c, 475.0)
    }

    #[test]
    fn a_cool_device_takes_the_rooflines_time_and_the_proxys_energy() {
        let profile = Profile { leak_w: 0.0, ..Profile::named("tablet").unwrap() };
        let workload = workload(3, 3);
        let priced = workload.price(&profile);
        let outcome = run(&profile, &priced, &workload.inference, 0b01, &conditions(20.0));
        let [prompt, decode] = priced.phases(0b01);
        assert!((outcome.first_token_s - prompt.seconds).abs() < 1e-15);
        assert!((outcome.latency_s - prompt.seconds - decode.seconds).abs() < 1e-12);
        let expected = prompt.dynamic_j + decode.dynamic_j + profile.idle_w * outcome.latency_s;
        assert!((outcome.energy_j - expected).abs() < 1e-12 * expected.max(1.0));
        assert!(outcome.throttled.abs() < 1e-9 && outcome.memory_pressure == Some(1.0));
        assert_eq!(outcome.carbon.operational_mg, outcome.energy_j / 3600.0 * 475.0);
        assert_eq!(outcome.carbon.embodied_mg, profile.embodied_mg);
    }

    #[test]
    fn throttling_keeps_every_device_below_its_limits_for_hours() {
        for profile in Profile::builtin().unwrap() {
            // Hot work: three times what the case can carry away on a hot day.
            let room_k = profile.throttle.surface_limit_c - 30.0;
            let dynamic_w = 3.0 * room_k / profile.thermal.surface_ambient_k_per_w;
            let mut run = Run::new(&profile, &conditions(30.0));
            let hour = Slice { seconds: 3600.0, dynamic_j: 3600.0 * dynamic_w, ..Slice::default() };
            run.work(&hour);
            assert!(run.seconds > 1.5 * 3600.0, "{}: not slowed down", profile.name);
            assert!(run.hottest.surface_c <= profile.throttle.surface_limit_c, "{}", profile.name);
            assert!(run.hottest.junction_c <= profile.throttle.junction_limit_c, "{}", profile.name);
        }
    }

    #[test]
    fn idling_cools_down_and_costs_static_power() {
        let profile = Profile { leak_w: 0.0, ..Profile::named("smartwatch").unwrap() };
        let hot = Conditions { temperatures: Temperatures::even(40.0), ..conditions(20.0) };
        let (after, drawn_j) = idle(&profile, &hot, 600.0);
        assert!(after.surface_c < 40.0 && after.surface_c > 20.0);
        assert!((drawn_j - 600.0 * profile.idle_w).abs() < 1e-9);
    }

    #[test]
    fn a_workload_that_never_ends_still_comes_back() {
        let profile = Profile::named("smartwatch").unwrap();
        let mut run = Run::new(&profile, &conditions(25.0));
        run.work(&Slice { seconds: 1e9, dynamic_j: 1e9, ..Slice::default() });
        assert!(run.seconds >= 1e9 && run.steps == MAX_STEPS);
    }
}

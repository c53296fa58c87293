//! Device profiles: data files with a source and a year for every figure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::carbon;
use crate::energy::{Coefficients, Roofline, Tier};
use crate::error::{Error, Result};
use crate::thermal::{ThermalModel, Throttle};

/// The profiles that are compiled in: `policy/data/devices`.
const BUILTIN: [&str; 8] = [
    include_str!("../data/devices/smartwatch.json"),
    include_str!("../data/devices/ar-glasses.json"),
    include_str!("../data/devices/vr-headset.json"),
    include_str!("../data/devices/tablet.json"),
    include_str!("../data/devices/phone.json"),
    include_str!("../data/devices/laptop.json"),
    include_str!("../data/devices/server.json"),
    include_str!("../data/devices/gpu.json"),
];

/// Every figure that a profile has: its name (the unit is its end), the least and the largest value that make sense.
const FIGURES: [(&str, f64, f64); 23] = [
    ("peak_gflops", 1e-3, 1e7),
    ("bandwidth_gb_per_s", 1e-3, 1e6),
    ("memory_mib", 1.0, 1e8),
    ("flop_pj", 0.0, 1e6),
    ("dram_byte_pj", 0.0, 1e6),
    ("on_chip_byte_pj", 0.0, 1e6),
    ("launch_us", 0.0, 1e6),
    ("launch_uj", 0.0, 1e9),
    ("idle_w", 0.0, 1e5),
    ("leak_w", 0.0, 1e5),
    ("power_limit_w", 1e-3, 1e6),
    ("latency_limit_s", 1e-3, 1e6),
    ("junction_j_per_k", 1e-2, 1e7),
    ("surface_j_per_k", 1e-2, 1e8),
    ("junction_surface_k_per_w", 1e-3, 1e4),
    ("surface_ambient_k_per_w", 1e-3, 1e4),
    ("junction_limit_c", 30.0, 200.0),
    ("surface_limit_c", 30.0, 200.0),
    ("battery_wh", 0.0, 1e6),
    ("footprint_kg", 0.0, 1e7),
    ("manufacturing_share", 0.0, 1.0),
    ("lifetime_years", 1e-2, 100.0),
    ("inferences_per_day", 1e-3, 1e12),
];

/// The longest profile that is read \[bytes\].
const MAX_LENGTH: usize = 1 << 20;

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// In the unit that ends the figure's name.
    pub value: f64,
    /// Of the source, or in which it was assumed.
    pub year: u32,
    /// Who says so, or what an assumption rests on.
    pub source: String,
    /// Nobody published it.
    pub assumption: bool,
}

/// A device as its file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    title: String,
    quant: String,
    lora_layers: [usize; 2],
    lora_layers_source: String,
    /// How the energy coefficients were fitted, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calibrated: Option<String>,
    figures: BTreeMap<String, Figure>,
}

/// A simulated device.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// What `--device` calls it.
    pub name: String,
    /// What it stands for.
    pub title: String,
    /// How weights are kept on it, as `--quant` says it.
    pub quant: String,
    /// The fewest and the most layers with LoRA.
    pub lora_layers: [usize; 2],
    /// Where that range comes from.
    pub lora_layers_source: String,
    /// How the energy coefficients were fitted to a counter, where they were.
    pub calibrated: Option<String>,
    /// Every figure with its source, by name.
    pub figures: BTreeMap<String, Figure>,
    /// Peak rates.
    pub roofline: Roofline,
    /// What work costs.
    pub coefficients: Coefficients,
    /// Drawn whatever runs, without leakage \[W\].
    pub idle_w: f64,
    /// Leakage at 25 °C \[W\].
    pub leak_w: f64,
    /// Memory that a model may take \[bytes\].
    pub memory_bytes: f64,
    /// Power above which is too much \[W\].
    pub power_limit_w: f64,
    /// Time above which an inference is too slow \[s\].
    pub latency_limit_s: f64,
    /// Heat.
    pub thermal: ThermalModel,
    /// Limits, and slowing down before them.
    pub throttle: Throttle,
    /// A full battery \[Wh\]; 0 is mains.
    pub battery_wh: f64,
    /// Carbon of making the device, per inference of its life \[mg CO2e\].
    pub embodied_mg: f64,
}

impl Profile {
    /// The profiles that come with wattle: smartwatch, ar-glasses, vr-headset, tablet, phone, laptop, server, gpu.
    ///
    /// # Errors
    /// None in a build whose tests pass: they read every one.
    pub fn builtin() -> Result<Vec<Self>> {
        BUILTIN.iter().map(|text| Self::parse(text)).collect()
    }

    /// The profile of this name that comes with wattle.
    ///
    /// # Errors
    /// Names the profiles that there are.
    pub fn named(name: &str) -> Result<Self> {
        let all = Self::builtin()?;
        let names: Vec<String> = all.iter().map(|profile| profile.name.clone()).collect();
        all.into_iter().find(|profile| profile.name == name).ok_or_else(|| {
            Error::new("device", format!("{name:?} is not known; accepted: {}", names.join(", ")))
        })
    }

    /// A profile from the text of its file (JSON).
    ///
    /// # Errors
    /// For text that is no profile, a figure that is missing, not known or out of its range, and a layer range that is
    /// empty: the message names it.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_LENGTH {
            return Err(Error::new("profile", format!("longer than {MAX_LENGTH} bytes")));
        }
        let file: File = serde_json::from_str(text).map_err(|error| Error::new("profile", error))?;
        file.check()?;
        let get = |name: &str| file.figures.get(name).map_or(0.0, |figure| figure.value);
        let lifetime = get("lifetime_years") * 365.25 * get("inferences_per_day");
        Ok(Self {
            roofline: Roofline {
                flops_per_s: get("peak_gflops") * 1e9,
                bytes_per_s: get("bandwidth_gb_per_s") * 1e9,
                launch_s: get("launch_us") * 1e-6,
            },
            coefficients: Coefficients {
                flop_j: get("flop_pj") * 1e-12,
                dram_byte_j: get("dram_byte_pj") * 1e-12,
                on_chip_byte_j: get("on_chip_byte_pj") * 1e-12,
                launch_j: get("launch_uj") * 1e-6,
            },
            idle_w: get("idle_w"),
            leak_w: get("leak_w"),
            memory_bytes: get("memory_mib") * f64::from(1 << 20),
            power_limit_w: get("power_limit_w"),
            latency_limit_s: get("latency_limit_s"),
            thermal: ThermalModel {
                junction_j_per_k: get("junction_j_per_k"),
                surface_j_per_k: get("surface_j_per_k"),
                junction_surface_k_per_w: get("junction_surface_k_per_w"),
                surface_ambient_k_per_w: get("surface_ambient_k_per_w"),
            },
            throttle: Throttle {
                junction_limit_c: get("junction_limit_c"),
                surface_limit_c: get("surface_limit_c"),
            },
            battery_wh: get("battery_wh"),
            embodied_mg: carbon::embodied_mg(get("footprint_kg") * get("manufacturing_share"), lifetime),
            name: file.name,
            title: file.title,
            quant: file.quant,
            lora_layers: file.lora_layers,
            lora_layers_source: file.lora_layers_source,
            calibrated: file.calibrated,
            figures: file.figures,
        })
    }

    /// How sure figures of the proxy with this profile's coefficients are.
    pub fn tier(&self) -> Tier {
        if self.calibrated.is_some() { Tier::Calibrated } else { Tier::Literature }
    }

    /// This device with coefficients that were fitted to a counter, as the text of a profile file.
    pub fn calibrated(&self, fitted: &Coefficients, idle_w: f64, year: u32, how: &str) -> String {
        let mut figures = self.figures.clone();
        let values = [
            ("flop_pj", fitted.flop_j * 1e12),
            ("dram_byte_pj", fitted.dram_byte_j * 1e12),
            ("on_chip_byte_pj", fitted.on_chip_byte_j * 1e12),
            ("launch_uj", fitted.launch_j * 1e6),
            ("idle_w", idle_w),
        ];
        for (name, value) in values {
            figures.insert(name.into(), Figure { value, year, source: how.into(), assumption: false });
        }
        let file = File {
            name: self.name.clone(),
            title: self.title.clone(),
            quant: self.quant.clone(),
            lora_layers: self.lora_layers,
            lora_layers_source: self.lora_layers_source.clone(),
            calibrated: Some(how.to_owned()),
            figures,
        };
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }

    /// The fewest and the most layers with LoRA in a model of so many layers: the device's range, cut off there.
    pub fn layer_range(&self, layers: usize) -> [usize; 2] {
        self.lora_layers.map(|bound| bound.min(layers))
    }

    /// Names of figures that nobody published.
    pub fn assumptions(&self) -> impl Iterator<Item = &str> {
        self.figures.iter().filter(|(_, figure)| figure.assumption).map(|(name, _)| name.as_str())
    }
}

impl File {
    fn check(&self) -> Result<()> {
        let error = |field: &str, reason: String| {
            Err(Error::new(format!("profile {:?}: {field}", self.name), reason))
        };
        if self.name.is_empty() || self.name.len() > 64 {
            return error("name", "expected 1 to 64 characters".into());
        }
        let [least, most] = self.lora_layers;
        if least == 0 || least > most {
            return error("lora_layers", format!("[{least}, {most}] is no range from 1 on"));
        }
        if let Some(unknown) =
            self.figures.keys().find(|name| !FIGURES.iter().any(|(known, ..)| known == name))
        {
            return error(unknown, "no such figure".into());
        }
        for (name, low, high) in FIGURES {
            let Some(figure) = self.figures.get(name) else { return error(name, "missing".into()) };
            if !(low..=high).contains(&figure.value) {
                return error(name, format!("{} is not between {low} and {high}", figure.value));
            }
            if figure.source.trim().is_empty() {
                return error(name, "has no source".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_read_and_says_where_its_figures_come_from() {
        let profiles = Profile::builtin().unwrap();
        let names: Vec<_> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        let known = "smartwatch ar-glasses vr-headset tablet phone laptop server gpu";
        assert_eq!(names.join(" "), known);
        for profile in &profiles {
            assert_eq!(profile.figures.len(), FIGURES.len(), "{}", profile.name);
            assert!(profile.figures.values().all(|figure| (1990..=2030).contains(&figure.year)));
            // Idle on an ordinary day, no device passes its limits.
            let steady = profile.thermal.steady(profile.idle_w + profile.leak_w, 25.0);
            assert!(steady.surface_c < profile.throttle.surface_limit_c - 2.0, "{}", profile.name);
        }
        assert_eq!(Profile::named("tablet").unwrap().layer_range(6), [2, 6]);
        let message = Profile::named("toaster").unwrap_err().to_string();
        assert!(message.contains("toaster") && message.contains("smartwatch"), "{message}");
    }

    #[test]
    fn a_watch_by_hand() {
        let watch = Profile::named("smartwatch").unwrap();
        assert_eq!(watch.roofline.bytes_per_s, 8.5e9);
        assert_eq!(watch.coefficients.dram_byte_j, 64e-12);
        // 33 kg × 0.74 over 3.5 years of 50 inferences a day.
        assert!((watch.embodied_mg - 24.42e6 / (3.5 * 365.25 * 50.0)).abs() < 1e-9);
        assert_eq!(watch.lora_layers, [1, 5]);
    }

    #[test]
    fn a_calibrated_profile_is_read_back_and_says_so() {
        let server = Profile::named("server").unwrap();
        let fitted = Coefficients { flop_j: 5e-12, dram_byte_j: 1e-10, on_chip_byte_j: 0.0, launch_j: 2e-6 };
        let again = Profile::parse(&server.calibrated(&fitted, 7.5, 2026, "a fit")).unwrap();
        assert_eq!((server.tier(), again.tier()), (Tier::Literature, Tier::Calibrated));
        assert!((again.coefficients.dram_byte_j - 1e-10).abs() < 1e-22 && again.idle_w == 7.5);
        assert_eq!(again.roofline, server.roofline);
    }

    #[test]
    fn what_is_no_profile_is_refused_by_name() {
        let good: serde_json::Value = serde_json::from_str(BUILTIN[0]).unwrap();
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut bad = good.clone();
            change(&mut bad);
            Profile::parse(&bad.to_string()).unwrap_err().to_string()
        };
        let missing = refused(&|v| drop(v["figures"].as_object_mut().unwrap().remove("idle_w")));
        assert!(missing.contains("smartwatch") && missing.contains("idle_w"), "{missing}");
        let negative = refused(&|v| v["figures"]["idle_w"]["value"] = (-1.0).into());
        assert!(negative.contains("idle_w") && negative.contains("-1"), "{negative}");
        let unknown = refused(&|v| v["figures"]["colour"] = v["figures"]["idle_w"].clone());
        assert!(unknown.contains("colour"), "{unknown}");
        let nobody = refused(&|v| v["figures"]["idle_w"]["source"] = " ".into());
        assert!(nobody.contains("source"), "{nobody}");
        let range = refused(&|v| v["lora_layers"] = serde_json::json!([5, 1]));
        assert!(range.contains("[5, 1]"), "{range}");
        assert!(Profile::parse("[]").is_err() && Profile::parse("").is_err());
    }
}

//! Carbon intensity of electricity by country.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const BUILTIN: &str = include_str!("../data/grids.json");

/// A grid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// What `--grid` calls it: a country's two letters, `world`, or a number.
    pub code: String,
    /// Intensity \[mg CO2e/Wh\], the same figure as g/kWh.
    pub mg_per_wh: f64,
    /// Who says so.
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "unit")]
    _unit: String,
    grids: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    country: String,
    value: f64,
    year: u32,
    source: String,
}

impl Grid {
    /// All grids that come with wattle, by code.
    ///
    /// # Errors
    /// None in a build whose tests pass: they read the table.
    pub fn builtin() -> Result<Vec<Self>> {
        let file: File = serde_json::from_str(BUILTIN).map_err(|error| Error::new("grids", error))?;
        let grid = |(code, entry): (String, Entry)| {
            let source = format!("{}, {} ({})", entry.country, entry.year, entry.source);
            Self { code, mg_per_wh: entry.value, source }
        };
        Ok(file.grids.into_iter().map(grid).collect())
    }

    /// The grid that a code or a number of g/kWh names.
    ///
    /// # Errors
    /// For anything else: the message lists the codes.
    pub fn named(text: &str) -> Result<Self> {
        if let Ok(value) = text.parse::<f64>() {
            if (0.0..=5000.0).contains(&value) {
                return Ok(Self { code: text.to_owned(), mg_per_wh: value, source: "given".into() });
            }
            return Err(Error::new("grid", format!("{text} g/kWh is not between 0 and 5000")));
        }
        let all = Self::builtin()?;
        let codes: Vec<String> = all.iter().map(|grid| grid.code.clone()).collect();
        all.into_iter().find(|grid| grid.code == text).ok_or_else(|| {
            let accepted = codes.join(", ");
            Error::new("grid", format!("{text:?} is not known; accepted: {accepted}, or a number of g/kWh"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_found_by_code_and_given_as_numbers() {
        assert_eq!(Grid::named("SE").unwrap().mg_per_wh, 41.0);
        assert!(Grid::named("SE").unwrap().source.contains("2023"));
        assert_eq!(Grid::named("12.5").unwrap().mg_per_wh, 12.5);
        assert_eq!(Grid::builtin().unwrap().len(), 14);
        let message = Grid::named("XX").unwrap_err().to_string();
        assert!(message.contains("XX") && message.contains("world"), "{message}");
        assert!(Grid::named("-1").is_err() && Grid::named("NaN").is_err());
    }
}

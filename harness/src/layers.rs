//! `--lora-layers`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use wattle_engine::LayerMask;

use crate::error::{Error, Result};

/// Layers by number, before it is known how many the model has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layers {
    /// Wherever the adapter has factors.
    All,
    /// Nowhere.
    None,
    /// In these layers, and nowhere outside the layers.
    List(Vec<RangeInclusive<usize>>),
}

impl Layers {
    /// The mask for a model of so many layers; an error when the list names another.
    pub fn mask(&self, layers: usize) -> Result<LayerMask> {
        let ranges = match self {
            Self::All => return Ok(LayerMask::ALL),
            Self::None => return Ok(LayerMask::NONE),
            Self::List(ranges) => ranges,
        };
        match ranges.iter().map(RangeInclusive::end).find(|&&end| end >= layers) {
            Some(end) => {
                let reason =
                    format!("there is no layer {end}: the model's are 0 to {}", layers.saturating_sub(1));
                Err(Error::value("--lora-layers", reason))
            }
            None => Ok(LayerMask::of(ranges.iter().cloned().flatten())),
        }
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |part: &str| -> Option<RangeInclusive<usize>> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(first..=last)
        };
        let wrong = |part: &str| format!("{part:?} is no layer or range; expected all, none, or 0,2,5-7");
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            list => list
                .split(',')
                .map(|part| range(part).ok_or_else(|| wrong(part)))
                .collect::<Result<_, _>>()
                .map(Self::List),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |range: &RangeInclusive<usize>| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        match self {
            Self::All => f.write_str("all"),
            Self::None => f.write_str("none"),
            Self::List(ranges) => f.write_str(&ranges.iter().map(show).collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_layers_and_leaves_out_what_is_outside() {
        let layers: Layers = "0,2,5-7".parse().unwrap();
        let mask = layers.mask(8).unwrap();
        assert_eq!(mask, LayerMask::of([0, 2, 5, 6, 7]));
        assert!(!mask.has(wattle_engine::OUTSIDE_LAYERS));
        assert_eq!(layers.to_string(), "0,2,5-7");
        assert_eq!("all".parse::<Layers>().unwrap().mask(1).unwrap(), LayerMask::ALL);
        assert_eq!("none".parse::<Layers>().unwrap().mask(1).unwrap(), LayerMask::NONE);
    }

    #[test]
    fn what_is_no_list_of_the_models_layers_is_refused() {
        for bad in ["", "x", "1,", "3-1", "-1", "1-2-3", "99999999999999999999"] {
            assert!(bad.parse::<Layers>().is_err(), "{bad:?}");
        }
        let message = "0-8".parse::<Layers>().unwrap().mask(8).unwrap_err().to_string();
        assert!(message.contains("--lora-layers") && message.contains("0 to 7"), "{message}");
        assert!("0-18446744073709551615".parse::<Layers>().unwrap().mask(8).is_err());
    }
}

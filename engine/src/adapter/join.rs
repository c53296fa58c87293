//! Several adapters as one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Adapter, Factors, MAX_RANK, Pair, Place};
use crate::{Error, Result};

/// One adapter that does what these do together, each with its strength: in every place A's rows stand below each
/// other and B's columns, multiplied by the strength, side by side.
///
/// # Errors
/// [`Error::Value`] when there is none, a strength is not finite, they are not active on the same tokens, they were
/// loaded for models of other shapes, or the ranks of a place sum to more than [`MAX_RANK`].
pub fn join(adapters: &[(&Adapter, f32)]) -> Result<Adapter> {
    let Some(((first, strength), rest)) = adapters.split_first() else {
        return Err(Error::value("adapters", "none given, expected at least one"));
    };
    if let Some((adapter, strength)) = adapters.iter().find(|(_, strength)| !strength.is_finite()) {
        return Err(Error::value(&adapter.name, format!("strength {strength}, expected a finite number")));
    }
    if rest.is_empty() && *strength == 1.0 {
        return Ok((*first).clone());
    }
    if let Some((other, _)) = rest.iter().find(|(other, _)| other.rule != first.rule) {
        let reason =
            format!("not active on the same tokens as {}, expected equal activation rules", first.name);
        return Err(Error::value(&other.name, reason));
    }
    let places: BTreeSet<Place> =
        adapters.iter().flat_map(|(a, _)| a.factors.pairs().keys().copied()).collect();
    let pairs =
        places.into_iter().map(|place| Ok((place, join_at(place, adapters)?))).collect::<Result<_>>()?;
    let factors = Factors::new(pairs);
    let names: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.name.as_str()).collect();
    Ok(Adapter { name: names.join("+"), factors: Arc::new(factors), rule: first.rule.clone() })
}

/// The joined factors of one place, which at least one of the adapters has.
fn join_at(place: Place, adapters: &[(&Adapter, f32)]) -> Result<Pair> {
    let mut joined = Pair { rank: 0, cols: 0, rows: 0, a: Vec::new(), b: Vec::new() };
    let mut pairs = Vec::new();
    for (adapter, strength) in adapters {
        let Some(pair) = adapter.factors.pairs().get(&place) else { continue };
        if joined.rank > 0 && (joined.rows, joined.cols) != (pair.rows, pair.cols) {
            let reason = format!(
                "[{}, {}] at {place:?}, expected [{}, {}] as the others have",
                pair.rows, pair.cols, joined.rows, joined.cols
            );
            return Err(Error::value(&adapter.name, reason));
        }
        (joined.rows, joined.cols) = (pair.rows, pair.cols);
        joined.rank += pair.rank;
        joined.a.extend_from_slice(&pair.a);
        pairs.push((pair, *strength));
    }
    if joined.rank > MAX_RANK {
        let reason = format!("ranks at {place:?} sum to {}, expected at most {MAX_RANK}", joined.rank);
        return Err(Error::value("adapters", reason));
    }
    joined.b.reserve_exact(joined.rows * joined.rank);
    for row in 0..joined.rows {
        for (pair, strength) in &pairs {
            joined.b.extend(pair.b[row * pair.rank..][..pair.rank].iter().map(|value| value * strength));
        }
    }
    Ok(joined)
}

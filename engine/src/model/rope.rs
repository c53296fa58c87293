//! config.json → [`Rope`]: where the parameters stand, and the frequencies of each kind.
//!
//! Frequencies are computed in f32 in the order in which transformers' `modeling_rope_utils` does, so that angles of
//! large positions agree.

use std::f64::consts::PI;

use super::config::Fields;
use super::families::MAX_CONTEXT;
use super::spec::{Family, LongRope, Rope};
use crate::error::Result;

/// Kinds that are accepted, as error messages list them.
const KINDS: &str = "default, linear, dynamic, llama3, longrope, yarn";

/// The rotation of a model with heads of `head_dim`, made for `context` positions.
pub(super) fn read(config: &Fields, family: Family, head_dim: usize, context: usize) -> Result<Rope> {
    let params = parameters(config)?;
    let kind = kind(&params, family)?;
    let theta = match params.positive("rope_theta")? {
        Some(theta) => theta,
        None => config.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let dim = rotated(config, &params, family, head_dim)?;
    let base = Base { theta, dim };
    let original = || original_context(config, &params, family, context);
    let plain = |inv_freq| Rope { rotary_dim: base.pairs() * 2, inv_freq, long: None, attention_factor: 1.0 };
    let rope = match kind.as_str() {
        "default" => plain(base.inverse()),
        "linear" => plain(linear(&base, required(&params, "factor")?)),
        // Past the context the frequencies would change with the sequence's length; the engine ends there.
        "dynamic" => plain(dynamic(&base, required(&params, "factor")?)),
        "llama3" => plain(llama3(&base, &params, original()?)?),
        "longrope" => longrope(&base, &params, original()?, context)?,
        "yarn" => yarn(&base, &params, original()?)?,
        other => {
            return Err(params.error("rope_type", format!("{other:?} is not supported; accepted: {KINDS}")));
        }
    };
    let long = rope.long.iter().flat_map(|long| &long.inv_freq);
    if rope.inv_freq.iter().chain(long).any(|f| !f.is_finite()) || !rope.attention_factor.is_finite() {
        return Err(params.error("rope_type", "the parameters give frequencies that are not finite"));
    }
    Ok(rope)
}

/// `rope_scaling` of configs before transformers 5, else `rope_parameters`; empty where there is neither.
fn parameters(config: &Fields) -> Result<Fields> {
    let old = config.object("rope_scaling")?.filter(|params| params.names().next().is_some());
    let params = match old {
        Some(params) => params,
        None => config.object("rope_parameters")?.unwrap_or_else(|| config.empty("rope_parameters")),
    };
    if let Some(nested) = params.names().find(|name| params.is_object(name)) {
        let reason =
            "rotations that differ between layers are not supported; one set of parameters is accepted";
        return Err(params.error(nested, reason));
    }
    Ok(params)
}

fn kind(params: &Fields, family: Family) -> Result<String> {
    let named = match params.text("rope_type")? {
        Some(kind) => Some(kind),
        None => params.text("type")?,
    };
    let kind = named.unwrap_or_else(|| "default".into());
    if family != Family::Phi3 {
        return Ok(kind);
    }
    match kind.as_str() {
        "default" => Ok(kind),
        "longrope" | "su" | "yarn" => Ok("longrope".into()), // what Phi-3's first configs called it
        _ => Err(params
            .error("rope_type", format!("{kind:?} is not supported for phi3; accepted: default, longrope"))),
    }
}

/// How many elements of a head the frequencies are spread over.
fn rotated(config: &Fields, params: &Fields, family: Family, head_dim: usize) -> Result<usize> {
    let factor = match family {
        Family::Phi3 => match params.positive("partial_rotary_factor")? {
            Some(factor) => factor,
            None => config.positive("partial_rotary_factor")?.unwrap_or(1.0),
        },
        _ => 1.0, // transformers ignores the field in the other families
    };
    let dim = (head_dim as f64 * factor) as usize;
    if dim == 0 || dim > head_dim || dim.div_ceil(2) * 2 > head_dim {
        let reason = format!(
            "would rotate {dim} elements of heads of {head_dim}; expected an even number, at least 2"
        );
        let field = if factor == 1.0 { "head_dim" } else { "partial_rotary_factor" };
        return Err(config.error(field, reason));
    }
    Ok(dim)
}

/// The context before scaling. A field beside the parameters wins over theirs; Phi-3 has a default there.
fn original_context(config: &Fields, params: &Fields, family: Family, context: usize) -> Result<usize> {
    let name = "original_max_position_embeddings";
    let range = 2..=MAX_CONTEXT;
    Ok(match (config.size(name, range.clone())?, family) {
        (Some(original), _) => original,
        (None, Family::Phi3) => 4096,
        (None, _) => params.size(name, range)?.unwrap_or(context),
    })
}

fn required(params: &Fields, name: &str) -> Result<f64> {
    params.positive(name)?.ok_or_else(|| params.error(name, "missing; expected a number above 0"))
}

/// θ and the number of elements that the frequencies are spread over.
struct Base {
    theta: f64,
    dim: usize,
}

impl Base {
    fn pairs(&self) -> usize {
        self.dim.div_ceil(2)
    }

    /// θ^(2i / dim). The power is taken in f64 and rounded: the same on every platform, as near to torch's as powf.
    fn powers(&self) -> Vec<f32> {
        let theta = f64::from(self.theta as f32);
        let exponents = (0..self.pairs()).map(|i| (2 * i) as f32 / self.dim as f32);
        exponents.map(|e| theta.powf(f64::from(e)) as f32).collect()
    }

    fn inverse(&self) -> Vec<f32> {
        self.powers().into_iter().map(|p| 1.0 / p).collect()
    }
}

fn linear(base: &Base, factor: f64) -> Vec<f32> {
    base.inverse().into_iter().map(|f| f / factor as f32).collect()
}

/// NTK scaling at the model's own context, where its base is θ but for rounding.
fn dynamic(base: &Base, factor: f64) -> Vec<f32> {
    let exponent = base.dim as f64 / (base.dim as f64 - 2.0);
    let theta = base.theta * (factor - (factor - 1.0)).powf(exponent);
    Base { theta, dim: base.dim }.inverse()
}

/// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
fn llama3(base: &Base, params: &Fields, original: usize) -> Result<Vec<f32>> {
    let factor = required(params, "factor")? as f32;
    let low = required(params, "low_freq_factor")?;
    let high = required(params, "high_freq_factor")?;
    if high <= low {
        return Err(
            params.error("high_freq_factor", format!("{high}; expected more than low_freq_factor, {low}"))
        );
    }
    let context = original as f64;
    let (longest, shortest) = ((context / low) as f32, (context / high) as f32);
    let scale = |freq: f32| {
        let wavelength = (2.0 * PI) as f32 / freq;
        if wavelength > longest {
            freq / factor
        } else if wavelength < shortest {
            freq
        } else {
            let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
            (1.0 - smooth) * freq / factor + smooth * freq
        }
    };
    Ok(base.inverse().into_iter().map(scale).collect())
}

/// LongRoPE (Ding et al. 2024): one factor per frequency, another set past the original context.
fn longrope(base: &Base, params: &Fields, original: usize, context: usize) -> Result<Rope> {
    let set = |name: &str| -> Result<Vec<f32>> {
        let factors = params.positives(name, base.pairs())?;
        let factors =
            factors.ok_or_else(|| params.error(name, "missing; longrope needs a list of factors"))?;
        Ok(base.powers().iter().zip(factors).map(|(&p, factor)| 1.0 / (factor as f32 * p)).collect())
    };
    let scale = match params.positive("factor")? {
        Some(factor) => factor,
        None => context as f64 / original as f64,
    };
    let attention_factor = match params.positive("attention_factor")? {
        Some(factor) => factor,
        None if scale <= 1.0 => 1.0,
        None => (1.0 + scale.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(Rope {
        rotary_dim: base.pairs() * 2,
        inv_freq: set("short_factor")?,
        long: Some(LongRope { inv_freq: set("long_factor")?, original_context: original }),
        attention_factor: attention_factor as f32,
    })
}

/// YaRN (Peng et al. 2023): high frequencies kept, low ones divided by the factor, a ramp between.
fn yarn(base: &Base, params: &Fields, original: usize) -> Result<Rope> {
    let factor = required(params, "factor")?;
    let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor = match (
        params.positive("attention_factor")?,
        params.positive("mscale")?,
        params.positive("mscale_all_dim")?,
    ) {
        (Some(given), _, _) => given,
        (None, Some(scale), Some(all)) => magnitude(scale) / magnitude(all),
        _ => magnitude(1.0),
    };
    // The pair that turns so many times within the original context.
    let turning =
        |times: f64| base.dim as f64 * (original as f64 / (times * 2.0 * PI)).ln() / (2.0 * base.theta.ln());
    let mut low = turning(params.positive("beta_fast")?.unwrap_or(32.0));
    let mut high = turning(params.positive("beta_slow")?.unwrap_or(1.0));
    if params.flag("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(base.dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, power): (usize, f32)| {
        let kept = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
    };
    let inv_freq = base.powers().into_iter().enumerate().map(blend).collect();
    Ok(Rope { rotary_dim: base.pairs() * 2, inv_freq, long: None, attention_factor: attention_factor as f32 })
}

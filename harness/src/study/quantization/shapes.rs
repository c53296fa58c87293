//! Models of the size that the study ran: their weights are not here, so that their plans are priced, not run.

use std::sync::Arc;

use serde::Serialize;
use wattle_engine::model::Model;
use wattle_engine::plan::LoraCapacity;
use wattle_engine::{BackendChoice, EngineOptions, RanStep};
use wattle_policy::{Profile, StepShape};

use super::{BATCH, FOUR_BITS, Format, Kept, STORED, SWEEP};
use crate::energy::{Energy, Plans};
use crate::error::Result;
use crate::simulated::weight_bytes;
use crate::table::Table;

const SHAPES: [&str; 4] = ["qwen2.5-0.5b", "llama-3.2-1b", "phi-3-mini", "mistral-7b"];
/// Of a problem: in the middle of the study's 256 to 512 tokens; a label, and a longer answer.
const PROMPT: u32 = 384;
const NEW: [u32; 2] = [2, 128];

/// A model in one format.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    model: &'static str,
    format: &'static str,
    bits: u32,
    weight_bytes: u64,
    /// Per problem, for each of [`NEW`].
    joules: [f64; 2],
    /// Against f16.
    of_stored: [f64; 2],
}

/// All models in all formats that can be had without weights.
pub(super) fn run(profile: &Profile) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for model in SHAPES {
        let mut stored = None;
        for format in SWEEP.into_iter().filter(|format| format.kept != Kept::Wide) {
            let line = price(model, format, profile, stored)?;
            if format.name == STORED.name {
                stored = Some(line.joules);
            }
            lines.push(line);
        }
    }
    Ok(lines)
}

fn price(name: &'static str, format: Format, profile: &Profile, stored: Option<[f64; 2]>) -> Result<Line> {
    let quant = match format.kept {
        Kept::Quantized(quant) => Some(quant),
        Kept::Wide | Kept::Stored | Kept::Outside(_) => None,
    };
    let model = Model::blank(name, quant)?;
    let options = EngineOptions { backend: BackendChoice::Gpu, ..EngineOptions::default() };
    let capacity = LoraCapacity { slots: 1, rank: 1, outside: false };
    let (plan, _) = wattle_engine::compile(&model, &options, capacity);
    let plans = Plans::of_base(Arc::new(plan));
    let joules = NEW.map(|new| {
        Energy::new(&steps(new), &plans, &[], BATCH * new as usize, profile).joules / BATCH as f64
    });
    let stored = stored.unwrap_or(joules);
    Ok(Line {
        model: name,
        format: format.name,
        bits: format.bits,
        weight_bytes: weight_bytes(&model.weights),
        joules,
        of_stored: std::array::from_fn(|i| joules[i] / stored[i]),
    })
}

/// A batch: every prompt in a step of its own, then all paths together.
fn steps(new: u32) -> Vec<RanStep> {
    let step = |shape| RanStep { shape, adapted: false };
    let prompts = (0..BATCH).map(|_| step(StepShape::prefill(PROMPT, 0)));
    // A prompt's step brings the first of the new tokens.
    let decode = (1..new).map(|i| step(StepShape::decode(BATCH as u32, PROMPT + i - 1)));
    prompts.chain(decode).collect()
}

/// For a reader.
pub(super) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "model",
        "weights",
        "bits",
        "MiB",
        "label: J/problem",
        "of f16",
        "answer: J/problem",
        "of f16",
    ]);
    for line in lines {
        let [label, answer] = line.joules.map(|joules| format!("{joules:.3}"));
        let [label_of, answer_of] = line.of_stored.map(|ratio| format!("{ratio:.3}"));
        table.row([
            line.model.to_owned(),
            line.format.to_owned(),
            line.bits.to_string(),
            (line.weight_bytes >> 20).to_string(),
            label,
            label_of,
            answer,
            answer_of,
        ]);
    }
    table
}

/// What the table shows.
pub(super) fn note(lines: &[Line]) -> String {
    let four = lines.iter().filter(|line| line.format == FOUR_BITS.name);
    let saved: Vec<[f64; 2]> = four.map(|line| line.of_stored.map(|ratio| (1.0 - ratio) * 100.0)).collect();
    let range = |of: usize| {
        let ends = [f64::min as fn(f64, f64) -> f64, f64::max]
            .map(|end| saved.iter().map(|saved| saved[of]).reduce(end).unwrap_or(0.0));
        format!("{:.0} to {:.0} %", ends[0], ends[1])
    };
    format!(
        "Models of the study's size are not run, but priced on their plans, in batches of {BATCH} with prompts of {PROMPT} \
         tokens: {} takes {} less than {} where {} tokens are new, as for a label, and {} less where {} are: what the study \
         reports is within reach of weights alone where answers are long, and not where a prompt's arithmetic is most of \
         the work.",
        FOUR_BITS.name,
        range(0),
        STORED.name,
        NEW[0],
        range(1),
        NEW[1]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_bits_take_less_and_most_where_answers_are_long() {
        let profile = Profile::named("laptop").unwrap();
        let f16 = price("qwen2.5-0.5b", STORED, &profile, None).unwrap();
        assert_eq!(f16.of_stored, [1.0, 1.0]);
        let q4 = price("qwen2.5-0.5b", FOUR_BITS, &profile, Some(f16.joules)).unwrap();
        assert!(q4.weight_bytes < f16.weight_bytes);
        assert!(q4.of_stored[1] < q4.of_stored[0] && q4.of_stored[0] < 1.0, "{q4:?}");
        assert_eq!(steps(3).len(), BATCH + 2);
    }
}

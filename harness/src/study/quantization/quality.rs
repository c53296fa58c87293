//! What formats and arithmetic do to what the model says: loss, accuracy, and how far logits move.

use serde::Serialize;
use wattle_engine::model::{Dtype, Model, Quant};
use wattle_engine::{BackendChoice, Engine, EngineOptions, Lora, Precision};

use super::answers::{Answered, Shipped};
use super::{BATCH, Format, Kept, Page, SWEEP};
use crate::error::Result;
use crate::table::{Table, percent};
use crate::tasks::Task;

/// Embedding and head alone, as all formats of blocks keep them.
const OUTSIDE: Format = Format { name: "q8_0 embedding, head", bits: 16, kept: Kept::Outside(Quant::Q8_0) };
/// The random model, and how many tokens its logits are compared on.
const RANDOM: &str = "distilgpt2";
const TOKENS: u32 = 64;

/// Logits as f32 \[rows, vocab\] of several texts.
type Logits = Vec<Vec<f32>>;

/// One task, or the random model, in one format and precision.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    model: String,
    weights: &'static str,
    precision: &'static str,
    /// Mean −log p of a token of what the model says with f32 weights, given what is before it \[nats\].
    loss: Option<f64>,
    accuracy: Option<f64>,
    /// The largest distance of a logit, of the largest logit.
    logits_moved: f64,
}

fn formats() -> impl Iterator<Item = Format> {
    SWEEP.into_iter().take(1).chain([OUTSIDE]).chain(SWEEP.into_iter().skip(2))
}

/// Fast precision is another arithmetic where weights are quantized (and keeps factors as f16: that is not shown alone).
fn precisions(format: Format) -> &'static [Precision] {
    let both = &[Precision::Exact, Precision::Fast];
    if format.kept == Kept::Wide { &both[..1] } else { both }
}

/// Runs all formats on the shipped model's tasks and on a random model.
pub(super) fn run(shipped: &Shipped) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for task in &shipped.tasks {
        let reference = shipped.answer(task, &task.problems, Kept::Wide, Precision::Exact, BATCH)?;
        let wide = shipped.logits(task, &reference, Kept::Wide, Precision::Exact)?;
        let all = formats().flat_map(|format| precisions(format).iter().map(move |&p| (format, p)));
        for (format, precision) in all {
            let answered = shipped.answer(task, &task.problems, format.kept, precision, BATCH)?;
            let right = task.problems.iter().zip(&answered.texts).filter(|(p, text)| p.is_answered_by(text));
            let logits = shipped.logits(task, &reference, format.kept, precision)?;
            lines.push(Line {
                loss: Some(loss(&logits, &reference.ids)),
                accuracy: Some(right.count() as f64 / task.problems.len().max(1) as f64),
                ..Line::new(format!("sprout, {}", task.name), format, precision, moved(&logits, &wide))
            });
        }
    }
    lines.extend(random()?);
    Ok(lines)
}

impl Line {
    fn new(model: String, format: Format, precision: Precision, logits_moved: f64) -> Self {
        let precision = if precision == Precision::Fast { "fast" } else { "exact" };
        Self { model, weights: format.name, precision, loss: None, accuracy: None, logits_moved }
    }
}

impl Shipped {
    /// The logits before each token of what was said.
    fn logits(&self, task: &Task, said: &Answered, kept: Kept, precision: Precision) -> Result<Logits> {
        let (mut engine, lora) = self.engine(task, kept, precision, 1)?;
        let logits = |(problem, ids): (&crate::tasks::Problem, &Vec<u32>)| {
            let mut all = self.encode(&problem.prompt)?;
            let prompt = all.len();
            all.extend(ids);
            // What is said has the adapter on, the prompt has not.
            let from = wattle_engine::ActiveFrom::Position(prompt);
            let logits = engine.logits(&all, &Lora { from, ..lora })?;
            let vocab = engine.spec().vocab;
            Ok(logits[(prompt - 1) * vocab..(all.len() - 1) * vocab].to_vec())
        };
        task.problems.iter().zip(&said.ids).map(logits).collect()
    }
}

/// Mean −log p of the tokens.
fn loss(logits: &Logits, ids: &[Vec<u32>]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (logits, ids) in logits.iter().zip(ids) {
        for (row, &id) in logits.chunks(logits.len() / ids.len().max(1)).zip(ids) {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let total: f64 = row.iter().map(|logit| f64::from(logit - top).exp()).sum();
            sum += total.ln() - f64::from(row[id as usize] - top);
            count += 1;
        }
    }
    sum / f64::from(count.max(1))
}

/// The largest distance, of the largest number.
fn moved(now: &Logits, then: &Logits) -> f64 {
    let largest = then.iter().flatten().fold(0.0_f32, |most, x| most.max(x.abs()));
    let pairs = now.iter().flatten().zip(then.iter().flatten());
    // NaN, once there, stays.
    let further = |most: f32, x: f32| if most.is_nan() || most >= x { most } else { x };
    f64::from(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, further)) / f64::from(largest)
}

/// Formats on random weights, whose logits no training has made robust.
fn random() -> Result<Vec<Line>> {
    let model = Model::random(RANDOM, Dtype::F32, 1)?;
    let ids: Vec<u32> = (0..TOKENS).map(|i| i * 997 % 50_000).collect();
    let logits = |model: Model, precision| -> Result<Logits> {
        let options = EngineOptions {
            backend: BackendChoice::Cpu,
            precision,
            sequences: 1,
            ..EngineOptions::default()
        };
        Ok(vec![Engine::from_model(model, options)?.logits(&ids, &Lora::BASE)?])
    };
    let wide = logits(model.clone(), Precision::Exact)?;
    let mut lines = Vec::new();
    for format in formats() {
        let stored = format.kept.model(&model)?;
        for &precision in precisions(format) {
            let moved = moved(&logits(stored.clone(), precision)?, &wide);
            lines.push(Line::new(format!("random {RANDOM}"), format, precision, moved));
        }
    }
    Ok(lines)
}

/// The model with its embedding and head quantized, the layers as they are.
pub(super) fn outside(model: &Model, quant: Quant) -> Result<Model> {
    let quantized = model.quantized(quant)?;
    let mut model = model.clone();
    model.weights.embed = quantized.weights.embed;
    model.weights.head = quantized.weights.head;
    Ok(model)
}

/// Adds the table.
pub(super) fn table(page: &mut Page, lines: &[Line]) {
    let header = ["model", "weights", "precision", "loss", "accuracy", "logits moved"];
    let mut table = Table::new(header);
    for line in lines {
        table.row([
            line.model.clone(),
            line.weights.to_owned(),
            line.precision.to_owned(),
            line.loss.map(|loss| format!("{loss:.5}")).unwrap_or_default(),
            line.accuracy.map(percent).unwrap_or_default(),
            percent(line.logits_moved),
        ]);
    }
    let caption = "Quality: mean −log p [nats] of a token of what sprout says with f32 weights, accuracy, and the largest \
                   distance of a logit, of the largest logit";
    page.table(caption, table);
}

//! What must hold on a device before its speed means anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattle_engine::backend::{Doors, PlanHandle, Step};
use wattle_engine::cache::pages_for;
use wattle_engine::model::Model;
use wattle_engine::plan::{Plan, TensorId};
use wattle_engine::{Engine, EngineOptions, GENERATED, LayerMask, Precision, Row, Sample};

use crate::commands::kernels::check_case;
use crate::error::{Error, Result};
use crate::fresh::Fresh;
use crate::random_adapter::random_adapter;

/// Cases of a kernel that a quick run checks.
const QUICK_CASES: usize = 1;

/// Checks the cases of all kernels in exact precision, and prompts and LoRA factors in fast precision: how many were
/// checked, and how many there are.
///
/// # Errors
/// [`Error::Failed`] that names the first case which is not its plain twin.
pub(super) fn kernels(options: &EngineOptions, quick: bool) -> Result<[usize; 2]> {
    let fresh = Fresh::open(EngineOptions { precision: Precision::Exact, ..options.clone() })?;
    let (mut checked, mut all) = (0, 0);
    for (kernel, cases) in wattle_tests::kernels() {
        let cases = cases();
        all += cases.len();
        for case in cases.iter().take(if quick { QUICK_CASES } else { usize::MAX }) {
            check_case(case, &fresh).map_err(|failure| Error::Failed(format!("{kernel}: {failure}")))?;
            checked += 1;
        }
    }
    let fast = Fresh::open(EngineOptions { precision: Precision::Fast, ..options.clone() })?;
    let cases = [wattle_tests::rounded(), wattle_tests::kept()].concat();
    all += cases.len();
    for case in cases.iter().take(if quick { QUICK_CASES } else { usize::MAX }) {
        let checked_case = case.check(&|case| fast.backend(case.capacity));
        checked_case.map_err(|failure| Error::Failed(format!("fast precision: {failure}")))?;
        checked += 1;
    }
    Ok([checked, all])
}

/// The model with its first layer only: all layers have the same shapes.
pub(super) fn first_layer(mut model: Model) -> Model {
    model.spec.truncate(1);
    model.weights.layers.truncate(1);
    model
}

/// Sequences that run together.
const SEQUENCES: u32 = 8;
/// Tokens of the longest prompt, and tokens that follow each.
const PROMPT: u32 = 4;
const GENERATED_ROWS: u32 = 2;

/// Checks that rows give the same bits alone and together: prompts of several lengths and the rows after them, with
/// and without an adapter, and with one that is masked. Returns how many rows were compared.
///
/// # Errors
/// [`Error::Failed`] that names the first row which notices its neighbours.
pub(super) fn rows(name: &str, model: Model, options: &EngineOptions) -> Result<usize> {
    let options = EngineOptions {
        sequences: SEQUENCES as usize,
        context: (PROMPT + GENERATED_ROWS) as usize,
        rows: (SEQUENCES * PROMPT) as usize,
        ..options.clone()
    };
    let adapter = random_adapter(&model.weights, 4, 1);
    let mut engine = Engine::from_model(model, options)?;
    engine.add_adapter(adapter)?;
    let mut runs = Runs::new(&mut engine)?;
    let together = runs.answers(SEQUENCES)?;
    for group in [1, 2, 3, 5] {
        for (row, values) in runs.answers(group)? {
            let same = |(one, other): (&f32, &f32)| one.to_bits() == other.to_bits();
            let expected = &together[&row];
            if !values.iter().all(|value| value.is_finite()) {
                let reason =
                    format!("{name}: logits of sequence {} at position {} are not finite", row.0, row.1);
                return Err(Error::Failed(reason));
            }
            if expected.len() != values.len() || !values.iter().zip(expected).all(same) {
                let reason = format!(
                    "{name}: the row of sequence {} at position {} gives other bits beside {} sequences than beside {}",
                    row.0,
                    row.1,
                    group - 1,
                    SEQUENCES - 1
                );
                return Err(Error::Failed(reason));
            }
        }
    }
    Ok(together.len())
}

/// Logits by sequence and position.
type Answers = BTreeMap<(u32, u32), Vec<f32>>;

/// Runs the same rows in different company.
struct Runs<'a> {
    engine: &'a mut Engine,
    plan: Arc<Plan>,
    handle: PlanHandle,
    logits: TensorId,
}

impl<'a> Runs<'a> {
    fn new(engine: &'a mut Engine) -> Result<Self> {
        let plan = Arc::clone(engine.adapted_plan().unwrap_or_else(|| engine.plan()));
        let handle = engine.backend().prepare(&plan)?;
        let none = || Error::value("plan", "has no logits");
        let logits = plan.find("head").ok_or_else(none)?;
        Ok(Self { engine, plan, handle, logits })
    }

    /// The logits of all rows, where `group` sequences run together.
    fn answers(&mut self, group: u32) -> Result<Answers> {
        let mut answers = Answers::new();
        for first in (0..SEQUENCES).step_by(group as usize) {
            let sequences = first..SEQUENCES.min(first + group);
            for sequence in sequences.clone() {
                let backend = self.engine.backend();
                backend.reset_sequence(sequence, &[])?;
                let pages = pages_for((PROMPT + GENERATED_ROWS) as usize) as u32;
                backend
                    .set_pages(sequence, &(sequence * pages..(sequence + 1) * pages).collect::<Vec<_>>())?;
            }
            let prompts = |sequence: u32| (0..prompt(sequence)).map(move |position| (sequence, position));
            self.step(sequences.clone().flat_map(prompts).collect(), 0, &mut answers)?;
            for next in 0..GENERATED_ROWS {
                let rows = sequences.clone().map(|sequence| (sequence, prompt(sequence) + next));
                self.step(rows.collect(), GENERATED, &mut answers)?;
            }
        }
        Ok(answers)
    }

    /// One step of rows (sequence, position).
    fn step(&mut self, rows: Vec<(u32, u32)>, flags: u32, answers: &mut Answers) -> Result<()> {
        let vocab = self.plan.vocab as u32;
        let mut step = Step::default();
        for (index, &(sequence, position)) in (0..).zip(&rows) {
            let token = (sequence * 31 + position * 7 + 1) % vocab;
            let row = Row { flags, ..Row::prompt(token, position, sequence) };
            let mask = if sequence % 3 == 1 { LayerMask::NONE } else { LayerMask::ALL };
            // Every third sequence has no adapter, every third one that is masked.
            step.rows.push(if sequence % 3 == 0 { row } else { Row { slot: 0, lora: mask.words(), ..row } });
            let sample: Sample = bytemuck::Zeroable::zeroed();
            step.samples.push(Sample { row: index, sequence, top_p: 1.0, penalty: 1.0, ..sample });
        }
        let end = self.plan.find_op("sample").unwrap_or(self.plan.ops.len());
        let doors = Doors { range: 0..end, import: Vec::new(), taps: vec![self.logits] };
        let mut taps = self.engine.backend().run(self.handle, &step, &doors)?;
        let logits = taps.remove(&self.logits).unwrap_or_default();
        answers.extend(rows.into_iter().zip(logits.chunks(vocab as usize).map(<[f32]>::to_vec)));
        Ok(())
    }
}

/// Tokens of a sequence's prompt.
fn prompt(sequence: u32) -> u32 {
    1 + sequence % PROMPT
}

//! Draws. The plan is embed → select → head → sample, with one-hot embeddings, so that a row's token chooses a column
//! of the head as its logits, exactly.

use wattle_engine::backend::Step;
use wattle_engine::model::Dtype;
use wattle_engine::plan::{Extent, OpKind, Plan, Project};
use wattle_engine::{FROM_STATE, Row, Sample};
use wattle_kernels_cpu::State;
use wattle_kernels_cpu::distribution::masses;
use wattle_kernels_cpu::philox::uniform;

use crate::case::{Act, Case};
use crate::fixture::{Draft, Random, greedy, matrix};

/// Of log-probabilities, relative to the largest. Measured on the CPU's f32 kernels: 1e-7; WGSL lets exp and log be a
/// few ulp off.
const TOLERANCE: f32 = 4e-6;

/// No draw lies closer to a border between tokens, in probability: a kernel's masses may be off by less than this.
const MARGIN: f64 = 1e-4;

/// Columns of the head: logits that cases choose from.
const COLUMNS: usize = 8;

/// Vocabularies around one and several workgroups; every rule alone and all together.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vocab in [COLUMNS, 63, 64, 65, 173, 1000, 5003] {
        cases.push(case("greedy", vocab, |_| {}));
        cases.push(case("temperature", vocab, |sample| sample.temperature = 0.7));
    }
    for vocab in [65, 1000] {
        cases.push(case("top-k", vocab, |s| (s.temperature, s.top_k) = (1.5, 5)));
        cases.push(case("top-k of one", vocab, |s| (s.temperature, s.top_k) = (1.5, 1)));
        cases.push(case("top-k of more than all", vocab, |s| (s.temperature, s.top_k) = (1.0, 100_000)));
        cases.push(case("top-p", vocab, |s| (s.temperature, s.top_p) = (1.0, 0.6)));
        cases.push(case("top-p of almost nothing", vocab, |s| (s.temperature, s.top_p) = (1.0, 1e-6)));
        cases.push(case("greedy, penalty", vocab, |s| s.penalty = 1.8));
        cases.push(case("everything", vocab, |s| {
            (s.temperature, s.top_k, s.top_p, s.penalty) = (0.9, 20, 0.8, 1.3);
        }));
    }
    cases.extend([ties(), invalid(f32::NAN), invalid(f32::INFINITY), fed_back()]);
    cases
}

/// Logits \[COLUMNS, vocab\] as a plan.
fn plan(vocab: usize, columns: &[f32]) -> Plan {
    let mut draft = Draft::new();
    draft.0.vocab = vocab;
    let one_hot: Vec<f32> =
        (0..vocab * COLUMNS).map(|i| f32::from(u8::from(i / COLUMNS % COLUMNS == i % COLUMNS))).collect();
    let table = matrix(vocab, COLUMNS, Dtype::F32, &one_hot);
    let head: Vec<f32> = (0..vocab * COLUMNS).map(|i| columns[i % COLUMNS * vocab + i / COLUMNS]).collect();
    let weight = matrix(vocab, COLUMNS, Dtype::F32, &head);
    let head = Project { norm: None, weight, bias: None, lora: None, activation: None, residual: false };
    let x = draft.op(OpKind::Embed { table }, &[], Some((Extent::Rows, COLUMNS)));
    let x = draft.op(OpKind::Select, &[x], Some((Extent::Samples, COLUMNS)));
    let logits = draft.op(OpKind::Project(head), &[x], Some((Extent::Samples, vocab)));
    draft.op(OpKind::Sample, &[logits], None);
    draft.0
}

fn finish(name: String, plan: Plan, acts: Vec<Act>) -> Case {
    let case = Case::new(name, plan, Step::default(), vec![]);
    let capacity = wattle_engine::backend::Capacity { rows: 9, samples: 9, ..case.capacity };
    Case { acts, capacity, tolerance: TOLERANCE, ..case }
}

/// Two steps of three sequences; of the first, only some rows are sampled. The second meets the first's tokens as seen.
fn case(name: &str, vocab: usize, rule: impl Fn(&mut Sample)) -> Case {
    let random = &mut Random(vocab as u64);
    // Steep enough that top-p cuts, flat enough that draws differ.
    let columns: Vec<f32> = random.numbers(COLUMNS * vocab, 1.0).iter().map(|x| 5.0 * x * x * x).collect();
    let mut states = vec![State::default(); 3];
    let mut acts = Vec::new();
    for position in [0, 3] {
        let rows: Vec<Row> =
            (0..9).map(|i| Row::prompt(random.below(vocab) as u32, position + i / 3, i % 3)).collect();
        for row in &rows {
            states[row.sequence as usize].mark(row.token);
        }
        let mut samples = Vec::new();
        for (index, row) in rows.iter().enumerate().skip(if position == 0 { 6 } else { 0 }) {
            let mut sample = Sample { path: index as u32, ..greedy(index, row) };
            rule(&mut sample);
            let column = row.token as usize % COLUMNS;
            let logits = &columns[column * vocab..][..vocab];
            samples.push(clear(sample, logits, &states[row.sequence as usize], random));
        }
        for (sample, token) in &samples {
            states[sample.sequence as usize].draw(*token);
        }
        let samples = samples.into_iter().map(|(sample, _)| sample).collect();
        acts.push(Act::Submit(Step { rows, samples }));
    }
    finish(format!("{name}, vocabulary of {vocab}"), plan(vocab, &columns), acts)
}

/// Gives the sample a seed whose draw is clear of every border; also returns the draw.
fn clear(mut sample: Sample, logits: &[f32], state: &State, random: &mut Random) -> (Sample, u32) {
    let masses = masses(&sample, logits, state);
    let total: f64 = masses.iter().sum();
    loop {
        sample.seed = [0, 1].map(|_| random.below(u32::MAX as usize) as u32);
        let u = f64::from(uniform(&sample));
        let mut sum = 0.0;
        let mut borders = masses.iter().map(|mass| {
            sum += mass / total;
            sum
        });
        // Many tokens are each less likely than the margin: then the nearest border is what can be had.
        let margin = MARGIN.min(0.2 / masses.iter().filter(|&&mass| mass > 0.0).count() as f64);
        if borders.all(|border| (border - u).abs() > margin || border >= 1.0 - 1e-12) {
            let mut sum = 0.0;
            let drawn = masses.iter().position(|mass| {
                sum += mass / total;
                sum > u
            });
            return (sample, drawn.unwrap_or(0) as u32);
        }
    }
}

/// Equal logits: greedy takes the lowest id; top-k keeps all that equal the k-th.
fn ties() -> Case {
    let vocab = 130;
    let random = &mut Random(7);
    let columns: Vec<f32> = (0..COLUMNS * vocab)
        .map(|i| if [3, 70, 90, 129].contains(&(i % vocab)) { 2.0 } else { -1.0 })
        .collect();
    let rows: Vec<Row> = (0..9).map(|i| Row::prompt(i, i / 3, i % 3)).collect();
    let state = State::default();
    let sample = |(index, row): (usize, &Row)| {
        let sample = match index % 3 {
            0 => greedy(index, row),
            1 => Sample { temperature: 1.0, top_k: 2, ..greedy(index, row) },
            _ => Sample { temperature: 1.0, top_p: 0.3, ..greedy(index, row) },
        };
        clear(sample, &columns[..vocab], &state, random).0
    };
    let samples = rows.iter().enumerate().map(sample).collect();
    finish("ties".into(), plan(vocab, &columns), vec![Act::Submit(Step { rows, samples })])
}

/// A logit that is no number. The head has one column only, so that no other row meets it.
fn invalid(bad: f32) -> Case {
    let vocab = 173;
    let columns: Vec<f32> =
        (0..COLUMNS * vocab).map(|i| if i == 40 { bad } else { 0.1 * (i % 13) as f32 }).collect();
    let rows = vec![Row::prompt(0, 0, 0)];
    let samples = vec![greedy(0, &rows[0])];
    finish(format!("a logit is {bad}"), plan(vocab, &columns), vec![Act::Submit(Step { rows, samples })])
}

/// The drawn token runs in the next step, and is seen by its penalty.
fn fed_back() -> Case {
    let vocab = 173;
    let random = &mut Random(11);
    let columns = random.numbers(COLUMNS * vocab, 4.0);
    let mut acts = Vec::new();
    for position in 0..6 {
        let mut row = Row::prompt(5, position, 1);
        row.flags = if position == 0 { 0 } else { FROM_STATE };
        let samples = vec![Sample { penalty: 3.0, ..greedy(0, &row) }];
        acts.push(Act::Submit(Step { rows: vec![row], samples }));
    }
    finish("fed back".into(), plan(vocab, &columns), acts)
}

//! `wattle policy measure`: the shipped model's accuracy for every set of LoRA layers, through the engine.

use std::collections::BTreeMap;

use wattle_engine::{EngineOptions, LayerMask, Lora, Request};
use wattle_policy::Measured;

use crate::commands::MeasureArgs;
use crate::common::Common;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::prompt::expected_tokens;
use crate::session::{Session, Source};
use crate::tasks::{Problem, Task, shipped_files};

/// Problems that run at the same time.
const SEQUENCES: usize = 64;
/// New tokens per problem at most.
const MAX_NEW: usize = 64;
/// Sets of layers double with every layer.
const MAX_LAYERS: usize = 10;

/// Runs it and writes the table as JSON.
pub(crate) fn run(args: &MeasureArgs, common: &Common) -> Result<()> {
    let source = Source::find(common)?;
    let files = shipped_files(&source.model)?;
    let task = Task::read(&files[0])?;
    // Evenly through the file, which is sorted by steps.
    let every = (task.problems.len() / args.problems as usize).max(1);
    let problems: Vec<&Problem> = task.problems.iter().step_by(every).take(args.problems as usize).collect();
    let longest = problems.iter().map(|problem| expected_tokens(&problem.prompt)).max().unwrap_or(0);
    let options =
        EngineOptions { sequences: SEQUENCES, context: longest + MAX_NEW, ..common.engine_options() };
    let mut session = Session::open(&source, common, options)?;
    let layers = session.engine.spec().layers;
    if layers > MAX_LAYERS {
        return Err(Error::value(
            "--model",
            format!("{layers} layers; at most {MAX_LAYERS} can be measured"),
        ));
    }
    let progress = Progress::bar("sets of layers", 1 << layers);
    let mut accuracy = BTreeMap::new();
    for set in 0..1u128 << layers {
        let lora = Lora { layers: LayerMask(set), ..session.lora };
        accuracy.insert(set, right(&mut session, &problems, lora)?);
        progress.step();
    }
    let name = source.adapter_name().unwrap_or_default();
    let source = format!(
        "accuracy of {} with the adapter {name} on {} of the {} problems of {}, greedy, weights {}, wattle policy measure",
        source.model.file_name().unwrap_or_default().to_string_lossy(),
        problems.len(),
        task.problems.len(),
        files[0].file_name().unwrap_or_default().to_string_lossy(),
        crate::common::Name(common.quant),
    );
    let text = serde_json::to_string_pretty(&Measured { layers, source, accuracy });
    let text = text.map_err(|error| Error::file(&args.out, error))?;
    std::fs::write(&args.out, text + "\n").map_err(|error| Error::file(&args.out, error))
}

/// The share of problems that are answered right.
fn right(session: &mut Session, problems: &[&Problem], lora: Lora) -> Result<f64> {
    let request = |problem: &&Problem| -> Result<Request> {
        Ok(Request::new(session.engine.encode(&problem.prompt)?, MAX_NEW).with_lora(lora))
    };
    let requests: Vec<Request> = problems.iter().map(request).collect::<Result<_>>()?;
    let generations = session.engine.generate_all(&requests)?;
    let answered = problems.iter().zip(&generations).filter(|(problem, generation)| {
        let text = generation.paths.first().and_then(|path| path.text.as_deref()).unwrap_or_default();
        problem.is_answered_by(text)
    });
    Ok(answered.count() as f64 / problems.len().max(1) as f64)
}

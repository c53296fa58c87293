//! `wattle logits`.

use std::path::PathBuf;

use safetensors::tensor::{Dtype, TensorView};
use wattle_engine::EngineOptions;

use crate::common::Common;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::prompt::token_id;
use crate::session::{Session, Source};

const DAMAGED: &str = "the weights or the adapter's factors are damaged, or its scale is too large";

/// Arguments of `logits`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The prompt as token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', value_parser = token_id, required = true)]
    ids: Vec<u32>,
    /// The file to write: tensor `logits`, F32 [tokens, vocab], the logits after each position
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common) -> Result<()> {
    let source = Source::find(common)?;
    let options = EngineOptions { sequences: 1, context: args.ids.len(), ..common.engine_options() };
    let mut session = Session::open(&source, common, options)?;
    let logits = {
        let _progress = Progress::spinner(format!("{} tokens", args.ids.len()));
        session.engine.logits(&args.ids, &session.lora)?
    };
    let shape = vec![args.ids.len(), session.engine.spec().vocab];
    if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
        let position = index / session.engine.spec().vocab;
        return Err(Error::value("logits", format!("not finite at position {position}: {DAMAGED}")));
    }
    let failed = |error: safetensors::SafeTensorError| Error::file(&args.out, error);
    let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&logits)).map_err(failed)?;
    let bytes = safetensors::serialize([("logits", view)], None).map_err(failed)?;
    // Written in place, so that links, pipes and devices stay what they are.
    std::fs::write(&args.out, bytes).map_err(|error| Error::file(&args.out, error))
}

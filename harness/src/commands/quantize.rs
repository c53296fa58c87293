//! `wattle quantize`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use wattle_engine::model::Model;

use crate::common::{Common, Name, Quant};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::report::Bytes;
use crate::session::Source;

/// Arguments of `quantize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory to make: a model directory that every command takes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What a model directory may have besides config.json and weights.
const COPIED: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Runs it.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let Some(quant) = common.quant.into() else {
        let accepted = "q8_0, q4_0, q4_1, int8 or int4";
        return Err(Error::value(
            "--quant",
            format!("{} is nothing to do; expected {accepted}", Name(Quant::None)),
        ));
    };
    let source = Source::find(common)?;
    let made = |dir: &Path, error: std::io::Error| Error::file(dir, error);
    let progress = Progress::spinner(format!("quantizing {}", source.model.display()));
    Model::quantize_to(&source.model, quant, &args.out)?;
    for name in COPIED {
        let (from, to) = (source.model.join(name), args.out.join(name));
        if from.is_file() {
            fs::copy(&from, &to).map_err(|error| made(&to, error))?;
        }
    }
    drop(progress);
    let file = args.out.join("model.safetensors");
    let bytes = fs::metadata(&file).map_err(|error| made(&file, error))?.len();
    Ok(writeln!(out, "{}: {}", file.display(), Bytes(bytes))?)
}

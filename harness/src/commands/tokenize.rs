//! `wattle tokenize`.

use std::io::Write;

use wattle_engine::tokenizer::Tokenizer;

use super::{join_ids, write_json};
use crate::common::Common;
use crate::error::{Error, Result};
use crate::prompt::TextArgs;
use crate::session::Source;

/// Arguments of `tokenize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// Print `{"ids": [...]}`
    #[arg(long)]
    json: bool,
}

/// Runs it. The model's directory needs nothing but the tokenizer's files.
pub(crate) fn run(args: &Args, common: &Common, out: &mut dyn Write) -> Result<()> {
    let missing = || Error::value("--prompt", "not given; --prompt or --prompt-file is needed");
    let text = args.text.text()?.ok_or_else(missing)?;
    let tokenizer = Tokenizer::from_dir(&Source::find(common)?.model)?;
    let ids = tokenizer.encode(&text, true)?;
    if args.json {
        return write_json(&serde_json::json!({ "ids": ids }), out);
    }
    Ok(writeln!(out, "{}", join_ids(&ids))?)
}

//! What a command is asked to work on: a text, a file, or token ids.

use std::path::PathBuf;

use wattle_engine::Engine;
use wattle_engine::tokenizer::{MAX_TEXT_BYTES, Message};

use crate::error::{Error, Result};
use crate::files::read_text;

/// A text on the command line or in a file.
#[derive(Debug, clap::Args)]
#[group(id = "text", multiple = false)]
pub(crate) struct TextArgs {
    /// The text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the text, taken as it is
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
}

impl TextArgs {
    /// The text, if one was given.
    pub fn text(&self) -> Result<Option<String>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(file)) => read_text(file, MAX_TEXT_BYTES as u64).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// A prompt, before there is a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Token ids as they are.
    Ids(Vec<u32>),
    /// A text, encoded as the model expects texts.
    Text(String),
    /// What a user says, put into the model's chat template.
    Chat(String),
}

impl Prompt {
    /// Token ids for a model.
    pub fn encode(&self, engine: &Engine) -> Result<Vec<u32>> {
        match self {
            Self::Ids(ids) => Ok(ids.clone()),
            Self::Text(text) => Ok(engine.encode(text)?),
            Self::Chat(text) => {
                let none = || Error::value("--chat", "the model's directory has no chat template");
                let template = engine.chat_template().ok_or_else(none)?;
                let chat = template.render(&[Message::new("user", text)], true)?;
                let tokenizer = engine.tokenizer().ok_or_else(none)?;
                Ok(tokenizer.encode(&chat, false)?)
            }
        }
    }

    /// A guess of how many tokens it has, not too low for most texts.
    pub fn expected_tokens(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Text(text) => expected_tokens(text),
            Self::Chat(text) => expected_tokens(text) + 256,
        }
    }
}

/// A guess of how many tokens a text has, not too low for most.
pub(crate) fn expected_tokens(text: &str) -> usize {
    text.len() / 2 + 16
}

/// Parses one of `1,2,3`.
pub(crate) fn token_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "expected token ids such as 1,2,3".to_owned())
}

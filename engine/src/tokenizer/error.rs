//! What can go wrong between a tokenizer directory and text.

use std::path::{Path, PathBuf};

/// An error of the tokenizer or of a chat template. Every message names the file and field, or the value,
/// and says what would be accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory holds no tokenizer in a known form.
    #[error("{}: no tokenizer; accepted: tokenizer.json, or vocab.json together with merges.txt", .0.display())]
    Missing(PathBuf),
    /// One of two files that belong together is missing.
    #[error("{}: not there, but {other} is; accepted: both, or tokenizer.json", file.display())]
    Half {
        /// The file that is missing.
        file: PathBuf,
        /// The name of the one that is there.
        other: &'static str,
    },
    /// A file exists but cannot be read.
    #[error("{}: {source}; accepted: a readable UTF-8 text file", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than any real one of its kind.
    #[error("{}: {bytes} bytes; accepted: at most {limit} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file's content is not usable.
    #[error("{}: {field}: {problem}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The field or line in it.
        field: String,
        /// What is wrong, and what would be accepted.
        problem: String,
    },
    /// An id given to [`decode`](super::Tokenizer::decode) has no token.
    #[error("token id {id} has no token; accepted: ids of the vocabulary, all below {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// One more than the largest id.
        vocab_size: usize,
    },
    /// A text is too long to be a prompt.
    #[error("text of {bytes} bytes; accepted: at most {limit} bytes in one piece")]
    TextTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The tokenizer's own rules fail on a text.
    #[error("the tokenizer cannot encode this text: {0}; accepted: text that its vocabulary covers")]
    Encode(String),
    /// A chat template refuses the messages or fails on them.
    #[error(
        "{}: chat_template: {problem}; accepted: messages with the roles and order the template asks for",
        file.display()
    )]
    Render {
        /// The file that holds the template.
        file: PathBuf,
        /// What the template engine, or the template itself, said.
        problem: String,
    },
}

/// An [`Error::Invalid`] in one line.
pub(super) fn invalid(file: &Path, field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { file: file.to_owned(), field: field.into(), problem: problem.into() }
}

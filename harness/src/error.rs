//! What ends a command early.

use std::io;

/// Why a command failed. The message is printed as it is, on one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine's answer, which names the file, field or value.
    #[error(transparent)]
    Engine(#[from] wattle_engine::Error),
    /// The results could not be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A check did not hold: what was checked was printed already.
    #[error("{0}")]
    Failed(String),
}

/// The harness's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<wattle_engine::tokenizer::Error> for Error {
    fn from(error: wattle_engine::tokenizer::Error) -> Self {
        Self::Engine(error.into())
    }
}

impl From<wattle_policy::Error> for Error {
    fn from(error: wattle_policy::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Error {
    /// A value on the command line that cannot be used, by the option's name.
    pub(crate) fn value(name: impl ToString, reason: impl ToString) -> Self {
        wattle_engine::Error::value(name, reason).into()
    }

    /// A file that cannot be used.
    pub(crate) fn file(path: impl AsRef<std::path::Path>, reason: impl ToString) -> Self {
        wattle_engine::Error::file(path, reason).into()
    }

    /// Whether whoever read the results has seen enough (`wattle … | head`).
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

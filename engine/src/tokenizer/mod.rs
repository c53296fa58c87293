//! Tokenizers.

/// What can be wrong with a tokenizer's files or input.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

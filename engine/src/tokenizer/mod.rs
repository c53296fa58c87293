//! Text to token ids and back, streaming, and chat templates.
//!
//! The `tokenizers` crate does the encoding. Here is what surrounds it: which files a model ships
//! (`json`, `vocab`), what may be read from them without harm, ids back to text one token at a time
//! (`detok`), and the model's way of writing a conversation ([`ChatTemplate`]).

mod chat;
mod detok;
mod error;
mod files;
mod json;
mod vocab;

pub use chat::{ChatTemplate, Message};
pub use error::Error;

use error::invalid;
use files::Side;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;

/// Longest text encoded in one piece, in bytes: more than the longest context of any model takes. Encoding
/// needs some hundred bytes of memory per byte of text.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// A model's tokenizer. Cheap to share between threads by reference, and without state of its own.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoder: detok::Decoder,
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    vocab_size: usize,
}

/// What a loader found in its files.
struct Loaded {
    inner: tokenizers::Tokenizer,
    /// The file with the vocabulary, for messages.
    file: PathBuf,
    /// One more than the largest id.
    size: usize,
    bos: Option<String>,
    eos: Option<String>,
    ends: Ends,
}

/// Special tokens that belong before and after every input.
#[derive(Debug, Default)]
struct Ends {
    before: Vec<String>,
    after: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of the model in `dir`: tokenizer.json, else vocab.json and merges.txt with the
    /// rules of GPT-2, OPT or Qwen2, as tokenizer_config.json (`tokenizer_class`) and config.json
    /// (`model_type`) say. Special tokens come from these files, special_tokens_map.json and
    /// added_tokens.json.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is no tokenizer; else [`Error::Read`], [`Error::TooLarge`] or
    /// [`Error::Invalid`] for the file at fault.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let side = Side::read(dir)?;
        let loaded = match json::load(dir, &side)? {
            Some(loaded) => loaded,
            None => vocab::load(dir, &side)?.ok_or_else(|| Error::Missing(dir.to_owned()))?,
        };
        Self::build(loaded, &side)
    }

    fn build(mut loaded: Loaded, side: &Side) -> Result<Self, Error> {
        add_named(&mut loaded, side)?;
        let Loaded { inner, file, size, bos, eos, mut ends } = loaded;
        // As in transformers, these two flags decide wherever one of them is given.
        let (add_bos, add_eos) = (side.flag("add_bos_token")?, side.flag("add_eos_token")?);
        if add_bos.is_some() || add_eos.is_some() {
            ends.before = bos.iter().filter(|_| add_bos == Some(true)).cloned().collect();
            ends.after = eos.iter().filter(|_| add_eos == Some(true)).cloned().collect();
        }
        let ids = |tokens: &[String]| {
            let id = |token: &String| {
                let problem =
                    format!("special token {token:?} has no id; accepted: a token of the vocabulary");
                inner.token_to_id(token).ok_or_else(|| invalid(&file, "vocab", problem))
            };
            tokens.iter().map(id).collect::<Result<Vec<u32>, Error>>()
        };
        let (before, after) = (ids(&ends.before)?, ids(&ends.after)?);
        let spec = serde_json::to_value(inner.get_decoder());
        let spec = spec.map_err(|e| invalid(&file, "decoder", e.to_string()))?;
        let decoder = detok::Decoder::new(&file, &spec)?;
        let id = |token: Option<String>| inner.token_to_id(&token?);
        let (bos, eos) = (id(bos), id(eos));
        Ok(Tokenizer { decoder, before, after, bos, eos, vocab_size: size, inner })
    }

    /// The ids of `text`. Special tokens written in the text become their ids. With `add_special` the model's
    /// own are put around it, such as `<s>` before; a rendered chat has them already, so encode it without.
    ///
    /// # Errors
    /// [`Error::TextTooLong`] over [`MAX_TEXT_BYTES`]; [`Error::Encode`] where the tokenizer's own rules fail.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::TextTooLong { bytes: text.len(), limit: MAX_TEXT_BYTES });
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Encode(e.to_string()))?;
        if !add_special {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([&self.before, encoding.get_ids(), &self.after].concat())
    }

    /// The text of `ids`; with `skip_special` without special tokens such as `</s>`. Bytes that are not UTF-8
    /// become U+FFFD.
    ///
    /// A run of byte tokens (`<0xE2>`) that is only partly UTF-8 keeps its valid characters, as in
    /// sentencepiece; the `tokenizers` crate gives up the whole run, which cannot be streamed.
    ///
    /// # Errors
    /// [`Error::UnknownId`] for an id without a token.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            if !stream.advance(id, &mut text) {
                return Err(Error::UnknownId { id, vocab_size: self.vocab_size });
            }
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Begins a text that is decoded token by token; `skip_special` as in [`Tokenizer::decode`].
    pub fn stream(&self, skip_special: bool) -> Stream<&Self> {
        Stream::new(self, skip_special)
    }

    /// The id of a token as it is written in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id as it is written in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id: the least number of rows a model's embedding must have. (It may have
    /// more, and not every id below needs to have a token.)
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the token that begins a text, if the tokenizer's files name one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The id of the token that ends a text, if the tokenizer's files name one. generation_config.json may
    /// name more.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }
}

/// Special tokens that the files beside the vocabulary name are recognised in a text even where the
/// vocabulary does not mark them, as in transformers.
fn add_named(loaded: &mut Loaded, side: &Side) -> Result<(), Error> {
    let mut named = side.all_named()?;
    named.extend(loaded.bos.iter().chain(&loaded.eos).cloned());
    let inner = &mut loaded.inner;
    named.retain(|token| {
        !inner.get_added_vocabulary().get_vocab().contains_key(token) && inner.token_to_id(token).is_some()
    });
    let tokens: Vec<_> = named.into_iter().map(|token| AddedToken::from(token, true)).collect();
    let failed = |e: tokenizers::Error| invalid(&side.config_file, "special tokens", e.to_string());
    inner.add_tokens(tokens).map(drop).map_err(failed)
}

/// A text that grows token by token. The pieces put together are [`Tokenizer::decode`] of all ids; a
/// character is handed out when it is whole. `T` is how the tokenizer is held: by reference, or shared.
#[derive(Debug)]
pub struct Stream<T> {
    tokenizer: T,
    state: detok::State,
    skip_special: bool,
}

impl<T: Deref<Target = Tokenizer>> Stream<T> {
    /// Begins a text; `skip_special` as in [`Tokenizer::decode`].
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        let state = tokenizer.decoder.start();
        Self { tokenizer, state, skip_special }
    }

    /// Adds a token; returns the text that is certain by now, if there is any. An id without a token, as a
    /// model with a padded vocabulary can produce, adds nothing, as in transformers.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.advance(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.tokenizer.decoder.finish(&mut self.state, &mut text);
        text
    }

    /// Whether `id` has a token.
    fn advance(&mut self, id: u32, text: &mut String) -> bool {
        let inner = &self.tokenizer.inner;
        let Some(token) = inner.id_to_token(id) else { return false };
        if !(self.skip_special && inner.get_added_vocabulary().is_special_token(&token)) {
            self.tokenizer.decoder.push(&mut self.state, token, text);
        }
        true
    }
}

//! Ids to text, one token at a time.
//!
//! Each token adds bytes that depend on no other token, apart from the first and from UTF-8 characters that
//! lie across tokens. So the state between two tokens is a few bytes, the work per token is bounded by the
//! token, and decoding everything at once is the same loop: what is streamed and what is decoded agree by
//! construction. (Decoding a window of ids again and cutting off the known prefix, the usual technique, waits
//! for ever on bytes that never become a character, and loses text where a decoder strips spaces.)

use super::error::{Error, invalid};
use super::json::MAX_GROWTH;
use serde_json::Value;
use std::path::Path;

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// How the text of a token becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    /// The token is its text.
    Text,
    /// Each character of the token stands for a byte (GPT-2's table).
    Level,
    /// Tokens such as `<0xE2>` stand for a byte, all others for their text (sentencepiece).
    Fallback,
}

/// The `decoder` of a tokenizer.json, compiled to steps over a single token.
#[derive(Debug)]
pub(super) struct Decoder {
    replace: Vec<(String, String)>,
    /// How often longer than a token what all of these make of it may be.
    growth: usize,
    bytes: Bytes,
    /// Dropped from the text of the first token (Metaspace).
    first_drops: Option<char>,
    /// Dropped at the start of the whole text, at most so many times (Strip after Fuse).
    strip: Option<(char, usize)>,
    separator: &'static str,
    /// Later steps see the whole text, no longer tokens.
    fused: bool,
}

impl Decoder {
    /// Compiles the `decoder` field of `file`.
    ///
    /// # Errors
    /// Names the first step that cannot be applied token by token.
    pub(super) fn new(file: &Path, spec: &Value) -> Result<Self, Error> {
        let mut decoder = Decoder {
            replace: Vec::new(),
            growth: 1,
            bytes: Bytes::Text,
            first_drops: None,
            strip: None,
            // Without a decoder tokens are words, as the tokenizers library has it.
            separator: if spec.is_null() { " " } else { "" },
            fused: false,
        };
        if !spec.is_null() {
            decoder.add(file, spec)?;
        }
        Ok(decoder)
    }

    fn add(&mut self, file: &Path, step: &Value) -> Result<(), Error> {
        let tokens = !self.fused;
        match step["type"].as_str() {
            Some("Sequence") => {
                let steps = step["decoders"].as_array().map(Vec::as_slice).unwrap_or_default();
                return steps.iter().try_for_each(|step| self.add(file, step));
            }
            Some("Fuse") => self.fused = true,
            Some("ByteLevel") if tokens && self.bytes == Bytes::Text => {
                self.bytes = Bytes::Level;
                self.fused = true;
            }
            Some("ByteFallback") if tokens && self.bytes == Bytes::Text => self.bytes = Bytes::Fallback,
            Some("Replace") if tokens && self.bytes == Bytes::Text => {
                let (from, to) = (step["pattern"]["String"].as_str(), step["content"].as_str());
                let (Some(from), Some(to)) = (from.filter(|from| !from.is_empty()), to) else {
                    return Err(unsupported(file, step));
                };
                self.growth = self.growth.saturating_mul(to.len().div_ceil(from.len()).max(1));
                if self.growth > MAX_GROWTH {
                    let problem = format!("accepted: at most {MAX_GROWTH}-fold growth by all together");
                    return Err(invalid(file, format!("decoder {step}"), problem));
                }
                self.replace.push((from.to_owned(), to.to_owned()));
            }
            Some("Metaspace") if tokens && self.bytes == Bytes::Text => {
                let mark = single_char(&step["replacement"]).ok_or_else(|| unsupported(file, step))?;
                let keeps_first = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                self.first_drops = (!keeps_first).then_some(mark);
                self.replace.push((mark.to_string(), " ".to_owned()));
            }
            Some("Strip") if self.fused && self.strip.is_none() && step["stop"] == 0 => {
                let content = single_char(&step["content"]).ok_or_else(|| unsupported(file, step))?;
                let start = step["start"].as_u64().and_then(|n| usize::try_from(n).ok());
                self.strip = Some((content, start.ok_or_else(|| unsupported(file, step))?));
            }
            _ => return Err(unsupported(file, step)),
        }
        Ok(())
    }

    pub(super) fn start(&self) -> State {
        let strip = self.strip.map_or(0, |(_, times)| times);
        State { pending: Vec::new(), first: true, strip }
    }

    /// Adds `token` to the text: what is certain by now goes to `out`.
    pub(super) fn push(&self, state: &mut State, token: String, out: &mut String) {
        let first = std::mem::take(&mut state.first);
        let start = out.len();
        if !first {
            out.push_str(self.separator);
        }
        match self.bytes {
            Bytes::Level => {
                level_bytes(&token, &mut state.pending);
                state.settle(out, 1);
            }
            Bytes::Fallback => match fallback_byte(&token) {
                Some(byte) => {
                    state.pending.push(byte);
                    state.settle(out, usize::MAX);
                }
                None => {
                    state.give_up(out, usize::MAX);
                    out.push_str(&self.text(token, first));
                }
            },
            Bytes::Text => out.push_str(&self.text(token, first)),
        }
        self.strip(state, out, start);
    }

    /// What is left when no more tokens come: bytes that never became a character, as U+FFFD.
    pub(super) fn finish(&self, state: &mut State, out: &mut String) {
        // A cut-off character is one replacement byte-level, and one per byte for byte tokens.
        let most = if self.bytes == Bytes::Level { 1 } else { usize::MAX };
        state.give_up(out, most);
    }

    fn text(&self, mut token: String, first: bool) -> String {
        if let (true, Some(mark)) = (first, self.first_drops) {
            token.retain(|c| c != mark);
        }
        for (from, to) in &self.replace {
            token = token.replace(from.as_str(), to);
        }
        token
    }

    /// Drops the leading characters that [`Decoder::strip`] names from what was added since `start`.
    fn strip(&self, state: &mut State, out: &mut String, start: usize) {
        let Some((content, _)) = self.strip else { return };
        let mut from = start;
        for c in out[start..].chars() {
            if state.strip == 0 || c != content {
                state.strip = 0;
                break;
            }
            state.strip -= 1;
            from += c.len_utf8();
        }
        out.replace_range(start..from, "");
    }
}

/// What has to be remembered between tokens.
#[derive(Debug)]
pub(super) struct State {
    /// The bytes of an unfinished character: never more than three between tokens.
    pending: Vec<u8>,
    first: bool,
    strip: usize,
}

impl State {
    /// Moves whole characters to `out`, and for invalid bytes at most `most` U+FFFD per run (as many as there
    /// are bytes, at most); keeps the start of a character that may still be completed.
    fn settle(&mut self, out: &mut String, most: usize) {
        let mut unfinished: &[u8] = &[];
        for chunk in self.pending.utf8_chunks() {
            replace_bytes(unfinished.len().min(most), out);
            out.push_str(chunk.valid());
            unfinished = chunk.invalid();
        }
        let may_go_on = std::str::from_utf8(unfinished).is_err_and(|e| e.error_len().is_none());
        if !may_go_on {
            replace_bytes(unfinished.len().min(most), out);
            unfinished = &[];
        }
        let keep = unfinished.len();
        self.pending.drain(..self.pending.len() - keep);
    }

    fn give_up(&mut self, out: &mut String, most: usize) {
        replace_bytes(self.pending.len().min(most), out);
        self.pending.clear();
    }
}

fn replace_bytes(count: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(REPLACEMENT, count));
}

/// The byte of a token such as `<0xE2>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's table backwards. A token with a character outside it (an added token) stands for its own text.
fn level_bytes(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        let Some(byte) = level_byte(c) else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

/// Printable Latin-1 stands for itself; the other 68 bytes, in order, are the characters from U+0100 on.
fn level_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

fn single_char(value: &Value) -> Option<char> {
    let mut chars = value.as_str()?.chars();
    chars.next().filter(|_| chars.next().is_none())
}

fn unsupported(file: &Path, step: &Value) -> Error {
    let problem = "step not supported here; accepted: ByteLevel, Metaspace, or Replace (of a string), \
                   ByteFallback, Fuse and Strip (at the start) in that order";
    invalid(file, format!("decoder {step}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_a_bijection() {
        let mut bytes: Vec<u8> = (0..=0x143).filter_map(char::from_u32).filter_map(level_byte).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(level_byte('Ġ'), Some(b' '));
        assert_eq!(level_byte('Ċ'), Some(b'\n'));
    }

    #[test]
    fn at_most_three_bytes_wait() {
        let mut state = State { pending: Vec::new(), first: true, strip: 0 };
        let mut out = String::new();
        for byte in (0..=255).cycle().take(4096) {
            state.pending.push(byte);
            state.settle(&mut out, 1);
            assert!(state.pending.len() <= 3);
        }
    }

    #[test]
    fn unknown_steps_are_refused_by_name() {
        let spec = serde_json::json!({"type": "CTC"});
        let error = Decoder::new(Path::new("tokenizer.json"), &spec).expect_err("refused").to_string();
        assert!(error.contains("tokenizer.json") && error.contains("CTC") && error.contains("ByteLevel"));
    }

    #[test]
    fn what_makes_texts_longer_without_bound_is_refused() {
        let doubled = |times: usize| {
            let step = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
            let steps = serde_json::json!({"type": "Sequence", "decoders": vec![step; times]});
            Decoder::new(Path::new("tokenizer.json"), &steps)
        };
        assert!(doubled(6).is_ok());
        let error = doubled(7).expect_err("refused").to_string();
        assert!(error.contains("64-fold"), "{error}");
    }
}

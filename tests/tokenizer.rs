//! The tokenizer through its public face: small vocabularies made here, and real ones where `WATTLE_DATA`
//! names a folder that has them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;
use wattle_engine::tokenizer::{ChatTemplate, Error, MAX_TEXT_BYTES, Message, Tokenizer};

/// A model directory with these files.
fn dir(files: &[(&str, String)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn load(files: &[(&str, String)]) -> Tokenizer {
    Tokenizer::from_dir(dir(files).path()).unwrap()
}

fn refused(files: &[(&str, String)]) -> String {
    Tokenizer::from_dir(dir(files).path()).unwrap_err().to_string()
}

/// GPT-2's characters for the 256 bytes.
fn byte_chars() -> Vec<char> {
    let printable =
        |b: u32| (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
    let mut spare = 0x100..;
    (0..256)
        .map(|b| if printable(b) { b } else { spare.next().unwrap() })
        .map(|c| char::from_u32(c).unwrap())
        .collect()
}

const MERGES: [&str; 6] = ["Ġ t", "h e", "Ġt he", "Ã ©", "â Ĥ", "âĤ ¬"];

/// A byte-level vocabulary: `first`, the bytes, what the merges make, `last`.
fn byte_level(first: &[&str], last: &[&str]) -> (String, String) {
    let bytes = byte_chars().into_iter().map(String::from);
    let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
    let own = |tokens: &[&str]| tokens.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    let tokens = own(first).into_iter().chain(bytes).chain(merged).chain(own(last));
    let vocab: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    (Value::Object(vocab).to_string(), format!("#version: 0.2\n{}\n", MERGES.join("\n")))
}

fn gpt2_files() -> Vec<(&'static str, String)> {
    let (vocab, merges) = byte_level(&[], &["<|endoftext|>"]);
    vec![
        ("vocab.json", vocab),
        ("merges.txt", merges),
        ("config.json", json!({"model_type": "gpt2"}).to_string()),
    ]
}

/// A sentencepiece vocabulary as Llama and Phi-3 write it: byte tokens, metaspace, a stripped first space.
fn sentencepiece() -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "é", "▁a", "▁▁"].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().enumerate().map(|(id, t)| (t, json!(id))).collect();
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": [["▁", "a"], ["▁", "▁"]]}
    })
}

static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| load(&gpt2_files()));
static LLAMA: LazyLock<Tokenizer> =
    LazyLock::new(|| load(&[("tokenizer.json", sentencepiece().to_string())]));

/// Pieces of a stream put together.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn gpt2_rules() {
    let id = |token: &str| GPT2.token_to_id(token).unwrap();
    assert_eq!(GPT2.encode("the the", true).unwrap(), [id("t"), id("he"), id("Ġthe")]);
    assert_eq!(GPT2.encode("é€", true).unwrap(), [id("Ã©"), id("âĤ¬")]);
    let end = id("<|endoftext|>");
    assert_eq!((GPT2.bos_id(), GPT2.eos_id(), GPT2.vocab_size()), (Some(end), Some(end), end as usize + 1));
    assert_eq!(GPT2.encode("a<|endoftext|>", true).unwrap(), [id("a"), end]);
    assert_eq!(GPT2.decode(&[id("a"), end], true).unwrap(), "a");
    assert_eq!(GPT2.decode(&[id("a"), end], false).unwrap(), "a<|endoftext|>");
    let mut crlf = gpt2_files();
    crlf[1].1 = crlf[1].1.replace('\n', "\r\n");
    assert_eq!(load(&crlf).encode("the €", true).unwrap(), GPT2.encode("the €", true).unwrap());
}

#[test]
fn opt_begins_every_input() {
    let (vocab, merges) = byte_level(&["<s>", "<pad>", "</s>", "<unk>"], &[]);
    let model_type = json!({"model_type": "opt"}).to_string();
    let opt = load(&[("vocab.json", vocab), ("merges.txt", merges), ("config.json", model_type)]);
    let the = opt.token_to_id("Ġthe").unwrap();
    assert_eq!(opt.encode(" the", true).unwrap(), [2, the]);
    assert_eq!(opt.encode(" the", false).unwrap(), [the]);
    assert_eq!((opt.bos_id(), opt.eos_id()), (Some(2), Some(2)));
}

#[test]
fn qwen2_rules() {
    let (vocab, merges) = byte_level(&[], &[]);
    let (start, end) = (300, 302);
    let qwen = load(&[
        ("vocab.json", vocab),
        ("merges.txt", merges),
        ("added_tokens.json", json!({"<|im_start|>": start}).to_string()),
        (
            "tokenizer_config.json",
            json!({
            "tokenizer_class": "Qwen2Tokenizer", "bos_token": null, "eos_token": "<|im_end|>",
            "added_tokens_decoder": {end.to_string(): {"content": "<|im_end|>", "special": true}}})
            .to_string(),
        ),
    ]);
    // NFC: e and a combining accent are one character. The ids given in the files hold, gaps or not.
    let ids = qwen.encode("<|im_start|>e\u{301}<|im_end|>", true).unwrap();
    assert_eq!(ids, [start, qwen.token_to_id("Ã©").unwrap(), end]);
    assert_eq!((qwen.bos_id(), qwen.eos_id(), qwen.vocab_size()), (None, Some(end), end as usize + 1));
    assert_eq!(qwen.decode(&ids, true).unwrap(), "<|im_start|>é");
    assert!(matches!(qwen.decode(&[301], true), Err(Error::UnknownId { id: 301, .. })));
}

#[test]
fn sentencepiece_rules() {
    let ids = LLAMA.encode("a  é€", true).unwrap();
    let id = |token: &str| LLAMA.token_to_id(token).unwrap();
    assert_eq!(ids, [id("<s>"), id("▁a"), id("▁▁"), id("é"), id("<0xE2>"), id("<0x82>"), id("<0xAC>")]);
    assert_eq!(LLAMA.decode(&ids, true).unwrap(), "a  é€");
    assert_eq!(LLAMA.decode(&ids, false).unwrap(), "<s> a  é€");
    // Valid characters of a damaged run stay.
    assert_eq!(
        LLAMA.decode(&[id("<0x61>"), id("<0xE2>"), id("<0x82>"), id("b")], true).unwrap(),
        "a\u{FFFD}\u{FFFD}b"
    );
    // tokenizer_config.json decides on the beginning token where it speaks.
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": false}).to_string();
    let without = load(&[("tokenizer.json", sentencepiece().to_string()), ("tokenizer_config.json", config)]);
    assert_eq!(without.encode("a", true).unwrap(), [id("▁a")]);
    assert_eq!((without.bos_id(), without.eos_id()), (Some(1), Some(2)));
}

#[test]
fn characters_come_whole() {
    for tokenizer in [&*GPT2, &*LLAMA] {
        let ids = tokenizer.encode("👩‍👩‍👧 é", false).unwrap();
        let mut stream = tokenizer.stream(true);
        let pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
        assert!(pieces.contains(&"👩".to_owned()), "{pieces:?}");
        assert_eq!(pieces.concat() + &stream.finish(), "👩‍👩‍👧 é");
    }
    let mut stream = GPT2.stream(true);
    assert_eq!(stream.push(GPT2.token_to_id("ð").unwrap()), None, "the first byte of four");
    assert_eq!(stream.push(999_999), None, "an id without a token");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_text_comes_back(text in any::<String>()) {
        let ids = GPT2.encode(&text, true).unwrap();
        prop_assert_eq!(&GPT2.decode(&ids, false).unwrap(), &text);
        prop_assert_eq!(streamed(&GPT2, &ids, false), text);
    }

    #[test]
    fn sentencepiece_text_comes_back(text in "[ab é€👩\u{301}]*") {
        let ids = LLAMA.encode(&text, true).unwrap();
        prop_assert_eq!(&LLAMA.decode(&ids, true).unwrap(), &text);
        prop_assert_eq!(streamed(&LLAMA, &ids, true), text);
    }

    #[test]
    fn streaming_is_decoding(ids in prop::collection::vec(0u32..263, 0..64), skip: bool) {
        for tokenizer in [&*GPT2, &*LLAMA] {
            prop_assert_eq!(streamed(tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
        }
    }

    #[test]
    fn damaged_files_are_answered(cut in 0usize..6000, byte: u8) {
        let mut text = sentencepiece().to_string().into_bytes();
        let at = cut % text.len();
        text[at] = byte;
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tokenizer.json"), &text).unwrap();
        // Some changes are harmless; none may panic.
        if let Ok(tokenizer) = Tokenizer::from_dir(folder.path()) {
            let _ = tokenizer.encode("a é", true).map(|ids| tokenizer.decode(&ids, true));
        }
        fs::write(folder.path().join("tokenizer.json"), &text[..at]).unwrap();
        prop_assert!(Tokenizer::from_dir(folder.path()).is_err());
    }
}

#[test]
fn bad_vocabularies_are_refused_by_file() {
    let with = |name: &str, text: &str| {
        let mut files = gpt2_files();
        files.iter_mut().find(|(file, _)| *file == name).unwrap().1 = text.to_owned();
        refused(&files)
    };
    for (name, text, says) in [
        ("vocab.json", "[1, 2]", "token: id"),
        ("vocab.json", "{}", "no tokens"),
        ("vocab.json", r#"{"a": -1}"#, "token: id"),
        ("vocab.json", r#"{"a": 4294967295}"#, "ids below"),
        ("vocab.json", r#"{"a": 0, "b": 0}"#, "each for one token"),
        ("merges.txt", "#version: 0.2\nh e\nĠ", "line 3"),
        ("merges.txt", "h e x", "line 1"),
        ("merges.txt", "h z", "line 1"),
        ("config.json", r#"{"model_type": "bert"}"#, "tokenizer_class"),
        ("config.json", "[", "JSON object"),
    ] {
        let message = with(name, text);
        assert!(message.contains(says), "{name} {text}: {message}");
        assert!(message.contains(if name == "config.json" { "config.json" } else { name }), "{message}");
    }
    let message = refused(&[]);
    assert!(message.contains("tokenizer.json, or vocab.json together with merges.txt"), "{message}");
}

#[test]
fn bad_tokenizer_json_is_refused_by_field() {
    let with = |pointer: &str, value: Value| {
        let mut json = sentencepiece();
        *json.pointer_mut(pointer).unwrap() = value;
        refused(&[("tokenizer.json", json.to_string())])
    };
    for (pointer, value, says) in [
        ("/model/vocab", json!([["a", 0.5]]), "vocab"),
        ("/model/type", json!("Unigram"), "model.type"),
        ("/model/merges/0", json!(["▁", "aaaaaaaaaaaaaaaa"]), "model.merges[0]"),
        ("/model/merges/0", json!(["<unk>", "<0x00>"]), "model.merges[0]"),
        ("/added_tokens/0/id", json!(7), "added_tokens"),
        (
            "/decoder",
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": false}),
            "decoder",
        ),
        ("/decoder/decoders/3/stop", json!(1), "decoder"),
        ("/post_processor/single/0", json!({"Sequence": {"id": "B", "type_id": 0}}), "post_processor"),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "pre_tokenizer"),
        ("/normalizer/normalizers/1/content", json!("▁".repeat(1000)), "normalizer"),
        ("/normalizer/normalizers/1/pattern/String", json!(""), "normalizer"),
    ] {
        let message = with(pointer, value);
        assert!(message.contains("tokenizer.json") && message.contains(says), "{pointer}: {message}");
        assert!(message.contains("accepted"), "{message}");
    }
    let message = refused(&[("tokenizer.json", "{".repeat(100_000))]);
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn huge_files_and_texts_are_refused_unread() {
    let folder = TempDir::new().unwrap();
    fs::File::create(folder.path().join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(Tokenizer::from_dir(folder.path()), Err(Error::TooLarge { .. })));
    let text = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(matches!(GPT2.encode(&text, true), Err(Error::TextTooLong { .. })));
}

/// The folder with the real vocabularies, if there is one here.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("WATTLE_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: WATTLE_DATA names no folder with tokenizer-vectors/ and tok-*/");
    }
    folder
}

/// llama.cpp's vectors: texts parted by a line, and a line of ids for each.
fn vectors(data: &Path, name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |kind| {
        fs::read_to_string(data.join(format!("tokenizer-vectors/ggml-vocab-{name}.gguf.{kind}"))).unwrap()
    };
    let (texts, ids) = (read("inp"), read("out"));
    let separator = "\n__ggml_vocab_test__\n";
    let texts = texts.strip_suffix(separator).unwrap_or(&texts).split(separator).map(str::to_owned);
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert!(ids.len() > 40);
    assert_eq!(texts.clone().count(), ids.len(), "{name}");
    texts.zip(ids).collect()
}

#[test]
fn real_vocabularies_are_byte_exact() {
    let Some(data) = data() else { return };
    let plain = TempDir::new().unwrap();
    let crlf = TempDir::new().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(data.join("tok-gpt2").join(file), plain.path().join(file)).unwrap();
    }
    for (from, to) in [
        ("vocab.json", "vocab.json"),
        ("merges.crlf.txt", "merges.txt"),
        ("tokenizer_config.json", "tokenizer_config.json"),
    ] {
        fs::copy(data.join("tok-qwen2").join(from), crlf.path().join(to)).unwrap();
    }
    let folders = [
        ("gpt-2", data.join("tok-gpt2")),
        ("gpt-2", plain.path().to_owned()),
        ("qwen2", data.join("tok-qwen2")),
        ("qwen2", crlf.path().to_owned()),
        ("phi-3", data.join("tok-phi3-mini")),
    ];
    for (name, folder) in folders {
        let tokenizer = Tokenizer::from_dir(&folder).unwrap();
        let cases = vectors(&data, name);
        for (text, expected) in &cases {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(&ids, expected, "{name} {text:?}");
            assert_eq!(&tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            assert_eq!(&streamed(&tokenizer, &ids, false), text, "{name}");
        }
        println!("{name} from {}: {} vectors", folder.display(), cases.len());
        if name == "gpt-2" {
            let text = fs::read_to_string(data.join("tok-gpt2/reftest.txt")).unwrap();
            let expected: Value =
                serde_json::from_str(&fs::read_to_string(data.join("tok-gpt2/reftest.ids.json")).unwrap())
                    .unwrap();
            assert_eq!(json!(tokenizer.encode(&text, true).unwrap()), expected["token_ids"]);
        }
    }
}

#[test]
fn real_templates_render() {
    let Some(data) = data() else { return };
    let phi = ChatTemplate::from_dir(&data.join("tok-phi3-mini")).unwrap().unwrap();
    let text = phi.render(&[Message::new("user", "Hi")], true).unwrap();
    assert_eq!(text, "<|user|>\nHi<|end|>\n<|assistant|>\n");
    let ids = Tokenizer::from_dir(&data.join("tok-phi3-mini")).unwrap().encode(&text, false).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1]), (32010, 32001), "special tokens are recognised in a chat");
    let qwen = ChatTemplate::from_dir(&data.join("tok-qwen2")).unwrap().unwrap();
    let text = qwen.render(&[Message::new("user", "Hi")], true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

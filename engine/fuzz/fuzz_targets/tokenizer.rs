//! Loads a tokenizer of the input and encodes with it: tokenizer.json, tokenizer_config.json and a text, split at the
//! first two bytes 0x00. Whatever they hold, it has to return.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wattle_engine::tokenizer::{ChatTemplate, Message, Tokenizer};

fuzz_target!(|input: &[u8]| {
    let Ok(dir) = tempfile::tempdir() else { return };
    let mut parts = input.splitn(3, |&byte| byte == 0);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        if std::fs::write(dir.path().join(name), parts.next().unwrap_or_default()).is_err() {
            return;
        }
    }
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    if let Ok(tokenizer) = Tokenizer::from_dir(dir.path()) {
        if let Ok(ids) = tokenizer.encode(&text, true) {
            let _ = tokenizer.decode(&ids, true);
        }
    }
    if let Ok(Some(template)) = ChatTemplate::from_dir(dir.path()) {
        let _ = template.render(&[Message::new("user", text)], true);
    }
});

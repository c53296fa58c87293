//! Loads a directory made of the input: config.json, generation_config.json and model.safetensors, split at the
//! first two bytes 0x00. Whatever they hold, loading has to return.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wattle_engine::model::Model;

fuzz_target!(|input: &[u8]| {
    let Ok(dir) = tempfile::tempdir() else { return };
    let names = ["config.json", "generation_config.json", "model.safetensors"];
    for (name, text) in names.iter().zip(input.splitn(3, |&byte| byte == 0)) {
        if std::fs::write(dir.path().join(name), text).is_err() {
            return;
        }
    }
    let _ = Model::load(dir.path());
});

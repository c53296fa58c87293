//! Loads an adapter of the input for a tiny model: adapter_config.json and adapter_model.safetensors, split at the
//! first byte 0x00. Whatever they hold, loading has to return.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wattle_engine::adapter::Adapter;
use wattle_engine::model::{Dtype, Model, Spec};

static SPEC: LazyLock<Option<Spec>> = LazyLock::new(|| Some(Model::random("tiny", Dtype::F32, 1).ok()?.spec));

fuzz_target!(|input: &[u8]| {
    let (Some(spec), Ok(dir)) = (&*SPEC, tempfile::tempdir()) else { return };
    for (name, text) in ["adapter_config.json", "adapter_model.safetensors"].iter().zip(input.splitn(2, |&b| b == 0)) {
        if std::fs::write(dir.path().join(name), text).is_err() {
            return;
        }
    }
    let _ = Adapter::load(dir.path(), spec);
});

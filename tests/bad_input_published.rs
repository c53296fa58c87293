//! Damaged, lying and foreign quantized checkpoints: each answered by one error that names file and field or tensor,
//! never by a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use wattle_engine::model::Model;

const MODULE: &str = "model.layers.1.mlp.down_proj";

/// A tensor: its type, shape and bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// A fixture's config and tensors, to be changed.
struct Draft {
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Draft {
    fn of(fixture: &str) -> Self {
        let dir = common::fixtures().join("models-published").join(fixture);
        let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |(name, view): (String, TensorView)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Self { config, tensors: tensors.tensors().into_iter().map(tensor).collect() }
    }

    /// `quantization_config`.
    fn fields(&mut self) -> &mut Value {
        &mut self.config["quantization_config"]
    }

    /// A tensor of the module.
    fn tensor(&mut self, suffix: &str) -> &mut Tensor {
        self.tensors.get_mut(&format!("{MODULE}.{suffix}")).unwrap()
    }

    fn write(&self) -> TempDir {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        self.write_bytes(&serialize(views, None).unwrap())
    }

    fn write_bytes(&self, weights: &[u8]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        dir
    }

    /// That loading it ends with an error of these words.
    fn refused(&self, expected: &[&str]) {
        let message = Model::load(self.write().path()).expect_err("was accepted").to_string();
        assert!(!message.contains('\n') && message.len() < 1000, "{message}");
        for part in expected {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

/// Another value for a field of `quantization_config` (a JSON pointer).
fn refused_field(fixture: &str, pointer: &str, value: Value) {
    let mut draft = Draft::of(fixture);
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    draft.fields().pointer_mut(parent).unwrap()[field] = value;
    draft.refused(&["config.json: quantization_config", field]);
}

/// Another tensor of the module.
fn refused_tensor(fixture: &str, suffix: &str, expected: &[&str], change: impl FnOnce(&mut Tensor)) {
    let mut draft = Draft::of(fixture);
    change(draft.tensor(suffix));
    draft.refused(&[expected, &["model.safetensors", MODULE, suffix]].concat());
}

#[test]
fn methods_that_are_not_read() {
    for method in ["hqq", "fp8", "eetq", "gguf", "quanto", ""] {
        refused_field("gptq", "/quant_method", json!(method));
    }
    refused_field("gptq", "/quant_method", json!(null));
    refused_field("gptq", "/quant_method", json!(4));
    let mut draft = Draft::of("gptq");
    *draft.fields() = json!("gptq");
    draft.refused(&["config.json", "quantization_config", "an object"]);
    // A dense reader misses the dense weights.
    *draft.fields() = Value::Null;
    draft.refused(&["model.safetensors", "q_proj.weight", "missing"]);
}

#[test]
fn fields_of_gptq() {
    for bits in [json!(2), json!(3), json!("4"), json!(null)] {
        refused_field("gptq", "/bits", bits);
    }
    for size in [json!(0), json!(16), json!(48), json!(-2), json!(1u64 << 40), json!("32")] {
        refused_field("gptq", "/group_size", size);
    }
    refused_field("gptq", "/checkpoint_format", json!("marlin"));
    refused_field("gptq", "/format", json!("bitblas"));
    refused_field("gptq", "/is_marlin_format", json!(true));
    refused_field("gptq", "/desc_act", json!("yes"));
}

#[test]
fn fields_of_awq() {
    for version in ["gemv", "gemv_fast", "marlin", "exllama", "ipex"] {
        refused_field("awq", "/version", json!(version));
    }
    refused_field("awq", "/bits", json!(8));
    refused_field("awq", "/group_size", json!(20));
    refused_field("awq", "/zero_point", json!(false));
}

#[test]
fn fields_of_compressed_tensors() {
    let name = "compressed-group";
    for format in
        [json!("int-quantized"), json!("float-quantized"), json!("nvfp4-pack-quantized"), json!(null)]
    {
        refused_field(name, "/format", format);
    }
    refused_field(name, "/kv_cache_scheme", json!({"num_bits": 8}));
    refused_field(name, "/transform_config", json!({"config_groups": {}}));
    refused_field(name, "/config_groups", json!({}));
    refused_field(name, "/config_groups", json!({"a": {}, "b": {}}));
    refused_field(name, "/config_groups/group_0", json!(null));
    refused_field(name, "/config_groups/group_0/input_activations", json!({"num_bits": 8}));
    refused_field(name, "/config_groups/group_0/format", json!("int-quantized"));
    refused_field(name, "/config_groups/group_0/weights/num_bits", json!(3));
    refused_field(name, "/config_groups/group_0/weights/type", json!("float"));
    refused_field(name, "/config_groups/group_0/weights/strategy", json!("tensor"));
    refused_field(name, "/config_groups/group_0/weights/group_size", json!(null));
    refused_field(name, "/config_groups/group_0/weights/actorder", json!("random"));
    let mut draft = Draft::of(name);
    draft.fields()["sparsity_config"] = json!({"format": "sparse-24-bitmask"});
    draft.refused(&["quantization_config.sparsity_config.format", "dense"]);
}

#[test]
fn fields_of_bitsandbytes() {
    refused_field("nf4", "/load_in_8bit", json!(true));
    refused_field("nf4", "/load_in_4bit", json!(false));
    refused_field("nf4", "/bnb_4bit_quant_type", json!("fp4"));
    refused_field("nf4", "/bnb_4bit_quant_type", json!(null));
    refused_field("nf4", "/bnb_4bit_quant_storage", json!("bfloat16"));
}

/// Tensors of the module that may not be missing, of another type, or of another shape.
const NEEDED: [(&str, &[&str]); 6] = [
    ("gptq-act-order", &["qweight", "qzeros", "scales", "g_idx"]),
    ("awq", &["qweight", "qzeros", "scales"]),
    ("compressed-channel", &["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"]),
    ("compressed-8bit-act-order", &["weight_packed", "weight_scale", "weight_shape", "weight_g_idx"]),
    ("nf4", &["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]),
    ("nf4-nested", &["weight.absmax", "weight.nested_absmax", "weight.nested_quant_map"]),
];

#[test]
fn tensors_that_are_missing_or_do_not_fit() {
    for (fixture, suffixes) in NEEDED {
        for suffix in suffixes {
            let mut draft = Draft::of(fixture);
            draft.tensors.remove(&format!("{MODULE}.{suffix}"));
            draft.refused(&["model.safetensors", MODULE, suffix, "missing"]);

            refused_tensor(fixture, suffix, &["is BOOL"], |(dtype, shape, bytes)| {
                (*dtype, *shape) = (Dtype::BOOL, vec![bytes.len()]);
            });
            if !suffix.ends_with("nf4") {
                refused_tensor(fixture, suffix, &["has shape"], |(_, shape, _)| shape.push(1));
            }
        }
    }
}

#[test]
fn groups_that_are_none() {
    for (fixture, suffix) in [("gptq-act-order", "g_idx"), ("compressed-8bit-act-order", "weight_g_idx")] {
        for (group, expected) in [(99, "group 99"), (-1, "group -1"), (i32::MIN, "group -2147483648")] {
            refused_tensor(fixture, suffix, &[expected], |(.., bytes)| {
                bytes[40..44].copy_from_slice(&group.to_le_bytes());
            });
        }
        refused_tensor(fixture, suffix, &["more than 32 inputs into group 0"], |(.., bytes)| bytes.fill(0));
    }
    // A weight_g_idx that was never set, though the config asks for one, means groups in order.
    let mut draft = Draft::of("compressed-8bit-act-order");
    draft.tensor("weight_g_idx").2.fill(0xff);
    Model::load(draft.write().path()).unwrap();
}

#[test]
fn values_that_lie() {
    refused_tensor("gptq", "scales", &["not finite"], |(.., bytes)| bytes[..2].copy_from_slice(&[0, 0x7c]));
    refused_tensor("gptq-8bit", "qzeros", &["zero points other than 128"], |(.., bytes)| bytes[5] = 3);
    refused_tensor("compressed-group", "weight_shape", &["says [64, 97]"], |(.., bytes)| bytes[8] = 97);
    refused_tensor("compressed-group", "weight_shape", &["says [64, -1]"], |(.., bytes)| {
        bytes[8..].fill(0xff)
    });
    refused_tensor("nf4", "weight.quant_map", &["the table of nf4"], |(.., bytes)| bytes[3] ^= 0x80);
    refused_tensor("nf4", "weight.absmax", &["not finite"], |(.., bytes)| bytes[..4].fill(0xff));
    let mut draft = Draft::of("awq");
    draft.tensors.insert(format!("{MODULE}.weight"), (Dtype::F32, vec![64, 128], vec![0; 4 * 64 * 128]));
    draft.refused(&["model.safetensors", MODULE, "dense and quantized"]);
}

/// Another field in the state of the module.
fn refused_state(fixture: &str, field: &str, value: Value) {
    const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
    refused_tensor(fixture, STATE, &[field], |(_, shape, bytes)| {
        let mut state: Value = serde_json::from_slice(bytes).unwrap();
        state[field] = value;
        *bytes = state.to_string().into_bytes();
        *shape = vec![bytes.len()];
    });
}

#[test]
fn states_that_lie() {
    for shape in [json!([64, 97]), json!([6144]), json!([64, 96, 1]), json!([1u64 << 60, 1u64 << 60])] {
        refused_state("nf4", "shape", shape);
    }
    for size in [0, 1, 48, 8192, u64::MAX] {
        refused_state("nf4", "blocksize", json!(size));
    }
    refused_state("nf4", "quant_type", json!("fp4"));
    refused_state("nf4-nested", "nested_blocksize", json!(0));
    refused_state("nf4-nested", "nested_blocksize", json!(null));
    refused_state("nf4-nested", "nested_offset", json!(null));
    refused_state("nf4-nested", "nested_offset", json!(1e300));
    for text in ["", "[]", "{", "{\"quant_type\": \"nf4\"}", &" ".repeat(5000)] {
        refused_tensor("nf4", "weight.quant_state.bitsandbytes__nf4", &[], |(_, shape, bytes)| {
            (*shape, *bytes) = (vec![text.len()], text.as_bytes().to_vec());
        });
    }
    let mut draft = Draft::of("nf4");
    let state = draft.tensors.remove(&format!("{MODULE}.weight.quant_state.bitsandbytes__nf4")).unwrap();
    draft.tensors.insert(format!("{MODULE}.weight.quant_state.bitsandbytes__fp4"), state);
    draft.refused(&["model.safetensors", MODULE, "fp4 is not supported"]);
}

#[test]
fn files_that_are_cut_off() {
    for (fixture, _) in NEEDED {
        let draft = Draft::of(fixture);
        let path = common::fixtures().join("models-published").join(fixture).join("model.safetensors");
        let bytes = fs::read(path).unwrap();
        let dir = draft.write_bytes(&bytes[..bytes.len() - 100]);
        let message = Model::load(dir.path()).expect_err("was accepted").to_string();
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_tensors_return(
        fixture in proptest::sample::select(NEEDED.map(|(fixture, _)| fixture).to_vec()),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..20),
    ) {
        let mut draft = Draft::of(fixture);
        for (_, _, bytes) in draft.tensors.values_mut() {
            for &(place, byte) in &changes {
                let len = bytes.len();
                bytes[place % len] = byte;
            }
        }
        let _ = Model::load(draft.write().path());
    }
}

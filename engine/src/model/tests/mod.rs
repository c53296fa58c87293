//! Small model directories, written from a config: a recorder notes which tensors the config asks for.

mod configs;
mod loading;
mod quantized;
mod random;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::config::Fields;
use super::families::{self, Layout};
use super::weights::{Order, Source, assemble};
use super::*;

/// The spec and layout of a config.
fn read(config: &Value) -> Result<(Spec, Layout)> {
    families::read(&Fields::parse(Path::new("config.json"), config.to_string().as_bytes())?, None)
}

/// `config` with the fields of `more`.
fn with(config: &Value, more: Value) -> Value {
    let mut config = config.clone();
    let (Some(fields), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("not objects") };
    fields.extend(more);
    config
}

/// A small config of each model type, all sizes different.
fn small(model_type: &str) -> Value {
    match model_type {
        "gpt2" => json!({"model_type": "gpt2", "vocab_size": 29, "n_embd": 10, "n_head": 5, "n_layer": 2,
            "n_positions": 16, "n_inner": 13}),
        "opt" => json!({"model_type": "opt", "vocab_size": 29, "hidden_size": 10, "num_attention_heads": 5,
            "num_hidden_layers": 2, "max_position_embeddings": 16, "ffn_dim": 13}),
        "llava" => json!({"model_type": "llava", "text_config": small("llama")}),
        _ => json!({"model_type": model_type, "vocab_size": 29, "hidden_size": 24, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "intermediate_size": 13,
            "max_position_embeddings": 64}),
    }
}

/// Tensors by name: their stored shape.
type Shapes = BTreeMap<String, Vec<usize>>;

/// A source that notes what it is asked for.
#[derive(Default)]
struct Recorder(Shapes);

impl Source for Recorder {
    fn has(&self, _name: &str) -> bool {
        false
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix> {
        let shape = if order == Order::OutIn { vec![rows, cols] } else { vec![cols, rows] };
        self.0.insert(name.into(), shape);
        Ok(Matrix::from_f32(name, rows, cols, &vec![0.0; rows * cols]).unwrap())
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        self.0.insert(name.into(), vec![len]);
        Ok(Vector { name: name.into(), values: vec![0.0; len] })
    }
}

/// The tensors that a config asks for, under their usual names.
fn shapes_of(config: &Value) -> Shapes {
    let (spec, layout) = read(config).unwrap();
    let mut recorder = Recorder::default();
    assemble(&spec, &layout, &mut recorder).unwrap();
    recorder.0
}

/// The values of a tensor in files that [`write`] makes: different in every place.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31) + u32::from(byte)) % 1000;
    (0..shape.iter().product()).map(|i: usize| seed as f32 + i as f32 / 1024.0).collect()
}

/// Writes f32 tensors to a safetensors file.
fn write_tensors(path: &Path, shapes: &Shapes) {
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| values(name, shape).iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let view = |((name, shape), data): ((&String, &Vec<usize>), _)| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    };
    let views = shapes.iter().zip(data.iter().map(Vec::as_slice)).map(view);
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model directory.
fn write(config: &Value, shapes: &Shapes) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&dir.path().join("model.safetensors"), shapes);
    dir
}

/// What a matrix holds, of f32.
fn elements(matrix: &Matrix) -> Vec<f32> {
    assert_eq!(matrix.format, Format::Dense(Dtype::F32));
    matrix
        .parts
        .iter()
        .flat_map(|part| bytemuck::cast_slice::<u8, f32>(part.data.as_ref()).to_vec())
        .collect()
}

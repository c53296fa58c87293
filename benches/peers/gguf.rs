//! A wattle model as a GGUF file: the same weights, in llama.cpp's blocks.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use wattle_engine::model::{Family, Linear, Matrix, Model, NormWeights, Positions, Vector};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Elements that share a scale in llama.cpp's types.
const BLOCK: usize = 32;
/// Bytes to which tensors are aligned.
const ALIGNMENT: usize = 32;

/// llama.cpp's tensor types that are used here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Type {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 8,
}

impl Type {
    fn row(self, values: &[f32], out: &mut Vec<u8>) {
        for block in values.chunks(BLOCK) {
            match self {
                Self::F32 => block.iter().for_each(|value| out.extend(value.to_le_bytes())),
                Self::F16 => block.iter().for_each(|&value| out.extend(f16::from_f32(value).to_le_bytes())),
                Self::Q8_0 => q8_0(block, out),
                Self::Q4_0 => {
                    let extreme =
                        block.iter().copied().fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
                    nibbles(block, extreme / -8.0, 0.0, 8.0, &[], out);
                }
                Self::Q4_1 => {
                    let low = block.iter().copied().fold(f32::INFINITY, f32::min);
                    let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let minimum = f16::from_f32(low);
                    nibbles(block, (high - low) / 15.0, minimum.to_f32(), 0.0, &minimum.to_le_bytes(), out);
                }
            }
        }
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let scale = f16::from_f32(block.iter().fold(0.0_f32, |a, b| a.max(b.abs())) / 127.0);
    out.extend(scale.to_le_bytes());
    let inverse = inverse(scale.to_f32());
    out.extend(block.iter().map(|w| (w * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

/// Scale, minimum if there is one, and two codes a byte: elements i and i + 16.
fn nibbles(block: &[f32], scale: f32, minimum: f32, middle: f32, stored: &[u8], out: &mut Vec<u8>) {
    let scale = f16::from_f32(scale);
    out.extend(scale.to_le_bytes());
    out.extend(stored);
    let inverse = inverse(scale.to_f32());
    let code = |w: f32| ((w - minimum) * inverse + middle).round().clamp(0.0, 15.0) as u8;
    let (low, high) = block.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(&low, &high)| code(low) | code(high) << 4));
}

/// A tensor of the file.
struct Tensor {
    name: String,
    /// llama.cpp's order: the inner dimension first.
    shape: Vec<u64>,
    kind: Type,
    data: Vec<u8>,
}

/// A value of the header.
enum Value {
    Uint(u32),
    Float(f32),
    Text(String),
}

/// Writes `model` to `path`: projections as `layers`, embedding and head as q8_0, positions f16, all else f32.
/// Returns the bytes of its matrices.
pub fn write(model: &Model, layers: Type, path: &Path) -> Result<usize> {
    let tensors = tensors(model, layers)?;
    let header = header(model)?;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(b"GGUF")?;
    file.write_all(&3_u32.to_le_bytes())?;
    file.write_all(&(tensors.len() as u64).to_le_bytes())?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    let mut written = 4 + 4 + 8 + 8;
    let mut text = Vec::new();
    for (name, value) in &header {
        string(name, &mut text);
        match value {
            Value::Uint(value) => text.extend([4_u32.to_le_bytes(), value.to_le_bytes()].concat()),
            Value::Float(value) => text.extend([6_u32.to_le_bytes(), value.to_le_bytes()].concat()),
            Value::Text(value) => {
                text.extend(8_u32.to_le_bytes());
                string(value, &mut text);
            }
        }
    }
    let mut offset = 0_usize;
    for tensor in &tensors {
        string(&tensor.name, &mut text);
        text.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().for_each(|size| text.extend(size.to_le_bytes()));
        text.extend((tensor.kind as u32).to_le_bytes());
        text.extend((offset as u64).to_le_bytes());
        offset += tensor.data.len().next_multiple_of(ALIGNMENT);
    }
    file.write_all(&text)?;
    written += text.len();
    let pad = |file: &mut BufWriter<File>, len: usize| {
        file.write_all(&[0; ALIGNMENT][..len.next_multiple_of(ALIGNMENT) - len])
    };
    pad(&mut file, written)?;
    for tensor in &tensors {
        file.write_all(&tensor.data)?;
        pad(&mut file, tensor.data.len())?;
    }
    file.flush()?;
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    Ok(matrices.map(|tensor| tensor.data.len()).sum())
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What llama.cpp calls the architecture.
fn architecture(model: &Model) -> Result<&'static str> {
    match model.spec.family {
        Family::Gpt2 => Ok("gpt2"),
        Family::Qwen2 => Ok("qwen2"),
        Family::Llama | Family::Mistral => Ok("llama"),
        other => Err(format!("{other:?} is not a family that peers are compared on").into()),
    }
}

fn header(model: &Model) -> Result<Vec<(String, Value)>> {
    let (spec, name) = (&model.spec, architecture(model)?);
    let mut header = vec![
        ("general.architecture".to_owned(), Value::Text(name.into())),
        ("general.alignment".to_owned(), Value::Uint(ALIGNMENT as u32)),
        ("tokenizer.ggml.model".to_owned(), Value::Text("none".into())),
    ];
    let epsilon =
        if name == "gpt2" { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    header.push((format!("{name}.{epsilon}"), Value::Float(spec.norm_eps)));
    if let Positions::Rope(rope) = &spec.positions {
        // Frequencies are base^(−2i / dim).
        let second = rope.inv_freq.get(1).copied().unwrap_or(1.0);
        let base = f64::from(second).powf(-(rope.rotary_dim as f64) / 2.0);
        header.push((format!("{name}.rope.freq_base"), Value::Float(base as f32)));
        header.push((format!("{name}.rope.dimension_count"), Value::Uint(rope.rotary_dim as u32)));
    }
    for (key, value) in [
        ("vocab_size", spec.vocab),
        ("context_length", spec.context),
        ("embedding_length", spec.width),
        ("feed_forward_length", spec.ffn),
        ("block_count", spec.layers),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
    ] {
        header.push((format!("{name}.{key}"), Value::Uint(u32::try_from(value)?)));
    }
    Ok(header)
}

fn tensors(model: &Model, layers: Type) -> Result<Vec<Tensor>> {
    let weights = &model.weights;
    let mut file = Tensors { layers, tensors: Vec::new() };
    file.matrix("token_embd", &[&weights.embed], Type::Q8_0, None)?;
    if let Some(positions) = &weights.positions {
        file.matrix("position_embd", &[positions], Type::F16, None)?;
    }
    for (index, layer) in weights.layers.iter().enumerate() {
        let name = |part: &str| format!("blk.{index}.{part}");
        file.norm(&name("attn_norm"), Some(&layer.attn_norm));
        if model.spec.family == Family::Gpt2 {
            file.linears(&name("attn_qkv"), &[&layer.q, &layer.k, &layer.v], None)?;
        } else {
            // llama.cpp rotates neighbouring elements of Llama's heads, not halves.
            let pairs = (architecture(model)? == "llama").then_some(model.spec.head_dim);
            file.linears(&name("attn_q"), &[&layer.q], pairs)?;
            file.linears(&name("attn_k"), &[&layer.k], pairs)?;
            file.linears(&name("attn_v"), &[&layer.v], None)?;
        }
        file.linears(&name("attn_output"), &[&layer.o], None)?;
        file.norm(&name("ffn_norm"), Some(&layer.mlp_norm));
        if let Some(gate) = &layer.gate {
            file.linears(&name("ffn_gate"), &[gate], None)?;
        }
        file.linears(&name("ffn_up"), &[&layer.up], None)?;
        file.linears(&name("ffn_down"), &[&layer.down], None)?;
    }
    file.norm("output_norm", weights.final_norm.as_ref());
    if !std::sync::Arc::ptr_eq(&weights.embed, &weights.head.weight) {
        file.matrix("output", &[&weights.head.weight], Type::Q8_0, None)?;
    }
    Ok(file.tensors)
}

struct Tensors {
    layers: Type,
    tensors: Vec<Tensor>,
}

impl Tensors {
    /// The rows of some matrices, below each other; those of heads of `pairs` elements in llama.cpp's order.
    fn matrix(&mut self, name: &str, matrices: &[&Matrix], kind: Type, pairs: Option<usize>) -> Result<()> {
        let cols = matrices[0].cols;
        if ![Type::F32, Type::F16].contains(&kind) && !cols.is_multiple_of(BLOCK) {
            return Err(format!("{name}: {cols} columns are no multiple of {BLOCK}").into());
        }
        let mut data = Vec::new();
        for matrix in matrices {
            for row in 0..matrix.rows {
                let row = pairs.map_or(row, |head| {
                    let (start, within) = (row / head * head, row % head);
                    start + within / 2 + within % 2 * (head / 2)
                });
                kind.row(&matrix.row(row)?, &mut data);
            }
        }
        let rows: usize = matrices.iter().map(|matrix| matrix.rows).sum();
        let (name, shape) = (format!("{name}.weight"), vec![cols as u64, rows as u64]);
        self.tensors.push(Tensor { name, shape, kind, data });
        Ok(())
    }

    fn linears(&mut self, name: &str, linears: &[&Linear], pairs: Option<usize>) -> Result<()> {
        let matrices: Vec<&Matrix> = linears.iter().map(|linear| &*linear.weight).collect();
        self.matrix(name, &matrices, self.layers, pairs)?;
        let biases: Vec<f32> = linears
            .iter()
            .filter_map(|linear| linear.bias.as_ref())
            .flat_map(|bias| bias.values.clone())
            .collect();
        if !biases.is_empty() {
            self.vector(&format!("{name}.bias"), &biases);
        }
        Ok(())
    }

    fn norm(&mut self, name: &str, norm: Option<&NormWeights>) {
        let parts = norm.map(|norm| [("weight", &norm.weight), ("bias", &norm.bias)]);
        for (part, vector) in parts.into_iter().flatten() {
            let values = |vector: &std::sync::Arc<Vector>| vector.values.clone();
            if let Some(values) = vector.as_ref().map(values) {
                self.vector(&format!("{name}.{part}"), &values);
            }
        }
    }

    fn vector(&mut self, name: &str, values: &[f32]) {
        let mut data = Vec::new();
        Type::F32.row(values, &mut data);
        let shape = vec![values.len() as u64];
        self.tensors.push(Tensor { name: name.into(), shape, kind: Type::F32, data });
    }
}

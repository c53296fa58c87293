//! Dense → quantized, in memory and in files.

use std::sync::Arc;

use wattle_kernels_cpu::Read;

use super::super::quantize::quantize;
use super::*;

/// Numbers of all sizes, with rows of zeros and of one sign.
fn dense(rows: usize, cols: usize) -> Arc<Matrix> {
    let value = |i: usize| {
        let (row, col) = (i / cols, i % cols);
        let number = ((i * 37 + 11) % 1009) as f32 / 504.5 - 1.0;
        match row % 4 {
            0 => number,
            1 => number.abs() * 1e-3,
            2 => 0.0,
            _ => -number.abs() * (1.0 + col as f32),
        }
    };
    let values: Vec<f32> = (0..rows * cols).map(value).collect();
    Arc::new(Matrix::from_f32("dense", rows, cols, &values).unwrap())
}

fn read_all(matrix: &Matrix) -> Vec<f32> {
    let weight = weight(matrix).unwrap();
    (0..matrix.rows * matrix.cols).map(|index| weight.get(index)).collect()
}

#[test]
fn elements_move_by_half_a_step_at_most() {
    for (rows, cols) in [(1, 1), (16, 32), (17, 33), (40, 70), (5, 200)] {
        let from = dense(rows, cols);
        let exact = read_all(&from);
        for quant in Quant::ALL {
            let format = quant.layers();
            let made = quantize(&from, format).unwrap();
            assert_eq!(made.bytes(), (rows * Format::Panels(format).row_bits(cols)).div_ceil(8), "{quant:?}");
            for (row, (exact, got)) in exact.chunks(cols).zip(read_all(&made).chunks(cols)).enumerate() {
                for (exact, got) in exact.chunks(format.group(cols)).zip(got.chunks(format.group(cols))) {
                    let high = exact.iter().copied().fold(f32::MIN, f32::max);
                    let low = exact.iter().copied().fold(f32::MAX, f32::min);
                    let largest = high.abs().max(low.abs());
                    let (step, clamped) = match quant {
                        Quant::Q8_0 | Quant::Int8 => (largest / 127.0, 0.0),
                        Quant::Q4_1 => ((high - low) / 15.0, 0.0),
                        // The range is −8..=7 steps: what lies at the other end may be a whole step away.
                        Quant::Q4_0 | Quant::Int4 => (largest / 8.0, largest / 16.0),
                    };
                    // Rounding the scale and the minimum to f16 moves elements by a few thousandths of their size;
                    // scales below f16's normal range become multiples of 2^-24, which codes multiply.
                    let subnormal = 128.0 * 2_f32.powi(-25);
                    let bound = step * 0.5 + clamped + largest * 2e-3 + subnormal;
                    for (exact, got) in exact.iter().zip(got) {
                        assert!((exact - got).abs() <= bound, "{quant:?} row {row}: {exact} became {got}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_quantized_is_named() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut values = vec![1.0; 40];
        values[33] = value;
        let matrix = Arc::new(Matrix::from_f32("layers.3.q", 1, 40, &values).unwrap());
        let message = quantize(&matrix, Quant::Q4_0.layers()).unwrap_err().to_string();
        assert!(message.contains("layers.3.q") && message.contains("finite"), "{message}");
    }
}

/// Everything of a matrix that is stored.
fn stored(matrix: &Matrix) -> Vec<&[u8]> {
    let scales = |part: &'_ Part| part.scales.iter().flatten().map(|s| s.as_ref().len()).sum::<usize>();
    assert!(matrix.parts.iter().all(|part| scales(part) > 0), "{} is not quantized", matrix.name);
    let mut arrays = Vec::new();
    for Part { data, scales, .. } in &matrix.parts {
        arrays.push(data.as_ref());
        arrays.extend(scales.iter().flatten().map(AsRef::as_ref));
    }
    arrays
}

#[test]
fn a_quantized_file_holds_what_quantizing_in_memory_makes() {
    for model_type in ["gpt2", "opt", "llama", "phi3", "qwen3", "llava"] {
        let config = small(model_type);
        let dir = write(&config, &shapes_of(&config));
        for quant in [Quant::Q4_0, Quant::Q4_1, Quant::Int8] {
            let out = tempfile::tempdir().unwrap();
            Model::quantize_to(dir.path(), quant, out.path()).unwrap();
            let (made, read) = (
                Model::load(dir.path()).unwrap().quantized(quant).unwrap(),
                Model::load(out.path()).unwrap(),
            );
            assert_eq!(made.spec, read.spec);
            for (made, read) in made.weights.layers.iter().zip(&read.weights.layers) {
                for (made, read) in [(&made.q, &read.q), (&made.v, &read.v), (&made.down, &read.down)] {
                    assert_eq!(read_all(&made.weight), read_all(&read.weight), "{model_type} {quant:?}");
                    assert_eq!(made.bias, read.bias);
                }
            }
            assert_eq!(stored(&made.weights.embed), stored(&read.weights.embed), "{model_type} {quant:?}");
            assert_eq!(stored(&made.weights.head.weight), stored(&read.weights.head.weight));
            let tied = |model: &Model| Arc::ptr_eq(&model.weights.embed, &model.weights.head.weight);
            assert_eq!(tied(&made), tied(&read), "{model_type}");
            let codes = read.weights.embed.parts[0].data.as_ref();
            assert_eq!(codes.as_ptr().align_offset(64), 0, "codes are read as they lie");
            let again = Model::quantize_to(dir.path(), quant, out.path()).unwrap_err().to_string();
            assert!(again.contains("already"), "{again}");
        }
    }
}

#[test]
fn damaged_quantized_files_are_refused() {
    let config = small("llama");
    let (dir, out) = (write(&config, &shapes_of(&config)), tempfile::tempdir().unwrap());
    Model::quantize_to(dir.path(), Quant::Q4_1, out.path()).unwrap();
    let path = out.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let message = Model::load(out.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    refused("\"q4_1\"", "\"q5_1\"", "q4_1");
    refused("\"version\": 1", "\"version\": 2", "version");
    // As if it were of another format: the codes or scales of some matrix do not fit.
    refused("\"q4_1\"", "\"q8_0\"", "codes");
    refused("\"q4_1\"", "\"int4\"", "minima");
    refused("\"q4_1\"", "\"q4_0\"", "minima");
    refused("\"vocab_size\": 29", "\"vocab_size\": 49", "codes");
    std::fs::write(&path, &text).unwrap();
    Model::load(out.path()).unwrap();
    let message = Model::quantize_to(out.path(), Quant::Q8_0, dir.path()).unwrap_err().to_string();
    assert!(message.contains("already"), "{message}");
}

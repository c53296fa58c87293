//! Random weights of known shapes.

use super::*;

/// A fingerprint of all matrices of a layer.
fn layer_bytes(model: &Model) -> Vec<u8> {
    let layer = &model.weights.layers[1];
    [&layer.q, &layer.o, &layer.down].iter().flat_map(|l| l.weight.parts[0].data.as_ref().to_vec()).collect()
}

/// Counts parameters; its matrices are ranges of an empty (sparse) file.
struct Counter {
    zeros: Bytes,
    parameters: usize,
}

impl Source for Counter {
    fn has(&self, _name: &str) -> bool {
        false
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, _order: Order) -> Result<Matrix> {
        self.parameters += rows * cols;
        let data = self.zeros.slice(0, rows * cols * 2).unwrap();
        Ok(Matrix::new(name, rows, cols, Dtype::Bf16, data).unwrap())
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        self.parameters += len;
        Ok(Vector { name: name.into(), values: vec![0.0; len] })
    }
}

#[test]
fn shapes_have_the_size_of_their_models() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 << 30).unwrap();
    // SAFETY: nobody else has the file.
    let zeros = Bytes::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
    let millions = |name: &str| {
        let (spec, layout) = read(&serde_json::from_str(shapes::config(name).unwrap()).unwrap()).unwrap();
        let mut counter = Counter { zeros: zeros.clone(), parameters: 0 };
        assemble(&spec, &layout, &mut counter).unwrap();
        counter.parameters as f64 / 1e6
    };
    for (name, expected) in [
        ("gpt2", 124.4),
        ("distilgpt2", 81.9),
        ("opt-125m", 125.2),
        ("opt-350m", 331.2),
        ("qwen2.5-0.5b", 494.0),
        ("qwen2.5-1.5b", 1543.7),
        ("llama-3.2-1b", 1235.8),
        ("tinyllama-1.1b", 1100.0),
        ("phi-3-mini", 3821.1),
        ("mistral-7b", 7241.7),
        ("llama-3-8b", 8030.3),
    ] {
        assert!((millions(name) - expected).abs() < 0.1, "{name}: {}", millions(name));
    }
    assert_eq!(super::super::shapes().count(), 12);
}

#[test]
fn the_same_seed_gives_the_same_weights() {
    let tiny = |seed| layer_bytes(&Model::random("tiny", Dtype::Bf16, seed).unwrap());
    assert_eq!(tiny(3), tiny(3));
    assert_ne!(tiny(3), tiny(4));
}

#[test]
fn elements_are_of_the_right_size() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let model = Model::random("tiny", dtype, 1).unwrap();
        let down = &model.weights.layers[0].down.weight; // an odd number of columns
        let bytes = down.parts[0].data.as_ref();
        let half = |bits: &[u8]| u16::from_le_bytes([bits[0], bits[1]]);
        let elements: Vec<f32> = match dtype {
            Dtype::F32 => bytemuck::cast_slice(bytes).to_vec(),
            Dtype::F16 => bytes.chunks(2).map(|x| half::f16::from_bits(half(x)).to_f32()).collect(),
            Dtype::Bf16 => bytes.chunks(2).map(|x| half::bf16::from_bits(half(x)).to_f32()).collect(),
        };
        let square: f32 = elements.iter().map(|x| x * x).sum::<f32>() / elements.len() as f32;
        let mean: f32 = elements.iter().sum::<f32>() / elements.len() as f32;
        assert!((0.4..2.5).contains(&(square * down.cols as f32)), "{dtype:?}: {square}");
        assert!(mean.abs() < 0.02, "{dtype:?}: {mean}");
    }
}

#[test]
fn quantized_matrices_overlap_and_none_begins_where_another_does() {
    for quant in Quant::ALL {
        for shape in ["tiny", "gpt2"] {
            let dense = Model::random(shape, Dtype::Bf16, 1).unwrap();
            let model = Model::random_quantized(shape, quant, 1).unwrap();
            assert_eq!((&model.spec, model.weights.layers.len()), (&dense.spec, dense.weights.layers.len()));
            let matrices: Vec<&Matrix> =
                model.weights.layers.iter().map(|layer| &*layer.down.weight).collect();
            let places: Vec<_> =
                matrices.iter().map(|m| m.parts[0].data.as_ref().as_ptr() as usize).collect();
            assert!(matrices.iter().all(|m| m.format == Format::Panels(quant.layers())), "{quant:?}");
            for pair in places.windows(2) {
                let apart = pair[0].abs_diff(pair[1]);
                assert!(apart > 0 && apart < matrices[0].parts[0].data.as_ref().len().max(4096), "{apart}");
            }
            let row = matrices[0].row(1).unwrap();
            let square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
            assert!((0.2..5.0).contains(&(square * row.len() as f32)), "{quant:?} {shape}: {square}");
            let again = Model::random_quantized(shape, quant, 1).unwrap();
            assert_eq!(
                again.weights.layers[1].up.weight.row(0).unwrap(),
                model.weights.layers[1].up.weight.row(0).unwrap()
            );
        }
    }
}

#[test]
fn a_model_of_one_layer_has_the_first_of_the_whole() {
    let [whole, first] =
        [Model::random, Model::random_layer].map(|make| make("tiny", Dtype::Bf16, 3).unwrap());
    assert!(whole.spec.layers > 1);
    assert_eq!((first.spec.layers, first.weights.layers.len()), (1, 1));
    assert_eq!((first.spec.attention_scale.len(), first.spec.window.len()), (1, 1));
    let down = |model: &Model| model.weights.layers[0].down.weight.row(5).unwrap();
    assert_eq!(down(&first), down(&whole));
}

#[test]
fn an_unknown_shape_names_the_known_ones() {
    let message = Model::random("gpt5", Dtype::F32, 0).unwrap_err().to_string();
    assert!(message.contains("gpt5") && message.contains("qwen2.5-0.5b"), "{message}");
}

//! Directories → weights: names, layouts, sharing of bytes, tying, shards.

use super::*;

const TYPES: [&str; 8] = ["gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "phi3", "llava"];

fn load(config: &Value, shapes: &Shapes) -> Result<Model> {
    let dir = write(config, shapes);
    Model::load(dir.path())
}

/// The tensors with another prefix.
fn renamed(shapes: &Shapes, from: &str, to: &str) -> Shapes {
    let rename = |name: &String| name.strip_prefix(from).map_or(name.clone(), |rest| format!("{to}{rest}"));
    shapes.iter().map(|(name, shape)| (rename(name), shape.clone())).collect()
}

#[test]
fn every_type_loads() {
    for model_type in TYPES {
        let config = small(model_type);
        let model = load(&config, &shapes_of(&config)).unwrap();
        assert_eq!(model.weights.layers.len(), 2, "{model_type}");
        assert_eq!(model.weights.embed.rows, 29, "{model_type}");
    }
}

#[test]
fn names_are_those_of_the_checkpoints() {
    let asked = |config: &Value| shapes_of(config).into_keys().collect::<Vec<_>>().join(" ");
    let llama = asked(&small("llama"));
    for name in [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ] {
        assert!(llama.split(' ').any(|n| n == name), "{name}");
    }
    assert!(!llama.contains("bias"));
    assert!(
        asked(&small("qwen2")).contains("k_proj.bias") && !asked(&small("qwen2")).contains("o_proj.bias")
    );
    assert!(asked(&small("qwen3")).contains("model.layers.0.self_attn.q_norm.weight"));
    assert!(asked(&small("phi3")).contains("model.layers.0.mlp.gate_up_proj.weight"));
    let biased = asked(&with(&small("llama"), json!({"attention_bias": true, "mlp_bias": true})));
    assert!(biased.contains("o_proj.bias") && biased.contains("down_proj.bias"));
    let opt =
        asked(&with(&small("opt"), json!({"enable_bias": false, "layer_norm_elementwise_affine": false})));
    assert!(!opt.contains("bias") && !opt.contains("norm"));
}

#[test]
fn post_norm_opt_projects_and_has_no_last_norm() {
    let config = with(&small("opt"), json!({"do_layer_norm_before": false, "word_embed_proj_dim": 6}));
    let Model { spec, weights, .. } = load(&config, &shapes_of(&config)).unwrap();
    assert!(spec.post_norm && weights.final_norm.is_none());
    let project_in = weights.project_in.unwrap().weight;
    let project_out = weights.project_out.unwrap().weight;
    assert_eq!((project_in.rows, project_in.cols, project_out.rows, project_out.cols), (10, 6, 6, 10));
    assert_eq!((weights.embed.cols, weights.head.weight.cols, weights.positions.unwrap().rows), (6, 6, 18));
}

#[test]
fn all_key_forms_load() {
    for (model_type, usual, others) in [
        ("gpt2", "transformer.", &[""][..]),
        ("opt", "model.decoder.", &["decoder."][..]),
        ("llama", "model.", &[""][..]),
    ] {
        let config = small(model_type);
        let shapes = shapes_of(&config);
        for other in others {
            load(&config, &renamed(&shapes, usual, other)).unwrap();
        }
    }
    let config = small("llava");
    let shapes = renamed(&shapes_of(&config), "language_model.model.", "model.language_model.");
    load(&config, &shapes).unwrap();
    load(&config, &renamed(&shapes, "language_model.lm_head", "lm_head")).unwrap();
}

#[test]
fn conv1d_is_transposed_and_split() {
    let config = small("gpt2");
    let model = load(&config, &shapes_of(&config)).unwrap();
    let layer = &model.weights.layers[1];
    let stored = values("transformer.h.1.attn.c_attn.weight", &[10, 30]);
    let bias = values("transformer.h.1.attn.c_attn.bias", &[30]);
    for (part, linear) in [&layer.q, &layer.k, &layer.v].into_iter().enumerate() {
        let expected: Vec<f32> = (0..10)
            .flat_map(|row| (0..10).map(move |col| (row, col)))
            .map(|(row, col)| stored[col * 30 + part * 10 + row])
            .collect();
        assert_eq!(elements(&linear.weight), expected);
        assert_eq!(linear.bias.as_ref().unwrap().values, bias[part * 10..][..10]);
    }
    assert_eq!((layer.down.weight.rows, layer.down.weight.cols), (10, 13));
}

#[test]
fn fused_projections_share_their_bytes() {
    let config = small("phi3");
    let model = load(&config, &shapes_of(&config)).unwrap();
    let layer = &model.weights.layers[0];
    let bytes = |linear: &Linear| linear.weight.parts[0].data.as_ref().as_ptr_range();
    assert_eq!(bytes(&layer.q).end, bytes(&layer.k).start);
    assert_eq!(bytes(&layer.k).end, bytes(&layer.v).start);
    assert_eq!(bytes(layer.gate.as_ref().unwrap()).end, bytes(&layer.up).start);
    let stored = values("model.layers.0.self_attn.qkv_proj.weight", &[40, 24]);
    assert_eq!(elements(&layer.k.weight), stored[24 * 24..][..8 * 24]);
}

#[test]
fn a_tied_head_is_the_embedding_unless_another_is_stored() {
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let config = with(&small("llama"), json!({"tie_word_embeddings": true}));
    let same = |model: &Model| std::sync::Arc::ptr_eq(&model.weights.embed, &model.weights.head.weight);
    let mut shapes = shapes_of(&config);
    assert!(!shapes.contains_key(head));
    assert!(same(&load(&config, &shapes).unwrap()));

    shapes.insert(head.into(), vec![29, 24]); // with other values: both count
    assert!(!same(&load(&config, &shapes).unwrap()));
    shapes.remove(embed);
    let model = load(&config, &shapes).unwrap();
    assert!(same(&model));
    assert_eq!(model.weights.embed.name, head);

    shapes.remove(head);
    let message = load(&config, &shapes).unwrap_err().to_string();
    assert!(message.contains(embed) && message.contains("[29, 24]"), "{message}");
}

#[test]
fn an_equal_copy_of_the_head_is_not_kept() {
    let config = small("gpt2");
    let mut shapes = shapes_of(&config);
    shapes.insert("lm_head.weight".into(), vec![29, 10]);
    let dir = write(&config, &shapes);
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let range = |name: &str| {
        let text = String::from_utf8_lossy(&bytes[8..]);
        let entry = &text[text.find(&format!("\"{name}\"")).unwrap()..];
        let offsets = &entry[entry.find("data_offsets\":[").unwrap() + 15..];
        offsets[..offsets.find(',').unwrap()].parse::<usize>().unwrap()
    };
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (from, to) = (start + range("transformer.wte.weight"), start + range("lm_head.weight"));
    let mut equal = bytes.clone();
    equal.copy_within(from..from + 29 * 10 * 4, to);
    std::fs::write(&path, equal).unwrap();
    let weights = Model::load(dir.path()).unwrap().weights;
    assert!(std::sync::Arc::ptr_eq(&weights.embed, &weights.head.weight));
}

#[test]
fn shards_load_like_one_file() {
    let config = small("llama");
    let shapes = shapes_of(&config);
    let (dir, whole) = (write(&config, &shapes), load(&config, &shapes).unwrap());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (number, third) in shapes.iter().collect::<Vec<_>>().chunks(7).enumerate() {
        let file = format!("model-{number}.safetensors");
        let shard: Shapes = third.iter().map(|(name, shape)| ((*name).clone(), (*shape).clone())).collect();
        write_tensors(&dir.path().join(&file), &shard);
        map.extend(shard.into_keys().map(|name| (name, json!(file))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let sharded = Model::load(dir.path()).unwrap();
    for (a, b) in sharded.weights.layers.iter().zip(&whole.weights.layers) {
        assert_eq!(elements(&a.q.weight), elements(&b.q.weight));
        assert_eq!(a.mlp_norm.weight, b.mlp_norm.weight);
    }
}

#[test]
fn misaligned_tensors_are_copied() {
    let config = small("llama");
    let dir = write(&config, &shapes_of(&config));
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let mut shifted = (length + 1).to_le_bytes().to_vec(); // one more space in the header
    shifted.extend(&bytes[8..8 + length as usize]);
    shifted.push(b' ');
    shifted.extend(&bytes[8 + length as usize..]);
    std::fs::write(&path, shifted).unwrap();
    let model = Model::load(dir.path()).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    assert_eq!(elements(&model.weights.layers[1].up.weight), values(name, &[13, 24]));
}

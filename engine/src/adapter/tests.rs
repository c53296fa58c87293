use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::*;
use crate::model::{Activation, Family, NormKind, Positions};

const LAYERS: usize = 12;

/// Width 12 = 4 heads of 3, 2 of them for keys and values where a family allows it; 7 hidden, 11 tokens.
fn spec(family: Family) -> Spec {
    let kv_heads = if matches!(family, Family::Gpt2 | Family::Opt) { 4 } else { 2 };
    Spec {
        family,
        vocab: 11,
        width: 12,
        embed_width: 12,
        layers: LAYERS,
        heads: 4,
        kv_heads,
        head_dim: 3,
        ffn: 7,
        context: 64,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        post_norm: false,
        activation: Activation::Silu,
        positions: Positions::Learned { offset: 0 },
        attention_scale: vec![1.0; LAYERS],
        window: vec![None; LAYERS],
        eos: vec![],
        bos: None,
    }
}

/// Values that F16 and BF16 hold exactly.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 13) as f32 * 0.25 - 1.5).collect()
}

fn save(path: &Path, tensors: &[(String, [usize; 2])]) {
    let data: Vec<Vec<f32>> = tensors.iter().map(|(_, [rows, cols])| values(rows * cols)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (name, TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(data)).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A directory with a config of these fields, and factors of these modules (name, rank, rows, columns).
fn adapter(config: Value, modules: &[(&str, usize, usize, usize)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut fields = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    fields.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::write(dir.path().join("adapter_config.json"), fields.to_string()).unwrap();
    let tensors: Vec<_> = modules
        .iter()
        .flat_map(|&(module, rank, rows, cols)| {
            let key = |half| format!("base_model.model.{module}.lora_{half}.weight");
            [(key("A"), [rank, cols]), (key("B"), [rows, rank])]
        })
        .collect();
    save(&dir.path().join("adapter_model.safetensors"), &tensors);
    dir
}

fn load(config: Value, family: Family, modules: &[(&str, usize, usize, usize)]) -> Adapter {
    Adapter::load(adapter(config, modules).path(), &spec(family)).unwrap()
}

fn places(adapter: &Adapter) -> Vec<(u32, Target)> {
    adapter.factors.pairs().keys().map(|place| (place.layer, place.target)).collect()
}

fn targets(adapter: &Adapter) -> Vec<Target> {
    adapter.factors.pairs().keys().map(|place| place.target).collect()
}

/// B of the only place, divided by what the file has.
fn scale(adapter: &Adapter) -> f32 {
    let pair = adapter.factors.pairs().values().next().unwrap();
    let scale = pair.b[0] / values(1)[0];
    let expected: Vec<f32> = values(pair.rows * pair.rank).iter().map(|v| v * scale).collect();
    assert_eq!(pair.b, expected);
    assert_eq!(pair.a, values(pair.rank * pair.cols));
    scale
}

#[test]
fn scale_is_alpha_over_rank_or_its_root() {
    let q = |rank| [("model.layers.10.self_attn.q_proj", rank, 12, 12)];
    let of = |config, rank| scale(&load(config, Family::Llama, &q(rank)));
    assert_eq!(of(json!({}), 2), 2.0);
    assert_eq!(of(json!({"r": 4, "use_rslora": true}), 4), 2.0);
    assert_eq!(of(json!({"r": 4, "lora_alpha": 0.5}), 4), 0.125);
    assert_eq!(of(json!({"rank_pattern": {"^layers.10.self_attn.q_proj": 4, "_proj": 8}}), 2), 2.0);
    assert_eq!(of(json!({"alpha_pattern": {r"^model.layers.1\d.*q_proj": 3, "q_proj": 5}}), 2), 1.5);
}

#[test]
fn the_first_pattern_in_the_file_counts() {
    for (patterns, expected) in [
        (r#"{"v_proj": 3, "q_proj": 5, "layers.10.self_attn.q_proj": 7}"#, 2.5),
        (r#"{"(q|v)_proj": 7, "q_proj": 5}"#, 3.5),
        (r#"{"q_proj": 5, "(q|v)_proj": 7}"#, 2.5),
    ] {
        let dir = adapter(json!({}), &[("model.layers.10.self_attn.q_proj", 2, 12, 12)]);
        let config =
            format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {patterns}}}"#);
        fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        assert_eq!(scale(&Adapter::load(dir.path(), &spec(Family::Llama)).unwrap()), expected, "{patterns}");
    }
}

#[test]
fn fused_modules_share_a_and_split_b() {
    let fused = |family, module, rows| {
        load(json!({"target_modules": "all-linear"}), family, &[(module, 2, rows, 12)])
    };
    let cases = [
        (fused(Family::Gpt2, "transformer.h.3.attn.c_attn", 36), vec![12, 12, 12]),
        (fused(Family::Phi3, "model.layers.3.self_attn.qkv_proj", 24), vec![12, 6, 6]),
        (fused(Family::Phi3, "model.layers.3.mlp.gate_up_proj", 14), vec![7, 7]),
    ];
    for (adapter, rows) in cases {
        let expected = if rows.len() == 3 {
            vec![Target::Q, Target::K, Target::V]
        } else {
            vec![Target::Gate, Target::Up]
        };
        assert_eq!(targets(&adapter), expected);
        let pairs: Vec<_> = adapter.factors.pairs().values().collect();
        assert_eq!(pairs.iter().map(|pair| pair.rows).collect::<Vec<_>>(), rows);
        assert!(pairs.iter().all(|pair| pair.a == values(24)));
        let b: Vec<f32> = pairs.iter().flat_map(|pair| pair.b.clone()).collect();
        assert_eq!(b, values(b.len()).iter().map(|v| v * 2.0).collect::<Vec<_>>());
    }
}

#[test]
fn every_familys_names_are_known() {
    let all = || json!({"target_modules": ".*"});
    let gpt2 = [("h.0.attn.c_proj", 2, 12, 12), ("h.0.mlp.c_fc", 2, 7, 12), ("h.0.mlp.c_proj", 2, 12, 7)];
    assert_eq!(targets(&load(all(), Family::Gpt2, &gpt2)), [Target::O, Target::Up, Target::Down]);
    let opt = [
        ("model.decoder.layers.0.self_attn.out_proj", 2, 12, 12),
        ("model.decoder.layers.0.fc1", 2, 7, 12),
        ("decoder.layers.0.fc2", 2, 12, 7),
        ("lm_head", 2, 11, 12),
    ];
    assert_eq!(targets(&load(all(), Family::Opt, &opt)), [Target::O, Target::Up, Target::Down, Target::Head]);
    let projecting = Spec { embed_width: 5, ..spec(Family::Opt) };
    let outside = [("model.decoder.project_in", 2, 12, 5), ("model.decoder.project_out", 2, 5, 12)];
    let loaded = Adapter::load(adapter(all(), &outside).path(), &projecting).unwrap();
    assert_eq!(targets(&loaded), [Target::ProjectIn, Target::ProjectOut]);
    let llama = ["model.layers.0.", "language_model.model.layers.1.", "model.language_model.layers.2."];
    for (layer, stem) in llama.iter().enumerate() {
        let modules = [
            (&format!("{stem}self_attn.k_proj")[..], 2, 6, 12),
            (&format!("{stem}self_attn.o_proj"), 2, 12, 12),
            (&format!("{stem}mlp.gate_proj"), 2, 7, 12),
            (&format!("{stem}mlp.down_proj"), 2, 12, 7),
        ];
        let expected =
            [Target::K, Target::O, Target::Gate, Target::Down].map(|target| (layer as u32, target));
        assert_eq!(places(&load(all(), Family::Qwen3, &modules)), expected);
    }
}

#[test]
fn factors_that_are_not_for_the_text_or_not_targeted_are_ignored() {
    let modules = [
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", 2, 99, 99),
        ("model.multi_modal_projector.linear_1", 2, 99, 99),
        ("model.language_model.layers.0.self_attn.q_proj", 2, 12, 12),
        ("model.language_model.layers.0.self_attn.k_proj", 2, 99, 99),
        ("model.layers.0.mlp.experts.3.w1", 2, 99, 99),
    ];
    let adapter = load(json!({"target_modules": ["q_proj", "linear_1"]}), Family::Llama, &modules);
    assert_eq!(places(&adapter), [(0, Target::Q)]);
    assert_eq!(adapter.rank(), 2);
}

#[test]
fn targets_as_peft_matches_them() {
    let names: HashMap<&str, Target> =
        [("self_attn.q_proj", Target::Q), ("self_attn.v_proj", Target::V), ("mlp.up_proj", Target::Up)]
            .into();
    let mut modules = vec![("lm_head".to_string(), 2, 11, 12)];
    for layer in [0, 1, 11] {
        for (name, target) in &names {
            let [rows, cols] = modules::shape(*target, &spec(Family::Llama));
            modules.push((format!("model.layers.{layer}.{name}"), 2, rows, cols));
        }
    }
    let modules: Vec<_> =
        modules.iter().map(|(name, r, rows, cols)| (name.as_str(), *r, *rows, *cols)).collect();
    let of = |config: Value| {
        let places = places(&load(config, Family::Llama, &modules));
        places.iter().map(|(layer, target)| format!("{layer}{target:?}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of(json!({})), "0Q 0V 1Q 1V 11Q 11V");
    assert_eq!(of(json!({"target_modules": ["up_proj", "lm_head"]})), "0Up 1Up 11Up 127Head");
    assert_eq!(of(json!({"target_modules": ["proj", "1.self_attn.q_proj"]})), "1Q");
    assert_eq!(of(json!({"target_modules": "All-Linear"})), "0Q 0V 0Up 1Q 1V 1Up 11Q 11V 11Up");
    assert_eq!(of(json!({"target_modules": r"^(?!.*layers\.1\.).*(?:q_proj|v_proj)$"})), "0Q 0V 11Q 11V");
    assert_eq!(of(json!({"target_modules": r".*\.1.*q_proj\Z"})), "1Q 11Q");
    // What Rust takes for operations on classes of characters are characters.
    let in_layers = |class: &str| of(json!({"target_modules": format!(r".*\.{class}\..*q_proj")}));
    assert_eq!(in_layers("[0-9&&[^1]"), "0Q 1Q");
    assert_eq!(in_layers("[0-9--1]"), "0Q 1Q");
    assert_eq!(in_layers("[0-1~~1]"), "0Q 1Q");
    assert_eq!(in_layers("[^]1[]"), "0Q");
    // Of a tied pair PEFT adapts both.
    let tied = json!({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": true});
    assert_eq!(of(tied), "0Q 1Q 11Q 127Head");
    let q = json!(["q_proj"]);
    assert_eq!(of(json!({"target_modules": q, "exclude_modules": ["1.self_attn.q_proj"]})), "0Q 11Q");
    assert_eq!(of(json!({"target_modules": q, "exclude_modules": r".*layers\.1\..*"})), "0Q 11Q");
    assert_eq!(of(json!({"target_modules": q, "exclude_modules": "q_proj"})), "0Q 1Q 11Q");
    assert_eq!(of(json!({"target_modules": q, "layers_to_transform": 11})), "11Q");
    assert_eq!(of(json!({"target_modules": q, "layers_to_transform": []})), "0Q 1Q 11Q");
    let within = |layers: Value| {
        of(json!({"target_modules": q, "layers_to_transform": [0, 11, 40], "layers_pattern": layers}))
    };
    assert_eq!(within(json!("layers")), "0Q 11Q");
    assert_eq!(within(json!(["h", "layers"])), "0Q 11Q");
    assert_eq!(within(json!([])), "0Q 11Q");
    // A full name is a target in whatever layer.
    let full = json!(["v_proj", "model.layers.1.self_attn.v_proj"]);
    assert_eq!(of(json!({"target_modules": full, "layers_to_transform": [0]})), "0V 1V");
}

#[test]
fn keys_may_lack_the_prefix_or_carry_the_adapters_name() {
    let dir = adapter(json!({}), &[]);
    let key = |name: &str| name.to_string();
    let tensors = [
        (key("model.layers.0.self_attn.q_proj.lora_A.weight"), [2, 12]),
        (key("model.layers.0.self_attn.q_proj.lora_B.weight"), [12, 2]),
        (key("base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight"), [2, 12]),
        (key("base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"), [12, 2]),
        (key("base_model.model.lm_head.base_layer.weight"), [11, 12]),
    ];
    save(&dir.path().join("adapter_model.safetensors"), &tensors);
    let loaded = Adapter::load(dir.path(), &spec(Family::Llama)).unwrap();
    assert_eq!(places(&loaded), [(0, Target::Q), (1, Target::Q)]);
}

#[test]
fn an_invocation_activates_from_its_last_occurrence_on() {
    let rule = ActivationRule::AfterInvocation(vec![5, 6]);
    assert_eq!(rule.first_active(&[5, 6, 1, 5, 6, 2]), Some(3));
    assert_eq!(rule.first_active(&[5, 5, 6]), Some(1));
    assert_eq!(rule.first_active(&[5]), None);
    assert_eq!(rule.first_active(&[6, 5]), None);
    assert_eq!(ActivationRule::Always.first_active(&[]), Some(0));
    let q = [("model.layers.0.self_attn.q_proj", 2, 12, 12)];
    assert_eq!(load(json!({"alora_invocation_tokens": [5, 6]}), Family::Llama, &q).rule, rule);
    assert_eq!(load(json!({"alora_invocation_tokens": []}), Family::Llama, &q).rule, ActivationRule::Always);
}

/// B·A of a place.
fn product(adapter: &Adapter, place: Place) -> Vec<f32> {
    let pair = &adapter.factors.pairs()[&place];
    let at = |row: usize, col: usize| {
        (0..pair.rank).map(|i| pair.b[row * pair.rank + i] * pair.a[i * pair.cols + col]).sum::<f32>()
    };
    (0..pair.rows).flat_map(|row| (0..pair.cols).map(move |col| (row, col))).map(|(r, c)| at(r, c)).collect()
}

#[test]
fn a_joined_adapter_is_the_weighted_sum() {
    let all = json!({"target_modules": "all-linear"});
    let one = load(
        all.clone(),
        Family::Llama,
        &[("model.layers.0.self_attn.q_proj", 2, 12, 12), ("model.layers.1.self_attn.q_proj", 2, 12, 12)],
    );
    let other = load(
        json!({"target_modules": "all-linear", "r": 3}),
        Family::Llama,
        &[("model.layers.1.self_attn.q_proj", 3, 12, 12), ("model.layers.1.mlp.up_proj", 3, 7, 12)],
    );
    let joined = join(&[(&one, 1.0), (&other, -0.5)]).unwrap();
    assert_eq!(places(&joined), [(0, Target::Q), (1, Target::Q), (1, Target::Up)]);
    assert_eq!(joined.name, format!("{}+{}", one.name, other.name));
    assert_eq!(joined.rank(), 5);
    let place = Place { layer: 1, target: Target::Q };
    let sums = product(&one, place).into_iter().zip(product(&other, place)).map(|(x, y)| x - 0.5 * y);
    for (got, expected) in product(&joined, place).into_iter().zip(sums) {
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    }
    assert_eq!(join(&[(&one, 1.0)]).unwrap(), one);
    let up = Place { layer: 1, target: Target::Up };
    let half: Vec<f32> = other.factors.pairs()[&up].b.iter().map(|b| b * 0.5).collect();
    assert_eq!(join(&[(&other, 0.5)]).unwrap().factors.pairs()[&up].b, half);
}

#[test]
fn what_cannot_be_joined_is_refused() {
    let one = load(json!({}), Family::Llama, &[("model.layers.0.self_attn.q_proj", 2, 12, 12)]);
    let late = Adapter { rule: ActivationRule::AfterInvocation(vec![1]), ..one.clone() };
    let of_another = load(json!({}), Family::Gpt2, &[("h.0.attn.c_attn", 2, 36, 12)]);
    let refused = |adapters: &[(&Adapter, f32)]| join(adapters).unwrap_err().to_string();
    assert!(refused(&[]).contains("at least one"));
    assert!(refused(&[(&one, 1.0), (&late, 1.0)]).contains("equal activation rules"));
    assert!(refused(&[(&one, f32::NAN)]).contains("finite"));
    let mut narrow = of_another.clone();
    Arc::make_mut(&mut narrow.factors).pairs_mut().values_mut().for_each(|pair| pair.rows = 6);
    assert!(refused(&[(&one, 1.0), (&narrow, 1.0)]).contains("expected [12, 12]"));
    let many = vec![(&one, 1.0); MAX_RANK / 2 + 1];
    assert!(refused(&many).contains("at most 4096"));
}

#[test]
fn the_content_id_sees_content_and_not_the_name() {
    let q = [("model.layers.0.self_attn.q_proj", 2, 12, 12)];
    let one = load(json!({}), Family::Llama, &q);
    let again = load(json!({}), Family::Llama, &q);
    assert_ne!(one.name, again.name);
    assert_eq!(one.content_id(), again.content_id());
    assert_ne!(one.content_id(), load(json!({"lora_alpha": 5}), Family::Llama, &q).content_id());
    assert_ne!(
        one.content_id(),
        load(json!({"alora_invocation_tokens": [1]}), Family::Llama, &q).content_id()
    );
    let v = [("model.layers.0.self_attn.v_proj", 2, 6, 12)];
    assert_ne!(one.content_id(), load(json!({}), Family::Llama, &v).content_id());
}

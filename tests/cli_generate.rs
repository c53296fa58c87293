//! Generating and its neighbours on the command line.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use command::{backends, fixture, json, keys, stdout};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn generate_prints_one_json_object() {
    let llama = fixture("llama");
    let args = ["generate", "--model", &llama, "--ids", "5,6,7", "--max-new-tokens", "6", "--ignore-eos"];
    let answer = json(&[&args[..], &["--json", "--backend", "cpu", "--threads", "1"]].concat());
    assert_eq!(keys(&answer), ["finish", "paths", "report", "text", "token_ids"]);
    assert_eq!(answer["token_ids"].as_array().map(Vec::len), Some(6));
    assert_eq!((&answer["text"], &answer["finish"]), (&Value::Null, &Value::from("length")));
    let paths = answer["paths"].as_array().expect("paths");
    assert_eq!((paths.len(), keys(&paths[0])), (1, vec!["finish", "text", "token_ids"]));
    assert_eq!(paths[0]["token_ids"], answer["token_ids"]);
    let report = &answer["report"];
    assert_eq!((&report["backend"], &report["tier"]), (&Value::from("cpu"), &Value::from("C")));
    assert!(report["joules"].as_f64() > Some(0.0));
    assert_eq!((&report["prompt_tokens"], &report["new_tokens"]), (&Value::from(3), &Value::from(6)));
    for positive in ["prompt_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds"] {
        assert!(report[positive].as_f64() > Some(0.0), "{positive}");
    }
    let kernels = report["kernels"].as_array().expect("kernels");
    assert_eq!((kernels.len(), keys(&kernels[0])), (5, vec!["kernel", "launches", "seconds", "share"]));
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let llama = fixture("llama");
    let file = std::fs::read(format!("{llama}/expected.safetensors")).expect("the fixture");
    let expected = SafeTensors::deserialize(&file).expect("safetensors");
    let ids = |name: &str| -> Vec<i64> {
        let view = expected.tensor(name).expect("in the fixture");
        view.data().chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().expect("8 bytes"))).collect()
    };
    let prompt = ids("prompt_ids").iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    for backend in backends() {
        let args = ["generate", "--model", &llama, "--ids", &prompt, "--max-new-tokens", "12", "--json"];
        let args = [&args[..], &["--backend", backend]].concat();
        let long = json(&[&args[..], &["--ignore-eos"]].concat());
        assert_eq!(long["token_ids"], serde_json::json!(ids("greedy_ids")), "{backend}");
        assert_eq!(long["report"]["backend"], backend);
        let ended = json(&args);
        assert_eq!(ended["token_ids"], serde_json::json!(ids("eos_greedy_ids")), "{backend}");
        assert_eq!(ended["finish"], "eos", "{backend}");
    }
}

#[test]
fn a_seed_repeats_and_paths_differ() {
    let llama = fixture("llama");
    let run = |seed: &str| {
        let args = ["generate", "--model", &llama, "--ids", "5,6,7", "--max-new-tokens", "8", "--ignore-eos"];
        let sampling = ["--temperature", "1.5", "--seed", seed, "--paths", "3", "--json", "--backend", "cpu"];
        json(&[&args[..], &sampling].concat())["paths"].clone()
    };
    let first = run("7");
    assert_eq!(first, run("7"));
    assert_ne!(first, run("8"));
    assert_eq!(first.as_array().map(Vec::len), Some(3));
    assert!(first[0] != first[1] && first[1] != first[2]);
}

#[test]
fn adapters_scales_and_layers() {
    let llama = fixture("llama");
    let adapter = format!("{llama}/adapters/all-linear");
    let folder = tempfile::tempdir().expect("a folder");
    let odd = folder.path().join("name:2");
    std::fs::create_dir(&odd).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(format!("{adapter}/{file}"), odd.join(file)).expect("a copy");
    }
    let logits = |more: &[&str]| {
        let file = folder.path().join("logits.safetensors");
        let (file, ids) = (file.to_str().expect("UTF-8"), "5,6,7,8");
        let args = ["logits", "--model", &llama, "--ids", ids, "--out", file, "--backend", "cpu"];
        assert_eq!(stdout(&[&args[..], more].concat()), "");
        let bytes = std::fs::read(file).expect("the file");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let view = tensors.tensor("logits").expect("the tensor");
        assert_eq!((view.shape(), view.dtype()), (&[4, 173][..], safetensors::Dtype::F32));
        view.data().to_vec()
    };
    let base = logits(&[]);
    let adapted = logits(&["--adapter", &adapter]);
    assert_ne!(adapted, base);
    let odd = odd.to_str().expect("UTF-8");
    assert_eq!(logits(&["--adapter", odd]), adapted);
    let doubled = logits(&["--adapter", &format!("{odd}:2")]);
    assert_ne!(doubled, adapted);
    assert_eq!(logits(&["--adapter", &adapter, "--lora-layers", "none"]), base);
    assert_ne!(logits(&["--adapter", &adapter, "--lora-layers", "1"]), adapted);
    assert_eq!(logits(&["--adapter", &adapter, "--lora-from", "prompt"]), adapted);
    assert_eq!(logits(&["--adapter", &adapter, "--lora-from", "generated"]), base);
    let partly = logits(&["--adapter", &adapter, "--lora-from", "2"]);
    assert_eq!(partly[..2 * 173 * 4], base[..2 * 173 * 4]);
    assert_ne!(partly[2 * 173 * 4..], base[2 * 173 * 4..]);
    assert_ne!(logits(&["--adapter", &adapter, "--adapter", &format!("{llama}/adapters/q-v:0.5")]), adapted);
}

#[test]
fn without_arguments_the_shipped_model_solves_a_problem() {
    let text = stdout(&["generate", "--backend", "cpu"]);
    assert!(text.contains('?') && text.contains("Answer:"), "{text}");
    for line in ["prompt ", "decode ", "LoRA ", "device ", "energy ", "kernels "] {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}: {text}");
    }
    let answer = json(&["generate", "--backend", "cpu", "--json"]);
    assert_eq!(answer["finish"], "eos");
    // The prompt is the base's, what follows is the adapter's.
    assert!(answer["report"]["lora_layers_run"].as_u64() > Some(0));
    assert!(answer["report"]["lora_layers_skipped"].as_u64() > Some(0));
    let stopped = json(&["generate", "--backend", "cpu", "--json", "--stop", "Answer"]);
    assert_eq!((&stopped["finish"], &stopped["text"]), (&Value::from("stop"), &Value::from(" ")));
}

#[test]
fn chat_uses_the_models_template() {
    let args = ["generate", "--backend", "cpu", "--json", "--max-new-tokens", "4"];
    let prompt = ["--prompt", "  Tom has 4 cups. How many cups does Tom have?  "];
    let chat = json(&[&args[..], &prompt, &["--chat"]].concat());
    let trimmed = ["--prompt", "Tom has 4 cups. How many cups does Tom have?"];
    assert_eq!(chat["token_ids"], json(&[&args[..], &trimmed].concat())["token_ids"]);
}

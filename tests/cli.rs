//! The command line as scripts see it: exit codes, messages, JSON shapes, and nothing but results on a pipe.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod program;

use std::io::Read;
use std::process::Stdio;

use program::{backends, command, fixture, json, keys, message, sprout, stdout, wattle};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn help_is_no_error_and_wrong_usage_is_2() {
    assert!(stdout(&["--help"]).contains("generate"));
    assert!(stdout(&["generate", "--help"]).contains("--max-new-tokens"));
    assert_eq!(wattle(&[]).status.code(), Some(2));
    for (args, says) in [
        (&["dance"][..], "dance"),
        (&["generate", "--nope"], "--nope"),
        (&["generate", "--ids", "1,x"], "token ids"),
        (&["generate", "--ids", "1", "--prompt", "a"], "--prompt"),
        (&["generate", "--greedy", "--temperature", "1"], "--temperature"),
        (&["generate", "--paths", "0"], "--paths"),
        (&["generate", "--lora-layers", "0,x"], "\"x\""),
        (&["generate", "--lora-layers", "3-1"], "3-1"),
        (&["generate", "--lora-from", "now"], "adapter, prompt, generated"),
        (&["generate", "--backend", "tpu"], "tpu"),
        (&["generate", "--quant", "q3"], "q3"),
        (&["generate", "--threads", "0"], "--threads"),
        (&["logits", "--ids", "1"], "--out"),
        (&["bench", "-o", "xml"], "xml"),
    ] {
        let message = message(args, 2);
        assert!(message.contains(says), "{args:?}: {message}");
    }
}

#[test]
fn an_error_names_what_is_wrong() {
    let llama = fixture("llama");
    let folder = tempfile::tempdir().expect("a folder");
    let task = folder.path().join("task.jsonl");
    std::fs::write(&task, "{\"prompt\": 1}\n").expect("a file");
    let task = task.to_str().expect("UTF-8");
    let ids = ["--ids", "1"];
    let long = vec!["1"; 65].join(",");
    for (args, says) in [
        (&["generate", "--model", "nowhere", ids[0], ids[1]][..], "nowhere"),
        (&["generate", "--model", &llama, "--adapter", "nowhere", ids[0], ids[1]], "nowhere"),
        (&["generate", "--model", &llama, "--adapter", "nowhere:x", ids[0], ids[1]], "\"x\""),
        (&["generate", "--model", &llama, "--kv", "f16", ids[0], ids[1]], "accepted now: f32"),
        (&["quantize", "--model", &llama, "--out", "nowhere"], "--quant"),
        (&["generate", "--model", &llama, "--kv", "q8", ids[0], ids[1]], "accepted now: f32"),
        (&["generate", "--model", &llama, "--lora-layers", "1,3", ids[0], ids[1]], "no layer 3"),
        (&["generate", "--model", &llama, "--ids", "173"], "173"),
        (&["generate", "--model", &llama, "--ids", &long], "64"),
        (&["generate", "--model", &llama, "--prompt", "hello"], "tokenizer"),
        (&["generate", "--model", &llama, "--prompt", "hello", "--chat"], "template"),
        (&["generate", "--model", &llama, "--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (&["generate", "--model", &llama], "--prompt"),
        (&["generate", "--model", &llama, ids[0], ids[1], "--stop", "x"], "tokenizer"),
        (&["generate", "--model", &llama, ids[0], ids[1], "--temperature", "nan"], "temperature"),
        (&["generate", "--model", &llama, ids[0], ids[1], "--top-p", "1.5"], "top-p"),
        (&["logits", "--model", &llama, ids[0], ids[1], "--out", "nowhere/l.safetensors"], "nowhere"),
        (&["tokenize", "--model", &llama, "--prompt", "x"], "tokenizer.json"),
        (&["plan", "--shape", "nope"], "gpt2"),
        (&["bench", "--shape", "tiny", "-p", "1000"], "256"),
        (&["kernels", "check", "nope"], "embed"),
        (&["eval", "--task", task], "line 1"),
    ] {
        let message = message(args, 1);
        assert!(message.contains(says) && message.lines().count() == 1, "{args:?}: {message}");
    }
}

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

#[test]
fn tokenize_needs_only_a_tokenizer() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(sprout().join(file), folder.path().join(file)).expect("a copy");
    }
    let dir = folder.path().to_str().expect("UTF-8");
    let text = folder.path().join("text");
    std::fs::write(&text, "Tom has 40 cups.\n").expect("a file");
    let ids = json(&["tokenize", "--model", dir, "--prompt-file", text.to_str().expect("UTF-8"), "--json"]);
    assert_eq!(keys(&ids), ["ids"]);
    let one = json(&["tokenize", "--model", dir, "--prompt", "Tom has 40 cups.\n", "--json"]);
    assert_eq!(ids, one);
    let list: Vec<String> = one["ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
    assert_eq!(
        stdout(&["tokenize", "--model", dir, "--prompt", "Tom has 40 cups.\n"]),
        list.join(",") + "\n"
    );
}

#[test]
fn a_plan_has_shapes_and_costs_that_add_up() {
    let plan = |more: &[&str]| json(&[&["plan", "--shape", "tiny", "--rows", "3", "--json"], more].concat());
    let fused = plan(&["--adapter-rank", "4"]);
    let ops = fused["ops"].as_array().expect("ops");
    assert_eq!(ops[0]["output"]["shape"], serde_json::json!([3, 40]));
    for field in ["weight_bytes", "lora_bytes", "dram_bytes", "flops", "launches"] {
        let sum: u64 = ops.iter().filter_map(|op| op[field].as_u64()).sum();
        assert!(sum > 0 && fused["total"][field] == sum, "{field}");
    }
    let plain = plan(&["--adapter-rank", "4", "--plain"]);
    assert!(plain["total"]["launches"].as_u64() > fused["total"]["launches"].as_u64());
    assert_eq!(plan(&["--adapter-rank", "4", "--lora-layers", "none"])["ops"], plan(&[])["ops"]);
    let weights = |plan: Value| plan["total"]["weight_bytes"].as_u64().expect("a number");
    assert!(2 * weights(plan(&["--quant", "q4_0"])) < weights(plan(&[])));
    let text = stdout(&["plan", "--shape", "tiny", "--prefill", "--depth", "7"]);
    assert!(text.lines().last().is_some_and(|line| line.contains("total")), "{text}");
}

#[test]
fn kernels_are_listed_and_checked() {
    let names = stdout(&["kernels", "list"]);
    assert!(names.lines().any(|name| name == "rope_kv"), "{names}");
    let checked = stdout(&["kernels", "check", "norm", "--backend", "cpu"]);
    assert!(checked.lines().count() > 5 && checked.contains(" 0 failed"), "{checked}");
    assert!(stdout(&["kernels", "bench", "norm"]).contains("cargo bench"));
}

#[test]
fn devices_name_the_processor() {
    let devices = json(&["devices", "--json", "--threads", "1"]);
    assert_eq!(keys(&devices), ["cpu", "gpus", "read_bytes_per_second", "threads"]);
    assert!(devices["read_bytes_per_second"].as_f64() > Some(1e8));
}

#[test]
fn eval_counts_right_answers_on_base_and_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let task = folder.path().join("three.jsonl");
    let lines = std::fs::read_to_string(sprout().join("tasks/labels.jsonl")).expect("the shipped task");
    let three: Vec<&str> = lines.lines().take(3).collect();
    std::fs::write(&task, three.join("\n")).expect("a file");
    let args = ["eval", "--backend", "cpu", "--task", task.to_str().expect("UTF-8")];
    let runs = json(&[&args[..], &["--json"]].concat())["runs"].clone();
    assert_eq!(runs.as_array().map(Vec::len), Some(2));
    assert_eq!((&runs[0]["adapter"], &runs[1]["adapter"]), (&Value::Null, &Value::from("reason")));
    for run in runs.as_array().into_iter().flatten() {
        for key in ["task", "quant", "lora_layers", "accuracy", "tokens", "seconds", "joules", "tier", "f1"] {
            assert!(run.get(key).is_some(), "{key}");
        }
        assert_eq!((&run["task"], &run["problems"]), (&Value::from("three"), &Value::from(3)));
        assert!(run["accuracy"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)));
    }
    assert!(stdout(&args).contains("| three"));
}

#[test]
fn bench_measures_what_was_asked_for() {
    let size = ["bench", "--shape", "tiny", "-p", "5", "-n", "4", "-r", "2", "--paths", "1,3", "--rank", "4"];
    let args = [&size[..], &["--backend", "cpu", "--adapters", "0,2", "--depth", "3"]].concat();
    let lines = json(&[&args[..], &["-o", "json"]].concat());
    let lines = lines.as_array().expect("an array");
    let field = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    let tests = ["prompt", "decode", "decode", "prompt", "decode", "decode"].map(Value::from);
    assert_eq!(field("test"), tests);
    assert_eq!(field("paths"), [1, 1, 3, 1, 1, 3].map(Value::from));
    assert_eq!(field("adapters"), [0, 0, 0, 2, 2, 2].map(Value::from));
    assert!(field("tokens_per_second").iter().all(|rate| rate.as_f64() > Some(0.0)), "{lines:?}");
    for decode in lines.iter().filter(|line| line["test"] == "decode") {
        assert!(decode["bandwidth_share"].as_f64() > Some(0.0), "{decode}");
    }
    let header = "test,tokens,paths,adapters,rank,lora_layers,backend,device,quant,threads,tokens_per_second,\
                  spread,bandwidth_share,peak_bytes";
    let csv =
        stdout(&["bench", "--shape", "tiny", "-p", "0", "-n", "2", "-r", "1", "--paths", "1", "-o", "csv"]);
    assert_eq!((csv.lines().next(), csv.lines().count()), (Some(header), 3));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = command(&["plan", "--shape", "gpt2", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("UTF-8");
    assert_eq!((child.wait().expect("it ends").code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_quantized_copy_answers_as_the_model_quantized_at_load_does() {
    let folder = tempfile::tempdir().expect("a folder");
    for quant in ["q8_0", "q4_1", "int4"] {
        let copy = folder.path().join(quant);
        let copy = copy.to_str().expect("UTF-8");
        let llama = fixture("llama");
        let printed = stdout(&["quantize", "--model", &llama, "--quant", quant, "--out", copy]);
        assert!(printed.contains("model.safetensors"), "{printed}");
        let again = message(&["quantize", "--model", &llama, "--quant", quant, "--out", copy], 1);
        assert!(again.contains("already"), "{again}");
        for backend in backends() {
            let ids = |model: &str, more: &[&str]| {
                let args = ["generate", "--json", "--greedy", "--ids", "1,2,3", "--max-new-tokens", "8"];
                let args =
                    [&args[..], &["--backend", backend, "--model", model, "--precision", "exact"], more];
                json(&args.concat())["token_ids"].clone()
            };
            assert_eq!(ids(copy, &[]), ids(&llama, &["--quant", quant]), "{backend} {quant}");
        }
    }
}

#[cfg(unix)]
#[test]
fn logits_are_written_through_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
    std::fs::write(&file, "before").expect("a file");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let out = link.to_str().expect("UTF-8");
    stdout(&["logits", "--model", &fixture("llama"), "--ids", "1,2", "--out", out, "--backend", "cpu"]);
    assert!(link.is_symlink());
    let bytes = std::fs::read(&file).expect("the file");
    assert!(SafeTensors::deserialize(&bytes).is_ok_and(|tensors| tensors.tensor("logits").is_ok()));
}

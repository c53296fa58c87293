//! The command line as scripts see it: exit codes, messages, JSON shapes, and nothing but results on a pipe.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use std::io::Read;
use std::process::Stdio;

use command::{backends, command, fixture, json, keys, message, sprout, stdout, wattle};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
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
    let long_task = folder.path().join("long.jsonl");
    let words = "cups ".repeat(2000);
    let lines =
        format!("{{\"prompt\": \"a\", \"answer\": \"b\"}}\n{{\"prompt\": \"{words}\", \"answer\": \"b\"}}\n");
    std::fs::write(&long_task, lines).expect("a file");
    let long_task = long_task.to_str().expect("UTF-8");
    let ids = ["--ids", "1"];
    let long = vec!["1"; 65].join(",");
    for (args, says) in [
        (&["generate", "--model", "nowhere", ids[0], ids[1]][..], "nowhere"),
        (&["generate", "--model", &llama, "--adapter", "nowhere", ids[0], ids[1]], "nowhere"),
        (&["generate", "--model", &llama, "--adapter", "nowhere:x", ids[0], ids[1]], "\"x\""),
        (&["quantize", "--model", &llama, "--out", "nowhere"], "--quant"),
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
        (&["eval", "--task", long_task], "long: problem 2"),
        (&["eval", "--model", &llama], "tasks"),
    ] {
        let message = message(args, 1);
        assert!(message.contains(says) && message.lines().count() == 1, "{args:?}: {message}");
    }
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
        let twice = message(&["plan", "--model", copy, "--quant", "q8_0"], 1);
        assert!(twice.contains("quantized already"), "{twice}");
    }
}

#[test]
fn a_plan_has_the_gates_that_a_file_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gate.safetensors");
    let file = file.to_str().expect("UTF-8");
    let args = ["plan", "--shape", "tiny", "--gate", file, "--json"];
    let sizes: [(&str, &[usize]); 7] = [
        ("center", &[40]),
        ("scale", &[40]),
        ("up.weight", &[1, 4]),
        ("up.bias", &[1]),
        ("down.weight", &[1]),
        ("down.bias", &[1]),
        ("threshold", &[1]),
    ];
    let bytes = [0; 160];
    let write = |layer: usize| {
        let tensor = |&(name, shape): &(&str, &[usize])| {
            let bytes = &bytes[..4 * shape.iter().product::<usize>()];
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("its size");
            (format!("layers.{layer}.{name}"), view)
        };
        serialize_to_file(sizes.iter().map(tensor), None, file.as_ref()).expect("a file");
    };
    write(1);
    let gates = |more: &[&str]| {
        let ops = json(&[&args[..], more].concat())["ops"].as_array().cloned().expect("ops");
        ops.iter().filter(|op| op["kernel"] == "gate").map(|op| op["name"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(gates(&["--adapter-rank", "4"]), ["\"layers.1.lora_gate\""]);
    assert_eq!(gates(&[]), [""; 0], "without an adapter there is nothing to open");
    write(9);
    let wrong = message(&args, 1);
    assert!(wrong.contains("layers.9") && wrong.contains(file), "{wrong}");
}

#[test]
fn a_folder_of_models_that_is_set_is_the_only_one() {
    let output = command(&["plan"]).env("WATTLE_MODELS", "/nowhere").output().expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("/nowhere;"), "{stderr}");
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

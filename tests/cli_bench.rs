//! Measuring commands.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use command::{backends, fixture, json, message, stdout};
use serde_json::Value;

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
    assert_eq!(field("depth"), [0, 3, 3, 0, 3, 3].map(Value::from));
    assert_eq!(
        (&lines[0]["model"], &lines[0]["precision"], &lines[0]["kv"]),
        (&"tiny".into(), &"exact".into(), &"f32".into())
    );
    let header = "test,tokens,paths,adapters,rank,lora_layers,backend,device,quant,threads,tokens_per_second,\
                  spread,bandwidth_share,of_base,of_base_low,of_base_high,peak_bytes,model,precision,kv,depth";
    let csv =
        stdout(&["bench", "--shape", "tiny", "-p", "0", "-n", "2", "-r", "1", "--paths", "1", "-o", "csv"]);
    assert_eq!((csv.lines().next(), csv.lines().count()), (Some(header), 3));
}

#[test]
fn loading_is_measured_beside_reading() {
    let args = ["bench", "--model", &fixture("llama"), "--load", "-r", "2", "--backend", "cpu", "-o", "json"];
    let lines = json(&args);
    let field = |name: &str| {
        lines.as_array().expect("an array").iter().map(|line| line[name].clone()).collect::<Vec<_>>()
    };
    assert_eq!(field("what"), ["read", "load", "load and first token"].map(Value::from));
    let file = std::fs::metadata(format!("{}/model.safetensors", fixture("llama"))).expect("the file");
    assert_eq!(field("bytes"), [file.len(); 3].map(Value::from));
    assert!(field("seconds").iter().all(|seconds| seconds.as_f64() > Some(0.0)));
    assert!(field("of_reading")[0].is_null() && field("of_reading_low")[2].as_f64() > Some(0.0), "{lines}");
}

#[test]
fn a_profile_is_drawn_or_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("profile.svg");
    let path = file.to_str().expect("UTF-8");
    let args = ["bench", "--shape", "tiny", "-p", "64", "-n", "0", "-r", "3", "--backend", "cpu"];
    let args = [&args[..], &["--adapters", "0", "--profile", path]].concat();
    if cfg!(all(unix, feature = "profile")) {
        assert!(stdout(&args).contains("| prompt 64"));
        assert!(std::fs::read_to_string(file).expect("the file").contains("<svg"));
    } else {
        let refused = message(&args, 1);
        assert!(refused.contains("--profile") && refused.contains("--features profile"), "{refused}");
        assert!(!file.exists());
    }
}

#[test]
fn bench_says_what_weights_are_and_how_a_mask_compares_with_the_base() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("q4_0");
    let copy = copy.to_str().expect("UTF-8");
    stdout(&["quantize", "--model", &fixture("llama"), "--quant", "q4_0", "--out", copy]);
    let args = ["bench", "--model", copy, "-p", "0", "-n", "4", "-r", "3", "--paths", "1", "--rank", "4"];
    let args = [&args[..], &["--backend", "cpu", "--paired", "--lora-layers", "none"]].concat();
    let lines = json(&[&args[..], &["-o", "json"]].concat());
    assert_eq!((&lines[0]["quant"], &lines[1]["quant"]), (&Value::from("q4_0"), &Value::from("q4_0")));
    assert_eq!(lines[0]["of_base"], Value::Null);
    let of_base = ["of_base_low", "of_base", "of_base_high"].map(|name| lines[1][name].as_f64().expect(name));
    assert!(of_base[0] > 0.0 && of_base.is_sorted(), "{of_base:?}");
    assert!(stdout(&args).contains(" of base |"));
    let random = ["bench", "--shape", "tiny", "--quant", "q4_1", "--backend", "cpu", "-p", "3", "-n", "0"];
    let lines = json(&[&random[..], &["-r", "1", "--adapters", "0", "-o", "json"]].concat());
    assert_eq!(lines[0]["quant"], "q4_1");
}

#[test]
fn the_device_suite_proves_measures_and_writes_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("records");
    let args = ["device-suite", "--quick", "--out", dir.to_str().expect("UTF-8")];
    let cpu = message(&[&args[..], &["--backend", "cpu"]].concat(), 1);
    assert!(cpu.contains("auto and gpu"), "{cpu}");
    if backends().len() < 2 {
        return;
    }
    let gpus = json(&["devices", "--json"])["gpus"].clone();
    if gpus[0]["software"] == true {
        let auto = message(&args, 1);
        assert!(auto.contains("--backend gpu takes it"), "{auto}");
    }
    let text = stdout(&[&args[..], &["--backend", "gpu"]].concat());
    assert!(text.starts_with("proven first: ") && text.contains("rows and masks exact"), "{text}");
    for part in
        ["left out: joules: --quick", "GB/s (of 1 MiB)", "| decode 4", "| prompt 5", "layers.*.", "gate_up"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let names: Vec<_> = std::fs::read_dir(&dir).expect("the folder").collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for entry in names {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        match name.split_once("tiny").or_else(|| name.split_once("kernels")) {
            Some((date, ".csv")) => assert!(date.len() == 11 && text.lines().count() > 6, "{name}: {text}"),
            _ => assert!(
                name == "README.md" && text.contains("- proven first: ") && text.contains("-tiny.csv`")
            ),
        }
    }
}

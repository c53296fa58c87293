//! Energy and policies on the command line.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use std::path::Path;

use command::{fixture, json, message, stdout};
use serde_json::Value;

/// A policy for the shipped model, trained for a moment.
fn policy(folder: &Path, seed: &str) -> String {
    let file = folder.join(format!("policy-{seed}.safetensors")).to_str().expect("UTF-8").to_owned();
    let args = ["policy", "train", "--devices", "tablet", "--models", "sprout", "--steps", "96", "--json"];
    let log = json(&[&args[..], &["--seed", seed, "--out", &file]].concat());
    let update = &log["updates"][0];
    for number in ["approx_kl", "clip_fraction", "explained_variance", "entropy", "mean_reward"] {
        assert!(update[number].is_number(), "{number}: {update}");
    }
    file
}

#[test]
fn a_policy_is_trained_shown_scored_and_obeyed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = policy(folder.path(), "1");
    let again = tempfile::tempdir().expect("a folder");
    let bytes = |file: &str| std::fs::read(file).expect("the policy");
    assert_eq!(bytes(&file), bytes(&policy(again.path(), "1")), "a training repeats bit for bit");

    let shown = json(&["policy", "show", &file, "--json"]);
    assert_eq!((&shown["format"], &shown["training"]["steps"]), (&Value::from(1), &Value::from(96)));
    assert_eq!(shown["scheme"]["models"][0]["layers"], 6);
    assert!(stdout(&["policy", "show", &file]).contains("measured"));

    let table = json(&["policy", "table", "--policy", &file, "--json"]);
    let rows = table["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 1);
    for key in ["policy", "oracle", "worst", "always_min", "always_max", "random"] {
        assert!(rows[0][format!("{key}_reward")].is_number(), "{key}");
    }
    for key in ["layers", "inf_per_j", "operational_mg", "embodied_mg"] {
        assert!(rows[0][key].as_f64() > Some(0.0), "{key}");
    }
    assert!(rows[0]["oracle_reward"].as_f64() >= rows[0]["policy_reward"].as_f64());
    assert!(rows[0]["policy_reward"].as_f64() >= rows[0]["worst_reward"].as_f64());

    let generate = ["generate", "--backend", "cpu", "--max-new-tokens", "6", "--json", "--device", "tablet"];
    let decided = ["--policy", &file, "--grid", "SE", "--battery", "0.5", "--surface", "30"];
    let report = json(&[&generate[..], &decided].concat())["report"].clone();
    let chosen = &report["policy"];
    let layers = chosen["layers"].as_array().expect("layers").len() as u64;
    assert!((2..=6).contains(&layers), "{chosen}");
    assert_eq!(
        (&chosen["device"], &chosen["grid"]["mg_per_wh"]),
        (&Value::from("tablet"), &Value::from(41.0))
    );
    assert!(chosen["why"].as_str().is_some_and(|why| why.contains("reward")), "{chosen}");
    // The mask was obeyed: on each of the tokens with LoRA it ran in the chosen layers, and in no other.
    let run = report["lora_layers_run"].as_u64().expect("a number");
    assert!(run > 0 && run.is_multiple_of(layers), "{report}");
    let text = stdout(&[&generate[..5], &["--device", "tablet"], &decided].concat());
    assert!(text.contains("simulated tablet") && text.contains("energy "), "{text}");
}

#[test]
fn a_policy_for_something_else_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = policy(folder.path(), "2");
    let llama = fixture("llama");
    let adapter = format!("{llama}/adapters/all-linear");
    let base = ["generate", "--ids", "1", "--policy", &file, "--device"];
    for (args, says) in [
        (&[&base[..], &["phone"]].concat(), "not made for \"phone\""),
        (&[&base[..], &["toaster"]].concat(), "toaster"),
        (&[&base[..], &["tablet", "--grid", "XX"]].concat(), "XX"),
        (&[&base[..], &["tablet", "--battery", "2"]].concat(), "--battery"),
        (&[&base[..], &["tablet", "--task", "chess"]].concat(), "problems"),
        (&[&base[..], &["tablet", "--model", &llama, "--adapter", &adapter]].concat(), "sprout"),
        (&[&base[..], &["tablet", "--model", &llama]].concat(), "no adapter"),
        (&vec!["policy", "show", "nowhere.safetensors"], "nowhere.safetensors"),
        (&vec!["policy", "train", "--out", "x", "--models", "nothing"], "nothing"),
    ] {
        let message = message(args, 1);
        assert!(message.contains(says), "{args:?}: {message}");
    }
    message(&["generate", "--policy", &file], 2);
    message(&["generate", "--device", "tablet"], 2);
}

#[test]
fn joules_have_a_tier_and_a_profile() {
    let llama = fixture("llama");
    let adapter = format!("{llama}/adapters/all-linear");
    let args = ["generate", "--model", &llama, "--adapter", &adapter, "--ids", "5,6,7", "--backend", "cpu"];
    let rest = ["--max-new-tokens", "4", "--ignore-eos", "--json"];
    let energy = |more: &[&str]| json(&[&args[..], &rest, more].concat())["report"]["energy"].clone();
    let all = energy(&[]);
    assert_eq!((&all["tier"], &all["profile"]), (&Value::from("C"), &Value::from("server")));
    let part = |energy: &Value, key: &str, what: &str| energy[key][what].as_u64().expect("a number");
    assert!(part(&all, "lora", "flops") > 0 && part(&all, "saved", "flops") == 0);
    // What one layer skips is what it would have cost; the two together are what all layers cost.
    let first = energy(&["--lora-layers", "0"]);
    let lora = part(&first, "lora", "flops") + part(&first, "saved", "flops");
    assert_eq!(lora, part(&all, "lora", "flops"));
    assert_eq!(energy(&["--energy-profile", "tablet"])["profile"], "tablet");
    let message = message(&[&args[..], &["--energy-profile", "toaster"]].concat(), 1);
    assert!(message.contains("toaster") && message.contains("smartwatch"), "{message}");
}

#[test]
fn coefficients_are_fitted_to_windows_and_become_a_profile() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    // 10 pJ a flop, 100 pJ a byte, and 2 W.
    let window = |kernel: &str, flops: f64, bytes: f64, seconds: f64| {
        let joules = flops * 10e-12 + bytes * 100e-12 + 2.0 * seconds;
        serde_json::json!({"kernel": kernel, "flops": flops as u64, "dram_bytes": bytes as u64, "on_chip_bytes": 0,
            "launches": 0, "seconds": seconds, "joules": joules})
    };
    let windows = [
        window("project", 1e9, 1e8, 0.02),
        window("project", 4e9, 1e8, 0.03),
        window("norm", 1e6, 4e8, 0.05),
        window("norm", 2e6, 1e8, 0.01),
        window("attend", 3e8, 3e8, 0.04),
        window("attend", 9e8, 2e8, 0.01),
    ];
    let (from, to) = (path("windows.json"), path("mine.json"));
    std::fs::write(&from, serde_json::to_string(&windows).expect("JSON")).expect("a file");
    let fit = json(&["energy", "fit", &from, "--year", "2026", "--idle", "5", "--out", &to, "--json"]);
    assert!(
        (fit["fit"]["coefficients"]["dram_byte_j"].as_f64().expect("a number") - 1e-10).abs() < 1e-14,
        "{fit}"
    );
    assert!(fit["held_out"]["proxy"]["mean_error"].as_f64() < Some(0.01), "{fit}");
    let llama = fixture("llama");
    let args = [
        "generate",
        "--model",
        &llama,
        "--ids",
        "5,6",
        "--max-new-tokens",
        "2",
        "--json",
        "--energy-profile",
        &to,
    ];
    assert_eq!(json(&args)["report"]["tier"], "B");
    std::fs::write(&from, "[]").expect("a file");
    assert!(message(&["energy", "fit", &from, "--year", "2026"], 1).contains("no windows"));
    assert!(!stdout(&["energy", "meter"]).is_empty());
    let plan = json(&["plan", "--shape", "tiny", "--device", "smartwatch", "--json"]);
    let op = &plan["ops"][1];
    assert!(op["joules"].as_f64() > Some(0.0) && op["thermal_yield"].as_f64() < Some(1.0), "{op}");
    assert!(op["utilisation"].as_f64() > Some(0.0) && plan["memory_pressure"] == 1.0, "{op}");
    assert!(stdout(&["plan", "--shape", "tiny", "--device", "smartwatch"]).contains("CPQ"));
    assert!(stdout(&["policy", "devices"]).contains("smartwatch"));
    assert!(stdout(&["policy", "devices", "tablet"]).contains("assumed: "));
}

//! Joules, their counters and their fit on the command line.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use command::{fixture, json, message, stdout};
use serde_json::Value;

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
        // Five decimals: JSON's reader is exact on short numbers only, and both files are to say the same.
        let joules = ((flops * 10e-12 + bytes * 100e-12 + 2.0 * seconds) * 1e5).round() / 1e5;
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
    // The same windows as `device-suite` writes them.
    let csv = path("windows.csv");
    let columns = ["kernel", "flops", "dram_bytes", "on_chip_bytes", "launches", "seconds", "joules"];
    let line = |window: &Value| columns.map(|name| window[name].to_string().replace('"', "")).join(",");
    let lines: Vec<String> = windows.iter().map(line).collect();
    std::fs::write(&csv, format!("{}\n{}\n", columns.join(","), lines.join("\n"))).expect("a file");
    assert_eq!(json(&["energy", "fit", &csv, "--year", "2026", "--json"]), fit);
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
}

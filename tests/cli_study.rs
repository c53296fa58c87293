//! Studies on the command line.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use std::path::Path;

use command::{message, stdout};
use serde_json::Value;

/// Runs a study; returns its JSON.
fn study(dir: &Path, name: &str, more: &[&str]) -> Value {
    let out = dir.to_str().expect("UTF-8");
    let text = stdout(&[&["study", name, "--out", out], more].concat());
    assert!(text.contains("| device") || text.contains("| task"), "{name}: {text}");
    let read = |ending: &str| std::fs::read_to_string(dir.join(format!("{name}.{ending}"))).expect("a file");
    let html = read("html");
    assert!(html.contains("<svg") && html.contains("<table>") && html.contains("imulated"), "{name}");
    serde_json::from_str(&read("json")).expect("JSON")
}

#[test]
fn studies_of_the_shipped_policy_write_json_tables_and_plots() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    assert_eq!(study(dir, "table", &[])["devices"].as_array().map(Vec::len), Some(4));
    let frontier = study(dir, "frontier", &[]);
    let points = frontier["points"].as_array().expect("points");
    // Unmerged LoRA costs something: every further layer takes more energy.
    for pair in points.windows(2).filter(|pair| pair[1]["layers"].as_u64() > Some(0)) {
        assert!(pair[1]["energy_j"].as_f64() > pair[0]["energy_j"].as_f64(), "{pair:?}");
    }
    assert!(study(dir, "carbon", &[])["points"].as_array().is_some_and(|points| points.len() == 52));
    let constraints = study(dir, "constraints", &[]);
    assert_eq!(constraints["lines"].as_array().map(Vec::len), Some(12));
    let day = study(dir, "day", &["--days", "1"]);
    let lines = day["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 4 * 5);
    for line in lines {
        // Four models with three tasks, and the shipped one; everybody lives the same days.
        assert_eq!(line["days"], 13, "{line}");
        let ahead = line["policy_ahead"][0].as_f64().expect("a number");
        match line["who"].as_str() {
            Some("policy") => assert_eq!(ahead, 0.0),
            // Trained on requests like these, it leaves what always does the same behind.
            Some("fewest layers") => assert!(ahead > 0.0, "{line}"),
            _ => {}
        }
    }
    assert_eq!(study(dir, "baselines", &[])["rows"].as_array().map(Vec::len), Some(52));
}

#[test]
fn quantization_is_told_from_caching_and_batching() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("UTF-8");
    let text = stdout(&["study", "quantization", "--problems", "8", "--out", out]);
    assert!(text.contains("4 bits for 16") && text.contains("drift"), "{text}");
    let json = std::fs::read_to_string(folder.path().join("quantization.json")).expect("a file");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let formats = json["formats"].as_array().expect("formats");
    let of = |format: &str, key: &str| {
        let line = formats.iter().find(|line| line["format"] == format).expect(format);
        line[key].as_f64().expect(key)
    };
    assert!(of("f32", "joules") > of("f16", "joules") && of("f16", "joules") > of("q4_0", "joules"));
    // The same numbers in more bytes give the same answers.
    assert_eq!((of("f32", "drift"), of("f16", "drift")), (0.0, 0.0));
    assert!(of("q4_0", "logprob_shift") > of("q8_0", "logprob_shift") && of("f16", "logprob_shift") == 0.0);
    // Where weights are most of the bytes, four bits save more than sprout shows.
    let shapes = json["shapes"].as_array().expect("shapes");
    let phi =
        shapes.iter().find(|line| line["model"] == "phi-3-mini" && line["format"] == "q4_0").expect("a line");
    assert!(phi["of_stored"][1].as_f64() < of("q4_0", "joules_of_stored").into(), "{phi}");
    assert_eq!(json["ablation"].as_array().map(Vec::len), Some(8));
    let quality = json["quality"].as_array().expect("quality");
    let of = |model: &str, weights: &str, precision: &str, key: &str| {
        let is = |line: &&Value| {
            line["model"] == model && line["weights"] == weights && line["precision"] == precision
        };
        quality.iter().find(is).expect(weights)[key].as_f64().expect(key)
    };
    for model in ["sprout, problems", "random distilgpt2"] {
        let moved = |weights, precision| of(model, weights, precision, "logits_moved");
        assert_eq!(moved("f32", "exact"), 0.0);
        let outside = moved("q8_0 embedding, head", "exact");
        assert!(0.0 < outside && outside <= moved("q8_0", "exact"), "{model}: {outside}");
        assert!(moved("q8_0", "exact") < moved("q4_0", "exact"));
        assert!(moved("q4_0", "fast") > 0.0 && moved("q4_0", "fast") != moved("q4_0", "exact"));
    }
    let loss = |weights, precision| of("sprout, problems", weights, precision, "loss");
    assert!(loss("f32", "exact") < 0.1 && loss("q4_0", "fast") > loss("f32", "exact"));
    let refused = message(&["study", "sustained", "--minutes", "0", "--out", out], 1);
    assert!(refused.contains("--minutes"), "{refused}");
}

//! Policies on the command line.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use command::{TREE, fixture, json, message, stdout};
use serde_json::Value;

/// The policy that comes with wattle.
fn shipped() -> String {
    let folder = std::env::var("WATTLE_MODELS").unwrap_or_else(|_| format!("{TREE}/models"));
    format!("{folder}/policy.safetensors")
}

#[test]
fn the_shipped_policy_is_shown_and_scored() {
    let shown = json(&["policy", "show", "--json"]);
    assert_eq!((&shown["format"], &shown["scheme"]["action"]), (&Value::from(2), &Value::from("count")));
    assert!(
        stdout(&["policy", "show"]).contains("sprout") && stdout(&["policy", "show"]).contains("a stand-in")
    );

    let rows = json(&["policy", "table", "--json"])["rows"].clone();
    let rows = rows.as_array().expect("rows");
    // Four devices; four models with three tasks each, and the shipped one with its own.
    assert_eq!(rows.len(), 4 * (4 * 3 + 1));
    for row in rows {
        let reward = |who: &str| row[format!("{who}_reward")].as_f64().expect(who);
        let (oracle, worst, policy) = (reward("oracle"), reward("worst"), reward("policy"));
        assert!(oracle >= policy && policy >= worst && oracle >= reward("always_max"), "{row}");
        // What it was trained for: near the best, and never worse than the fewest layers.
        assert!(oracle - policy <= 0.03 * (oracle - worst), "{row}");
        assert!(policy >= reward("always_min") - 1e-9 && reward("random") >= worst, "{row}");
        for key in ["layers", "inf_per_j", "operational_mg", "embodied_mg"] {
            assert!(row[key].as_f64() > Some(0.0), "{key}: {row}");
        }
    }
    assert!(stdout(&["policy", "devices"]).contains("smartwatch"));
    assert!(stdout(&["policy", "devices", "tablet"]).contains("assumed: "));
}

#[test]
fn what_a_policy_chooses_is_obeyed_and_reported() {
    let file = shipped();
    let generate = ["generate", "--backend", "cpu", "--max-new-tokens", "6", "--device", "tablet"];
    let decided = ["--policy", &file, "--grid", "SE", "--battery", "0.5", "--surface", "30"];
    let report = json(&[&generate[..], &decided, &["--json"]].concat())["report"].clone();
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
    let none = [&generate[..], &decided, &["--json", "--lora-layers", "none"]].concat();
    assert_eq!(json(&none)["report"]["lora_layers_run"], 0, "the request's own mask holds too");
    let text = stdout(&[&generate[..], &decided].concat());
    assert!(text.contains("simulated tablet") && text.contains("energy "), "{text}");
}

#[test]
fn a_policy_for_something_else_is_refused_by_name() {
    let file = shipped();
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
        (&vec!["policy", "show", &format!("{llama}/model.safetensors")], "wattle.policy"),
    ] {
        let message = message(args, 1);
        assert!(message.contains(says), "{args:?}: {message}");
    }
    message(&["generate", "--policy", &file], 2);
    message(&["generate", "--device", "tablet"], 2);
}

#[cfg(feature = "training")]
#[test]
fn a_training_repeats_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let train = |name: &str| {
        let file = folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let args =
            ["policy", "train", "--devices", "tablet", "--models", "sprout", "--steps", "96", "--seed", "1"];
        let log = json(&[&args[..], &["--json", "--out", &file]].concat());
        (std::fs::read(&file).expect("the policy"), log, file)
    };
    let ((bytes, log, file), (again, _, _)) = (train("one"), train("two"));
    assert_eq!(bytes, again);
    let update = &log["updates"][0];
    for number in ["approx_kl", "clip_fraction", "explained_variance", "entropy", "mean_reward"] {
        assert!(update[number].is_number(), "{number}: {update}");
    }
    let shown = json(&["policy", "show", &file, "--json"]);
    assert_eq!(
        (&shown["training"]["steps"], &shown["scheme"]["models"][0]["layers"]),
        (&96.into(), &6.into())
    );
    assert!(stdout(&["policy", "show", &file]).contains("measured"));
    let unknown = message(&["policy", "train", "--out", "x", "--models", "nothing"], 1);
    assert!(unknown.contains("nothing"), "{unknown}");
}

#[cfg(feature = "training")]
#[test]
fn ranks_are_choices_where_there_are_several() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ranks").to_str().expect("UTF-8").to_owned();
    let train =
        ["policy", "train", "--devices", "tablet", "--models", "gpt2", "--steps", "64", "--out", &file];
    let rows = json(&[&train[..], &["--ranks", "4,16", "--json"]].concat())["rows"].clone();
    assert_eq!(rows.as_array().map(Vec::len), Some(3));
    let scheme = json(&["policy", "show", &file, "--json"])["scheme"].clone();
    let adapters: Vec<_> =
        ["rank", "alpha"].map(|key| [0, 1].map(|i| scheme["adapters"][i][key].as_f64())).into();
    assert_eq!(adapters, [[Some(4.0), Some(16.0)], [Some(8.0), Some(32.0)]]);
    // Scored in the world that it was made for, from its file.
    assert_eq!(json(&["policy", "table", "--policy", &file, "--json"])["rows"], rows);
    let args = ["policy", "train", "--out", &file, "--ranks"];
    for (ranks, models, says) in [("4,4", "gpt2", "twice"), ("0", "gpt2", "256"), ("4,8", "sprout", "sprout")]
    {
        let refused = message(&[&args[..], &[ranks, "--models", models]].concat(), 1);
        assert!(refused.contains("--ranks") && refused.contains(says), "{refused}");
    }
}

#[cfg(not(feature = "training"))]
#[test]
fn a_build_that_cannot_train_says_so() {
    let refused = message(&["policy", "train", "--out", "x"], 1);
    assert!(refused.contains("--features training"), "{refused}");
}

//! The command line's votes, budgets and soak.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]

mod command;

use command::{backends, json, keys, message};

#[test]
fn paths_vote_and_budgets_end_in_an_answer() {
    let args = ["generate", "--backend", "cpu", "--json", "--paths", "5", "--temperature", "0.6", "--vote"];
    let budget = ["--max-new-tokens", "40", "--closing", " Answer:", "--closing-tokens", "4"];
    let value = json(&[&args[..], &budget].concat());
    let vote = &value["vote"];
    assert!(vote["winner"].is_string(), "{vote}");
    assert_eq!(keys(vote), ["answers", "spared", "winner", "without"]);
    let paths = value["paths"].as_array().expect("an array");
    assert_eq!(paths.len(), 5);
    let reports = value["report"]["paths"].as_array().expect("an array");
    assert_eq!(reports.len(), 5);
    assert!(reports.iter().all(|path| path["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0)));
    assert!(paths.iter().all(|path| path["token_ids"].as_array().is_some_and(|ids| ids.len() <= 40)));
    let cut = ["--max-new-tokens", "8", "--closing", " Answer:", "--closing-tokens", "3", "--ignore-eos"];
    let value = json(&[&["generate", "--backend", "cpu", "--json"][..], &cut].concat());
    let closing =
        value["report"]["paths"][0]["closing"].as_array().expect("the budget was too small without one");
    assert_eq!(value["token_ids"].as_array().map(Vec::len), Some(8));
    assert_eq!(closing[0].as_u64().zip(closing[1].as_u64()).map(|(count, after)| count + after), Some(5));
    assert!(value["text"].as_str().is_some_and(|text| text.contains(" Answer:")));
    assert!(
        message(&["generate", "--max-new-tokens", "3", "--closing", " Answer:"], 1)
            .contains("closing prompt")
    );
}

#[test]
fn a_budget_of_kv_memory_makes_paths_wait_and_changes_nothing() {
    let run = |budget: &[&str]| {
        let ask =
            ["generate", "--backend", "cpu", "--prompt", "Tom has 40 cups.", "--paths", "5", "--seed", "3"];
        json(&[&ask[..], &["--max-new-tokens", "12", "--temperature", "0.9", "--json"], budget].concat())
    };
    let (plenty, scarce) = (run(&[]), run(&["--kv-bytes", "400K"]));
    assert_eq!(plenty["report"]["paths"], scarce["report"]["paths"]);
    let generate = ["generate", "--prompt", "Tom", "--kv-bytes"];
    assert!(message(&[&generate[..], &["3"]].concat(), 1).contains("kv_bytes"));
    assert!(message(&[&generate[..], &["5Q"]].concat(), 2).contains("no unit"));
}

#[test]
fn a_soak_finds_nothing_wrong() {
    for backend in backends() {
        // A software GPU takes seconds to come back after it was lost: too few requests for the events that happen less
        // often, or only where requests come close enough after each other.
        let rare = [
            "adapters_replaced",
            "adapters_unloaded",
            "gates_closed",
            "oversize",
            "panicked",
            "positions_found",
            "switches",
        ];
        let (requests, rare) = if backend == "gpu" { ("40", &[][..]) } else { ("300", &rare[..]) };
        let value = json(&["soak", "--backend", backend, "--requests", requests, "--seed", "1", "--json"]);
        let expected = [
            "cancelled",
            "completed",
            "events",
            "leaked_pages",
            "leaked_slots",
            "mismatches",
            "rejected",
            "requests",
        ];
        assert_eq!(keys(&value), expected);
        for zero in ["leaked_pages", "leaked_slots", "mismatches"] {
            assert_eq!(value[zero].as_u64(), Some(0), "{zero} on {backend}: {value}");
        }
        for some in ["cancelled", "completed", "rejected"] {
            assert!(value[some].as_u64().is_some_and(|count| count > 0), "{some} on {backend}: {value}");
        }
        let often = ["shared_positions", "slots_evicted", "device_restarts", "pages_copied", "pages_evicted"];
        for event in often.iter().chain(rare) {
            assert!(
                value["events"][*event].as_u64().is_some_and(|count| count > 0),
                "{event} on {backend}: {value}"
            );
        }
    }
}

#[test]
fn serving_is_measured_beside_what_it_is_compared_to() {
    let few = ["-p", "70", "-n", "3", "-r", "2", "--paths", "1,2", "-o", "json"];
    let value = json(&[&["bench", "--backend", "cpu", "--serving"][..], &few].concat());
    let lines = value.as_array().expect("an array");
    let whats: Vec<_> = lines.iter().filter_map(|line| line["what"].as_str()).collect();
    let expected = [
        "70 again",
        "2 paths, tokens/s",
        "1 paths, sch",
        "2 paths, sch",
        "switch",
        "switch",
        "of q and v",
        "of all linear",
        "longest time between two tokens",
        "until all was done",
    ];
    assert!(whats.iter().zip(expected).all(|(what, expected)| what.contains(expected)), "{whats:?}");
    assert_eq!(whats.len(), expected.len());
    assert!(lines.iter().all(|line| line["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0)), "{value}");
    assert!(lines[7]["bytes"].as_f64().is_some_and(|ratio| ratio < 1.0), "two adapters, more bytes: {value}");
}

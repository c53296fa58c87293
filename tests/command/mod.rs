//! Running the binary, as scripts do.
#![allow(clippy::expect_used, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "every test binary uses another part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The source tree.
pub const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattle"));
    command.args(args).stdin(Stdio::null());
    command
}

pub fn wattle(args: &[&str]) -> Output {
    command(args).output().expect("the binary starts")
}

/// What a command that succeeds prints; progress or logs on stderr are a failure.
pub fn stdout(args: &[&str]) -> String {
    let output = wattle(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains(['\r', '\x1b']), "control characters on a pipe: {args:?}: {text:?}");
    text
}

pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).expect("one JSON value")
}

/// What a command that fails says: one message, no results, no panic.
pub fn message(args: &[&str], code: i32) -> String {
    let output = wattle(args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

pub fn fixture(name: &str) -> String {
    format!("{TREE}/tests/fixtures/models/{name}")
}

pub fn sprout() -> PathBuf {
    let folder = std::env::var_os("WATTLE_MODELS").map_or(Path::new(TREE).join("models"), PathBuf::from);
    folder.join("sprout")
}

/// The backends that can be tested here. Without a GPU adapter it says so, or fails where one is required.
pub fn backends() -> Vec<&'static str> {
    let devices = json(&["devices", "--json"]);
    if devices["gpus"].as_array().is_some_and(|gpus| !gpus.is_empty()) {
        return vec!["cpu", "gpu"];
    }
    assert!(std::env::var("WATTLE_REQUIRE_GPU").as_deref() != Ok("1"), "no GPU adapter");
    println!("skipped on the GPU: no adapter was found");
    vec!["cpu"]
}

pub fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

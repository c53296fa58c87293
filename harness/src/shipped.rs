//! The model that ships with the project.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Directory name of the shipped model.
const MODEL: &str = "sprout";
/// Directory name of its adapter, inside the model's directory.
const ADAPTER: &str = "reason";

/// The shipped model's directory: under `$WATTLE_MODELS` where that is set, else in the source tree that this program
/// was built from, or beside the program.
pub(crate) fn model() -> Result<PathBuf> {
    let given = std::env::var_os("WATTLE_MODELS").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folders = given.map_or_else(usual, |folder| vec![folder]);
    let found = folders.iter().map(|folder| folder.join(MODEL)).find(|dir| dir.join("config.json").exists());
    found.ok_or_else(|| {
        let looked: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let reason = format!(
            "not given, and the shipped model `{MODEL}` is in none of {}; set WATTLE_MODELS to the folder that has it",
            looked.join(", ")
        );
        Error::value("--model", reason)
    })
}

/// Where models are that come with the program.
fn usual() -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("models")));
    [Some(source), beside].into_iter().flatten().collect()
}

/// The adapter of the shipped model. It was trained to be off on prompt tokens.
pub(crate) fn adapter(model: &Path) -> PathBuf {
    model.join(ADAPTER)
}

/// The folder of a model's tasks.
pub(crate) fn tasks(model: &Path) -> PathBuf {
    model.join("tasks")
}

/// The policy that comes with wattle: trained on simulated devices, for the paper's models and the shipped one.
pub(crate) fn policy(model: &Path) -> PathBuf {
    model.join("../policy.safetensors")
}

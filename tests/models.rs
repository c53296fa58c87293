//! Every fixture, base and adapters, against transformers + PEFT: on both backends, plain and fused, with tiny limits.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::path::{Path, PathBuf};

use common::{Expected, engine, error, fixtures, options};
use wattle_engine::backend::Limits;
use wattle_engine::{
    ActiveFrom, BackendChoice, CpuKernels, Engine, EngineOptions, Finish, LayerMask, Lora, PlanKind, Request,
};

/// In exact precision: logits within this share of the largest |logit| (DESIGN, correctness rules).
const TOLERANCE: f32 = 1e-4;

fn cpu() -> EngineOptions {
    options(BackendChoice::Cpu)
}

fn gpu() -> EngineOptions {
    options(BackendChoice::Gpu)
}

#[test]
fn cpu_fused() {
    check_all(cpu());
}

#[test]
fn cpu_plain_plan() {
    check_all(EngineOptions { plan: PlanKind::Plain, ..cpu() });
}

#[test]
fn cpu_plain_kernels() {
    check_all(EngineOptions { cpu_kernels: CpuKernels::Plain, ..cpu() });
}

#[test]
fn cpu_plain_kernels_and_plan() {
    check_all(EngineOptions { cpu_kernels: CpuKernels::Plain, plan: PlanKind::Plain, ..cpu() });
}

#[test]
fn gpu_fused() {
    check_all(gpu());
}

#[test]
fn gpu_plain_plan() {
    check_all(EngineOptions { plan: PlanKind::Plain, ..gpu() });
}

#[test]
fn gpu_without_subgroups_and_f16() {
    let limits = Limits { subgroups: false, f16: false, coherent: false, ..Limits::default() };
    check_all(EngineOptions { limits, ..gpu() });
}

#[test]
fn gpu_tiny_limits() {
    check_all(EngineOptions { limits: Limits::tiny(), sequences: 1, context: 40, ..gpu() });
}

#[test]
fn gpu_unchecked() {
    check_all(EngineOptions { checked: false, ..gpu() });
}

/// A fixture as index.json lists it.
struct Fixture {
    dir: PathBuf,
    adapters: Vec<String>,
    joined: bool,
}

fn all() -> Vec<Fixture> {
    let text = std::fs::read_to_string(fixtures().join("index.json")).expect("tests/fixtures/index.json");
    let index: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let names = |value: &serde_json::Value| {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter().map(|a| a["name"].as_str().expect("a name").to_string()).collect()
    };
    let models = index["models"].as_array().expect("models").iter();
    let fixture = |model: &serde_json::Value| Fixture {
        dir: fixtures().join("models").join(model["name"].as_str().expect("a name")),
        adapters: names(&model["adapters"]),
        joined: model.get("joined").is_some(),
    };
    let found: Vec<Fixture> = models.map(fixture).collect();
    assert!(found.len() >= 25, "only {} fixtures", found.len());
    found
}

fn check_all(options: EngineOptions) {
    let mut failures = Vec::new();
    for fixture in all() {
        let Some(engine) = engine(&fixture.dir, options.clone()) else { return };
        let name = fixture.dir.file_name().expect("a name").to_string_lossy().into_owned();
        failures.extend(Check { name, engine, failures: Vec::new() }.run(&fixture));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// One fixture on one engine.
struct Check {
    name: String,
    engine: Engine,
    failures: Vec<String>,
}

impl Check {
    fn run(mut self, fixture: &Fixture) -> Vec<String> {
        let expected = Expected::read(&fixture.dir);
        self.outputs("base", &expected, Lora::BASE);
        for adapter in &fixture.adapters {
            let dir = fixture.dir.join("adapters").join(adapter);
            self.adapter(adapter, &dir);
        }
        if fixture.joined {
            self.joined(&fixture.dir);
        }
        self.failures
    }

    fn adapter(&mut self, name: &str, dir: &Path) {
        match self.engine.load_adapter(dir, 1.0) {
            Ok(id) => {
                let expected = Expected::read(dir);
                self.outputs(name, &expected, Lora::new(id));
                self.layer_subset(name, dir, Lora::new(id));
                self.remove(id);
            }
            Err(error) => self.failures.push(format!("{} {name}: {error}", self.name)),
        }
    }

    fn remove(&mut self, id: wattle_engine::AdapterId) {
        self.engine.remove_adapter(id).expect("the adapter was loaded");
    }

    fn joined(&mut self, dir: &Path) {
        let text = std::fs::read_to_string(dir.join("joined/joined.json")).expect("joined.json");
        let joined: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let parts: Vec<(PathBuf, f32)> = joined["adapters"]
            .as_array()
            .expect("adapters")
            .iter()
            .map(|a| {
                (
                    dir.join("adapters").join(a["name"].as_str().expect("name")),
                    a["scale"].as_f64().expect("scale") as f32,
                )
            })
            .collect();
        let parts: Vec<(&Path, f32)> = parts.iter().map(|(dir, scale)| (dir.as_path(), *scale)).collect();
        let id = self.engine.load_joined_adapter(&parts).expect("joined adapters load");
        self.outputs("joined", &Expected::read(&dir.join("joined")), Lora::new(id));
        self.remove(id);
    }

    /// A mask of layer 1 on all-linear is the adapter that has only layer 1.
    fn layer_subset(&mut self, name: &str, dir: &Path, lora: Lora) {
        let only_layer_1 = dir.with_file_name("layers-1");
        if name != "all-linear" || !only_layer_1.exists() {
            return;
        }
        let expected = Expected::read(&only_layer_1);
        self.logits("layer 1 of all-linear", &expected, "", Lora { layers: LayerMask::of([1]), ..lora });
    }

    fn outputs(&mut self, what: &str, expected: &Expected, lora: Lora) {
        self.logits(what, expected, "", lora);
        self.logits(what, expected, "short_", lora);
        if let Some(from) = expected.ids("from_position") {
            let lora = Lora { from: ActiveFrom::Position(from[0] as usize), ..lora };
            self.logits(what, expected, "from_position_", lora);
        }
        self.greedy(what, expected, lora);
    }

    fn logits(&mut self, what: &str, expected: &Expected, prefix: &str, lora: Lora) {
        let Some(wanted) = expected.floats(&format!("{prefix}logits")) else { return };
        let ids = expected.ids(&format!("{prefix}ids")).or_else(|| expected.ids("ids")).expect("ids");
        let report = match self.engine.logits(&ids, &lora) {
            Ok(logits) => error(&logits, &wanted),
            Err(error) => return self.failures.push(format!("{} {what}: {error}", self.name)),
        };
        if report.is_nan() || report > TOLERANCE {
            self.failures.push(format!("{} {what} {prefix}logits: error {report:.2e}", self.name));
        }
    }

    fn greedy(&mut self, what: &str, expected: &Expected, lora: Lora) {
        let (Some(prompt), Some(greedy)) = (expected.ids("prompt_ids"), expected.ids("greedy_ids")) else {
            return;
        };
        let request = Request { ignore_eos: true, lora, ..Request::new(prompt, greedy.len()) };
        self.tokens(what, &request, &greedy, Finish::Length);
        if let (Some(penalty), Some(ids)) = (expected.floats("penalty"), expected.ids("greedy_penalty_ids")) {
            let mut request = request.clone();
            request.sampling.penalty = penalty[0];
            self.tokens(&format!("{what} with penalty"), &request, &ids, Finish::Length);
        }
        if let Some(ids) = expected.ids("eos_greedy_ids") {
            let request = Request { ignore_eos: false, max_new_tokens: 64, ..request };
            self.tokens(&format!("{what} up to eos"), &request, &ids, Finish::Eos);
        }
    }

    fn tokens(&mut self, what: &str, request: &Request, expected: &[u32], finish: Finish) {
        match self.engine.generate(request) {
            Ok(generation) => {
                let path = &generation.paths[0];
                if path.token_ids != expected || path.finish != finish {
                    let (ids, end) = (&path.token_ids, path.finish);
                    self.failures
                        .push(format!("{} {what}: {ids:?} {end:?}, not {expected:?} {finish:?}", self.name));
                }
            }
            Err(error) => self.failures.push(format!("{} {what}: {error}", self.name)),
        }
    }
}

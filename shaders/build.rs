//! Composes the WGSL of every kernel, once for each combination of subgroups and weight type that its text depends on,
//! and writes them as constants: `NAME: [[&str; 5]; 2]`, indexed by subgroups and type.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use wesl::{ModulePath, Wesl};

/// In the order of `WeightType`: the dense ones, then those in panels.
const TYPES: [&str; 5] = ["f32", "f16", "bf16", "nibbles", "bytes"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=wgsl");
    let mut constants = String::new();
    for entry in fs::read_dir("wgsl")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wgsl") {
            constant(&mut constants, &path)?;
        }
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("kernels.rs"), constants)?;
    Ok(())
}

fn constant(out: &mut String, path: &Path) -> Result<(), Box<dyn Error>> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel's name is not UTF-8")?;
    let module: ModulePath = format!("package::{stem}").parse()?;
    let text = fs::read_to_string(path)?;
    // A kernel's text is the same for the types that it does not tell apart.
    let has = |module: &str| text.contains(&format!("shared::{module}"));
    let types = match (has("panels") || has("matrix"), has("weights")) {
        (true, _) => 5,
        (false, true) => 3,
        (false, false) => 1,
    };
    writeln!(out, "pub(crate) const {stem}: [[&str; 5]; 2] = [")?;
    for subgroups in [false, true] {
        let mut texts = Vec::new();
        for weights in &TYPES[..types] {
            let mut compiler = Wesl::new("wgsl");
            compiler.set_features([("subgroups", subgroups)]);
            compiler.set_features(TYPES.map(|name| (name, name == *weights)));
            let wgsl = compiler.compile(&module).map_err(|error| format!("{}: {error}", path.display()))?;
            texts.push(wgsl.to_string());
        }
        let all = (0..TYPES.len()).map(|index| texts.get(index).or(texts.first()));
        writeln!(out, "    {:?},", all.flatten().collect::<Vec<_>>())?;
    }
    writeln!(out, "];")?;
    Ok(())
}

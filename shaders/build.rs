//! Composes the WGSL of every kernel, once for each combination of subgroups and weight type, and writes them as
//! constants: `NAME: [&str; 6]`, index 3 × subgroups + type (f32, f16, bf16).

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use wesl::{ModulePath, Wesl};

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
    writeln!(out, "pub(crate) const {stem}: [&str; 6] = [")?;
    let module: ModulePath = format!("package::{stem}").parse()?;
    for subgroups in [false, true] {
        for weights in ["f32", "f16", "bf16"] {
            let mut compiler = Wesl::new("wgsl");
            compiler.set_features([("subgroups", subgroups)]);
            compiler.set_features(["f32", "f16", "bf16"].map(|name| (name, name == weights)));
            let wgsl = compiler.compile(&module).map_err(|error| format!("{}: {error}", path.display()))?;
            writeln!(out, "    {:?},", wgsl.to_string())?;
        }
    }
    writeln!(out, "];")?;
    Ok(())
}

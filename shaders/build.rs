//! Composes the WGSL of every kernel, once for each combination of factor type, subgroups and weight type that its text
//! depends on, and writes them as constants: `NAME: [[[&str; 5]; 2]; 2]`, indexed in this order.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use wesl::{CompileOptions, ModulePath, Wesl};

/// In the order of `WeightType`: the dense ones, then those in panels.
const TYPES: [&str; 5] = ["f32", "f16", "bf16", "nibbles", "bytes"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=wgsl");
    let mut constants = String::new();
    for entry in fs::read_dir("wgsl")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wgsl") {
            constant(&mut constants, &path, "")?;
            let text = fs::read_to_string(&path)?;
            if text.contains("@if(paired)") {
                constant(&mut constants, &path, "paired")?;
            }
            if text.contains("shared::tile") {
                constant(&mut constants, &path, "half")?;
                constant(&mut constants, &path, "int8")?;
                constant(&mut constants, &path, "coop")?;
            }
        }
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("kernels.rs"), constants)?;
    Ok(())
}

/// How products are made in tiles: of f32 (""), of f16 ("half"), of codes of 8 bits ("int8", of the quantized types alone),
/// or by cooperative matrices ("coop", always with subgroups); outside of tiles: two panels in a workgroup ("paired"). The
/// constant is `NAME__half`, or `NAME__variant_half`, and so on.
fn constant(out: &mut String, path: &Path, products: &str) -> Result<(), Box<dyn Error>> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel's name is not UTF-8")?;
    let module: ModulePath = format!("package::{stem}").parse()?;
    let text = fs::read_to_string(path)?;
    // A kernel's text is the same for the types that it does not tell apart.
    let has = |module: &str| text.contains(&format!("shared::{module}"));
    let types = match (has("panels") || has("matrix"), has("weights"), has("cache")) {
        (true, ..) => TYPES[if products == "int8" { 3 } else { 0 }..].to_vec(),
        (_, true, _) => TYPES[..3].to_vec(),
        (.., true) => vec!["f32", "f16", "bytes"],
        _ => vec!["f32"],
    };
    let name = match products {
        "" => stem.to_owned(),
        // The first of a kernel's variants.
        _ if !stem.contains("__") => format!("{stem}__{products}"),
        _ => format!("{stem}_{products}"),
    };
    let extensions = if products == "coop" { "enable f16;\nenable wgpu_cooperative_matrix;\n" } else { "" };
    let of_factors = |halves: bool| -> Result<String, Box<dyn Error>> {
        let mut texts = String::new();
        for subgroups in [false, true] {
            let compose = |&weights: &&str| {
                let mut compiler = Wesl::new("wgsl");
                // naga validates what comes out, in this crate's tests; wesl does not know all of WGSL.
                compiler.set_options(CompileOptions { validate: false, ..CompileOptions::default() });
                compiler.set_features([("subgroups", subgroups || products == "coop"), ("halves", halves)]);
                compiler
                    .set_features(["paired", "half", "int8", "coop"].map(|name| (name, name == products)));
                compiler.set_features(TYPES.map(|name| (name, name == weights)));
                let wgsl =
                    compiler.compile(&module).map_err(|error| format!("{}: {error}", path.display()))?;
                Ok(format!("{extensions}{wgsl}"))
            };
            let composed = types.iter().map(compose).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
            let of_type = |name| types.iter().position(|other| *other == name).unwrap_or(0);
            let all = TYPES.map(|name| composed.get(of_type(name)));
            writeln!(texts, "        {:?},", all.into_iter().flatten().collect::<Vec<_>>())?;
        }
        Ok(texts)
    };
    let floats = of_factors(false)?;
    let reads_factors = ["lora", "carry", "tile_lora"].into_iter().any(has);
    let halves = if reads_factors { of_factors(true)? } else { floats.clone() };
    writeln!(out, "pub(crate) const {name}: [[[&str; 5]; 2]; 2] = [[\n{floats}], [\n{halves}]];")?;
    Ok(())
}

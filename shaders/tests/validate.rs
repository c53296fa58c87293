//! naga accepts every kernel in every variant, with no more of the device than it may ask for.
#![allow(clippy::panic, reason = "tests fail by panicking")]

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module, proc::Layouter};
use wattle_shaders::{FactorType, KERNELS, Kernel, WeightType, ceilings, params};

/// Storage buffers per stage that every desktop driver of Vulkan, Metal and D3D12 has (WebGPU's default is 8): as many
/// as the GPU backend asks for.
const STORAGE_BUFFERS: usize = 10;

/// A kernel's text, with or without subgroups, and that parsed.
struct Variant {
    kernel: &'static Kernel,
    subgroups: bool,
    text: &'static str,
    module: Module,
}

/// Every kernel with and without subgroups, with every type of weights and factors that its text depends on.
fn variants() -> Result<Vec<Variant>, String> {
    let mut variants: Vec<Variant> = Vec::new();
    for kernel in KERNELS {
        for subgroups in [false, true] {
            for weights in WeightType::ALL {
                for text in FactorType::ALL.map(|factors| kernel.wgsl(subgroups, weights, factors)) {
                    if variants.last().is_some_and(|last| last.text == text) {
                        continue;
                    }
                    let module = naga::front::wgsl::parse_str(text)
                        .map_err(|error| format!("{}: {}", kernel.name, error.emit_to_string(text)))?;
                    variants.push(Variant { kernel, subgroups, text, module });
                }
            }
        }
    }
    Ok(variants)
}

#[test]
fn every_variant_is_valid_with_no_more_of_the_device_than_it_may_ask_for() {
    for Variant { kernel, subgroups, text, module } in variants().unwrap() {
        // unpack2x16float is part of core WGSL; naga lists it because OpenGL's dialects lack it.
        let mut asked = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let cooperative = kernel.name.ends_with("_coop");
        asked.set(Capabilities::SUBGROUP, subgroups || cooperative);
        asked.set(Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX, cooperative);
        asked.set(Capabilities::MEMORY_DECORATION_COHERENT, kernel.name == "attend__split");
        let result = Validator::new(ValidationFlags::all(), asked).validate(&module);
        result.unwrap_or_else(|e| panic!("{} {subgroups}: {}", kernel.name, e.emit_to_string(text)));
    }
}

#[test]
fn ceilings_need_no_features() {
    for text in [ceilings::READ, ceilings::MULTIPLY] {
        let module = naga::front::wgsl::parse_str(text).unwrap();
        let result = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
        result.unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    }
}

#[test]
fn no_kernel_needs_more_storage_buffers_than_every_device_has() {
    for Variant { kernel, module, .. } in variants().unwrap() {
        let storage = |space| matches!(space, AddressSpace::Storage { .. });
        let count = module.global_variables.iter().filter(|(_, v)| storage(v.space)).count();
        assert!(count <= STORAGE_BUFFERS, "{}: {count}", kernel.name);
    }
}

#[test]
fn uniform_structs_are_as_large_as_their_rust_counterparts() {
    // Variants that only compute otherwise have their kernel's parameters.
    let plain = |kernel: &str| {
        let ends = ["__paired", "_paired", "_half", "_int8", "_coop"];
        let end = ends.into_iter().find(|end| kernel.ends_with(end)).unwrap_or("");
        kernel[..kernel.len() - end.len()].to_owned()
    };
    let size = |kernel: &str| match plain(kernel).as_str() {
        "embed" => size_of::<params::Embed>(),
        "add_position" => size_of::<params::AddPosition>(),
        "norm" => size_of::<params::Norm>(),
        "project__normed" | "project__normed_tiled" => size_of::<params::ProjectNormed>(),
        "project__ordered" => size_of::<params::ProjectOrdered>(),
        "project" | "project__tiled" => size_of::<params::Project>(),
        "lora_down" => size_of::<params::LoraDown>(),
        "lora_embed" => size_of::<params::LoraEmbed>(),
        "lora_up" => size_of::<params::LoraUp>(),
        "rope" => size_of::<params::Rope>(),
        "kv_write" => size_of::<params::KvWrite>(),
        "attend" => size_of::<params::Attend>(),
        "attend__split" => size_of::<params::AttendSplit>(),
        "activate" => size_of::<params::Activate>(),
        "add" => size_of::<params::Add>(),
        "select" => size_of::<params::Select>(),
        "sample" => size_of::<params::Sample>(),
        "rope_kv" => size_of::<params::RopeKv>(),
        "gate" => size_of::<params::Gate>(),
        "gate_up" | "gate_up__tiled" => size_of::<params::GateUp>(),
        other => panic!("{other} has no parameters here"),
    };
    for Variant { kernel, module, .. } in variants().unwrap() {
        let mut layouter = Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        for (_, variable) in module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::Uniform)
        {
            let binding = variable.binding.as_ref().unwrap().binding;
            let expected = if binding == 0 { size(kernel.name) } else { size_of::<params::Site>() };
            assert_eq!(layouter[variable.ty].size as usize, expected, "{} binding {binding}", kernel.name);
        }
    }
}

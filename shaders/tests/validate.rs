//! naga accepts every kernel in every variant, with no more of the device than it may ask for.
#![allow(clippy::panic, reason = "tests fail by panicking")]

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module, proc::Layouter};
use wattle_shaders::{KERNELS, Kernel, WeightType, ceilings, params};

/// Storage buffers per stage that every desktop driver of Vulkan, Metal and D3D12 has (WebGPU's default is 8): as many
/// as the GPU backend asks for.
const STORAGE_BUFFERS: usize = 10;

/// Every kernel with and without subgroups, with every weight type, parsed.
fn variants() -> Result<Vec<(&'static Kernel, bool, WeightType, Module)>, String> {
    let mut variants = Vec::new();
    for kernel in KERNELS {
        for subgroups in [false, true] {
            for weights in WeightType::ALL {
                let text = kernel.wgsl(subgroups, weights);
                let module = naga::front::wgsl::parse_str(text)
                    .map_err(|error| format!("{}: {}", kernel.name, error.emit_to_string(text)))?;
                variants.push((kernel, subgroups, weights, module));
            }
        }
    }
    Ok(variants)
}

#[test]
fn every_variant_is_valid_without_f16_and_subgroups_are_used_only_where_asked_for() {
    for (kernel, subgroups, weights, module) in variants().unwrap() {
        // unpack2x16float is part of core WGSL; naga lists it because OpenGL's dialects lack it.
        let mut asked = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        asked.set(Capabilities::SUBGROUP, subgroups);
        let result = Validator::new(ValidationFlags::all(), asked).validate(&module);
        let text = kernel.wgsl(subgroups, weights);
        result.unwrap_or_else(|e| {
            panic!("{} {subgroups} {weights:?}: {}", kernel.name, e.emit_to_string(text))
        });
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
    for (kernel, _, _, module) in variants().unwrap() {
        let storage = |space| matches!(space, AddressSpace::Storage { .. });
        let count = module.global_variables.iter().filter(|(_, v)| storage(v.space)).count();
        assert!(count <= STORAGE_BUFFERS, "{}: {count}", kernel.name);
    }
}

#[test]
fn uniform_structs_are_as_large_as_their_rust_counterparts() {
    let size = |kernel: &str| match kernel {
        "embed" => size_of::<params::Embed>(),
        "add_position" => size_of::<params::AddPosition>(),
        "norm" => size_of::<params::Norm>(),
        "project__normed" => size_of::<params::ProjectNormed>(),
        "project" => size_of::<params::Project>(),
        "lora_down" => size_of::<params::LoraDown>(),
        "lora_embed" => size_of::<params::LoraEmbed>(),
        "lora_up" => size_of::<params::LoraUp>(),
        "rope" => size_of::<params::Rope>(),
        "kv_write" => size_of::<params::KvWrite>(),
        "attend" => size_of::<params::Attend>(),
        "activate" => size_of::<params::Activate>(),
        "add" => size_of::<params::Add>(),
        "select" => size_of::<params::Select>(),
        "sample" => size_of::<params::Sample>(),
        "rope_kv" => size_of::<params::RopeKv>(),
        "gate_up" => size_of::<params::GateUp>(),
        other => panic!("{other} has no parameters here"),
    };
    for (kernel, _, _, module) in variants().unwrap() {
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

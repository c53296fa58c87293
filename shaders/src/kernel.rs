//! The composed WGSL of every kernel.

/// How weights are stored, as far as a shader's text depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16, two per word.
    F16,
    /// bfloat16, two per word.
    Bf16,
    /// Panels of 4-bit codes.
    Nibbles,
    /// Panels of 8-bit codes.
    Bytes,
}

impl WeightType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Nibbles, Self::Bytes];
}

/// How LoRA factors are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FactorType {
    /// IEEE binary32.
    #[default]
    F32,
    /// IEEE binary16, times a power of two per factor.
    F16,
}

impl FactorType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A kernel: one entry point `main`, group 0 the step, group 1 what the kernel's file declares.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// As [`crate::for_each_kernel!`] lists it.
    pub name: &'static str,
    sources: &'static [[[&'static str; 5]; 2]; 2],
}

impl Kernel {
    /// The kernel of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }

    /// The kernel's WGSL, for devices with or without subgroup operations, and for weights and factors of these types.
    pub fn wgsl(&self, subgroups: bool, weights: WeightType, factors: FactorType) -> &'static str {
        self.sources[factors as usize][usize::from(subgroups)][weights as usize]
    }
}

#[allow(non_upper_case_globals, reason = "constants are named as the kernels' files")]
mod composed {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

macro_rules! kernels {
    ($($name:ident),+) => {
        /// All kernels, and variants: `NAME__variant` runs ops of the kernel NAME.
        pub static KERNELS: &[Kernel] = &[
            $(Kernel { name: stringify!($name), sources: &composed::$name }),+,
            Kernel { name: "project__paired", sources: &composed::project__paired },
            Kernel { name: "project__normed", sources: &composed::project__normed },
            Kernel { name: "project__normed_paired", sources: &composed::project__normed_paired },
            Kernel { name: "project__tiled", sources: &composed::project__tiled },
            Kernel { name: "project__tiled_half", sources: &composed::project__tiled_half },
            Kernel { name: "project__tiled_int8", sources: &composed::project__tiled_int8 },
            Kernel { name: "project__tiled_coop", sources: &composed::project__tiled_coop },
            Kernel { name: "project__normed_tiled", sources: &composed::project__normed_tiled },
            Kernel { name: "project__normed_tiled_half", sources: &composed::project__normed_tiled_half },
            Kernel { name: "project__normed_tiled_int8", sources: &composed::project__normed_tiled_int8 },
            Kernel { name: "project__normed_tiled_coop", sources: &composed::project__normed_tiled_coop },
            Kernel { name: "gate_up__tiled", sources: &composed::gate_up__tiled },
            Kernel { name: "gate_up__tiled_half", sources: &composed::gate_up__tiled_half },
            Kernel { name: "gate_up__tiled_int8", sources: &composed::gate_up__tiled_int8 },
            Kernel { name: "gate_up__tiled_coop", sources: &composed::gate_up__tiled_coop },
            Kernel { name: "attend__split", sources: &composed::attend__split },
            Kernel { name: "project__ordered", sources: &composed::project__ordered },
        ];
    };
}
crate::for_each_kernel!(kernels);

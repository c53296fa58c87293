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

/// A kernel: one entry point `main`, group 0 the step, group 1 what the kernel's file declares.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// As [`crate::for_each_kernel!`] lists it.
    pub name: &'static str,
    sources: &'static [[&'static str; 5]; 2],
}

impl Kernel {
    /// The kernel of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }

    /// The kernel's WGSL, for devices with or without subgroup operations, and for weights of this type.
    pub fn wgsl(&self, subgroups: bool, weights: WeightType) -> &'static str {
        self.sources[usize::from(subgroups)][weights as usize]
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
            Kernel { name: "project__normed", sources: &composed::project__normed },
        ];
    };
}
crate::for_each_kernel!(kernels);

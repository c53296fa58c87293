//! WGSL that measures what a device can do at most. Both have one entry point `main` and, in group 0, x to be read and a
//! word that is hardly ever written.

/// Reads x once, with any number of workgroups.
pub const READ: &str = include_str!("../wgsl/ceilings/read.wgsl");

/// Multiplies and adds in f32 [`MULTIPLY_ADDS`] times in each invocation; x is one vec4.
pub const MULTIPLY: &str = include_str!("../wgsl/ceilings/multiply.wgsl");

/// Multiply-adds of an invocation of [`MULTIPLY`]: 64 rounds of four vec4s, four times.
pub const MULTIPLY_ADDS: u64 = 64 * 4 * 4 * 4;

/// Invocations of a workgroup of both.
pub const INVOCATIONS: u64 = 256;

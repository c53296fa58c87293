//! Device limits as parameters, so that tests can run real plans on tiny ones.

/// What a backend must stay within. The default is "no limit but the device's own".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one binding (and buffer).
    pub binding: u64,
    /// Workgroups per dimension of a dispatch.
    pub workgroups: u32,
    /// Use subgroup operations where the device has them.
    pub subgroups: bool,
    /// Use f16 arithmetic and types where the device has them.
    pub f16: bool,
    /// For tests: every activation buffer is poisoned with NaN before each run through doors, and followed by guard
    /// words that [`super::Backend::check_guards`] compares.
    pub guards: bool,
    /// For tests: after so many steps the device is lost (a GPU's is destroyed), and the next step fails.
    pub lost_after: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            binding: u64::MAX,
            workgroups: u32::MAX,
            subgroups: true,
            f16: true,
            guards: false,
            lost_after: None,
        }
    }
}

impl Limits {
    /// 4 KiB bindings and 16 workgroups per dimension: small fixtures then exercise every split.
    pub fn tiny() -> Self {
        Self { binding: 4096, workgroups: 16, ..Self::default() }
    }

    /// The rows of a step whose widest tensor has `width` f32 elements; 0 when not even one row fits. Devices pad rows
    /// to whole vec4s.
    pub fn max_rows(&self, width: usize) -> usize {
        let row = width.max(1).next_multiple_of(4) as u64 * 4;
        usize::try_from(self.binding / row).unwrap_or(usize::MAX)
    }
}

//! Requests → steps. One [`Batch`] runs a list of requests to their ends, as many sequences at a time as fit.

mod batch;
mod sequence;

pub(crate) use batch::{Batch, Job, no_room};
pub(crate) use sequence::{PathLimits, ResolvedLora};

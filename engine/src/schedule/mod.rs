//! Requests → steps. A [`Scheduler`] takes requests at any time and runs them to their ends, as many paths at a time as
//! fit: [`order`] says who begins and who gets how many rows, [`Host`] is what it needs of the device.

mod deliver;
#[cfg(test)]
mod fake;
mod host;
mod job;
mod loras;
mod order;
mod scheduler;
mod sequence;
mod slots;
mod step;
#[cfg(test)]
mod tests;

pub(crate) use host::{Host, Room};
pub(crate) use job::Order;
pub(crate) use loras::{Choice, ResolvedLora};
pub(crate) use scheduler::{Load, Scheduler};
pub(crate) use sequence::PathLimits;
pub(crate) use slots::slot_for;

//! Which page of KV memory holds which positions of which sequence. Pure accounting: the pages themselves are a
//! backend's.
//!
//! A page holds [`PAGE`] positions, all layers and heads of them. A sequence has a table of pages; tables share pages
//! by reference. A page that is full and whose content is known is indexed by that content, so that later sequences
//! find it; when no table has it any more it stays until its memory is needed, the least recently used first.
//! Positions of a partial page that several tables share are written after the page was copied (copy on write).

mod content;
mod index;
mod ledger;
mod pages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use wattle_policy::StepShape;

pub use content::{Adapted, Digest, Origin};
pub(crate) use ledger::Ledger;
pub use pages::{PageCopy, PageStats, Pages, Room};
pub use wattle_shaders::PAGE;

/// Pages for a step's sequences, each with room for the step's last position: whole pages that they have in common by
/// reference, others of their own.
pub fn tables(shape: &StepShape) -> BTreeMap<u32, Vec<u32>> {
    let positions = shape.rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
    let each = pages_for(positions) as u32;
    let table = |sequence: u32| -> Vec<u32> {
        let prefix = shape.prefixes.get(&sequence).copied().unwrap_or_default();
        let shared = prefix.positions / PAGE as u32;
        (0..each).map(|page| if page < shared { prefix.of } else { sequence } * each + page).collect()
    };
    shape.rows.iter().map(|row| (row.sequence, table(row.sequence))).collect()
}

/// Pages that hold so many positions.
pub fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

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

pub use content::{Adapted, Digest, Origin};
pub(crate) use ledger::Ledger;
pub use pages::{PageCopy, PageStats, Pages, Room};
pub use wattle_shaders::PAGE;

/// Pages that hold so many positions.
pub fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

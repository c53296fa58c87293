//! LoRA on the embedding: t is a column of A.

use std::sync::Arc;

use wattle_engine::plan::{Extent, OpKind};

use crate::Case;
use crate::fixture::{Draft, Random, VOCAB, lora_rows, site, slots, step};

/// Copies are exact: the tolerance is 0.
pub fn cases() -> Vec<Case> {
    [1, 2, 7, 9].map(case).into()
}

fn case(n: usize) -> Case {
    let random = &mut Random(n as u64);
    let site = site(VOCAB, &[5]);
    let slots = slots(&site, random);
    let kind = OpKind::LoraEmbed { site: Arc::clone(&site) };
    let plan = Draft::new().map(kind, Extent::Rows, &[], site.t_width());
    let mut rows = lora_rows(n, random);
    // Both ends of the table.
    (rows[0].token, rows[n / 2].token) = (VOCAB as u32 - 1, 0);
    Case { slots, ..Case::new(format!("{n} rows"), plan, step(rows, 0, 1), vec![]) }
}

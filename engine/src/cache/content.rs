//! What the KV of a position depends on: its token, what wrote it, and all positions before it.

use wattle_shaders::LayerMask;

use super::PAGE;

/// SHA-256 of what an adapter or a gate is made of, whatever its name.
pub type Digest = [u8; 32];

/// What wrote a position's keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The row's class: generated, or else prompt. The two may sum in another order.
    pub generated: bool,
    /// Whether it was rotated with the long factor set (longrope).
    pub long_rope: bool,
    /// The adapter, unless LoRA was off: then base and adapters share.
    pub lora: Option<Adapted>,
}

/// LoRA that was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adapted {
    /// Of the adapter.
    pub adapter: Digest,
    /// Of the gate that took bits off the mask during the step, if there was one.
    pub gate: Option<Digest>,
    /// In which of the adapter's layers.
    pub mask: LayerMask,
}

/// The content of a page: exact, so that a hash that collides shares nothing. What lies before the page is the node of
/// the page before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    before: Option<u64>,
    tokens: Vec<u32>,
    /// From which position of the page on.
    origins: Vec<(usize, Origin)>,
}

/// The content of a sequence, as far as it was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// `None` where the device drew the token and has not told it yet.
    tokens: Vec<Option<u32>>,
    /// From which position on; ascending.
    origins: Vec<(usize, Origin)>,
}

impl Record {
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that are known.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().copied().flatten()
    }

    pub fn push(&mut self, token: Option<u32>, origin: Origin) {
        if self.origins.last().is_none_or(|(_, last)| *last != origin) {
            self.origins.push((self.tokens.len(), origin));
        }
        self.tokens.push(token);
    }

    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.origins.retain(|&(from, _)| from < len);
    }

    /// Takes a token that was drawn. Positions that were not written, or were known, are left alone.
    pub fn learn(&mut self, position: usize, token: u32) {
        if let Some(unknown) = self.tokens.get_mut(position) {
            unknown.get_or_insert(token);
        }
    }

    /// The content of a page behind node `before`; `None` unless it is full and known.
    pub fn key(&self, page: usize, before: Option<u64>) -> Option<Key> {
        let start = page * PAGE;
        let tokens = self.tokens.get(start..start + PAGE)?.iter().copied().collect::<Option<Vec<_>>>()?;
        let first = self.origins.partition_point(|&(from, _)| from <= start).checked_sub(1)?;
        let inside = self.origins[first..].iter().take_while(|&&(from, _)| from < start + PAGE);
        let origins = inside.map(|&(from, origin)| (from.saturating_sub(start), origin)).collect();
        Some(Key { before, tokens, origins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of a page whose second half has this origin.
    fn key(origin: Origin) -> Key {
        let mut record = Record::default();
        for position in 0..PAGE {
            let origin = if position < PAGE / 2 { Origin::default() } else { origin };
            record.push(Some(7), origin);
        }
        record.key(0, None).expect("a full page")
    }

    #[test]
    fn whatever_wrote_otherwise_makes_another_key() {
        let lora = Adapted { adapter: [1; 32], gate: None, mask: LayerMask::of([0, 2]) };
        let with = |lora| Origin { lora: Some(lora), ..Origin::default() };
        let origins = [
            Origin::default(),
            Origin { generated: true, ..Origin::default() },
            Origin { long_rope: true, ..Origin::default() },
            with(lora),
            with(Adapted { adapter: [2; 32], ..lora }),
            with(Adapted { gate: Some([3; 32]), ..lora }),
            with(Adapted { gate: Some([4; 32]), ..lora }),
            with(Adapted { mask: LayerMask::of([0]), ..lora }),
        ];
        for (i, one) in origins.into_iter().enumerate() {
            for (j, other) in origins.into_iter().enumerate() {
                assert_eq!(key(one) == key(other), i == j, "{one:?} and {other:?}");
            }
        }
    }
}

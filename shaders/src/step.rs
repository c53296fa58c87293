//! The rows of a step: what the host tells the device for every token it runs (DESIGN idea 4).

use bytemuck::{Pod, Zeroable};

/// The most transformer layers a model may have: a [`LayerMask`] has one bit for each and one for the rest.
pub const MAX_LAYERS: usize = 127;

/// The mask bit of projections that belong to no layer (head, `project_in`, `project_out`).
pub const OUTSIDE_LAYERS: u32 = 127;

/// Positions of a page of KV memory (`PAGE` in `shared/cache.wgsl`): a tile of a GPU's attention, and four panels of keys
/// on a CPU, so that a page is looked up once per tile. Larger ones waste more of a sequence's last page (half of one on
/// average), and share only longer prefixes.
pub const PAGE: usize = 64;

/// Stands for "none" in index fields: no adapter slot, not sampled.
pub const NO_INDEX: u32 = u32::MAX;

/// [`Row::flags`]: the token is the sequence's last sampled one, kept on the device; `token` is ignored.
pub const FROM_STATE: u32 = 1;
/// [`Row::flags`]: positions are rotated with the long factor set (longrope).
pub const LONG_ROPE: u32 = 2;
/// [`Row::flags`]: the row's class is *generated* (else *prompt*).
pub const GENERATED: u32 = 4;
/// [`Row::flags`]: gates decide where the row's adapter is on, within its mask.
pub const GATED: u32 = 8;

/// One bit for each layer, bit 127 for what lies outside the layers: is LoRA applied there?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerMask(pub u128);

impl LayerMask {
    /// LoRA nowhere.
    pub const NONE: Self = Self(0);
    /// LoRA wherever the adapter has factors.
    pub const ALL: Self = Self(u128::MAX);

    /// A mask with exactly these layers on (indices of [`MAX_LAYERS`] and above are ignored).
    pub fn of(layers: impl IntoIterator<Item = usize>) -> Self {
        Self(layers.into_iter().filter(|&l| l < MAX_LAYERS).fold(0, |bits, l| bits | 1 << l))
    }

    /// Whether the bit of `layer` (or [`OUTSIDE_LAYERS`]) is on.
    pub fn has(self, layer: u32) -> bool {
        layer < 128 && self.0 >> layer & 1 == 1
    }

    /// The mask as four words, lowest layers first, as shaders read it.
    pub fn words(self) -> [u32; 4] {
        [0, 32, 64, 96].map(|shift| (self.0 >> shift) as u32)
    }

    /// The mask of four words, the inverse of [`Self::words`].
    pub fn from_words(words: [u32; 4]) -> Self {
        Self(words.iter().rev().fold(0, |bits, &word| bits << 32 | u128::from(word)))
    }
}

/// One token of a step, 48 bytes. The host writes it; on the device gates clear mask bits and count them, for the rest
/// of the step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// Token id, below the vocabulary size; ignored with [`FROM_STATE`].
    pub token: u32,
    /// Position in the sequence, from 0.
    pub position: u32,
    /// Sequence: which KV cache and which device-owned state the row belongs to.
    pub sequence: u32,
    /// Adapter slot, or [`NO_INDEX`].
    pub slot: u32,
    /// Layer mask, see [`LayerMask::words`]. "Active from position t" is resolved by the host into this mask.
    pub lora: [u32; 4],
    /// [`FROM_STATE`], [`LONG_ROPE`], [`GENERATED`], [`GATED`].
    pub flags: u32,
    /// Mask bits that gates of this step have cleared; the host writes 0.
    pub closed: u32,
    /// Padding to the stride of a WGSL `array<Row>`.
    pub _pad: [u32; 2],
}

impl Row {
    /// A prompt row without LoRA.
    pub fn prompt(token: u32, position: u32, sequence: u32) -> Self {
        Self { token, position, sequence, slot: NO_INDEX, ..Self::zeroed() }
    }

    /// Whether LoRA is applied to this row in `layer` (or [`OUTSIDE_LAYERS`]).
    pub fn lora_in(&self, layer: u32) -> bool {
        self.slot != NO_INDEX && LayerMask::from_words(self.lora).has(layer)
    }
}

/// One row of the step whose logits are wanted, and how to draw from them; 48 bytes.
///
/// Penalty, temperature, top-k and top-p are applied in this order, as in transformers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Sample {
    /// Index into the step's rows.
    pub row: u32,
    /// The row's sequence: its state receives the drawn token.
    pub sequence: u32,
    /// Philox counter word 0: the path.
    pub path: u32,
    /// Philox counter word 1: the position of the token that is drawn.
    pub position: u32,
    /// Philox key, low word first.
    pub seed: [u32; 2],
    /// Divides the logits; 0 is greedy (the lowest id among equal maxima).
    pub temperature: f32,
    /// Keep logits not below the k-th largest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Logits of seen tokens are divided (positive) or multiplied (negative) by this; 1 leaves them.
    pub penalty: f32,
    /// Padding.
    pub _pad: [u32; 2],
}

/// What comes back for each sampled row of a step: 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Sampled {
    /// The drawn token.
    pub token: u32,
    /// Natural log of its probability under the model (softmax of the raw logits, before penalty and temperature).
    pub logprob: f32,
    /// 1 when a logit was NaN or infinite: the token then means nothing.
    pub invalid: u32,
    /// Layers in which a gate turned LoRA off for the row.
    pub closed: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_survives_its_words() {
        let mask = LayerMask::of([0, 31, 32, 63, 64, 100, 126]);
        assert_eq!(LayerMask::from_words(mask.words()), mask);
        assert!(mask.has(100) && !mask.has(101) && !mask.has(OUTSIDE_LAYERS) && !mask.has(4000));
        assert!(LayerMask::ALL.has(OUTSIDE_LAYERS));
    }

    #[test]
    fn rows_have_the_stride_that_shaders_expect() {
        assert_eq!((size_of::<Row>(), size_of::<Sample>(), size_of::<Sampled>()), (48, 48, 16));
    }
}

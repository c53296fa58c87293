//! Quantized matrices: 4 or 8 bits per element, laid out in panels of 16 rows. CPU kernels and shaders read the same
//! bytes, and a quantized file stores them as they lie.
//!
//! # The format
//!
//! A matrix \[rows, cols\] is cut into panels of 16 rows and blocks of 32 columns; the last panel and the last block
//! are filled up, so that they take the same space. Columns also form *groups*, which share a scale: 32, 64, 128, …
//! columns, or all of them. Three arrays hold it, each row-major in the order of its dimensions:
//!
//! | array | shape | holds |
//! |---|---|---|
//! | codes, 4 bits | u8 \[panels, blocks, 4, 16, 4\] | byte (v, r, b): low half column 4v + b of row r, high half column 16 + 4v + b |
//! | codes, 8 bits | i8 \[panels, blocks, 8, 16, 4\] | byte (v, r, b): column 4v + b of row r |
//! | scales | f32, f16 or bf16 \[panels, groups, 16\] | s of row r |
//! | offsets | f16 or u8 \[panels, groups, 16\], or nothing | see below |
//!
//! So 64 consecutive bytes of codes hold four columns (or four and four) of 16 rows: a vector register multiplies them
//! with four inputs at once, and its 16 sums are the 16 rows' own. The element of code c is, in f32,
//!
//! | offset | element | used by |
//! |---|---|---|
//! | [`Offset::Middle`] | s · (c − 8), or s · c for 8 bits | `q4_0`, `q8_0`, int4 and int8 per channel, symmetric checkpoints |
//! | [`Offset::Minimum`] | s · c + m, rounded once | `q4_1` |
//! | [`Offset::Zero`] | s · (c − z) | GPTQ, AWQ, asymmetric compressed-tensors |
//! | [`Offset::NormalFloat`] | s · [`NF4`]\[c\], rounded once | bitsandbytes nf4 |
//!
//! The first and the third are exact for f16 and bf16 scales. Filling has codes, scales and offsets of 0; kernels
//! never show its rows, and multiply its columns with inputs of 0.

use half::{bf16, f16};

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Columns of a block.
pub const BLOCK: usize = 32;

/// The 16 values of 4-bit NormalFloat (Dettmers et al. 2023, appendix E).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 0..=15.
    Four,
    /// −128..=127.
    Eight,
}

impl Bits {
    /// Bytes of the codes of a block of a panel.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Four => PANEL * BLOCK / 2,
            Self::Eight => PANEL * BLOCK,
        }
    }

    /// The unsigned code in the middle of the range.
    pub const fn middle(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// Where the code of an element of a matrix of `cols` columns lies: its byte, and whether it is the high half.
    pub fn code_at(self, cols: usize, row: usize, col: usize) -> (usize, bool) {
        let block = row / PANEL * cols.div_ceil(BLOCK) + col / BLOCK;
        let (high, within) = match self {
            Self::Four => (col % BLOCK >= BLOCK / 2, col % (BLOCK / 2)),
            Self::Eight => (false, col % BLOCK),
        };
        let word = within / 4 * PANEL + row % PANEL;
        (block * self.block_bytes() + word * 4 + within % 4, high)
    }
}

/// What turns scaled codes into elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offset {
    /// Codes are around the middle of their range.
    Middle,
    /// f16 per row and group.
    Minimum,
    /// u8 per row and group.
    Zero,
    /// Codes are indices of [`NF4`].
    NormalFloat,
}

impl Offset {
    /// Bytes per row and group.
    pub const fn size(self) -> usize {
        match self {
            Self::Middle | Self::NormalFloat => 0,
            Self::Minimum => 2,
            Self::Zero => 1,
        }
    }
}

/// The offsets of a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Offsets<'a> {
    /// [`Offset::Middle`].
    Middle,
    /// [`Offset::Minimum`].
    Minimum(&'a [f16]),
    /// [`Offset::Zero`].
    Zero(&'a [u8]),
    /// [`Offset::NormalFloat`].
    NormalFloat,
}

/// A quantized matrix (or consecutive rows of one).
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// Rows, without filling.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Columns that share a scale: a multiple of [`BLOCK`], or at least `cols`.
    pub group: usize,
    /// Bits of a code.
    pub bits: Bits,
    /// \[panels, blocks, …\].
    pub codes: &'a [u8],
    /// \[panels, groups, 16\].
    pub scales: Scales<'a>,
    /// \[panels, groups, 16\].
    pub offsets: Offsets<'a>,
}

/// Scales, as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl Scales<'_> {
    /// Scale `index` as f32.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values) => values[index].to_f32(),
            Self::Bf16(values) => values[index].to_f32(),
        }
    }
}

impl Panels<'_> {
    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Where the scale (and offset) of an element lies.
    pub fn scale_at(&self, row: usize, col: usize) -> usize {
        (row / PANEL * self.groups() + col / self.group) * PANEL + row % PANEL
    }

    /// The element at a row and column.
    pub fn element(&self, row: usize, col: usize) -> f32 {
        let (byte, high) = self.bits.code_at(self.cols, row, col);
        let byte = self.codes[byte];
        let code = match self.bits {
            Bits::Four => i32::from(byte >> (4 * u32::from(high)) & 15),
            Bits::Eight => i32::from(byte as i8),
        };
        self.meaning(self.scale_at(row, col))(code)
    }

    /// The elements of a row: \[cols\].
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let (panel, lane, size) = (row / PANEL, row % PANEL, self.bits.block_bytes());
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let meaning = self.meaning(self.scale_at(row, block * BLOCK));
            let codes = &self.codes[(panel * self.blocks() + block) * size..][..size];
            let mut elements = [0.0; BLOCK];
            for (v, word) in codes.chunks(4).skip(lane).step_by(PANEL).enumerate() {
                for (col, &byte) in (4 * v..).zip(word) {
                    match self.bits {
                        Bits::Four => {
                            elements[col] = meaning(i32::from(byte & 15));
                            elements[BLOCK / 2 + col] = meaning(i32::from(byte >> 4));
                        }
                        Bits::Eight => elements[col] = meaning(i32::from(byte as i8)),
                    }
                }
            }
            to.copy_from_slice(&elements[..to.len()]);
        }
    }

    /// The element that a code stands for, where the scale and the offset are those at `at`.
    fn meaning(&self, at: usize) -> impl Fn(i32) -> f32 {
        let scale = self.scales.get(at);
        let (middle, minimum) = match (self.offsets, self.bits) {
            (Offsets::Middle, Bits::Four) => (8, None),
            (Offsets::Zero(zeros), _) => (i32::from(zeros[at]), None),
            (Offsets::Minimum(minima), _) => (0, Some(minima[at].to_f32())),
            (Offsets::Middle | Offsets::NormalFloat, _) => (0, None),
        };
        let float = matches!(self.offsets, Offsets::NormalFloat);
        move |code| match minimum {
            Some(minimum) => scale.mul_add(code as f32, minimum),
            None if float => scale * NF4[(code & 15) as usize],
            None => scale * (code - middle) as f32,
        }
    }
}

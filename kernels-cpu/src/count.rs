//! Counting views: they hand accesses on and count the bytes, for the test of the plan's costs.

use std::cell::{Cell, RefCell};

use crate::{Read, Write};

/// What an operand is, as costs tell bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Base weights, biases, norm weights, tables.
    Weight,
    /// LoRA factors.
    Lora,
    /// KV cache, read.
    KvRead,
    /// KV cache, written.
    KvWrite,
    /// Activations, read.
    ActivationRead,
    /// Activations, written.
    ActivationWrite,
}

/// Bytes that went through the views of a [`Tally`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of distinct elements, by [`Class`].
    pub distinct: [u64; 6],
    /// Bytes of all accesses.
    pub accesses: u64,
}

/// Collects what its views count.
#[derive(Debug, Default)]
pub struct Tally(
    /// In bits.
    Cell<Counts>,
);

impl Tally {
    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let bits = self.0.get();
        Counts { distinct: bits.distinct.map(|bits| bits.div_ceil(8)), accesses: bits.accesses.div_ceil(8) }
    }
}

/// An operand, counted if it was made with a tally.
pub struct View<'a, T> {
    data: T,
    count: Option<Count<'a>>,
}

struct Count<'a> {
    tally: &'a Tally,
    class: Class,
    size: Size,
    /// One bit per element: was it touched?
    touched: RefCell<Vec<u64>>,
}

/// What an element takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its own bits.
    pub bits: usize,
    /// Columns of a row, columns that share a scale, and the scale's bits: they count with the group's first element.
    pub scale: Option<(usize, usize, usize)>,
}

impl Size {
    /// Elements of this many bytes.
    pub fn bytes(bytes: usize) -> Self {
        Self { bits: 8 * bytes, scale: None }
    }

    fn of(&self, index: usize) -> u64 {
        let scale = self.scale.filter(|(cols, group, _)| (index % cols).is_multiple_of(*group));
        (self.bits + scale.map_or(0, |(_, _, bits)| bits)) as u64
    }
}

impl<'a, T> View<'a, T> {
    /// A view of `data`, whose elements take `size`.
    pub fn new(data: T, class: Class, size: Size, tally: Option<&'a Tally>) -> Self {
        let count = tally.map(|tally| Count { tally, class, size, touched: RefCell::default() });
        Self { data, count }
    }
}

impl Count<'_> {
    fn touch(&self, index: usize) {
        let mut touched = self.touched.borrow_mut();
        if touched.len() <= index / 64 {
            touched.resize(index / 64 + 1, 0);
        }
        let (word, bit) = (&mut touched[index / 64], 1 << (index % 64));
        let mut counts = self.tally.0.get();
        let bits = self.size.of(index);
        counts.accesses += bits;
        if *word & bit == 0 {
            *word |= bit;
            counts.distinct[self.class as usize] += bits;
        }
        self.tally.0.set(counts);
    }
}

impl<T: Read> Read for View<'_, T> {
    fn get(&self, index: usize) -> f32 {
        self.count.iter().for_each(|count| count.touch(index));
        self.data.get(index)
    }
}

impl<T: Write> Write for View<'_, T> {
    fn set(&mut self, index: usize, value: f32) {
        self.count.iter().for_each(|count| count.touch(index));
        self.data.set(index, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_bytes_count_once_and_accesses_always() {
        let tally = Tally::default();
        let values = [1.0_f32; 200];
        let view = View::new(&values[..], Class::Lora, Size::bytes(2), Some(&tally));
        for index in [3, 3, 150] {
            view.get(index);
        }
        let mut expected = Counts { accesses: 6, ..Counts::default() };
        expected.distinct[Class::Lora as usize] = 4;
        assert_eq!(tally.counts(), expected);
    }
}

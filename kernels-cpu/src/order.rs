//! Matrices whose stored columns are in another order than their inputs.

/// Which input each stored column of a matrix multiplies: a permutation.
///
/// GPTQ with act-order gives each input a group of its own choice. Columns that are stored sorted by group share
/// scales as those of any other matrix do, and kernels sort their inputs instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnOrder {
    /// Stored column → input.
    inputs: Vec<u32>,
    /// Input → stored column.
    columns: Vec<u32>,
}

impl ColumnOrder {
    /// The order in which stored column `c` multiplies input `inputs[c]`; `None` unless each input occurs once.
    pub fn new(inputs: Vec<u32>) -> Option<Self> {
        let mut columns = vec![u32::MAX; inputs.len()];
        for (column, &input) in inputs.iter().enumerate() {
            let place = columns.get_mut(input as usize).filter(|place| **place == u32::MAX)?;
            *place = u32::try_from(column).ok()?;
        }
        Some(Self { inputs, columns })
    }

    /// How many columns there are.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// For each stored column its input.
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// The stored column of an input.
    pub fn column(&self, input: usize) -> usize {
        self.columns[input] as usize
    }

    /// Lines of inputs, each sorted as the columns are.
    pub(crate) fn sorted(&self, x: &[f32]) -> Vec<f32> {
        let line = |x: &[f32]| self.inputs.iter().map(|&input| x[input as usize]).collect::<Vec<_>>();
        x.chunks(self.inputs.len().max(1)).flat_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_permutations_are_orders() {
        let order = ColumnOrder::new(vec![2, 0, 1]).unwrap();
        assert_eq!((order.inputs(), order.columns()), (&[2, 0, 1][..], 3));
        assert_eq!([0, 1, 2].map(|input| order.column(input)), [1, 2, 0]);
        assert_eq!(order.sorted(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
        for wrong in [vec![0, 0], vec![1, 2], vec![u32::MAX]] {
            assert_eq!(ColumnOrder::new(wrong), None);
        }
    }
}

//! Which inputs share a scale.

use std::sync::Arc;

use wattle_kernels_cpu::ColumnOrder;

use super::words::words;
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;

/// The order that sorts inputs by group, from the tensor `name`, I32 \[cols\]: the group of each input. `None` where
/// they are sorted already. Inputs of one group stay in their order.
///
/// # Errors
/// A group that does not exist, or has not `group` inputs (the last one: what is left), so that sorted groups would
/// not begin at multiples of `group`.
pub(super) fn order(
    from: &Checkpoint,
    name: &str,
    cols: usize,
    group: usize,
) -> Result<Option<Arc<ColumnOrder>>> {
    let bytes = words(from, name, &[cols])?;
    let of: Vec<i32> = bytes.as_ref().as_chunks().0.iter().copied().map(i32::from_le_bytes).collect();
    let order = sorted(&of, group).map_err(|reason| from.error(name, reason))?;
    Ok(order.and_then(ColumnOrder::new).map(Arc::new))
}

/// The inputs, sorted by group; `None` where they are already.
fn sorted(of: &[i32], group: usize) -> Result<Option<Vec<u32>>, String> {
    let groups = of.len().div_ceil(group);
    let mut next: Vec<usize> = (0..groups).map(|index| index * group).collect();
    let mut inputs = vec![0; of.len()];
    for (input, &stated) in of.iter().enumerate() {
        let Some(index) = usize::try_from(stated).ok().filter(|&index| index < groups) else {
            return Err(format!("puts input {input} into group {stated}; expected 0 to {}", groups - 1));
        };
        let (first, end) = (index * group, of.len().min((index + 1) * group));
        if next[index] == end {
            let size = end - first;
            return Err(format!("puts more than {size} inputs into group {index}; groups have {group}"));
        }
        inputs[next[index]] = input as u32;
        next[index] += 1;
    }
    let unchanged = inputs.iter().enumerate().all(|(column, &input)| column == input as usize);
    Ok((!unchanged).then_some(inputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_sorted_by_group() {
        assert_eq!(sorted(&[0, 0, 1, 1, 2], 2), Ok(None));
        assert_eq!(sorted(&[0; 7], 7), Ok(None));
        assert_eq!(sorted(&[1, 0, 2, 1, 0], 2), Ok(Some(vec![1, 4, 0, 3, 2])));
    }

    #[test]
    fn groups_that_are_none() {
        assert!(sorted(&[0, 0, 1, 3], 2).unwrap_err().contains("group 3"));
        assert!(sorted(&[0, 0, -1, 1], 2).unwrap_err().contains("input 2 into group -1"));
        assert!(sorted(&[0, 0, 0, 1], 2).unwrap_err().contains("more than 2 inputs into group 0"));
        assert!(sorted(&[0, 0, 1, 2, 2], 2).unwrap_err().contains("more than 1 inputs into group 2"));
    }
}

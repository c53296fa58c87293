//! The page tables that a backend was told.

use super::{Capacity, Step, validate};
use crate::cache::{PAGE, pages_for};
use crate::error::{Error, Result};

/// Which pages each sequence has: u32 \[sequences, stride\], as kernels read them.
#[derive(Debug)]
pub(crate) struct PageTables {
    pages: Vec<u32>,
    /// Per sequence, how many entries count.
    lens: Vec<usize>,
    /// Pages of the longest sequence.
    stride: usize,
    /// Pages that there are.
    count: usize,
}

impl PageTables {
    /// Until they are set, the tables divide the pages among the sequences, in order, as far as they go.
    ///
    /// # Errors
    /// [`Error::Device`] when the tables do not fit the memory.
    pub fn new(capacity: &Capacity) -> Result<Self> {
        let stride = pages_for(capacity.context);
        let (mut pages, mut lens) = (Vec::new(), Vec::new());
        let reserved = capacity.sequences.checked_mul(stride).map(|len| pages.try_reserve_exact(len));
        if !matches!(reserved, Some(Ok(()))) || lens.try_reserve_exact(capacity.sequences).is_err() {
            return Err(Error::device("host", "no memory for the page tables of the KV cache"));
        }
        for sequence in 0..capacity.sequences {
            let first = (sequence * stride).min(capacity.pages);
            let len = stride.min(capacity.pages - first);
            pages.extend((0..stride).map(|page| if page < len { (first + page) as u32 } else { 0 }));
            lens.push(len);
        }
        Ok(Self { pages, lens, stride, count: capacity.pages })
    }

    /// Gives a sequence its pages.
    ///
    /// # Errors
    /// [`Error::Value`] that names what does not exist.
    pub fn set(&mut self, sequence: u32, table: &[u32]) -> Result<()> {
        let at = sequence as usize;
        validate::below("sequence", at, self.lens.len())?;
        validate::below("pages", table.len(), self.stride + 1)?;
        for (index, &page) in table.iter().enumerate() {
            validate::below(format!("page {index}"), page as usize, self.count)?;
        }
        self.pages[at * self.stride..][..table.len()].copy_from_slice(table);
        self.lens[at] = table.len();
        Ok(())
    }

    /// Entries of a table, used or not.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All tables.
    pub fn all(&self) -> &[u32] {
        &self.pages
    }

    /// The pages of a sequence.
    #[cfg(feature = "gpu")]
    pub fn table(&self, sequence: u32) -> &[u32] {
        let at = sequence as usize;
        &self.pages[at * self.stride..][..self.lens[at]]
    }

    /// Some pages of a sequence, as far as it has them.
    #[cfg(feature = "gpu")]
    pub fn part(&self, sequence: u32, range: std::ops::Range<usize>) -> &[u32] {
        let table = self.table(sequence);
        let end = range.end.min(table.len());
        &table[range.start.min(end)..end]
    }

    /// Whether a page exists.
    pub fn check_page(&self, page: u32) -> Result<()> {
        validate::below("page", page as usize, self.count)
    }

    /// Whether a sequence has pages for its first positions.
    pub fn check(&self, sequence: u32, positions: usize) -> Result<()> {
        validate::below("sequence", sequence as usize, self.lens.len())?;
        validate::below("positions", positions, self.lens[sequence as usize] * PAGE + 1)
    }

    /// Whether every row's position and those before it have pages.
    pub fn check_step(&self, step: &Step) -> Result<()> {
        for (index, row) in step.rows.iter().enumerate() {
            let len = self.lens.get(row.sequence as usize).copied().unwrap_or(0) * PAGE;
            validate::below(format!("step.rows[{index}].position"), row.position as usize, len)?;
        }
        Ok(())
    }
}

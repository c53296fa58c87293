//! Aligned text tables, which are Markdown too.

use std::io::{self, Write};

/// Rows of cells under a header; columns of numbers are aligned to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with only a header.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Adds a column: a cell for every row.
    pub fn column(&mut self, header: &str, cells: impl Iterator<Item = String>) {
        let cells = std::iter::once(header.to_owned()).chain(cells);
        self.rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
    }

    /// All rows, the header first.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Writes it as a Markdown table.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some((header, rows)) = self.rows.split_first() else { return Ok(()) };
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let columns = 0..header.len();
        let widths: Vec<usize> = columns
            .clone()
            .map(|c| cells(c).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let number = |cell: &String| cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit());
        let right: Vec<bool> = columns.map(|c| cells(c).skip(1).all(number)).collect();
        let mut line = |row: &[String]| {
            let pad = |(c, cell): (usize, &String)| match right[c] {
                true => format!("{cell:>width$}", width = widths[c]),
                false => format!("{cell:<width$}", width = widths[c]),
            };
            writeln!(out, "| {} |", row.iter().enumerate().map(pad).collect::<Vec<_>>().join(" | "))
        };
        line(header)?;
        let rule = |(c, &width): (usize, &usize)| {
            if right[c] { format!("{}:", "-".repeat(width - 1)) } else { "-".repeat(width) }
        };
        line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>())?;
        rows.iter().try_for_each(|row| line(row))
    }
}

/// A share as a cell shows it.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_are_aligned_to_the_right() {
        let mut table = Table::new(["op", "bytes"]);
        table.row(["embed".into(), "7".into()]);
        table.row(["q".into(), "123456".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "| op    |  bytes |\n| ----- | -----: |\n| embed |      7 |\n| q     | 123456 |\n");
    }
}

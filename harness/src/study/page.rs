//! What a study leaves: JSON, a table, and an HTML page with its plots.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::table::Table;

/// A study's results for a reader.
pub(super) struct Page {
    name: &'static str,
    title: &'static str,
    /// What was done, and what is simulated in it.
    notes: Vec<String>,
    /// Captions with SVG.
    plots: Vec<(String, String)>,
    tables: Vec<(String, Table)>,
}

impl Page {
    /// Empty; files are called `name`.
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title, notes: Vec::new(), plots: Vec::new(), tables: Vec::new() }
    }

    /// Adds a paragraph.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a plot.
    pub fn plot(&mut self, caption: impl Into<String>, svg: String) {
        self.plots.push((caption.into(), svg));
    }

    /// Adds a table.
    pub fn table(&mut self, caption: impl Into<String>, table: Table) {
        self.tables.push((caption.into(), table));
    }

    /// Writes `NAME.json` and `NAME.html` into a folder, and the tables for a reader.
    pub fn write(&self, dir: &Path, data: &impl Serialize, out: &mut dyn Write) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|error| Error::file(dir, error))?;
        let save = |ending: &str, text: String| {
            let file = dir.join(format!("{}.{ending}", self.name));
            std::fs::write(&file, text).map_err(|error| Error::file(&file, error))?;
            Ok::<_, Error>(file)
        };
        let json = serde_json::to_string_pretty(data).map_err(std::io::Error::from)?;
        let json = save("json", json + "\n")?;
        let html = save("html", self.html())?;
        for (caption, table) in &self.tables {
            writeln!(out, "{caption}:\n")?;
            table.write(out)?;
            writeln!(out)?;
        }
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        Ok(writeln!(out, "\n{} and {}", json.display(), html.display())?)
    }

    fn html(&self) -> String {
        let mut page = String::from("<!doctype html>\n<meta charset=\"utf-8\">\n");
        let style = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
                     table{border-collapse:collapse;font-size:14px}td,th{border:1px solid #ccc;padding:2px 8px}\
                     svg{max-width:100%;height:auto}";
        // Writing to a String cannot fail.
        let _ =
            write!(page, "<title>{0}</title>\n<style>{style}</style>\n<h1>{0}</h1>\n", escaped(self.title));
        for note in &self.notes {
            let _ = writeln!(page, "<p>{}</p>", escaped(note));
        }
        for (caption, svg) in &self.plots {
            let _ = writeln!(page, "<h2>{}</h2>\n{svg}", escaped(caption));
        }
        for (caption, table) in &self.tables {
            let _ = writeln!(page, "<h2>{}</h2>\n<table>", escaped(caption));
            for (index, row) in table.rows().iter().enumerate() {
                let tag = if index == 0 { "th" } else { "td" };
                let cell = |cell: &String| format!("<{tag}>{}</{tag}>", escaped(cell));
                let _ = writeln!(page, "<tr>{}</tr>", row.iter().map(cell).collect::<String>());
            }
            page.push_str("</table>\n");
        }
        page
    }
}

/// Text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_everything_and_escapes_it() {
        let mut page = Page::new("toy", "A < B");
        page.note("simulated & said so");
        page.plot("a plot", "<svg></svg>".into());
        let mut table = Table::new(["device", "J"]);
        table.row(["<watch>".into(), "1".into()]);
        page.table("a table", table);
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        page.write(&folder.path().join("new"), &serde_json::json!({ "rows": [1] }), &mut out).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join("new").join(name)).unwrap();
        let html = read("toy.html");
        for part in
            ["A &lt; B", "simulated &amp; said so", "<svg></svg>", "<td>&lt;watch&gt;</td>", "<th>J</th>"]
        {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(read("toy.json").contains("rows"));
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("| <watch> |") && text.contains("toy.html"), "{text}");
    }
}

//! The folder that records are written to.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// A folder, and what was written to it today.
pub(super) struct Records {
    dir: PathBuf,
    date: String,
    /// Names, and what they hold.
    files: Vec<(String, String)>,
}

impl Records {
    /// The folder, which is made if it is not there.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| Error::file(dir, format!("cannot be made: {error}")))?;
        let date = jiff::Zoned::now().date().to_string();
        Ok(Self { dir: dir.to_owned(), date, files: Vec::new() })
    }

    /// Writes comma-separated values to DATE-NAME.csv, or DATE-NAME-2.csv where that is there already, and so on.
    pub fn csv(&mut self, name: &str, holds: &str, lines: &[impl Serialize]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let (file, path) = self.create(name)?;
        let failed = |error: csv::Error| Error::file(&path, error);
        let mut writer = csv::Writer::from_writer(file);
        lines.iter().try_for_each(|line| writer.serialize(line)).map_err(failed)?;
        writer.flush().map_err(|error| Error::file(&path, error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.files.push((name, holds.to_owned()));
        Ok(())
    }

    fn create(&self, name: &str) -> Result<(File, PathBuf)> {
        /// Runs of a day.
        const MOST: usize = 1000;
        for number in 1..=MOST {
            let number = if number == 1 { String::new() } else { format!("-{number}") };
            let path = self.dir.join(format!("{}-{name}{number}.csv", self.date));
            match File::create_new(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => return other.map(|file| (file, path.clone())).map_err(|e| Error::file(path, e)),
            }
        }
        Err(Error::file(&self.dir, format!("has {MOST} records of {} and {name}", self.date)))
    }

    /// Adds a section to README.md: `facts`, the files, and `text`.
    pub fn readme(&self, title: &str, facts: &[String], text: &str) -> Result<()> {
        let path = self.dir.join("README.md");
        let files: String =
            self.files.iter().map(|(name, holds)| format!("| `{name}` | {holds} |\n")).collect();
        let heading = if path.exists() { String::new() } else { format!("# {title}\n") };
        let facts: String = facts.iter().map(|fact| format!("- {fact}\n")).collect();
        let section =
            format!("{heading}\n## {}\n\n{facts}\n| file | holds |\n|---|---|\n{files}\n{text}", self.date);
        let write =
            || OpenOptions::new().append(true).create(true).open(&path)?.write_all(section.as_bytes());
        write().map_err(|error| Error::file(&path, format!("cannot be written: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        let mut records = Records::open(&dir).unwrap();
        records.csv("x", "first", &[(1, 2)]).unwrap();
        records.csv("x", "second", &[(3, 4)]).unwrap();
        records.csv("y", "nothing", &[] as &[(u8, u8)]).unwrap();
        let read = |name: &str| fs::read_to_string(dir.join(format!("{}-{name}", records.date))).unwrap();
        assert_eq!((read("x.csv").as_str(), read("x-2.csv").as_str()), ("1,2\n", "3,4\n"));
        records.readme("A device", &["one".into()], "one\n").unwrap();
        records.readme("A device", &["two".into()], "two\n").unwrap();
        let text = fs::read_to_string(dir.join("README.md")).unwrap();
        assert_eq!(text.matches("# A device\n").count(), 1);
        assert!(text.contains("- one\n") && text.contains("| second |") && text.ends_with("two\n"), "{text}");
        assert!(!text.contains("nothing"));
    }
}

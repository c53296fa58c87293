//! Results of `bench`, as they are written, and read again to be compared with.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::read_text;

/// Of a record's file: more than anybody measures.
const MAX_BYTES: u64 = 64 << 20;

/// One line of results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub test: String,
    pub tokens: usize,
    pub paths: u32,
    pub adapters: u32,
    pub rank: u32,
    pub lora_layers: String,
    pub backend: String,
    pub device: String,
    pub quant: String,
    pub threads: usize,
    /// Median over the repetitions, summed over paths.
    pub tokens_per_second: f64,
    /// Largest minus smallest, as a share of the median.
    pub spread: f64,
    /// Of the read bandwidth measured for as many bytes as a step moves; `None` for prompts.
    pub bandwidth_share: Option<f64>,
    /// With `--paired`: the speed as a multiple of the base's, and its 95 % interval.
    #[serde(default)]
    pub of_base: Option<f64>,
    #[serde(default)]
    pub of_base_low: Option<f64>,
    #[serde(default)]
    pub of_base_high: Option<f64>,
    /// The process's peak so far.
    pub peak_bytes: Option<u64>,
    /// The model's directory or the shape's name; older records do not say this and what follows.
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub precision: Option<String>,
    #[serde(default)]
    pub kv: Option<String>,
    /// Positions in the cache before decoding began.
    #[serde(default)]
    pub depth: Option<usize>,
}

impl Line {
    /// Whether both measured the same, in the same place, as far as both say it.
    fn is_like(&self, other: &Self) -> bool {
        let case = |line: &Self| [line.tokens, line.threads].map(|n| n as u64);
        let lora = |line: &Self| [line.paths, line.adapters, line.rank];
        let texts = |line: &Self| {
            [&line.test, &line.lora_layers, &line.backend, &line.device, &line.quant].map(String::clone)
        };
        let said = agree(&self.model, &other.model)
            && agree(&self.precision, &other.precision)
            && agree(&self.kv, &other.kv)
            && agree(&self.depth, &other.depth);
        said && case(self) == case(other) && lora(self) == lora(other) && texts(self) == texts(other)
    }
}

/// Whether two say the same, or one says nothing.
fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
    one.is_none() || other.is_none() || one == other
}

/// Comma-separated values under a header.
pub(crate) fn write_csv(lines: &[impl Serialize], out: &mut dyn Write) -> Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for line in lines {
        writer.serialize(line).map_err(std::io::Error::from)?;
    }
    Ok(writer.flush()?)
}

/// Results of an earlier run, from a file that `-o csv` wrote.
pub(super) struct Record {
    path: PathBuf,
    lines: Vec<Line>,
}

impl Record {
    /// Reads one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, MAX_BYTES)?;
        let lines = csv::Reader::from_reader(text.as_bytes()).into_deserialize();
        let lines: Vec<Line> =
            lines.collect::<Result<_, csv::Error>>().map_err(|error| Error::file(path, error))?;
        let is_speed = |speed: f64| speed.is_finite() && speed > 0.0;
        if let Some(line) = lines.iter().find(|line| !is_speed(line.tokens_per_second)) {
            let speed = line.tokens_per_second;
            return Err(Error::file(path, format!("tokens_per_second: {speed}, expected a number above 0")));
        }
        if lines.is_empty() {
            return Err(Error::file(path, "has no results; expected what `bench -o csv` writes"));
        }
        Ok(Self { path: path.to_owned(), lines })
    }

    /// What became of each line.
    pub fn changes(&self, lines: &[Line]) -> Vec<Change> {
        let change = |line: &Line| {
            let before = self.lines.iter().rfind(|before| before.is_like(line));
            before.map_or(Change::Unknown, |before| Change::of(before, line))
        };
        lines.iter().map(change).collect()
    }

    /// The answer to a comparison in which nothing could be compared.
    pub fn unlike(&self) -> Error {
        let reason =
            "has none of these tests, with this model, device, quant, precision, depth and number of threads";
        Error::file(&self.path, reason)
    }
}

/// A rate as a multiple of the recorded one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// The record has no such line.
    Unknown,
    /// No further apart than the repetitions are among themselves.
    Same(f64),
    Faster(f64),
    Slower(f64),
}

impl Change {
    fn of(before: &Line, now: &Line) -> Self {
        let ratio = now.tokens_per_second / before.tokens_per_second;
        // Half of a spread is how far repetitions lie from their middle.
        let noise = (before.spread + now.spread) / 2.0;
        match ratio {
            _ if ratio < 1.0 - noise => Self::Slower(ratio),
            _ if ratio > 1.0 + noise => Self::Faster(ratio),
            _ => Self::Same(ratio),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not in it"),
            Self::Same(ratio) => write!(f, "{ratio:.2}"),
            Self::Faster(ratio) => write!(f, "{ratio:.2} faster"),
            Self::Slower(ratio) => write!(f, "{ratio:.2} slower"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(tokens_per_second: f64, spread: f64) -> Line {
        let text = || "a \"text\", with commas".to_owned();
        Line {
            test: text(),
            tokens: 1,
            paths: 2,
            adapters: 3,
            rank: 4,
            lora_layers: text(),
            backend: text(),
            device: text(),
            quant: text(),
            threads: 5,
            model: Some(text()),
            precision: None,
            kv: None,
            depth: Some(0),
            tokens_per_second,
            spread,
            bandwidth_share: None,
            of_base: None,
            of_base_low: None,
            of_base_high: None,
            peak_bytes: Some(6),
        }
    }

    #[test]
    fn what_was_written_is_compared_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.csv");
        let mut text = Vec::new();
        write_csv(&[line(50.0, 0.0), line(100.0, 0.02)], &mut text).unwrap();
        std::fs::write(&path, text).unwrap();
        let record = Record::read(&path).unwrap();
        let deeper = Line { depth: Some(7), ..line(100.0, 0.0) };
        assert_eq!(record.changes(&[deeper]), [Change::Unknown]);
        let silent = Line { model: None, depth: None, ..line(100.0, 0.0) };
        assert_eq!(record.changes(&[silent]), [Change::Same(1.0)]);
        let other = Line { threads: 6, ..line(100.0, 0.0) };
        // The last of equal lines counts.
        let changes =
            record.changes(&[line(97.0, 0.02), line(97.0, 0.06), line(150.0, 0.5), line(99.5, 0.0), other]);
        let expected = [
            Change::Slower(0.97),
            Change::Same(0.97),
            Change::Faster(1.5),
            Change::Same(0.995),
            Change::Unknown,
        ];
        assert_eq!(changes, expected);
        assert_eq!(changes[0].to_string(), "0.97 slower");
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.csv");
        for text in ["test,tokens\nprompt,1\n", "\u{0}", "test,tokens\nprompt,x\n"] {
            std::fs::write(&path, text).unwrap();
            let read = Record::read(&path).map(|record| record.lines.len());
            assert!(matches!(&read, Err(e) if e.to_string().contains("record.csv")), "{text:?}");
        }
        for speed in [0.0, -1.0, f64::NAN] {
            let mut text = Vec::new();
            write_csv(&[line(speed, 0.0)], &mut text).unwrap();
            std::fs::write(&path, text).unwrap();
            assert!(Record::read(&path).map(drop).unwrap_err().to_string().contains("tokens_per_second"));
        }
        assert!(Record::read(folder.path()).is_err());
        assert!(Record::read(&folder.path().join("none.csv")).is_err());
    }
}

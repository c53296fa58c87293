//! Tasks: JSON lines of prompts and their right answers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::shipped;

/// What goes before the answer in what a model says.
pub(crate) const MARK: &str = "Answer:";

/// Of a task's file: more than anybody evaluates.
const MAX_BYTES: u64 = 64 << 20;

/// One line of a task.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Problem {
    /// What the model is asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Steps of the solution, where the task has them.
    pub steps: Option<u32>,
}

impl Problem {
    /// Whether a model's text ends in the right answer.
    pub fn is_answered_by(&self, text: &str) -> bool {
        answer(text) == self.answer.trim()
    }
}

/// The answer in a text: what follows the last `Answer:`, or all of it.
pub(crate) fn answer(text: &str) -> &str {
    text.rsplit_once(MARK).map_or(text, |(_, answer)| answer).trim()
}

/// A task with its problems.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Task {
    /// Name of the file, without `.jsonl`.
    pub name: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Task {
    /// Reads `{"prompt", "answer"}` lines (`"steps"` may be there).
    pub fn read(file: &Path) -> Result<Self> {
        let text = read_text(file, MAX_BYTES)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(index, line): (usize, &str)| {
            let reason = |error| Error::file(file, format!("line {}: {error}", index + 1));
            serde_json::from_str(line).map_err(reason)
        };
        let problems: Vec<Problem> = lines.map(parse).collect::<Result<_>>()?;
        if problems.is_empty() {
            return Err(Error::file(file, "it has no problems; expected lines of {\"prompt\", \"answer\"}"));
        }
        let name = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { name, problems })
    }

    /// The labels, sorted, where every answer is one of a few; `None` where answers are worked out.
    pub fn labels(&self) -> Option<Vec<&str>> {
        if self.problems.iter().any(|problem| problem.steps.is_some()) {
            return None;
        }
        let mut labels: Vec<&str> = self.problems.iter().map(|problem| problem.answer.trim()).collect();
        labels.sort_unstable();
        labels.dedup();
        (labels.len() <= 10).then_some(labels)
    }
}

/// The files that `eval` runs when none is given: 500 problems of two to five steps, and 300 labels.
///
/// # Errors
/// [`Error::Engine`] where the model is not the shipped one and has no tasks of its own.
pub(crate) fn shipped_files(model: &Path) -> Result<[PathBuf; 2]> {
    let folder = shipped::tasks(model);
    if !folder.is_dir() {
        return Err(Error::file(
            folder,
            "no such folder: the model comes without tasks, which have to be given",
        ));
    }
    Ok(["problems.jsonl", "labels.jsonl"].map(|name| folder.join(name)))
}

/// The word problem that `generate` solves when it is asked nothing: the first of three steps.
pub(crate) fn example(model: &Path) -> Result<Problem> {
    let file = shipped::tasks(model).join("problems.jsonl");
    let problems = Task::read(&file)?.problems;
    let found = problems.into_iter().find(|problem| problem.steps == Some(3));
    found.ok_or_else(|| Error::file(&file, "no problem of three steps"))
}

/// How well labels were given: each averaged over the labels, none weighing more than another (macro average).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LabelScores {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

impl LabelScores {
    /// From pairs of the right label and what was said; a label that is never said has precision 0.
    pub fn new(labels: &[&str], pairs: &[(&str, &str)]) -> Self {
        let mut sums = Self { precision: 0.0, recall: 0.0, f1: 0.0 };
        for label in labels {
            let count =
                |test: &dyn Fn(&(&str, &str)) -> bool| pairs.iter().filter(|pair| test(pair)).count() as f64;
            let hits = count(&|(right, said)| right == label && said == label);
            let share = |of: f64| if of > 0.0 { hits / of } else { 0.0 };
            let (right, said) = (count(&|(right, _)| right == label), count(&|(_, said)| said == label));
            sums.precision += share(said);
            sums.recall += share(right);
            sums.f1 += if right + said > 0.0 { 2.0 * hits / (right + said) } else { 0.0 };
        }
        let n = labels.len().max(1) as f64;
        Self { precision: sums.precision / n, recall: sums.recall / n, f1: sums.f1 / n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_follows_the_last_mark() {
        assert_eq!(answer(" Answer in steps: 1 + 2 = 3. Answer: 3 \n"), "3");
        assert_eq!(answer(" three"), "three");
    }

    #[test]
    fn scores_are_averages_over_labels() {
        // a: 2 of 3 found, 2 of 2 said; b: 1 of 1 found, 1 of 2 said.
        let pairs = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b")];
        let scores = LabelScores::new(&["a", "b"], &pairs);
        assert_eq!((scores.precision, scores.recall), ((1.0 + 0.5) / 2.0, (2.0 / 3.0 + 1.0) / 2.0));
        assert!((scores.f1 - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        let never = LabelScores::new(&["a", "b"], &[("a", "c"), ("b", "c")]);
        assert_eq!(never, LabelScores { precision: 0.0, recall: 0.0, f1: 0.0 });
    }

    #[test]
    fn a_bad_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.jsonl");
        std::fs::write(&file, "{\"prompt\": \"1 + 1?\", \"answer\": \"2\"}\n\n{\"prompt\": 3}\n").unwrap();
        let message = Task::read(&file).unwrap_err().to_string();
        assert!(message.contains("t.jsonl") && message.contains("line 3"), "{message}");
        std::fs::write(&file, "\n").unwrap();
        assert!(Task::read(&file).is_err());
    }
}

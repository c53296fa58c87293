//! Paths that vote on an answer (self-consistency, Wang et al. 2023, arXiv 2203.11171, equation 1: the most frequent one).

use std::collections::BTreeMap;

use crate::generation::Path;

/// How paths vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRule {
    /// The answer is what follows the last occurrence of this text, without white space around it; a path without the
    /// text has no vote. Empty: the answer is all of the text.
    pub marker: String,
    /// End the other paths as soon as they cannot change the winner any more ([`crate::Finish::Stop`]).
    pub early: bool,
}

impl VoteRule {
    /// The answer in a path's text, if it gives one.
    pub fn answer<'t>(&self, text: &'t str) -> Option<&'t str> {
        let answer = if self.marker.is_empty() { text } else { text.rsplit_once(&self.marker)?.1 };
        Some(answer.trim()).filter(|answer| !answer.is_empty())
    }
}

/// An answer and who gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The answer.
    pub text: String,
    /// The paths that gave it, in ascending order.
    pub paths: Vec<u32>,
    /// The highest mean log-probability of these paths.
    pub mean_logprob: f64,
}

/// How paths voted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// The winner first: most votes, and among equals the highest mean log-probability, then the lowest path. With an
    /// early end the later answers may lack votes, but not the winner's place.
    pub answers: Vec<Answer>,
    /// Paths that ended without an answer.
    pub without: u32,
    /// Paths that were ended, or never begun, because the vote was decided.
    pub spared: u32,
}

impl Tally {
    /// The answer that won; `None` when no path gave one.
    pub fn winner(&self) -> Option<&Answer> {
        self.answers.first()
    }
}

/// Votes as they come in.
#[derive(Clone, Debug)]
pub(crate) struct Ballot {
    rule: VoteRule,
    votes: BTreeMap<String, Answer>,
    without: u32,
    spared: u32,
    /// Paths that have not voted yet.
    open: u32,
}

impl Ballot {
    pub fn new(rule: VoteRule, paths: u32) -> Self {
        Self { rule, votes: BTreeMap::new(), without: 0, spared: 0, open: paths }
    }

    /// Takes the vote of a path that has ended by itself.
    pub fn cast(&mut self, index: u32, path: &Path) {
        self.open = self.open.saturating_sub(1);
        let Some(answer) = path.text.as_deref().and_then(|text| self.rule.answer(text)) else {
            self.without += 1;
            return;
        };
        let mean_logprob = path.mean_logprob();
        let none = || Answer { text: answer.to_owned(), paths: Vec::new(), mean_logprob: f64::NEG_INFINITY };
        let entry = self.votes.entry(answer.to_owned()).or_insert_with(none);
        let place = entry.paths.partition_point(|&path| path < index);
        entry.paths.insert(place, index);
        entry.mean_logprob = entry.mean_logprob.max(mean_logprob);
    }

    /// A path that will not vote: ended from outside (`spared`: because the vote was decided).
    pub fn abstain(&mut self, spared: bool) {
        self.open = self.open.saturating_sub(1);
        *(if spared { &mut self.spared } else { &mut self.without }) += 1;
    }

    /// Whether the open votes cannot change the winner, even if they all went to the second (ties are not decided: the
    /// log-probabilities of paths to come count in them). Then the others may end.
    pub fn is_decided(&self) -> bool {
        if !self.rule.early || self.open == 0 {
            return false;
        }
        let mut counts: Vec<usize> = self.votes.values().map(|answer| answer.paths.len()).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let place = |index: usize| counts.get(index).copied().unwrap_or(0);
        place(0) > place(1) + self.open as usize
    }

    pub fn tally(self) -> Tally {
        let mut answers: Vec<Answer> = self.votes.into_values().collect();
        answers.sort_by(|a, b| {
            let votes = b.paths.len().cmp(&a.paths.len());
            votes.then(b.mean_logprob.total_cmp(&a.mean_logprob)).then(a.paths.cmp(&b.paths))
        });
        Tally { answers, without: self.without, spared: self.spared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Finish;

    fn path(text: &str, logprob: f32) -> Path {
        let (token_ids, logprobs, text) = (vec![1], vec![logprob], Some(text.to_owned()));
        Path { token_ids, logprobs, forced: 0..0, text, finish: Finish::Eos }
    }

    fn rule() -> VoteRule {
        VoteRule { marker: "Answer:".into(), early: true }
    }

    #[test]
    fn the_answer_is_what_follows_the_last_marker() {
        assert_eq!(rule().answer("Answer: 3? No. Answer: 4 \n"), Some("4"));
        assert_eq!((rule().answer("four"), rule().answer("Answer: ")), (None, None));
        assert_eq!(VoteRule { marker: String::new(), early: false }.answer(" four "), Some("four"));
    }

    #[test]
    fn a_vote_is_decided_when_the_rest_cannot_turn_it_and_no_sooner() {
        let mut ballot = Ballot::new(rule(), 5);
        ballot.cast(2, &path("Answer: 4", -0.5));
        ballot.cast(0, &path("Answer: 4", -0.25));
        assert!(!ballot.is_decided(), "2 against 3 open votes");
        ballot.cast(4, &path("no answer", 0.0));
        assert!(!ballot.is_decided(), "2 against 2 open votes is a tie that log-probabilities break");
        ballot.cast(1, &path("Answer: 4", -1.0));
        assert!(ballot.is_decided());
        ballot.abstain(true);
        let tally = ballot.tally();
        let winner = tally.winner().expect("a winner");
        assert_eq!((&winner.paths[..], winner.mean_logprob), (&[0, 1, 2][..], -0.25));
        assert_eq!((tally.without, tally.spared), (1, 1));
    }

    #[test]
    fn equal_votes_go_to_the_more_probable_path() {
        let mut ballot = Ballot::new(rule(), 2);
        ballot.cast(0, &path("Answer: 4", -2.0));
        ballot.cast(1, &path("Answer: 5", -1.0));
        assert!(!ballot.is_decided(), "nobody is left to end");
        assert_eq!(ballot.tally().winner().map(|answer| answer.text.clone()), Some("5".into()));
        assert_eq!(Ballot::new(rule(), 1).tally().winner(), None);
    }

    #[test]
    fn an_early_end_never_changes_the_winner() {
        use proptest::prelude::*;
        proptest!(|(answers in prop::collection::vec(0..3u8, 1..12), order: u64)| {
            let paths: Vec<Path> = answers.iter().map(|a| path(&format!("Answer: {a}"), -f32::from(*a))).collect();
            let mut indices: Vec<usize> = (0..paths.len()).collect();
            indices.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(order | 1));
            let (mut whole, mut early) = (Ballot::new(rule(), paths.len() as u32), None);
            for &i in &indices {
                whole.cast(i as u32, &paths[i]);
                if whole.is_decided() {
                    early.get_or_insert_with(|| whole.clone().tally());
                }
            }
            if let Some(early) = early {
                let whole = whole.tally();
                prop_assert_eq!(&early.winner().unwrap().text, &whole.winner().unwrap().text);
            }
        });
    }
}

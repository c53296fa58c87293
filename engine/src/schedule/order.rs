//! Who is next, and how rows are dealt. Pure: numbers in, an order out.
//!
//! The rule of fairness, in full:
//!
//! 1. A free sequence goes to a path of the waiting request with the highest priority; among equals to the one with the
//!    fewest running paths; among these to the first come.
//! 2. No request is overtaken for ever: once [`PATIENCE`] paths of younger requests began while one of its own waited,
//!    it goes first, and if it cannot begin yet (its adapter finds no slot) nobody begins before it.
//! 3. Every step has a row for every sequence that draws. What is left of the step's rows is dealt equally among the
//!    sequences with known tokens to run (prompts), whatever their priority; what one does not need, the others get.
//! 4. A path that was switched to another adapter and finds no slot for it goes first: until it has one, nobody behind
//!    it takes one, and nobody begins with an adapter.

use std::cmp::Reverse;

use crate::request::Priority;

/// Paths of younger requests that may begin before a waiting one.
pub(crate) const PATIENCE: u32 = 16;

/// A request with paths that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Ascending in the order of submission.
    pub job: u64,
    pub priority: Priority,
    /// Its paths that run.
    pub running: usize,
    /// Paths of younger requests that began since one of its own waits.
    pub overtaken: u32,
}

impl Candidate {
    /// Whether nobody may begin before it any more.
    pub fn is_overdue(&self) -> bool {
        self.overtaken >= PATIENCE
    }
}

/// Sorts candidates: who goes first, first (rules 1 and 2).
pub(crate) fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|candidate| {
        // Among the overdue only age counts: else they could overtake each other for ever.
        let rank = (!candidate.is_overdue()).then_some((Reverse(candidate.priority), candidate.running));
        (rank, candidate.job)
    });
}

/// Deals `room` rows to prompts that want so many each, equally (rule 3); what does not divide goes to the first.
pub(crate) fn deal(room: usize, wants: &[usize]) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let mut left = room;
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|&index| wants[index]);
    for (served, &index) in order.iter().enumerate() {
        given[index] = wants[index].min(left / (wants.len() - served));
        left -= given[index];
    }
    for (given, &want) in given.iter_mut().zip(wants) {
        let more = left.min(want - *given);
        *given += more;
        left -= more;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(job: u64, priority: Priority, running: usize, overtaken: u32) -> Candidate {
        Candidate { job, priority, running, overtaken }
    }

    #[test]
    fn priority_then_fewest_paths_then_age() {
        let mut all = [
            candidate(1, Priority::Low, 0, 0),
            candidate(2, Priority::Normal, 2, 0),
            candidate(3, Priority::Normal, 0, 0),
            candidate(4, Priority::Normal, 0, 0),
            candidate(5, Priority::High, 9, 0),
        ];
        sort(&mut all);
        assert_eq!(all.map(|c| c.job), [5, 3, 4, 2, 1]);
    }

    #[test]
    fn whoever_was_overtaken_often_enough_goes_first_and_the_oldest_of_them_before_the_others() {
        let mut all = [
            candidate(7, Priority::High, 0, PATIENCE - 1),
            candidate(9, Priority::High, 0, PATIENCE),
            candidate(8, Priority::Low, 3, PATIENCE + 4),
        ];
        sort(&mut all);
        assert_eq!(all.map(|c| c.job), [8, 9, 7]);
    }

    proptest! {
        #[test]
        fn rows_are_dealt_completely_and_nobody_gets_less_than_another_who_wanted_as_much(
            room in 0usize..300, wants in prop::collection::vec(0usize..200, 0..9),
        ) {
            let given = deal(room, &wants);
            prop_assert_eq!(given.iter().sum::<usize>(), room.min(wants.iter().sum()));
            for (a, (&given_a, &want_a)) in given.iter().zip(&wants).enumerate() {
                prop_assert!(given_a <= want_a);
                for (b, &given_b) in given.iter().enumerate() {
                    // Less than another's by more than the remainder only where it wanted no more.
                    prop_assert!(given_a == want_a || given_a + wants.len() >= given_b, "{a} {b} {given:?}");
                }
            }
        }
    }
}

//! The accounting against a naive model: a memory whose every cell holds the whole history that its position depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};

use proptest::prelude::*;

use super::{Adapted, Origin, PAGE, PageCopy, Pages, Room, pages_for};
use wattle_shaders::LayerMask;

/// A hash that always collides.
#[derive(Debug, Default)]
struct Same;

impl BuildHasher for Same {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self
    }
}

impl Hasher for Same {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, _: &[u8]) {}
}

type Position = (u32, Origin);

/// Texts that have prefixes in common, but for their last: blocks of 24 positions.
fn text(blocks: &[u8], len: usize) -> Vec<Position> {
    let position = |at: usize| {
        let block = blocks[at / 24 % blocks.len()];
        let adapted = Adapted { adapter: [block / 3; 32], gate: None, mask: LayerMask::of([1]) };
        let lora = (block >= 3).then_some(adapted);
        (u32::from(block % 3), Origin { lora, ..Origin::default() })
    };
    (0..len).map(position).collect()
}

#[derive(Clone, Debug)]
enum Act {
    /// Begins a sequence and runs all of it that is not found.
    Start {
        sequence: u32,
        text: Vec<Position>,
        more: usize,
        anew: bool,
    },
    Fork {
        from: u32,
        to: u32,
        more: usize,
    },
    /// Draws tokens, told only `late` positions later.
    Draw {
        sequence: u32,
        tokens: Vec<u32>,
        late: usize,
    },
    Rewind {
        sequence: u32,
        to: usize,
    },
    Release {
        sequence: u32,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let sequence = || 0..5_u32;
    let texts = (prop::collection::vec(0..5_u8, 1..4), 1..300_usize).prop_map(|(b, len)| text(&b, len));
    let start = (sequence(), texts, 0..150_usize, any::<bool>());
    prop::collection::vec(
        prop_oneof![
            3 => start.prop_map(|(sequence, text, more, anew)| Act::Start { sequence, text, more, anew }),
            2 => (sequence(), sequence(), 0..100_usize).prop_map(|(from, to, more)| Act::Fork { from, to, more }),
            4 => (sequence(), prop::collection::vec(0..2_u32, 1..130), 0..3_usize)
                .prop_map(|(sequence, tokens, late)| Act::Draw { sequence, tokens, late }),
            1 => (sequence(), 0..200_usize).prop_map(|(sequence, to)| Act::Rewind { sequence, to }),
            1 => sequence().prop_map(|sequence| Act::Release { sequence }),
        ],
        1..40,
    )
}

/// What the accounting says, carried out.
struct Model<S> {
    pages: Pages<S>,
    /// Per page and offset, the history of what lies there.
    memory: BTreeMap<(u32, usize), Vec<Position>>,
    /// Per sequence: what it wrote, and its room.
    texts: BTreeMap<u32, (Vec<Position>, Room)>,
    /// Histories of whole pages that were written.
    known: BTreeSet<Vec<(u32, bool)>>,
    /// Whether a sequence went back to a position without having said so.
    rewound: bool,
}

/// What orders and tells histories apart.
fn name(history: &[Position]) -> Vec<(u32, bool)> {
    history
        .iter()
        .map(|(token, origin)| (token + origin.lora.map_or(0, |lora| 8 << lora.adapter[0]), origin.generated))
        .collect()
}

impl<S: BuildHasher + Default> Model<S> {
    fn new() -> Self {
        Self {
            pages: Pages::new(12, true),
            memory: BTreeMap::new(),
            texts: BTreeMap::new(),
            known: BTreeSet::new(),
            rewound: false,
        }
    }

    fn run(&mut self, act: Act) {
        match act {
            Act::Start { sequence, text, more, anew } => {
                let room = Room { positions: text.len() + more, anew };
                self.texts.remove(&sequence);
                let found = self.pages.start(sequence, text.iter().copied(), room);
                let Some(found) = found else { return };
                let whole = (0..=text.len() / PAGE).rev().map(|n| n * PAGE);
                let longest = whole.into_iter().find(|&n| n == 0 || self.known.contains(&name(&text[..n])));
                let longest = longest.unwrap().min(text.len() - 1);
                assert!(found <= longest, "found what nobody wrote");
                if self.pages.stats().evicted == 0 {
                    // Without room for a copy, the page of the last position is left alone.
                    assert!(found == longest || found == longest / PAGE * PAGE, "{found} of {longest}");
                }
                self.texts.insert(sequence, (text[..found].to_vec(), room));
                for &position in &text[found..] {
                    self.write(sequence, position, Some(position.0));
                }
            }
            Act::Fork { from, to, more } => {
                let Some((text, _)) = self.texts.get(&from).cloned() else { return };
                if from != to {
                    self.texts.remove(&to);
                    let room = Room { positions: text.len() + more, anew: false };
                    if self.pages.start(to, [], room).is_some() {
                        let forked = self.pages.fork(from, to);
                        assert!(forked.is_some() || self.rewound, "room was kept for it");
                        if self.pages.len(to) > 0 {
                            self.texts.insert(to, (text, room));
                        }
                    }
                }
            }
            Act::Draw { sequence, tokens, late } => {
                let Some((text, room)) = self.texts.get(&sequence).cloned() else { return };
                let drawn: Vec<_> = (text.len()..room.positions).zip(tokens).collect();
                for (index, &(_, token)) in drawn.iter().enumerate() {
                    self.write(sequence, (token, Origin { generated: true, ..Origin::default() }), None);
                    if let Some(&(position, token)) =
                        index.checked_sub(late).and_then(|index| drawn.get(index))
                    {
                        self.pages.learn(sequence, position, token);
                    }
                }
                drawn.into_iter().for_each(|(position, token)| self.pages.learn(sequence, position, token));
            }
            Act::Rewind { sequence, to } => {
                if let Some((text, _)) = self.texts.get_mut(&sequence)
                    && to < text.len()
                {
                    let position = text[to];
                    text.truncate(to);
                    self.write(sequence, (position.0 ^ 1, position.1), Some(position.0 ^ 1));
                }
            }
            Act::Release { sequence } => {
                self.texts.remove(&sequence);
                self.pages.release(sequence);
            }
        }
        self.check();
    }

    fn write(&mut self, sequence: u32, position: Position, token: Option<u32>) {
        let Some((mut text, mut room)) = self.texts.remove(&sequence) else { return };
        let (at, len) = (text.len(), self.pages.len(sequence));
        self.rewound |= at < len && !(room.anew && at == 0);
        room.anew &= at > 0 || len == 0;
        match self.pages.write(sequence, at, token, position.1) {
            Ok(copy) => {
                if let Some(PageCopy { from, to }) = copy {
                    for offset in 0..PAGE {
                        let copied = self.memory.get(&(from, offset)).cloned().unwrap_or_default();
                        self.memory.insert((to, offset), copied);
                    }
                }
                text.push(position);
                let page = self.pages.table(sequence)[at / PAGE];
                self.memory.insert((page, at % PAGE), text.clone());
                self.known.insert(name(&text[..text.len() / PAGE * PAGE]));
                self.texts.insert(sequence, (text, room));
            }
            Err(error) => {
                assert!(self.rewound, "{error}, but there was room when it was begun");
                self.pages.release(sequence);
            }
        }
    }

    fn used(&self) -> usize {
        let tables = (0..5).flat_map(|sequence| self.pages.table(sequence).iter().copied());
        tables.collect::<BTreeSet<_>>().len()
    }

    /// Every sequence reads what it wrote, and no page is lost.
    fn check(&self) {
        let stats = self.pages.stats();
        assert_eq!(stats.used, self.used());
        assert!(stats.used + stats.cached <= stats.pages);
        for sequence in 0..5 {
            let table = self.pages.table(sequence);
            let text = self.texts.get(&sequence).map_or(&[][..], |(text, _)| text);
            assert_eq!((table.len(), self.pages.len(sequence)), (pages_for(text.len()), text.len()));
            for at in 0..text.len() {
                assert!(
                    self.memory[&(table[at / PAGE], at % PAGE)] == text[..=at],
                    "sequence {sequence} at {at}"
                );
            }
        }
    }

    /// When all sequences are gone, one may have all pages.
    fn finish(mut self) {
        (0..5).for_each(|sequence| self.pages.release(sequence));
        let stats = self.pages.stats();
        assert_eq!(stats.used, 0);
        let all = Room { positions: stats.pages * PAGE, anew: false };
        assert_eq!(self.pages.start(9, [], all), Some(0));
        for position in 0..all.positions {
            self.pages.write(9, position, Some(7), Origin::default()).unwrap();
        }
        assert_eq!(self.pages.stats().used, stats.pages);
        assert!(self.pages.write(9, all.positions, None, Origin::default()).is_err());
        assert!(self.pages.start(8, [], Room { positions: 1, anew: false }).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_reads_what_it_wrote_and_no_page_leaks(acts in acts()) {
        let mut model = Model::<std::hash::RandomState>::new();
        acts.into_iter().for_each(|act| model.run(act));
        model.finish();
    }

    #[test]
    fn hashes_that_collide_share_nothing_that_differs(acts in acts()) {
        let mut model = Model::<Same>::new();
        acts.into_iter().for_each(|act| model.run(act));
        model.finish();
    }
}

//! Keeps the accounts while steps run: before a step its rows get pages, afterwards drawn tokens become known.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use wattle_policy::Prefix;
use wattle_shaders::{FROM_STATE, GATED, GENERATED, LONG_ROPE, LayerMask, NO_INDEX, Row, Sampled};

use super::{Adapted, Digest, Origin, PAGE, PageStats, Pages, Room};
use crate::adapter::Factors;
use crate::backend::{Backend, Capacity, Step, Ticket};
use crate::error::{Error, Result};

/// Where a step drew a token: sequence, its life, position.
type Draw = (u32, u64, usize);

/// The accounts of one backend.
pub(crate) struct Ledger {
    pages: Pages,
    /// What was done with pages that are forgotten.
    before: PageStats,
    /// Content of each adapter slot, and the layers that it has factors in.
    slots: HashMap<u32, (Digest, LayerMask)>,
    /// Of the gate that gated rows obey.
    gate: Option<Digest>,
    /// How often each sequence was begun: what an earlier life drew must not be taken for a later one's.
    lives: BTreeMap<u32, u64>,
    /// By ticket.
    draws: HashMap<u64, Vec<Draw>>,
}

impl Ledger {
    /// Of a new backend, all whose pages are free; `share`: they are found by content, of which `gate` is the content of
    /// the gate that gated rows obey.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn new(
        backend: &mut dyn Backend,
        capacity: &Capacity,
        share: bool,
        gate: Option<Digest>,
    ) -> Result<Self> {
        let pages = Pages::new(capacity.pages, share);
        let (slots, before) = (HashMap::new(), PageStats::default());
        let (lives, draws) = (BTreeMap::new(), HashMap::new());
        let mut ledger = Self { pages, before, slots, gate, lives, draws };
        (0..capacity.sequences as u32).try_for_each(|sequence| ledger.release(backend, sequence))?;
        Ok(ledger)
    }

    /// Notes what is in an adapter slot.
    pub fn set_slot(&mut self, slot: usize, factors: Option<&Arc<Factors>>) {
        let Some(factors) = factors else {
            self.slots.remove(&(slot as u32));
            return;
        };
        self.slots.insert(slot as u32, (factors.digest(), factors.layers()));
    }

    /// Begins a sequence with what it finds of its prompt, whose rows are given: how many positions that is. `None`
    /// when there is no room now. See [`Pages::start`].
    ///
    /// # Errors
    /// Those of the backend.
    pub fn start(
        &mut self,
        backend: &mut dyn Backend,
        sequence: u32,
        prompt: impl IntoIterator<Item = Row>,
        room: Room,
    ) -> Result<Option<usize>> {
        *self.lives.entry(sequence).or_default() += 1;
        let prompt: Vec<_> = prompt.into_iter().map(|row| (row.token, self.origin(&row))).collect();
        let found = self.pages.start(sequence, prompt.iter().copied(), room);
        if let Some(found) = found {
            let seen: Vec<u32> = prompt[..found].iter().map(|(token, _)| *token).collect();
            backend.reset_sequence(sequence, &seen)?;
            self.tell(backend, sequence)?;
        }
        Ok(found)
    }

    /// Gives a sequence, which was begun and has run nothing, all that another has, which has drawn nothing: its first
    /// `positions`, and its state.
    ///
    /// # Errors
    /// [`Error::Value`] when the two are not so; those of the backend.
    pub fn fork(&mut self, backend: &mut dyn Backend, from: u32, to: u32, positions: usize) -> Result<()> {
        *self.lives.entry(to).or_default() += 1;
        let copies = self.pages.fork(from, to).filter(|_| self.pages.len(from) == positions);
        let wrong = || Error::value("sequence", format!("{to} cannot have what {from} has"));
        copies.ok_or_else(wrong)?.iter().try_for_each(|copy| backend.copy_page(copy.from, copy.to))?;
        backend.reset_sequence(to, &self.pages.tokens(to))?;
        self.tell(backend, to)
    }

    /// Ends a sequence. Steps that are under way may still write its pages: whoever gets these does so later.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn release(&mut self, backend: &mut dyn Backend, sequence: u32) -> Result<()> {
        *self.lives.entry(sequence).or_default() += 1;
        self.pages.release(sequence);
        // Rows that are run past the accounts are refused, instead of writing to pages of others.
        backend.set_pages(sequence, &[])
    }

    /// Ends all sequences and forgets all content: after a step that failed nobody knows what pages hold.
    pub fn forget(&mut self) {
        self.lives.values_mut().for_each(|life| *life += 1);
        self.draws.clear();
        self.before = self.stats();
        self.pages = Pages::new(self.before.pages, self.pages.shares());
    }

    /// Gives the rows of a step their pages. Call right before the step is submitted or run.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when a row's sequence was not begun, or has no room; those of the backend.
    pub fn prepare(&mut self, backend: &mut dyn Backend, step: &Step) -> Result<()> {
        for row in &step.rows {
            let token = (row.flags & FROM_STATE == 0).then_some(row.token);
            let origin = self.origin(row);
            if let Some(copy) = self.pages.write(row.sequence, row.position as usize, token, origin)? {
                backend.copy_page(copy.from, copy.to)?;
            }
        }
        step.rows.iter().try_for_each(|row| self.tell(backend, row.sequence))
    }

    /// What the sequences of a step, whose rows have their pages, share of their first positions.
    pub fn prefixes(&self, step: &Step) -> BTreeMap<u32, Prefix> {
        let mut sequences: Vec<u32> = step.rows.iter().map(|row| row.sequence).collect();
        // Those whose tables begin alike become neighbours.
        sequences.sort_unstable_by_key(|&sequence| (self.pages.table(sequence), sequence));
        sequences.dedup();
        let shared = |pair: &[u32]| {
            let [one, other] = [pair[0], pair[1]].map(|sequence| self.pages.table(sequence));
            let pages = one.iter().zip(other).take_while(|(one, other)| one == other).count();
            (pair[1], Prefix { of: pair[0], positions: (pages * PAGE) as u32 })
        };
        sequences.windows(2).map(shared).filter(|(_, prefix)| prefix.positions > 0).collect()
    }

    /// Notes where a submitted step draws.
    pub fn submitted(&mut self, ticket: &Ticket, step: &Step) {
        let draw = |sample: &wattle_shaders::Sample| {
            let life = self.lives.get(&sample.sequence).copied().unwrap_or(0);
            (sample.sequence, life, sample.position as usize)
        };
        self.draws.insert(ticket.0, step.samples.iter().map(draw).collect());
    }

    /// Learns what a step drew.
    pub fn collected(&mut self, ticket: u64, sampled: &[Sampled]) {
        for ((sequence, life, position), sampled) in
            self.draws.remove(&ticket).into_iter().flatten().zip(sampled)
        {
            if self.lives.get(&sequence) == Some(&life) {
                self.pages.learn(sequence, position, sampled.token);
            }
        }
    }

    /// What the pages are doing, and what was done with them and with those that were forgotten.
    pub fn stats(&self) -> PageStats {
        self.pages.stats().after(&self.before)
    }

    /// Adds what was done with other pages before.
    pub fn count_on_from(&mut self, before: PageStats) {
        self.before = before;
    }

    fn tell(&mut self, backend: &mut dyn Backend, sequence: u32) -> Result<()> {
        match self.pages.changed_table(sequence) {
            Some(table) => backend.set_pages(sequence, table),
            None => Ok(()),
        }
    }

    /// What a row writes its keys and values with.
    fn origin(&self, row: &Row) -> Origin {
        let mask = LayerMask::from_words(row.lora);
        let source = self.slots.get(&row.slot).filter(|_| row.slot != NO_INDEX);
        let lora = source.and_then(|&(adapter, layers)| {
            let mask = LayerMask(mask.0 & layers.0);
            let gate = self.gate.filter(|_| row.flags & GATED != 0);
            (mask != LayerMask::NONE).then_some(Adapted { adapter, gate, mask })
        });
        Origin { generated: row.flags & GENERATED != 0, long_rope: row.flags & LONG_ROPE != 0, lora }
    }
}

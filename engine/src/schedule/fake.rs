//! A device without a model: what it draws is a hash of the sequence's rows, as a model's would be.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use wattle_shaders::{FROM_STATE, LONG_ROPE, NO_INDEX, Row, Sampled};

use super::loras::Choice;
use super::{Host, Room};
use crate::adapter::{Adapter, Residency};
use crate::backend::{Capacity, Step, Ticket};
use crate::error::{Error, Result};
use crate::request::Lora;

/// Pages of 4 positions that any path of these tests may need.
pub(super) const MOST_PAGES: usize = 13;

/// The content of an adapter that no slot takes.
pub(super) const BROKEN: u64 = 99;

/// Rows that a sequence has run: (token, adapter slot's content, whether rotated with the long factors).
type Cache = Vec<(u32, u64, bool)>;

/// A device whose draws depend on all that a sequence has run, and that checks what it is told.
pub(super) struct Device {
    pub capacity: Capacity,
    pub depth: usize,
    pub adapters: Residency,
    /// What is in the slots.
    pub contents: BTreeMap<u32, u64>,
    pub caches: Vec<Cache>,
    pub last: Vec<u32>,
    pub begun: Vec<bool>,
    /// Pages of 4 positions; each path reserves what it may need.
    pub pages: usize,
    pub reserved: BTreeMap<u32, usize>,
    pub steps: VecDeque<(u64, Vec<Sampled>)>,
    pub submitted: u64,
    pub rows: Vec<usize>,
    /// How often there was asked for room.
    pub asked: usize,
    /// Fails at this step, once.
    pub lost_at: Option<u64>,
}

impl Device {
    pub fn new(sequences: usize, rows: usize, depth: usize) -> Self {
        Self {
            capacity: Capacity { sequences, context: 64, pages: sequences, rows, samples: rows },
            depth,
            adapters: Residency::default(),
            contents: BTreeMap::new(),
            caches: vec![Vec::new(); sequences],
            last: vec![0; sequences],
            begun: vec![false; sequences],
            pages: usize::MAX,
            reserved: BTreeMap::new(),
            steps: VecDeque::new(),
            submitted: 0,
            rows: Vec::new(),
            asked: 0,
            lost_at: None,
        }
    }

    fn draw(&self, sequence: usize, sample: &wattle_shaders::Sample) -> u32 {
        let seed = u64::from(sample.path) << 32 | u64::from(sample.seed[0]);
        let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        let hash = self.caches[sequence].iter().fold(seed, |hash, &(token, lora, long)| {
            mix(mix(hash, u64::from(token) << 1 | u64::from(long)), lora)
        });
        (hash >> 40) as u32 % 50
    }

    /// What a row's adapter does to it.
    fn content(&self, row: &Row) -> u64 {
        let active = row.slot != NO_INDEX && row.lora != [0; 4];
        if active { self.contents[&row.slot] } else { 0 }
    }

    /// It was made anew, with as much room as one path may need: what shared pages before does not fit any more.
    pub fn forget(&mut self) {
        self.steps.clear();
        self.caches.iter_mut().for_each(Vec::clear);
        self.reserved.clear();
        self.pages = self.pages.min(MOST_PAGES);
    }
}

impl Host for Device {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn resolve(&self, lora: &Lora) -> Result<Choice> {
        let adapter = lora.adapter.and_then(|id| self.adapters.get(id)).cloned();
        Ok(Choice { adapter, layers: lora.layers, from: 0, gated: lora.gated })
    }

    fn take_slot(&mut self, adapter: &Arc<Adapter>) -> Result<Option<u32>> {
        if adapter.name == BROKEN.to_string() {
            return Err(Error::value("adapter", "it is too large"));
        }
        let Some(taken) = self.adapters.take(adapter) else { return Ok(None) };
        self.contents.insert(taken.slot as u32, adapter.name.parse().expect("a number"));
        Ok(Some(taken.slot as u32))
    }

    fn give_slot(&mut self, slot: u32) {
        self.adapters.give(slot as usize);
        for slot in self.adapters.sweep() {
            self.contents.remove(&(slot as u32));
        }
    }

    fn begin(&mut self, sequence: u32, rows: Vec<Row>, room: Room) -> Result<Option<usize>> {
        self.asked += 1;
        let pages = room.positions.div_ceil(4);
        self.reserved.remove(&sequence);
        if self.reserved.values().sum::<usize>() + pages > self.pages {
            return Ok(None);
        }
        self.reserved.insert(sequence, pages);
        self.begun[sequence as usize] = true;
        // The longest beginning that any other sequence has in its cache, but for the last row.
        let content = |row: &Row| (row.token, self.content(row), row.flags & LONG_ROPE != 0);
        let wanted: Cache = rows.iter().map(content).collect();
        let same = |cache: &Cache| cache.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let found = self.caches.iter().map(same).max().unwrap_or(0).min(wanted.len().saturating_sub(1));
        self.caches[sequence as usize] = wanted[..found].to_vec();
        Ok(Some(found))
    }

    fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        assert!([from, to].iter().all(|sequence| self.reserved.contains_key(sequence)));
        self.caches[to as usize] = self.caches[from as usize][..positions].to_vec();
        Ok(())
    }

    fn end(&mut self, sequence: u32) {
        assert!(std::mem::take(&mut self.begun[sequence as usize]), "ended twice");
        self.reserved.remove(&sequence);
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        if self.lost_at == Some(self.submitted) {
            self.lost_at = None;
            return Err(Error::device("fake", "lost"));
        }
        assert!(step.rows.len() <= self.capacity.rows && step.samples.len() <= self.capacity.samples);
        let mut sampled = Vec::new();
        let mut samples = step.samples.iter().peekable();
        for (index, row) in step.rows.iter().enumerate() {
            assert!(self.reserved.contains_key(&row.sequence), "a row without room");
            let sequence = row.sequence as usize;
            let mut token = row.token;
            if row.flags & FROM_STATE != 0 {
                token = self.last[sequence];
            }
            let lora = self.content(row);
            let cache = &mut self.caches[sequence];
            assert!(row.position as usize <= cache.len(), "a gap before position {}", row.position);
            cache.truncate(row.position as usize);
            cache.push((token, lora, row.flags & LONG_ROPE != 0));
            assert!(
                cache.iter().all(|row| row.2 == cache[0].2),
                "a sequence is rotated with one set of factors"
            );
            if let Some(sample) = samples.next_if(|sample| sample.row as usize == index) {
                assert_eq!(sample.position as usize, self.caches[sequence].len());
                let token = self.draw(sequence, sample);
                self.last[sequence] = token;
                sampled.push(Sampled { token, logprob: -1.0, invalid: 0, closed: 0 });
            }
        }
        self.rows.push(step.rows.len());
        self.submitted += 1;
        self.steps.push_back((self.submitted, sampled));
        assert!(self.steps.len() <= self.depth);
        Ok(Ticket(self.submitted))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        let (number, sampled) = self.steps.pop_front().expect("a step under way");
        assert_eq!(number, ticket.0);
        Ok(sampled)
    }
}

//! Tables, references and reservations.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::content::{Origin, Record};
use super::index::Index;
use super::{PAGE, pages_for};
use crate::error::{Error, Result};

/// A page to be copied before anything else is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The source.
    pub from: u32,
    /// The target, which no other table has.
    pub to: u32,
}

/// What the pages are doing, and what was done with them so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStats {
    /// All pages.
    pub pages: usize,
    /// Pages that some table has.
    pub used: usize,
    /// The most pages that tables had at a time.
    pub most_used: usize,
    /// Pages that no table has, kept for their content.
    pub cached: usize,
    /// Positions that sequences found instead of computing them.
    pub found: u64,
    /// Positions that sequences were started with, found or not.
    pub asked: u64,
    /// Pages copied because they were shared and about to be written.
    pub copied: u64,
    /// Pages given up for others because another of the same content was there already.
    pub merged: u64,
    /// Cached pages whose memory was needed.
    pub evicted: u64,
}

impl PageStats {
    /// The same pages, counted on from what was done with others.
    pub(super) fn after(self, before: &Self) -> Self {
        Self {
            most_used: self.most_used.max(before.most_used),
            found: self.found + before.found,
            asked: self.asked + before.asked,
            copied: self.copied + before.copied,
            merged: self.merged + before.merged,
            evicted: self.evicted + before.evicted,
            ..self
        }
    }
}

/// The room that a sequence asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Positions at most.
    pub positions: usize,
    /// Whether it may be written anew from position 0 (as longrope's long factors ask for): then what it shares does
    /// not save pages.
    pub anew: bool,
}

/// One sequence.
#[derive(Clone, Debug, Default)]
struct Sequence {
    table: Vec<u32>,
    record: Record,
    /// Nodes of the pages that are indexed, from the first on.
    nodes: Vec<u64>,
    room: Room,
    /// Whether the backend must be told the table.
    changed: bool,
}

/// The pages of one backend.
#[derive(Debug)]
pub struct Pages<S = RandomState> {
    /// Per page, the tables that have it.
    refs: Vec<u32>,
    free: Vec<u32>,
    index: Index<S>,
    sequences: BTreeMap<u32, Sequence>,
    /// Whether content is looked up and kept.
    share: bool,
    stats: PageStats,
}

impl<S: BuildHasher + Default> Pages<S> {
    /// `pages` free pages. With `share`, pages are found by content.
    pub fn new(pages: usize, share: bool) -> Self {
        Self {
            refs: vec![0; pages],
            free: (0..pages as u32).rev().collect(),
            index: Index::default(),
            sequences: BTreeMap::new(),
            share,
            stats: PageStats { pages, ..PageStats::default() },
        }
    }

    /// Begins a sequence. `prompt` is what it is about to write, from its
    /// first position on: token and origin. Returns how many positions were found: whole pages, but never the last
    /// position, which is run in any case. `None` when its pages are not to be had now; the sequence is then as after
    /// [`Self::release`].
    pub fn start(
        &mut self,
        sequence: u32,
        prompt: impl IntoIterator<Item = (u32, Origin)>,
        room: Room,
    ) -> Option<usize> {
        self.release(sequence);
        let mut new = Sequence { room, changed: true, ..Sequence::default() };
        prompt.into_iter().for_each(|(token, origin)| new.record.push(Some(token), origin));
        let asked = new.record.len();
        let most = if self.share { asked / PAGE } else { 0 };
        for page in 0..most {
            let key = new.record.key(page, new.nodes.last().copied());
            let Some((node, page)) = key.and_then(|key| self.index.find(&key)) else { break };
            new.nodes.push(node);
            new.table.push(page);
        }
        let found = (new.table.len() * PAGE).min(asked.saturating_sub(1));
        new.record.truncate(found);
        new.nodes.truncate(found / PAGE);
        new.table.iter().for_each(|&page| self.hold(page));
        self.sequences.insert(sequence, new);
        if !self.fits() {
            // Nobody has to find the page that the last position is in.
            self.give_partial(sequence);
        }
        if !self.fits() {
            self.release(sequence);
            return None;
        }
        let found = self.len(sequence);
        self.stats.asked += asked as u64;
        self.stats.found += found as u64;
        Some(found)
    }

    /// Takes the last page from a sequence if it is partial.
    fn give_partial(&mut self, sequence: u32) {
        let Some(own) = self.sequences.get_mut(&sequence) else { return };
        let whole = own.record.len() / PAGE;
        own.record.truncate(whole * PAGE);
        own.table.split_off(whole).into_iter().for_each(|page| self.drop_page(page));
    }

    /// Gives a sequence, which was begun, all that another has: its pages by reference, or where nothing is shared as
    /// copies, which are to be made. `None` where there is no room for that; there is if it has not written anything
    /// yet. Then it has ended.
    pub fn fork(&mut self, from: u32, to: u32) -> Option<Vec<PageCopy>> {
        let room = self.sequences.get(&to).map(|own| own.room).filter(|_| from != to)?;
        self.release(to);
        let source = self.sequences.get(&from)?;
        let mut new = Sequence { room, changed: true, ..source.clone() };
        let mut copies = Vec::new();
        if !self.share {
            for from in std::mem::take(&mut new.table) {
                let Ok(to) = self.take() else {
                    new.table.into_iter().for_each(|page| self.drop_page(page));
                    return None;
                };
                new.table.push(to);
                copies.push(PageCopy { from, to });
            }
        } else {
            new.table.iter().for_each(|&page| self.hold(page));
        }
        self.sequences.insert(to, new);
        if self.fits() {
            return Some(copies);
        }
        self.release(to);
        None
    }

    /// Makes room for a position that is about to be written; a copy to be made first, if its page is shared. The
    /// position is the next one, or an earlier one: then what lies behind it is forgotten. `token` is `None` while only
    /// the device knows it.
    ///
    /// # Errors
    /// [`Error::Value`] when the sequence was not begun, or would have more pages than it asked for and there are no
    /// others.
    pub fn write(
        &mut self,
        sequence: u32,
        position: usize,
        token: Option<u32>,
        origin: Origin,
    ) -> Result<Option<PageCopy>> {
        let unknown = || Error::value("sequence", format!("{sequence} was not begun, or skips positions"));
        let own = self.sequences.get_mut(&sequence).filter(|own| position <= own.record.len());
        let own = own.ok_or_else(unknown)?;
        own.room.anew &= position > 0 || own.record.len() == 0;
        own.record.truncate(position);
        own.nodes.truncate(position / PAGE);
        let dropped = own.table.split_off(pages_for(position));
        own.changed |= !dropped.is_empty();
        dropped.into_iter().rev().for_each(|page| self.drop_page(page));
        let Some(own) = self.sequences.get_mut(&sequence) else { return Ok(None) };
        own.record.push(token, origin);
        // What completes a page to what it is already changes nothing in it.
        let key = own.record.key(position / PAGE, own.nodes.last().copied());
        let known = key.and_then(|key| self.index.find(&key)).map(|(_, page)| page);
        let same = known.is_some() && known == own.table.get(position / PAGE).copied();
        let copy = if same { Ok(None) } else { self.own_page(sequence, position / PAGE) };
        if let (Err(_), Some(own)) = (&copy, self.sequences.get_mut(&sequence)) {
            own.record.truncate(position);
        }
        self.commit(sequence);
        copy
    }

    /// Makes page `at` of a sequence, which is its last or the next, one that it may write.
    fn own_page(&mut self, sequence: u32, at: usize) -> Result<Option<PageCopy>> {
        let old = self.sequences.get(&sequence).and_then(|own| own.table.get(at).copied());
        if old.is_some_and(|page| self.refs[page as usize] == 1 && !self.index.has(page)) {
            return Ok(None);
        }
        let page = self.take()?;
        let Some(own) = self.sequences.get_mut(&sequence) else { return Ok(None) };
        own.changed = true;
        own.table.truncate(at);
        own.table.push(page);
        let copy = old.map(|from| PageCopy { from, to: page });
        if let Some(PageCopy { from, .. }) = copy {
            self.stats.copied += 1;
            self.drop_page(from);
        }
        Ok(copy)
    }

    /// Takes a token that was drawn for a position: see [`Self::write`].
    pub fn learn(&mut self, sequence: u32, position: usize, token: u32) {
        if let Some(own) = self.sequences.get_mut(&sequence) {
            own.record.learn(position, token);
            self.commit(sequence);
        }
    }

    /// Indexes the pages of a sequence that have become full and known.
    fn commit(&mut self, sequence: u32) {
        while let Some(own) = self.sequences.get_mut(&sequence).filter(|_| self.share) {
            let at = own.nodes.len();
            let Some(key) = own.record.key(at, own.nodes.last().copied()) else { return };
            let page = own.table[at];
            match self.index.find(&key) {
                None => own.nodes.push(self.index.insert(key, page)),
                Some((node, same)) => {
                    own.nodes.push(node);
                    if same != page {
                        own.table[at] = same;
                        own.changed = true;
                        self.stats.merged += 1;
                        self.hold(same);
                        self.drop_page(page);
                    }
                }
            }
        }
    }

    /// Ends a sequence; one that was not begun is left alone.
    pub fn release(&mut self, sequence: u32) {
        let Some(own) = self.sequences.remove(&sequence) else { return };
        // The last first: a page is of no use without those before it.
        own.table.into_iter().rev().for_each(|page| self.drop_page(page));
    }

    /// The pages of a sequence, in the order of its positions.
    pub fn table(&self, sequence: u32) -> &[u32] {
        self.sequences.get(&sequence).map_or(&[], |own| &own.table)
    }

    /// The table, if it is another than when this was last asked.
    pub fn changed_table(&mut self, sequence: u32) -> Option<&[u32]> {
        let own = self.sequences.get_mut(&sequence)?;
        std::mem::take(&mut own.changed).then_some(&own.table)
    }

    /// Positions that a sequence has.
    pub fn len(&self, sequence: u32) -> usize {
        self.sequences.get(&sequence).map_or(0, |own| own.record.len())
    }

    /// The tokens of a sequence that are known, in order.
    pub fn tokens(&self, sequence: u32) -> Vec<u32> {
        self.sequences.get(&sequence).map_or_else(Vec::new, |own| own.record.tokens().collect())
    }

    /// Whether sequences share pages by content.
    pub fn shares(&self) -> bool {
        self.share
    }

    /// What the pages are doing.
    pub fn stats(&self) -> PageStats {
        PageStats { used: self.used(), cached: self.index.idle(), ..self.stats }
    }

    fn used(&self) -> usize {
        self.refs.len() - self.free.len() - self.index.idle()
    }

    fn hold(&mut self, page: u32) {
        self.refs[page as usize] += 1;
        self.index.hold(page);
        self.stats.most_used = self.stats.most_used.max(self.used());
    }

    fn drop_page(&mut self, page: u32) {
        let refs = &mut self.refs[page as usize];
        *refs -= 1;
        match (*refs, self.index.has(page)) {
            (0, true) => self.index.let_go(page),
            (0, false) => self.free.push(page),
            _ => {}
        }
    }

    /// A page for one table: a free one, or else the cached one that was used least recently.
    fn take(&mut self) -> Result<u32> {
        let page = self.free.pop().or_else(|| {
            let evicted = self.index.evict();
            self.stats.evicted += u64::from(evicted.is_some());
            evicted
        });
        let page = page.ok_or_else(|| {
            Error::value("KV cache", format!("all {} pages of {PAGE} positions are in use", self.refs.len()))
        })?;
        self.refs[page as usize] = 1;
        self.stats.most_used = self.stats.most_used.max(self.used());
        Ok(page)
    }

    /// Whether all sequences can come to have the pages that they asked for.
    fn fits(&self) -> bool {
        // Of those that are written anew, none is counted on to share.
        let anew = self.sequences.values().filter(|own| own.room.anew);
        let alone: usize = anew.map(|own| pages_for(own.room.positions)).sum();
        let others = || self.sequences.values().filter(|own| !own.room.anew);
        let mut holders = vec![0; self.refs.len()];
        others().flat_map(|own| &own.table).for_each(|&page| holders[page as usize] += 1);
        let held = holders.iter().filter(|&&holders| holders > 0).count();
        let wanted = |own: &Sequence| pages_for(own.room.positions).saturating_sub(own.table.len());
        let partial = others().filter(|own| !own.record.len().is_multiple_of(PAGE));
        let mut writers = BTreeMap::new();
        partial.filter_map(|own| own.table.last()).for_each(|&page| *writers.entry(page).or_insert(0) += 1);
        // All who write a shared page make a copy, but the last of those who alone have it.
        let copies = |(page, &writers): (&u32, &usize)| {
            let alone = holders[*page as usize] == writers && !self.index.has(*page);
            writers - usize::from(alone)
        };
        let yet = others().map(wanted).sum::<usize>() + writers.iter().map(copies).sum::<usize>();
        alone + held + yet <= self.refs.len()
    }
}

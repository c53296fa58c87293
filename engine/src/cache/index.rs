//! Pages by content.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use super::content::Key;

/// A page whose content is known.
#[derive(Debug)]
struct Entry {
    key: Arc<Key>,
    page: u32,
    /// Since when no table has it.
    idle: Option<u64>,
}

/// Indexed pages as a tree: each node is a page behind the page before it. Node numbers are never used twice, so a
/// node whose parent was evicted is found by nobody, until it is evicted too.
#[derive(Debug, Default)]
pub(super) struct Index<S = RandomState> {
    nodes: HashMap<Arc<Key>, u64, S>,
    entries: HashMap<u64, Entry>,
    of_page: BTreeMap<u32, u64>,
    /// Nodes that no table has, by when the last let go of them.
    idle: BTreeSet<(u64, u64)>,
    next: u64,
    clock: u64,
}

impl<S: BuildHasher> Index<S> {
    /// Node and page of a content.
    pub fn find(&self, key: &Key) -> Option<(u64, u32)> {
        let node = *self.nodes.get(key)?;
        Some((node, self.entries.get(&node)?.page))
    }

    /// Whether a page is indexed.
    pub fn has(&self, page: u32) -> bool {
        self.of_page.contains_key(&page)
    }

    /// Pages that no table has.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Adds a page that a table has; its content must not be there yet.
    pub fn insert(&mut self, key: Key, page: u32) -> u64 {
        let (node, key) = (self.next, Arc::new(key));
        self.next += 1;
        self.nodes.insert(Arc::clone(&key), node);
        self.entries.insert(node, Entry { key, page, idle: None });
        self.of_page.insert(page, node);
        node
    }

    /// A table has the page (again).
    pub fn hold(&mut self, page: u32) {
        let Some(node) = self.of_page.get(&page) else { return };
        if let Some(since) = self.entries.get_mut(node).and_then(|entry| entry.idle.take()) {
            self.idle.remove(&(since, *node));
        }
    }

    /// No table has the page any more. Pages that are let go of later are kept longer.
    pub fn let_go(&mut self, page: u32) {
        let Some(node) = self.of_page.get(&page) else { return };
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(node) {
            entry.idle = Some(self.clock);
            self.idle.insert((self.clock, *node));
        }
    }

    /// Forgets the page that nobody has had for longest.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, node) = self.idle.pop_first()?;
        let entry = self.entries.remove(&node)?;
        self.nodes.remove(&entry.key);
        self.of_page.remove(&entry.page);
        Some(entry.page)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::super::content::{Origin, Record};
    use super::*;

    fn key(token: u32) -> Key {
        let mut record = Record::default();
        (0..PAGE).for_each(|_| record.push(Some(token), Origin::default()));
        record.key(0, None).expect("a full page")
    }

    #[test]
    fn the_page_that_nobody_has_had_for_longest_goes_first() {
        let mut index = Index::<RandomState>::default();
        for page in 0..3 {
            index.insert(key(page), page);
        }
        [1, 0, 2].into_iter().for_each(|page| index.let_go(page));
        // It is found, and used, once more.
        assert_eq!(index.find(&key(1)).map(|(_, page)| page), Some(1));
        index.hold(1);
        assert_eq!(index.idle(), 2);
        index.let_go(1);
        let evicted: Vec<u32> = std::iter::from_fn(|| index.evict()).collect();
        assert_eq!(evicted, [0, 2, 1]);
        assert!((0..3).all(|page| !index.has(page) && index.find(&key(page)).is_none()));
    }
}

//! A radix tree over token prefixes: each node is a run of tokens, and some nodes have a value.
//!
//! The identity of a node with a value does not change until the value is removed. Every leaf has a value, and every
//! other node without one is a point where prefixes branch.

use std::collections::BTreeMap;

/// A node with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(usize);

const ROOT: usize = 0;

#[derive(Debug)]
struct Node<T> {
    label: Vec<u32>,
    parent: usize,
    /// By first token.
    children: BTreeMap<u32, usize>,
    value: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Tree<T> {
    nodes: Vec<Node<T>>,
    free: Vec<usize>,
    /// Tokens of all labels.
    tokens: usize,
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<T> Tree<T> {
    pub(crate) fn new() -> Self {
        let root = Node { label: Vec::new(), parent: ROOT, children: BTreeMap::new(), value: None };
        Self { nodes: vec![root], free: Vec::new(), tokens: 0 }
    }

    /// Returns the number of tokens that the tree stores.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.nodes.get_mut(place.0)?.value.as_mut()
    }

    /// Returns the values along a sequence, each with the number of tokens before it, the longest prefix first; and
    /// the number of tokens that the sequence shares with any stored prefix.
    pub(crate) fn along(&self, tokens: &[u32]) -> (Vec<(usize, Place)>, usize) {
        let (mut at, mut depth, mut found) = (ROOT, 0, Vec::new());
        loop {
            if self.nodes[at].value.is_some() {
                found.push((depth, Place(at)));
            }
            let rest = &tokens[depth..];
            let Some(&child) = rest.first().and_then(|first| self.nodes[at].children.get(first)) else { break };
            let label = &self.nodes[child].label;
            let shared = common(label, rest);
            depth += shared;
            if shared < label.len() {
                break;
            }
            at = child;
        }
        found.reverse();
        (found, depth)
    }

    /// Returns the value of exactly this prefix.
    pub(crate) fn find(&self, tokens: &[u32]) -> Option<Place> {
        let (found, _) = self.along(tokens);
        found.first().filter(|(depth, _)| *depth == tokens.len()).map(|&(_, place)| place)
    }

    /// Sets the value of a prefix.
    pub(crate) fn insert(&mut self, tokens: &[u32], value: T) -> Place {
        let (mut at, mut depth) = (ROOT, 0);
        while depth < tokens.len() {
            let rest = &tokens[depth..];
            let Some(&child) = self.nodes[at].children.get(&rest[0]) else {
                self.tokens += rest.len();
                let leaf = self.add(Node { label: rest.to_vec(), parent: at, children: BTreeMap::new(), value: None });
                self.nodes[at].children.insert(rest[0], leaf);
                at = leaf;
                break;
            };
            let shared = common(&self.nodes[child].label, rest);
            depth += shared;
            at = if shared < self.nodes[child].label.len() { self.split(child, shared) } else { child };
        }
        self.nodes[at].value = Some(value);
        Place(at)
    }

    /// Removes a value, and the nodes that served only it.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let value = self.nodes.get_mut(place.0)?.value.take();
        let mut at = place.0;
        while at != ROOT && self.nodes[at].value.is_none() {
            let parent = self.nodes[at].parent;
            let mut children = self.nodes[at].children.values().copied();
            match (children.next(), children.next()) {
                (None, _) => {
                    let label = std::mem::take(&mut self.nodes[at].label);
                    self.tokens -= label.len();
                    self.nodes[parent].children.remove(&label[0]);
                    self.free.push(at);
                    at = parent;
                }
                (Some(child), None) => {
                    // The only child takes the node's place, so that its identity remains.
                    let mut label = std::mem::take(&mut self.nodes[at].label);
                    self.nodes[parent].children.insert(label[0], child);
                    self.nodes[at].children.clear();
                    self.free.push(at);
                    label.append(&mut self.nodes[child].label);
                    self.nodes[child].label = label;
                    self.nodes[child].parent = parent;
                    break;
                }
                _ => break,
            }
        }
        value
    }

    /// Returns the tokens of the prefix of a value.
    #[cfg(test)]
    fn prefix(&self, place: Place) -> Vec<u32> {
        let (mut at, mut labels) = (place.0, Vec::new());
        while at != ROOT {
            labels.push(self.nodes[at].label.as_slice());
            at = self.nodes[at].parent;
        }
        labels.reverse();
        labels.concat()
    }

    /// Splits a node after some tokens of its label and returns the new node before it.
    fn split(&mut self, node: usize, after: usize) -> usize {
        let parent = self.nodes[node].parent;
        let rest = self.nodes[node].label.split_off(after);
        let label = std::mem::replace(&mut self.nodes[node].label, rest);
        let (first, rest) = (label[0], self.nodes[node].label[0]);
        let middle = self.add(Node { label, parent, children: BTreeMap::from([(rest, node)]), value: None });
        self.nodes[node].parent = middle;
        self.nodes[parent].children.insert(first, middle);
        middle
    }

    fn add(&mut self, node: Node<T>) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Draws(u64);

    impl Draws {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    #[test]
    fn a_random_tree_finds_what_a_list_of_prefixes_finds_and_stores_nothing_else() {
        let mut draws = Draws(3);
        let (mut tree, mut list) = (Tree::new(), BTreeMap::<Vec<u32>, (usize, Place)>::new());
        for round in 0..5000 {
            let length = draws.below(9);
            let tokens: Vec<u32> = (0..length).map(|_| draws.below(3) as u32).collect();
            if draws.below(3) == 0 && !list.is_empty() {
                let key = list.keys().nth(draws.below(list.len())).unwrap().clone();
                let (value, place) = list.remove(&key).unwrap();
                assert_eq!(tree.prefix(place), key);
                assert_eq!(tree.remove(place), Some(value));
            } else {
                let place = tree.insert(&tokens, round);
                if let Some((_, before)) = list.insert(tokens.clone(), (round, place)) {
                    assert_eq!(before, place, "a place changed");
                }
            }
            let probe: Vec<u32> = (0..9).map(|_| draws.below(3) as u32).collect();
            let (found, shared) = tree.along(&probe);
            let expected: Vec<(usize, Place)> =
                (0..=9).rev().filter_map(|end| Some((end, list.get(&probe[..end])?.1))).collect();
            assert_eq!(found, expected);
            assert_eq!(shared, list.keys().map(|key| common(key, &probe)).max().unwrap_or(0));
            assert_eq!(tree.find(&tokens).is_some(), list.contains_key(&tokens));
        }
        let places: Vec<Place> = list.values().map(|&(_, place)| place).collect();
        for place in places {
            tree.remove(place);
        }
        assert_eq!((tree.tokens(), tree.nodes[ROOT].children.len()), (0, 0));
        assert_eq!(tree.free.len(), tree.nodes.len() - 1, "nodes were lost");
    }
}

//! Three nodes that write, lose sight of each other, and meet again, in orders that a number decides.

use std::collections::{BTreeMap, BTreeSet};

use alknet_store::{EntryKind, HybridTimestamp, TreeChange};

use super::scene::{SyncNode, TreeRow, hash, path};

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*: enough to mix orders.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).expect("31 bits") % limit
    }
}

/// Paths of which none lies below another one.
const APART: [&str; 6] = ["/a", "/b", "/d/x", "/d/y", "/e/f/z", "/e/w"];

/// Paths that stand in each other's way.
const NESTED: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/d", "/d/x", "/e/f"];

/// What a writer gave a path last: the content, or nothing.
type LastWrite = (HybridTimestamp, Option<u64>);

struct ModelRun {
    nodes: Vec<SyncNode>,
    random: Random,
    last: BTreeMap<&'static str, LastWrite>,
    /// What each node had after its last session.
    known: Vec<BTreeSet<String>>,
    number: u64,
}

impl ModelRun {
    async fn new(seed: u64, is_split: bool) -> Self {
        let mut nodes = Vec::new();
        for name in ["ada", "bob", "cyd"] {
            let node = SyncNode::new(name).await;
            node.split(is_split).await;
            nodes.push(node);
        }
        Self {
            nodes,
            random: Random(seed | 1),
            last: BTreeMap::new(),
            known: vec![BTreeSet::new(); 3],
            number: 1,
        }
    }

    fn any_node(&mut self) -> usize {
        self.random.below(self.nodes.len())
    }

    async fn write(&mut self, paths: &[&'static str]) {
        let at = self.any_node();
        let path_at = paths[self.random.below(paths.len())];
        let skew = self.random.below(50) as u64;
        self.nodes[at].clock.advance(skew);
        let there = self.nodes[at].paths().await;
        let is_there = there.iter().any(|path| path == path_at);
        let is_known = self.known[at].contains(path_at);
        let node = &self.nodes[at];
        if is_there && is_known && self.random.below(4) == 0 {
            let time = node.delete(path_at).await;
            self.last.insert(path_at, self.later(path_at, (time, None)));
        } else if !is_blocked(&node.tree().await, path_at) {
            self.number += 1;
            let time = node.put(path_at, self.number).await;
            let write = (time, Some(self.number));
            self.last.insert(path_at, self.later(path_at, write));
        }
    }

    /// The later one of a write and the last one so far.
    fn later(&self, at: &str, write: LastWrite) -> LastWrite {
        let before = self.last.get(at).copied();
        before.map_or(write, |before| before.max(write))
    }

    async fn meet(&mut self, one: usize, other: usize) {
        let met = self.nodes[one].sync(&self.nodes[other]).await;
        met.expect("synchronised");
        for at in [one, other] {
            self.known[at] = self.nodes[at].paths().await.into_iter().collect();
        }
    }

    /// All nodes meet until none has anything new.
    async fn heal(&mut self) {
        let mut rounds = 0;
        while rounds < 10 {
            rounds += 1;
            let before = self.events().await;
            for (one, other) in [(0, 1), (1, 2), (2, 0)] {
                self.meet(one, other).await;
            }
            if self.events().await == before {
                break;
            }
        }
        assert!(rounds < 10, "the nodes do not agree");
        let first = self.nodes[0].tree().await;
        for node in &self.nodes[1..] {
            assert_eq!(first, node.tree().await, "{}", node.name);
        }
    }

    /// Numbers of the commits that events are about.
    async fn events(&self) -> Vec<Vec<u64>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let merges = node.merges().await.into_iter();
            let commits: Vec<u64> = merges.filter_map(|event| event.seq).collect();
            let distinct: BTreeSet<_> = commits.iter().collect();
            assert_eq!(distinct.len(), commits.len(), "a commit with two events");
            all.push(commits);
        }
        all
    }

    async fn restart(&mut self) {
        let at = self.any_node();
        let node = self.nodes.remove(at);
        self.nodes.insert(at, node.restarted().await);
    }
}

/// Whether a file above the path, or a directory at it, refuses a file there.
fn is_blocked(tree: &BTreeMap<String, TreeRow>, at: &str) -> bool {
    let is_file_above = |(path, row): (&String, &TreeRow)| {
        at.starts_with(&format!("{path}/")) && row.0 != EntryKind::Directory
    };
    let is_directory = tree
        .get(at)
        .is_some_and(|row| row.0 == EntryKind::Directory);
    is_directory || tree.iter().any(is_file_above)
}

async fn run(seed: u64, paths: &[&'static str], is_split: bool) -> ModelRun {
    let mut run = ModelRun::new(seed, is_split).await;
    for _ in 0..60 {
        match run.random.below(10) {
            0..7 => run.write(paths).await,
            7..9 => {
                let one = run.any_node();
                let other = (one + 1 + run.random.below(2)) % 3;
                run.meet(one, other).await;
            }
            _ => run.restart().await,
        }
    }
    run.heal().await;
    run
}

#[tokio::test]
async fn three_nodes_agree_on_the_last_write_of_each_path() {
    for (seed, is_split) in [(1, false), (2, false), (3, false), (4, true), (5, true)] {
        let run = run(seed, &APART, is_split).await;
        let files: BTreeMap<String, _> = run.nodes[0]
            .tree()
            .await
            .into_iter()
            .filter_map(|(path, row)| Some((path, row.1?)))
            .collect();
        let last = run.last.iter();
        let expected: BTreeMap<String, _> = last
            .filter_map(|(path, (_, number))| Some(((*path).to_owned(), hash((*number)?))))
            .collect();
        assert_eq!(files, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn three_nodes_agree_where_files_and_directories_stand_in_each_others_way() {
    for (seed, is_split) in [(1, false), (2, false), (3, false), (4, true), (5, true)] {
        run(seed, &NESTED, is_split).await;
    }
}

#[tokio::test]
async fn nothing_new_makes_no_event() {
    let mut run = run(9, &APART, false).await;
    let before = run.events().await;
    for _ in 0..2 {
        run.heal().await;
    }
    assert_eq!(run.events().await, before);
    let change = TreeChange::mkdir(path("/new"));
    run.nodes[0].apply(vec![change]).await;
    run.heal().await;
    let after = run.events().await;
    let new: Vec<usize> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.len() - before.len())
        .collect();
    assert_eq!(new, [0, 1, 1]);
}

//! Buckets that nodes keep the same: parted and met again, without the right, split, and at a first synchronisation.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alknet_test_support::{is_campaign, took};
use alknet_tests::{CliOutput, TestBench, binary, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::enrolment::EnrolmentNode;

/// A node asks again soon.
const SETTINGS: &str = "[fs]\nsync_seconds = 1\nfetch_seconds = 20\n";

/// The pause of these settings between two sessions that bring nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// The nodes of the tests.
const NAMES: [&str; 3] = ["ada", "bob", "cyd"];

/// What the peers of a test may do.
const SCOPES: [&str; 2] = ["fs:sync:docs", "fs:read:docs"];

/// Paths of which none lies below another one.
const PATHS: [&str; 6] = ["/a", "/b", "/d/x", "/d/y", "/e/f/z", "/e/w"];

/// Changes, partings and restarts of one run, and in a campaign.
const STEPS: usize = 24;
const STEPS_CAMPAIGN: usize = 400;

/// Environment variable with the seed of a run that is to be repeated.
const SEED_VARIABLE: &str = "ALKNET_SEED";

/// Paths of a first synchronisation, and in a campaign.
const FIRST_PATHS: usize = 2000;
const FIRST_PATHS_CAMPAIGN: usize = 100_000;

/// What a first synchronisation of so many paths takes at most: time, and memory of each node beyond what it had before.
const FIRST_WITHIN: Duration = Duration::from_secs(60);
const FIRST_MIB_MAX: f64 = 200.0;

/// Changes of one batch.
const BATCH: usize = 1000;

/// Numbers that follow from a seed.
struct RandomOrder(u64);

impl RandomOrder {
    /// The order of `ALKNET_SEED`, or another one each time.
    fn new() -> Self {
        let given = std::env::var(SEED_VARIABLE).ok();
        let given = given.and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            u64::from(now.expect("after 1970").subsec_nanos())
        });
        println!("{SEED_VARIABLE}={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*: enough to mix orders.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).expect("31 bits") % limit
    }
}

/// A file that a node stored.
struct StoredFile {
    content: String,
    hash: String,
}

/// Nodes with the bucket `docs`. Each knows those that it is not parted from.
struct SyncedNodes {
    bench: TestBench,
    admin: String,
    nodes: Vec<EnrolmentNode>,
    parted: BTreeSet<(usize, usize)>,
}

impl SyncedNodes {
    /// So many nodes, which know each other.
    fn start(count: usize) -> Self {
        Self::start_with(&vec![&SCOPES[..]; count])
    }

    /// A node for each of these lists: the scopes that the others have on it.
    fn start_with(scopes: &[&[&str]]) -> Self {
        let bench = TestBench::new();
        let nodes = NAMES.iter().take(scopes.len());
        let nodes = nodes.map(|name| EnrolmentNode::start(&bench, name, SETTINGS, "0"));
        let nodes: Vec<_> = nodes.collect();
        let admin = bench.admin().identity();
        let synced = Self {
            bench,
            admin,
            nodes,
            parted: BTreeSet::new(),
        };
        for (at, scopes) in scopes.iter().enumerate() {
            synced.make_bucket(at, "docs");
            synced.apply(at, scopes);
        }
        synced
    }

    fn make_bucket(&self, at: usize, bucket: &str) {
        self.call(at, "fs/bucket/create", &json!({ "bucket": bucket }));
        self.set(at, &json!({ "bucket": bucket, "synced": true }));
    }

    fn set(&self, at: usize, settings: &Value) {
        self.call(at, "fs/bucket/set", settings);
    }

    fn ask(&self, at: usize, operation: &str, input: &Value) -> CliOutput {
        let target = &self.nodes[at].target;
        self.bench.admin().call(target, operation, input, &[])
    }

    fn call(&self, at: usize, operation: &str, input: &Value) -> Value {
        self.ask(at, operation, input).json()
    }

    /// The configuration of a node, in which its peers have these scopes.
    fn document(&self, at: usize, scopes: &[&str]) -> String {
        let admin = &self.admin;
        let mut document = format!("node.admin_keys = [\"{admin}\"]\n{SETTINGS}");
        for (other, node) in self.nodes.iter().enumerate() {
            if other != at && !self.parted.contains(&pair(at, other)) {
                let (key, address) = node.target.split_once('@').expect("a pinned target");
                let name = NAMES[other];
                document += &format!(
                    "[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\naddresses = [\"{address}\"]\n\
                     scopes = {scopes:?}\n"
                );
            }
        }
        document
    }

    fn apply(&self, at: usize, scopes: &[&str]) {
        let document = self.document(at, scopes);
        self.call(at, "config/apply", &json!({ "document": document }));
    }

    /// Lets two nodes forget each other, or know each other again.
    fn part(&mut self, one: usize, other: usize, is_parted: bool) {
        let changed = match is_parted {
            true => self.parted.insert(pair(one, other)),
            false => self.parted.remove(&pair(one, other)),
        };
        for at in [one, other] {
            if changed {
                self.apply(at, &SCOPES);
            }
        }
    }

    /// Stops a node in order, and starts it on the same port.
    fn restart(&mut self, at: usize) {
        let document = self.document(at, &SCOPES);
        let node = self.nodes.remove(at);
        let port = node.target.rsplit_once(':').expect("a port").1.to_owned();
        assert_eq!(node.stop(), Some(0));
        let node = EnrolmentNode::start(&self.bench, NAMES[at], &document, &port);
        self.nodes.insert(at, node);
    }

    /// Stores a file, and returns it.
    fn put(&self, at: usize, path: &str, content: &str) -> StoredFile {
        let bytes = BASE64.encode(content.as_bytes());
        let input = json!({ "path": format!("docs:{path}"), "bytes": bytes });
        let stored = self.call(at, "fs/put", &input);
        StoredFile {
            content: content.to_owned(),
            hash: stored["hash"].as_str().expect("a hash").to_owned(),
        }
    }

    /// The files of a node with their hashes.
    fn files(&self, at: usize) -> BTreeMap<String, String> {
        let input = json!({ "path": "docs:/", "recursive": true });
        let listed = self.call(at, "fs/list", &input);
        let rows = listed["entries"].as_array().expect("a list").iter();
        let file = |row: &Value| {
            let text = |name: &str| row[name].as_str().map(str::to_owned);
            Some((text("path")?, text("hash")?))
        };
        rows.filter_map(file).collect()
    }

    /// What `alknet fs cat` prints.
    fn cat(&self, at: usize, path: &str) -> CliOutput {
        let admin = self.bench.admin();
        let mut command = Command::new(binary());
        command
            .args(["fs", "cat", &self.nodes[at].target, &format!("docs:{path}")])
            .arg("--state")
            .arg(admin.state())
            .stdin(Stdio::null());
        admin.run(command)
    }

    /// Waits until every node has these files by their paths, and reads each of them there.
    fn all_have(&self, files: &BTreeMap<String, StoredFile>) {
        let hashes = files.iter();
        let hashes = hashes.map(|(path, file)| (path.clone(), file.hash.clone()));
        let expected: BTreeMap<_, _> = hashes.collect();
        for at in 0..self.nodes.len() {
            eventually("the node has the files", || {
                (self.files(at) == expected).then_some(())
            });
            for (path, StoredFile { content, .. }) in files {
                let said = self.cat(at, path);
                assert_eq!(
                    (said.status, &said.output),
                    (0, content),
                    "{path}: {said:?}"
                );
            }
        }
    }

    /// The rows of `fs/sync/status`, by the name of the peer.
    fn status(&self, at: usize, bucket: &str) -> BTreeMap<String, Value> {
        let answer = self.call(at, "fs/sync/status", &json!({ "bucket": bucket }));
        let rows = answer["peers"].as_array().expect("a list").iter();
        let named = |row: &Value| Some((row["peer"].as_str()?.to_owned(), row.clone()));
        rows.filter_map(named).collect()
    }

    /// Waits until every node has had sessions with each other one that brought nothing, two pauses from now and later.
    fn rest(&self) {
        let until = SystemTime::now() + 2 * PAUSE;
        let until = until.duration_since(UNIX_EPOCH).expect("after 1970");
        let until = u64::try_from(until.as_millis()).expect("milliseconds in 64 bits");
        for at in 0..self.nodes.len() {
            eventually("the nodes say again that they have the same", || {
                let rows = self.status(at, "docs");
                // All nodes of a test have the clock of this host.
                let is_later = |row: &Value| row["equal_ms"].as_u64() >= Some(until);
                let others = self.nodes.len() - 1;
                (rows.len() == others && rows.values().all(is_later)).then_some(())
            });
        }
    }

    /// The last commit of each node.
    fn heads(&self) -> Vec<u64> {
        let head = |at| {
            let listed = self.call(at, "fs/branch/list", &json!({ "bucket": "docs" }));
            let head = listed["branches"][0]["head_seq"].as_u64();
            head.expect("the branch main")
        };
        (0..self.nodes.len()).map(head).collect()
    }

    /// Waits until sessions of all pairs change nothing any more, and returns the last commit of each node.
    fn settled_heads(&self) -> Vec<u64> {
        let mut heads = self.heads();
        eventually("nothing is new", || {
            self.rest();
            // A version that lost may go round once more after the winner has.
            let before = std::mem::replace(&mut heads, self.heads());
            (before == heads).then(|| heads.clone())
        })
    }

    /// No content became the version of a path twice in a row: a change that is applied again would do that. Each put of a
    /// test has a content of its own.
    fn has_versions_once(&self, at: usize, path: &str) {
        let input = json!({ "path": format!("docs:{path}") });
        let history = self.ask(at, "fs/history", &input);
        if history.status != 0 {
            // Chance put nothing there.
            assert_eq!(history.code(), "NOT_FOUND", "{path}: {history:?}");
            return;
        }
        let history = history.json();
        let versions = history["versions"].as_array().expect("a list");
        for pair in versions.windows(2) {
            let is_again = pair[0]["hash"].is_string() && pair[0]["hash"] == pair[1]["hash"];
            assert!(!is_again, "{path} of {}: {pair:?}", NAMES[at]);
        }
    }

    /// Waits until the last session of a node with a peer failed with a code.
    fn fails(&self, at: usize, bucket: &str, peer: &str, code: &str) -> Value {
        eventually("the session fails", || {
            let row = self.status(at, bucket).remove(peer)?;
            (row["failure"] == code).then_some(row)
        })
    }
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

/// What happens to three nodes by chance.
struct ChanceRun {
    synced: SyncedNodes,
    order: RandomOrder,
    /// What each path was given last.
    last: BTreeMap<String, StoredFile>,
    /// Changes of each node.
    puts: [usize; 3],
}

impl ChanceRun {
    fn step(&mut self, number: usize) {
        let at = self.order.below(3);
        let path = PATHS[self.order.below(PATHS.len())];
        match self.order.below(10) {
            0..6 => {
                // Short and long, of the file of names and of a file of its own.
                let content = format!("{number} ").repeat(1 + self.order.below(2) * 8000);
                let file = self.synced.put(at, path, &content);
                self.puts[at] += 1;
                self.last.insert(path.to_owned(), file);
            }
            6 => {
                let input = json!({ "path": format!("docs:{path}") });
                let deleted = self.synced.ask(at, "fs/delete", &input);
                match deleted.status {
                    0 => drop(self.last.remove(path)),
                    // The node has not heard of the file.
                    _ => assert_eq!(deleted.code(), "NOT_FOUND"),
                }
            }
            7..9 => {
                let other = (at + 1 + self.order.below(2)) % 3;
                let is_parted = self.order.below(2) == 0;
                self.synced.part(at, other, is_parted);
            }
            _ => self.synced.restart(at),
        }
    }

    /// Every change has one event: each put of a node here, and each commit that peers caused once. All are acknowledged.
    fn has_events_once(&self, at: usize) {
        let input = json!({ "bucket": "docs", "consumer": "all", "limit": 1000 });
        let mut puts = 0;
        let mut merged = BTreeSet::new();
        loop {
            let page = self.synced.call(at, "fs/notify/events", &input);
            for event in page["events"].as_array().expect("a list") {
                match event["topic"].as_str() {
                    Some("fs.put") => puts += 1,
                    Some("sync.merged") => {
                        let seq = event["seq"].as_u64().expect("a commit");
                        assert!(merged.insert(seq), "{event}");
                    }
                    _ => {}
                }
            }
            let cursor = &page["cursor"];
            let acknowledged = json!({ "bucket": "docs", "consumer": "all", "id": cursor });
            self.synced.call(at, "fs/notify/ack", &acknowledged);
            if page["end"] == true {
                break;
            }
        }
        assert_eq!(puts, self.puts[at], "{}", NAMES[at]);
        assert!(!merged.is_empty(), "{}", NAMES[at]);
    }

    /// There is no event behind those that were acknowledged.
    fn has_no_new_events(&self, at: usize) {
        let input = json!({ "bucket": "docs", "consumer": "all", "limit": 1000 });
        let page = self.synced.call(at, "fs/notify/events", &input);
        assert_eq!(page["events"], json!([]), "{}", NAMES[at]);
        assert_eq!(page["end"], true, "{}", NAMES[at]);
    }
}

#[test]
fn three_nodes_that_are_parted_and_meet_again_have_the_same() {
    let steps = match is_campaign() {
        true => STEPS_CAMPAIGN,
        false => STEPS,
    };
    let synced = SyncedNodes::start(3);
    for at in 0..3 {
        let consumer = json!({ "bucket": "docs", "consumer": "all", "start": "oldest" });
        synced.call(at, "fs/notify/add", &consumer);
    }
    synced.set(0, &json!({ "bucket": "docs", "fetch": "eager" }));
    let mut run = ChanceRun {
        synced,
        order: RandomOrder::new(),
        last: BTreeMap::new(),
        puts: [0; 3],
    };
    for number in 0..steps {
        run.step(number);
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        run.synced.part(one, other, false);
    }
    // One more from each, so that each has heard of something.
    for at in 0..3 {
        let (path, content) = (format!("/last/{at}"), format!("of {at}"));
        let file = run.synced.put(at, &path, &content);
        run.puts[at] += 1;
        run.last.insert(path, file);
    }
    run.synced.all_have(&run.last);
    let heads = run.synced.settled_heads();
    for at in 0..3 {
        run.has_events_once(at);
        for path in PATHS {
            run.synced.has_versions_once(at, path);
        }
    }
    // Sessions that have nothing to say make no commit and no event, and do not apply an earlier change again.
    run.synced.rest();
    assert_eq!(run.synced.heads(), heads);
    for at in 0..3 {
        run.has_no_new_events(at);
    }
}

/// The attack: a node that both know, without the right, asks for the bucket.
#[test]
fn a_peer_without_the_right_sees_no_bucket() {
    let synced = SyncedNodes::start_with(&[&["node:read", "fs:read:docs"], &SCOPES]);
    let file = synced.put(0, "/secret", "of ada");
    // A bucket that ada does not have.
    synced.make_bucket(1, "none");
    let all = ["fs:sync:docs", "fs:sync:none", "fs:read:docs"];
    synced.apply(1, &all);
    let rows = ["docs", "none"].map(|bucket| synced.fails(1, bucket, "ada", "not-found"));
    let of = |row: &Value| (row["failure"].clone(), row["branch"].clone());
    assert_eq!(of(&rows[0]), of(&rows[1]));
    assert!(synced.files(1).is_empty());
    // It dials no peer without the right either, and keeps nothing about it.
    assert!(synced.status(0, "docs").is_empty());
    synced.apply(0, &SCOPES);
    synced.all_have(&BTreeMap::from([("/secret".to_owned(), file)]));
}

#[test]
fn contents_are_fetched_when_they_are_read_or_at_once_or_never() {
    let mut synced = SyncedNodes::start(3);
    synced.set(1, &json!({ "bucket": "docs", "fetch": "eager" }));
    synced.set(2, &json!({ "bucket": "docs", "fetch": "none" }));
    let content = "long ".repeat(10_000);
    let hash = synced.put(0, "/a", &content).hash;
    let status = |synced: &SyncedNodes, at: usize| {
        let answer = synced.ask(at, "fs/blob/status", &json!({ "hash": hash }));
        answer.json()["status"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    for at in 1..3 {
        eventually("the name is there", || synced.files(at).get("/a").map(drop));
    }
    eventually("the content is there", || {
        (status(&synced, 1) == "complete").then_some(())
    });
    assert_eq!(status(&synced, 2), "wanted");
    let refused = |synced: &SyncedNodes| {
        let refused = synced.ask(2, "fs/read", &json!({ "path": "docs:/a" }));
        assert_eq!(refused.code(), "CONTENT_UNAVAILABLE", "{refused:?}");
    };
    refused(&synced);
    // With every peer away, a read says that the file has a content elsewhere, and not that there is no file.
    synced.set(2, &json!({ "bucket": "docs", "fetch": "lazy" }));
    for other in 0..2 {
        synced.part(2, other, true);
    }
    refused(&synced);
    synced.part(2, 1, false);
    eventually("bob is asked", || {
        let said = synced.cat(2, "/a");
        (said.output == content).then_some(())
    });
    assert_eq!(status(&synced, 2), "complete");
}

/// A file that was changed in the folder of a node. No reader has to wait for its peer to have it whole again.
#[test]
fn a_content_that_was_changed_on_the_disk_comes_from_a_peer() {
    let mut synced = SyncedNodes::start(2);
    let content = "long ".repeat(10_000);
    let file = synced.put(0, "/a", &content);
    let hash = file.hash.clone();
    synced.all_have(&BTreeMap::from([("/a".to_owned(), file)]));
    synced.part(0, 1, true);
    let state = synced.bench.user(NAMES[1]).state().join("state");
    let object = state.join("fs/content/objects").join(&hash[..2]);
    let object = object.join(&hash);
    let mut bytes = std::fs::read(&object).expect("it lies there");
    bytes[40_000] ^= 1;
    std::fs::remove_file(&object).expect("it is ours");
    std::fs::write(&object, &bytes).expect("it is ours");
    let is_problem = |synced: &SyncedNodes| {
        let info = synced.call(1, "node/info", &Value::Null);
        let problems = info["problems"].as_array().expect("a list");
        problems
            .iter()
            .any(|problem| problem["code"] == "files-content-damaged")
    };
    assert!(!is_problem(&synced));
    // The first read breaks off at the damage, and later ones do not begin.
    assert_ne!(synced.cat(1, "/a").status, 0);
    let refused = synced.ask(1, "fs/read", &json!({ "path": "docs:/a" }));
    assert_eq!(refused.code(), "CONTENT_MISSING", "{refused:?}");
    assert!(is_problem(&synced));
    synced.set(1, &json!({ "bucket": "docs", "fetch": "eager" }));
    synced.part(0, 1, false);
    eventually("the content is whole again", || {
        (!is_problem(&synced)).then_some(())
    });
    let said = synced.cat(1, "/a");
    assert_eq!((said.status, said.output), (0, content));
}

#[test]
fn a_split_bucket_is_synchronised_name_by_name_and_on_both_sides_alike() {
    let synced = SyncedNodes::start(2);
    synced.set(0, &json!({ "bucket": "docs", "split": true }));
    let of_ada = synced.put(0, "/a/x", "of ada");
    let row = synced.fails(1, "docs", "ada", "split-differs");
    assert!(row["failures"].as_u64() > Some(0), "{row}");
    synced.set(1, &json!({ "bucket": "docs", "split": true }));
    let of_bob = synced.put(1, "/b/y", "of bob");
    let files = [
        ("/c", synced.put(1, "/c", "of bob, too")),
        ("/a/x", of_ada),
        ("/b/y", of_bob),
    ];
    let files = files.map(|(path, file)| (path.to_owned(), file));
    synced.all_have(&files.into());
    eventually("nothing fails any more", || {
        let row = synced.status(1, "docs").remove("ada")?;
        (row["failures"] == 0 && row["equal_ms"].is_u64()).then_some(())
    });
}

/// The time of a first synchronisation is held in the campaign. Its memory is that of the node's process alone, and is held
/// in each run.
#[test]
fn a_first_synchronisation_of_a_large_tree_ends() {
    let paths = match is_campaign() {
        true => FIRST_PATHS_CAMPAIGN,
        false => FIRST_PATHS,
    };
    let mut synced = SyncedNodes::start(3);
    for at in 0..3 {
        synced.set(at, &json!({ "bucket": "docs", "synced": false }));
    }
    synced.put(0, "/one", "the same");
    for folder in 0..paths / BATCH {
        let copy = |number: usize| {
            let to = format!("docs:/{folder}/{number}");
            json!({ "op": "copy", "path": "docs:/one", "to": to })
        };
        let changes: Vec<_> = (0..BATCH).map(copy).collect();
        synced.call(0, "fs/batch", &json!({ "changes": changes }));
    }
    let count_entries = |synced: &SyncedNodes, at: usize| {
        let usage = synced.call(at, "fs/bucket/usage", &json!({ "bucket": "docs" }));
        usage["entries"].as_u64().expect("a number")
    };
    let expected = count_entries(&synced, 0);
    // The most memory counts from the start of the process: what the batches took is not that of the synchronisation.
    synced.restart(0);
    // Opens the store, which a node does at the first use.
    let entries = |at: usize| count_entries(&synced, at);
    assert_eq!(entries(0), expected);
    let resident = |at: usize| {
        let metrics = synced.call(at, "node/metrics", &Value::Null);
        let values = &metrics["values"];
        let mib = |name: &str| values[name].as_f64().expect("a number") / f64::from(1 << 20);
        (
            mib("alknet_resident_bytes"),
            mib("alknet_resident_peak_bytes"),
        )
    };
    let before = [0, 1, 2].map(|at| resident(at).0);
    let begin = Instant::now();
    // The document of the full tree is made in this time too.
    for at in 0..3 {
        synced.set(at, &json!({ "bucket": "docs", "synced": true }));
    }
    for at in 1..3 {
        eventually("the node has every path", || {
            (entries(at) == expected).then_some(())
        });
    }
    let what = format!("first synchronisation of {expected} entries on two further nodes");
    took(&what, FIRST_WITHIN, begin.elapsed());
    for (at, before) in before.into_iter().enumerate() {
        let (after, peak) = resident(at);
        let (name, more) = (NAMES[at], peak - before);
        println!(
            "figure memory of {name}: {before:.0} MiB before, {more:.0} MiB more at most, {after:.0} MiB after, promised \
             within {FIRST_MIB_MAX:.0} MiB more"
        );
        assert!(more <= FIRST_MIB_MAX, "{more:.0} MiB of {name}");
    }
}

//! What a power cut leaves of files that clients put, merge, delete and collect: everything that they had an answer of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::DiskRecording;
use alknet_store::{
    BranchName, Bucket, BucketId, ContentHash, EntryKind, EntryPath, FileStoreOptions, ListRequest,
    MAIN_BRANCH, Store, StoreError,
};
use alknet_tests::tools::{assert_clean, tool};
use alknet_tests::{MachineNode, TestBench};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::clients::{Answer, AnsweredFact, KEPT, SCRAP};
use super::{CampaignRng, Evidence, PowerRecording, is_full};

/// Cuts that the soak promises, each of which boots, and those of a run of the tests, which do not: another test boots the
/// same recording.
const CUTS_FULL: usize = 200;
const CUTS: usize = 8;
/// Versions that are read on a machine that boots again, the newest ones before the cut.
const READ_ON_MACHINE: usize = 12;
/// Longest wait for them.
const READ_WITHIN: Duration = Duration::from_secs(120);
/// Entries in a listing of the store at most.
const LISTED: usize = 1000;

/// Each cut is looked at by the library of the store, which opens what the disk has as the node does.
#[test]
fn a_power_cut_while_clients_write_files_loses_nothing_that_was_answered() {
    let bench = TestBench::new();
    let session = PowerRecording::of_clients();
    let answers = &session.answers;
    let begin = answers.first().expect("the machine answered").moment;
    let mut dice = CampaignRng::from_environment();
    let cuts = if is_full() { CUTS_FULL } else { CUTS };
    for number in 0..cuts {
        // One half of the cuts comes at the moment of an answer, which the client would lose first.
        let moment = match number % 2 {
            0 => answers[dice.below(answers.len())].moment,
            _ => begin + dice.below(session.recording.len() - begin + 1),
        };
        let seed = dice.next();
        let image = Evidence(bench.path().join("cut.raw"));
        let what = cut(&session.recording, moment, seed, &image.0);
        eprintln!("cut {number}: {what}");
        let folder = bench.path().join(format!("cut-{number}"));
        CutFolder::extract(&image.0, &folder).check(answers, moment, &what);
        fs::remove_dir_all(&folder).expect("it is ours");
        if is_full() {
            // What was looked at has had its journal replayed.
            cut(&session.recording, moment, seed, &image.0);
            session.serves_again(&bench, &image.0, moment);
            assert_clean(&image.0, 0);
        }
    }
}

/// Makes the image of a cut, and says which cut it is.
fn cut(recording: &DiskRecording, moment: usize, seed: u64, image: &Path) -> String {
    let cut = recording.cut(moment, seed, image);
    let cut = cut.unwrap_or_else(|error| panic!("{error}"));
    format!(
        "moment {moment} of {}, seed {seed}: {cut:?}",
        recording.len()
    )
}

/// The answers that a cut at this moment must not take.
fn due(answers: &[Answer], moment: usize) -> impl Iterator<Item = &AnsweredFact> {
    let due = answers.iter().filter(move |answer| answer.moment <= moment);
    due.map(|answer| &answer.fact)
}

/// The state of a node, copied from the disk of a cut.
struct CutFolder(PathBuf);

impl CutFolder {
    /// Copies it from the image, whose journal is replayed as a mount does it.
    fn extract(image: &Path, folder: &Path) -> Self {
        let image = image.display().to_string();
        let replayed = tool("e2fsck", &["-p", &image]);
        // The code is 1 if the journal was replayed.
        let code = replayed.status.code();
        assert!(matches!(code, Some(0 | 1)), "{replayed:?}");
        fs::create_dir(folder).expect("the bench is ours");
        // A disk of before the first answer may have no such folder yet.
        let request = format!("rdump /state {}", folder.display());
        tool("debugfs", &["-R", &request, &image]);
        Self(folder.join("state"))
    }

    fn check(&self, answers: &[Answer], moment: usize, what: &str) {
        let mut names = BTreeMap::new();
        if self.0.join("fs/fs.db").exists() {
            // A start that follows no orderly end checks every page.
            let store = Store::open(&self.0.join("fs"), FileStoreOptions::default());
            let store = store.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(store.is_verified(), "{what}");
            names = check_store(&store, what);
            for fact in due(answers, moment) {
                check_fact(&store, &names, fact, what);
            }
            check_again(&store, answers, moment, what);
        }
        for fact in due(answers, moment) {
            match fact {
                AnsweredFact::Tensor { .. } => self.check_tensor(fact, what),
                AnsweredFact::Removed { path } => {
                    let address = format!("{SCRAP}:{path}");
                    assert!(!names.contains_key(&address), "{what}: {address} is back");
                }
                AnsweredFact::Version { path, .. } => {
                    let address = format!("{KEPT}:{path}");
                    assert!(names.contains_key(&address), "{what}: {address} is gone");
                }
            }
        }
    }

    fn check_tensor(&self, fact: &AnsweredFact, what: &str) {
        if let AnsweredFact::Tensor { path, id, content } = fact {
            let tensors = self.0.join("tensors");
            let name = fs::read_to_string(tensors.join("names").join(path));
            let name = name.unwrap_or_else(|error| panic!("{what}: {path}: {error}"));
            assert_eq!(name.trim(), id, "{what}: {path}");
            let object = fs::read(tensors.join("objects").join(&id[..2]).join(id));
            let object = object.unwrap_or_else(|error| panic!("{what}: {path}: {error}"));
            let (head, elements) = content.tensor_file();
            assert!(object == [head, elements].concat(), "{what}: {path}");
        }
    }
}

/// Every name leads to its content, and the counters are those of the rows. Returns the hash of each file of the main
/// branches, by its address.
fn check_store(store: &Store, what: &str) -> BTreeMap<String, ContentHash> {
    let buckets = store.read(|tx| tx.buckets(None, LISTED)).wait();
    let mut names = BTreeMap::new();
    for bucket in buckets.expect(what) {
        let id = bucket.id;
        let counted = store.read(move |tx| {
            let (used, counted) = (tx.usage(id)?, tx.recount(id)?);
            Ok((used, counted, tx.wrong_references(id)?))
        });
        let (used, counted, wrong) = counted.wait().expect(what);
        assert_eq!(used, counted, "{what}: {}", bucket.name);
        assert_eq!(used.staged, 0, "{what}: {}", bucket.name);
        assert_eq!(wrong, [], "{what}: {}", bucket.name);
        let mut read = BTreeSet::new();
        for (branch, path, hash) in files_of(store, &bucket).expect(what) {
            let address = format!("{}:{path}", bucket.name);
            // Branches show what their parents have.
            if read.insert(hash) {
                let content = store.read_content_in(id, hash);
                let content = content.and_then(|content| content.read(0..content.size()));
                content.unwrap_or_else(|error| panic!("{what}: {branch} {address}: {error}"));
            }
            if branch == MAIN_BRANCH {
                names.insert(address, hash);
            }
        }
    }
    names
}

/// Each file of each branch of a bucket: the branch, the path, the hash.
fn files_of(
    store: &Store,
    bucket: &Bucket,
) -> Result<Vec<(String, String, ContentHash)>, StoreError> {
    let id = bucket.id;
    let branches = store.read(move |tx| tx.branches(id, None, LISTED)).wait()?;
    let mut files = Vec::new();
    for branch in branches {
        let id = branch.id;
        let mut request = ListRequest {
            is_recursive: true,
            ..ListRequest::new(EntryPath::root())
        };
        let mut is_end = false;
        while !is_end {
            let asked = request.clone();
            let listed = store.read(move |tx| tx.list(&tx.view(id, None)?, &asked));
            let page = listed.wait()?;
            for entry in page.entries {
                if let (EntryKind::File, Some(hash)) = (entry.state.kind, entry.state.hash) {
                    files.push((branch.name.to_string(), entry.path.to_string(), hash));
                }
            }
            is_end = page.next.is_none();
            request.after = page.next;
        }
    }
    Ok(files)
}

/// A version reads back by its hash, and a path without later versions leads to it.
fn check_fact(
    store: &Store,
    names: &BTreeMap<String, ContentHash>,
    fact: &AnsweredFact,
    what: &str,
) {
    if let AnsweredFact::Version {
        path,
        hash,
        content,
        is_last,
    } = fact
    {
        let hash: ContentHash = hash.parse().expect("the node's own hash");
        let read = store.read_content_in(bucket_id(store), hash);
        let read = read.and_then(|reader| reader.read(0..reader.size()));
        let read = read.unwrap_or_else(|error| panic!("{what}: {path}: {error}"));
        assert!(read == content.bytes(), "{what}: {path}");
        let shown = names.get(&format!("{KEPT}:{path}"));
        assert!(
            !is_last || shown == Some(&hash),
            "{what}: {path}: {shown:?}"
        );
    }
}

fn bucket_id(store: &Store) -> BucketId {
    let name = KEPT.parse().expect("a name");
    let found = store.read(move |tx| tx.bucket_by_name(&name)).wait();
    found.expect("an answer says that it is there").id
}

/// A path that a client writes again and again shows the version of its last answer, or one that it wrote after that.
fn check_again(store: &Store, answers: &[Answer], moment: usize, what: &str) {
    let mut versions: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for answer in answers {
        if let AnsweredFact::Version {
            path,
            hash,
            is_last: false,
            ..
        } = &answer.fact
        {
            versions
                .entry(path)
                .or_default()
                .push((answer.moment, hash.as_str()));
        }
    }
    for (path, versions) in versions {
        let answered = versions.iter().filter(|(at, _)| *at <= moment).count();
        if answered > 0 {
            let bucket = bucket_id(store);
            let at: EntryPath = path.parse().expect("a path");
            let main: BranchName = MAIN_BRANCH.parse().expect("a name");
            let found = store.read(move |tx| {
                let main = tx.branch_by_name(bucket, &main)?;
                tx.stat(&tx.view(main.id, None)?, &at)
            });
            let found = found
                .wait()
                .expect(what)
                .state
                .hash
                .expect("a file has one");
            let allowed = &versions[answered - 1..];
            // The answers of one client come in the order of its calls.
            let is_allowed = allowed.iter().any(|(_, hash)| *hash == found.to_string());
            assert!(is_allowed, "{what}: {path} shows {found}");
        }
    }
}

/// A machine that boots from a cut serves the newest versions that it had answered, by their hashes.
pub(super) fn check_on(node: &MachineNode, answers: &[Answer], moment: usize) {
    let is_version = |fact: &&AnsweredFact| matches!(fact, AnsweredFact::Version { .. });
    let versions: Vec<_> = due(answers, moment).filter(is_version).collect();
    let newest = versions.iter().rev().take(READ_ON_MACHINE);
    // The store is opened with its first use.
    node.call("fs/bucket/list", &Value::Null);
    assert_eq!(node.info()["problems"], json!([]));
    let reading = async {
        let (_dialer, client) = node.client().await.expect("it serves");
        for fact in newest {
            if let AnsweredFact::Version { hash, content, .. } = fact {
                let begun = client.subscribe("fs/read", &json!({ "hash": hash })).await;
                let mut items = begun.unwrap_or_else(|error| panic!("{hash}: {error}"));
                let mut bytes = Vec::new();
                while let Some(item) = items.next().await {
                    let item = item.unwrap_or_else(|error| panic!("{hash}: {error}"));
                    let said = &item.output.value()["bytes"];
                    match item.output.binary(said) {
                        Some(data) => bytes.extend(data),
                        // The first item has none.
                        None => {
                            let text = said.as_str().unwrap_or_default();
                            bytes.extend(BASE64.decode(text.as_bytes()).expect("base64"));
                        }
                    }
                }
                assert!(bytes == content.bytes(), "{hash}");
            }
        }
    };
    let limit = node.vm().scale(READ_WITHIN);
    let runtime = Runtime::new().expect("a runtime");
    let read = runtime.block_on(async { tokio::time::timeout(limit, reading).await });
    read.unwrap_or_else(|_| panic!("the reads hang\n{}", node.vm().report()));
}

//! `alknet fs branch` and `alknet fs merge` against a node: what a branch takes in, what a protected one refuses, and how
//! both versions of a conflict stay.

use std::fs;

use alknet_tests::{CliOutput, CliRunner, TestBench};
use serde_json::Value;

use super::enrolment::EnrolmentNode;
use super::files_cli::{run, run_plain};
use super::manual_peer::people;

/// Exit codes of docs/command-line.md.
const FAILED: i32 = 1;
const DENIED: i32 = 4;

/// What ada may do. She is no administrator, and may not merge into a protected branch.
const SCOPES: [&str; 2] = ["fs:read:docs", "fs:write:docs"];

/// A node with the bucket `docs`, and ada.
struct BranchScene {
    bench: TestBench,
    node: EnrolmentNode,
    ada: CliRunner,
}

impl BranchScene {
    fn new() -> Self {
        let bench = TestBench::new();
        let ada = bench.user("ada");
        let config = people([("ada", &ada, &SCOPES[..])]);
        let node = EnrolmentNode::start(&bench, "node", &config, "0");
        let scene = Self { bench, node, ada };
        scene.done(&["bucket", "add", "NODE", "docs"]);
        scene
    }

    /// Words of a command, with the node in the place of `NODE`.
    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let target = self.node.target.as_str();
        let named = words
            .iter()
            .map(|word| if *word == "NODE" { target } else { *word });
        named.collect()
    }

    fn run_as(&self, who: &CliRunner, words: &[&str]) -> CliOutput {
        run(who, &self.words(words))
    }

    /// The output of a command of the administrator, which must succeed.
    fn done(&self, words: &[&str]) -> Value {
        let output = self.run_as(self.bench.admin(), words);
        assert_eq!(output.status, 0, "{words:?}: {output:?}");
        output.json()
    }

    /// Exit code and error code of a command that must fail.
    fn refused(&self, who: &CliRunner, words: &[&str]) -> (i32, String) {
        let output = self.run_as(who, words);
        assert_ne!(output.status, 0, "{words:?}: {output:?}");
        (output.status, output.code())
    }

    fn file(&self) -> String {
        self.bench.path().join("file").display().to_string()
    }

    fn put(&self, address: &str, content: &str) {
        let file = self.file();
        self.done(&put_words(&file, content, address));
    }

    fn cat(&self, address: &str) -> String {
        let words = self.words(&["cat", "NODE", address]);
        let output = run_plain(self.bench.admin(), &words);
        assert_eq!(output.status, 0, "{output:?}");
        output.output
    }
}

/// The command that stores a file with this content.
fn put_words<'a>(file: &'a str, content: &str, address: &'a str) -> [&'a str; 4] {
    fs::write(file, content).expect("the folder is ours");
    ["put", "NODE", file, address]
}

#[test]
fn a_branch_takes_in_its_parent_and_a_merge_keeps_both_versions() {
    let scene = BranchScene::new();
    scene.put("docs:/report", "first");
    scene.done(&["branch", "add", "NODE", "docs@draft"]);
    scene.put("docs@draft:/report", "draft");
    scene.put("docs:/later", "of the parent");
    let admin = scene.bench.admin();
    let missing = scene.refused(admin, &["cat", "NODE", "docs@draft:/later"]);
    assert_eq!(missing, (FAILED, "NOT_FOUND".to_owned()));

    // They changed different paths, so that there is no conflict.
    let words = scene.words(&["branch", "rebase", "NODE", "docs@draft"]);
    let rebased = run_plain(admin, &words);
    assert_eq!(rebased.status, 0, "{rebased:?}");
    assert!(
        rebased.output.starts_with("1 paths changed, in commit "),
        "{rebased:?}"
    );
    assert_eq!(scene.cat("docs@draft:/later"), "of the parent");
    assert_eq!(scene.cat("docs@draft:/report"), "draft");

    // From here on both have another version of one path.
    scene.put("docs:/report", "main");
    let conflict = (FAILED, "CONFLICT".to_owned());
    for words in [
        &["branch", "rebase", "NODE", "docs@draft"][..],
        &["merge", "NODE", "docs@draft"],
    ] {
        assert_eq!(scene.refused(admin, words), conflict, "{words:?}");
    }
    assert_eq!(scene.cat("docs:/report"), "main");
    assert_eq!(scene.cat("docs@draft:/report"), "draft");

    let merge = ["merge", "NODE", "docs@draft", "--strategy", "keep-both"];
    let merged = scene.done(&merge);
    assert_eq!(merged["conflicts"], 1, "{merged}");
    let listed = scene.done(&["ls", "NODE", "docs:/"]);
    let rows = listed["entries"].as_array().expect("a list").iter();
    let paths = rows.map(|row| row["path"].as_str().expect("a path"));
    let paths: Vec<_> = paths.filter(|path| path.starts_with("/report")).collect();
    let [plain, other] = paths.as_slice() else {
        panic!("both versions: {listed}");
    };
    assert_eq!(*plain, "/report");
    assert!(other.starts_with("/report.conflict-"), "{other}");
    let mut versions = paths
        .iter()
        .map(|path| scene.cat(&format!("docs:{path}")))
        .collect::<Vec<_>>();
    versions.sort();
    assert_eq!(versions, ["draft", "main"]);
    // What a synchronised bucket does with such a path is a setting of the bucket.
    let set = scene.done(&["bucket", "set", "NODE", "docs", "--keep-both", "on"]);
    assert_eq!(set["keep_both"], true, "{set}");
}

#[test]
fn a_protected_branch_takes_merges_only_and_not_from_everyone() {
    let scene = BranchScene::new();
    scene.put("docs:/report", "first");
    let set = scene.done(&["branch", "set", "NODE", "docs@main", "--protect"]);
    assert_eq!(set["protected"], true, "{set}");
    let file = scene.file();
    let put = put_words(&file, "second", "docs:/report");
    let denied = (DENIED, "FORBIDDEN".to_owned());
    // Nor does an administrator change it by hand.
    for who in [scene.bench.admin(), &scene.ada] {
        assert_eq!(scene.refused(who, &put), denied);
    }
    assert_eq!(scene.cat("docs:/report"), "first");

    scene.done(&["branch", "add", "NODE", "docs@draft"]);
    let drafted = put_words(&file, "second", "docs@draft:/report");
    let stored = scene.run_as(&scene.ada, &drafted);
    assert_eq!(stored.status, 0, "{stored:?}");
    let merge = ["merge", "NODE", "docs@draft"];
    assert_eq!(scene.refused(&scene.ada, &merge), denied);
    assert_eq!(scene.cat("docs:/report"), "first");
    scene.done(&merge);
    assert_eq!(scene.cat("docs:/report"), "second");

    let set = scene.done(&["branch", "set", "NODE", "docs@main", "--unprotect"]);
    assert_eq!(set["protected"], false, "{set}");
    scene.put("docs:/report", "third");
}

//! rclone, with its default settings: four uploads and eight comparisons at a time, three requests for each file.

use std::fs;
use std::path::Path;

use alknet_test_support::{is_campaign, limited};
use alknet_tests::{MachineNode, run_with_input};
use serde_json::json;

use super::{DONE_WITHIN, FilesClient, program};

/// Files of the tree: as many as the project promises in a campaign.
const FILES: usize = 10_000;
const FILES_IN_A_RUN: usize = 1_000;
const FOLDERS: usize = 20;

/// The second sync sends only what changed.
pub(super) fn a_tree_is_copied_compared_and_brought_up_to_date(
    files: &FilesClient,
    node: &MachineNode,
) {
    let work = files.work("rclone");
    let count = match is_campaign() {
        true => FILES,
        false => FILES_IN_A_RUN,
    };
    let name = |n: usize| format!("tree/folder-{}/file-{n}.txt", n % FOLDERS);
    for n in 0..FOLDERS {
        let folder = work.join(format!("tree/folder-{n}"));
        fs::create_dir_all(folder).expect("the folder is ours");
    }
    for n in 0..count {
        let text = format!("file {n}\n").repeat(n % 50 + 1);
        fs::write(work.join(name(n)), text).expect("the folder is ours");
    }
    let to = "attic:rclone/tree";
    run(files, &work, &["sync", "tree", to]);
    assert_same(&run(files, &work, &["check", "tree", to]), count);
    // The server has no hash that rclone knows, so rclone compares sizes. With this option it reads both.
    let [here, there] = ["tree/folder-0", "attic:rclone/tree/folder-0"];
    let said = run(files, &work, &["check", "--download", here, there]);
    assert_same(&said, count / FOLDERS);

    fs::remove_file(work.join(name(0))).expect("it is there");
    fs::write(work.join(name(1)), "longer than it was").expect("the folder is ours");
    fs::write(work.join("tree/new.txt"), "new").expect("the folder is ours");
    run(files, &work, &["sync", "tree", to]);
    assert_same(&run(files, &work, &["check", "tree", to]), count);
    let versions = |n: usize| {
        let history = node.call(
            "fs/history",
            &json!({ "path": format!("rclone:/{}", name(n)) }),
        );
        history["versions"].as_array().map(Vec::len)
    };
    // One was changed, and the other was not sent again.
    assert_eq!([1, 2].map(versions), [Some(2), Some(1)]);
}

/// rclone found these files, equal on both sides, and no other one.
fn assert_same(said: &str, files: usize) {
    for line in [
        ": 0 differences found\n".to_owned(),
        format!(": {files} matching files\n"),
    ] {
        assert!(said.contains(&line), "{line:?}: {said}");
    }
}

/// Runs rclone in a folder. It has to succeed at the first attempt of each file.
fn run(files: &FilesClient, work: &Path, arguments: &[&str]) -> String {
    let mut rclone = limited(DONE_WITHIN, program("rclone"));
    rclone
        .args(arguments)
        // Every user of this host can read arguments. The environment is the user's own.
        .env("RCLONE_CONFIG", work.join("rclone.conf"))
        .env("RCLONE_CONFIG_ATTIC_TYPE", "webdav")
        .env("RCLONE_CONFIG_ATTIC_URL", &files.url)
        .env("RCLONE_CONFIG_ATTIC_VENDOR", "other")
        .env("RCLONE_CONFIG_ATTIC_BEARER_TOKEN", &files.token)
        // The machine made its certificate itself.
        .env("RCLONE_NO_CHECK_CERTIFICATE", "true")
        .current_dir(work);
    let said = run_with_input(rclone, "");
    assert_eq!(said.status, 0, "{arguments:?}: {said:?}");
    // rclone tries again what failed, and says so.
    let mut lines = said.errors.lines();
    let error = lines.find(|line| line.contains("ERROR") && !line.contains("No common hash"));
    assert_eq!(error, None, "{arguments:?}: {said:?}");
    said.errors
}

//! The files of the booted image, with clients of other authors: curl, litmus, cadaver, davfs2 and rclone over HTTP,
//! and sendme and the getter of iroh-blobs over QUIC. All but sendme come through the one port.

mod cadaver;
mod curl;
mod davfs;
mod getter;
mod litmus;
mod namespace;
mod rclone;
mod sendme;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use alknet_qemu::{Nic, VirtioDisk};
use alknet_test_support::is_campaign;
use alknet_tests::tools::variable;
use alknet_tests::{
    BootVariant, Curl, CurlResponse, MachineNode, TestBench, curl as run_curl, whole_seconds,
};
use serde_json::{Value, json};

/// Longest run of a client. Those of a campaign take minutes on an emulated machine.
const DONE_WITHIN: Duration = Duration::from_secs(1200);

/// The UDP port on which a machine serves iroh clients.
const IROH_PORT: u16 = 4433;

/// Bytes of the file that sendme fetches in a campaign. In a run of the tests an emulated processor encrypts them.
const LARGE_BYTES: usize = 1 << 30;
const LARGE_BYTES_IN_A_RUN: usize = 64 << 20;

/// Bytes of the disk for the file.
const DISK_BYTES: u64 = 4 << 30;

/// A client of the files of a node over HTTP.
#[derive(Debug)]
struct FilesClient {
    /// The URL of the mount, which ends with a slash.
    url: String,
    token: String,
    /// For files of clients.
    folder: PathBuf,
}

impl FilesClient {
    /// A client that may read and write these buckets, which it makes.
    fn new(bench: &TestBench, node: &MachineNode, buckets: &[&str]) -> Self {
        let mut scopes = Vec::new();
        for bucket in buckets {
            node.call("fs/bucket/create", &json!({ "bucket": bucket }));
            scopes.extend(["read", "write"].map(|right| format!("fs:{right}:{bucket}")));
        }
        let made = node.call("token/make", &json!({ "scopes": scopes }));
        Self {
            url: format!("https://{}/fs/", node.address()),
            token: made["token"].as_str().expect("a token").to_owned(),
            folder: bench.path().to_owned(),
        }
    }

    /// The URL of a path in the mount.
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }

    /// Runs curl on a path with these arguments.
    fn curl(&self, path: &str, arguments: &[&str]) -> CurlResponse {
        let bearer = self.bearer();
        let fixed = ["--header", &bearer];
        run_curl(&self.url(path), &[&fixed[..], arguments].concat())
    }

    /// Stores a content by curl, with these arguments.
    fn put(&self, path: &str, content: &[u8], arguments: &[&str]) -> CurlResponse {
        let file = tempfile::NamedTempFile::new_in(&self.folder).expect("the folder is ours");
        fs::write(file.path(), content).expect("the folder is ours");
        let name = file.path().display().to_string();
        let upload = ["--upload-file", &name];
        self.curl(path, &[&upload[..], arguments].concat())
    }

    /// Starts curl, which stores the file `from` under the path `to`.
    fn start_upload(&self, to: &str, from: &Path, arguments: &[&str]) -> Child {
        let (within, url, bearer) = (whole_seconds(DONE_WITHIN), self.url(to), self.bearer());
        let from = from.display().to_string();
        let fixed = ["--silent", "--insecure", "--max-time", &within];
        let asks = ["--header", &bearer, "--upload-file", &from, "--url", &url];
        Curl::new(&[&fixed[..], &asks, arguments].concat()).start(Stdio::null())
    }

    /// A folder for one client's files.
    fn work(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).expect("the folder is ours");
        folder
    }
}

/// The program of a client of WebDAV.
fn program(name: &str) -> PathBuf {
    Path::new(&variable("ALKNET_TEST_WEBDAV")).join(name)
}

/// Bytes without a pattern that a mistake of a whole block would hide.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// The bytes of open uploads in a bucket, which the node notes every 8 MiB.
fn staged_bytes(node: &MachineNode, bucket: &str) -> u64 {
    let usage = node.call("fs/bucket/usage", &json!({ "bucket": bucket }));
    usage["staged"].as_u64().expect("a number")
}

/// The paths in a bucket.
fn paths(node: &MachineNode, bucket: &str) -> Vec<String> {
    let input = json!({ "path": format!("{bucket}:/"), "recursive": true });
    let listed = node.call("fs/list", &input);
    let rows = listed["entries"].as_array().expect("a list").iter();
    let path = |row: &Value| row["path"].as_str().map(str::to_owned);
    rows.filter_map(path).collect()
}

/// The node has its default settings: its limits are those that every client meets.
#[test]
fn webdav_clients_use_the_files_of_a_booted_machine() {
    let bench = TestBench::new();
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let docs = FilesClient::new(&bench, &node, &["docs"]);
    curl::ranges_come_by_curl(&docs);
    curl::one_of_two_writers_with_the_same_tag_wins(&docs);
    curl::a_body_is_awaited_only_if_it_is_taken(&docs);
    curl::conditions_on_locks_and_versions_are_evaluated(&docs);
    curl::an_upload_that_was_killed_changes_nothing(&docs, &node);

    // litmus takes its password as an argument only, which every user of this host can read.
    let own = FilesClient::new(&bench, &node, &["litmus"]);
    litmus::the_suite_ends_as_expected(&own);
    let own = FilesClient::new(&bench, &node, &["cadaver"]);
    cadaver::a_session_uses_every_command(&own, &node);
    let own = FilesClient::new(&bench, &node, &["davfs"]);
    davfs::a_mounted_bucket_is_a_folder(&bench, &own, &node);
    let own = FilesClient::new(&bench, &node, &["rclone"]);
    rclone::a_tree_is_copied_compared_and_brought_up_to_date(&own, &node);

    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["node_restarts"], 0, "{info:#}");
}

/// The disk is not sealed, so that the test can damage a content on it.
#[test]
fn iroh_clients_fetch_contents_from_a_booted_machine() {
    let bench = TestBench::new();
    let peer = bench.user("peer");
    let disk = bench.disk("blobs", DISK_BYTES);
    let key = peer.identity();
    let document = format!(
        "[iroh]\nenabled = true\nport = {IROH_PORT}\n\
         [[peers]]\npeer_id = \"peer\"\nkeys = [\"{key}\"]\nscopes = [\"fs:read:blobs\"]\n"
    );
    let boot = || {
        let machine = bench.machine(BootVariant::MicrovmErofs).plain();
        let data = VirtioDisk::file(&disk).data();
        let nic = Nic::user().forward(IROH_PORT);
        let machine = machine.configured(&document).data(Some(data)).nic(nic);
        machine.boot()
    };
    let node = boot();
    let client = FilesClient::new(&bench, &node, &["blobs"]);
    let bytes = match is_campaign() {
        true => LARGE_BYTES,
        false => LARGE_BYTES_IN_A_RUN,
    };
    sendme::fetches_a_file_from_the_port_of_iroh(&client, &node, &peer, bytes);

    let content = noise(getter::CONTENT_BYTES);
    let hash = getter::store(&client, &content);
    getter::fetches_a_content_through_the_one_port(&node, &peer, &hash, &content);
    node.end();
    getter::damage(&disk, &hash);
    let node = boot();
    getter::gets_everything_but_the_damaged_group(&node, &peer, &hash, &content);
}

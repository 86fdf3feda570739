//! curl: ranges, uploads that break off, and conditions.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use alknet_tests::{MachineNode, eventually};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use super::{FilesClient, noise, staged_bytes};

/// curl's options for the versions of HTTP over TCP.
const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

/// Bytes of the file that is read in ranges: not a multiple of any block.
const RANGED_BYTES: usize = 300_001;

/// Bytes that curl sends before it is killed, and those of them that the node has noted.
const HALF_BYTES: usize = 9 << 20;
const NOTED_BYTES: u64 = 8 << 20;

/// Pairs of writers.
const RACES: usize = 6;

/// The body of a LOCK.
const LOCK: &str = "<D:lockinfo xmlns:D='DAV:'><D:lockscope><D:exclusive/></D:lockscope>\
                    <D:locktype><D:write/></D:locktype></D:lockinfo>";

/// Parts of a file, one and several in a request, and none behind its end.
pub(super) fn ranges_come_by_curl(files: &FilesClient) {
    const PATH: &str = "docs/ranges.bin";
    const LAST: usize = RANGED_BYTES - 1;
    let content = noise(RANGED_BYTES);
    let stored = files.put(PATH, &content, &[]);
    assert_eq!(stored.status, 201, "{}", stored.text());
    let tag = stored.header("etag");
    assert!(tag.is_some_and(|tag| tag.starts_with("\"b3-")), "{tag:?}");
    for version in VERSIONS {
        let get = |range: &str| files.curl(PATH, &[version, "--range", range]);
        let whole = files.curl(PATH, &[version]);
        assert_eq!((whole.status, whole.header("etag")), (200, tag));
        assert!(whole.body == content, "{version}");
        for (range, first, last) in [
            ("0-9", 0, 9),
            ("16380-16390", 16_380, 16_390),
            ("-500", RANGED_BYTES - 500, LAST),
            ("250000-", 250_000, LAST),
            ("299990-999999", 299_990, LAST),
        ] {
            let part = get(range);
            assert_eq!((part.status, part.header("etag")), (206, tag), "{range}");
            let expected = format!("bytes {first}-{last}/{RANGED_BYTES}");
            assert_eq!(part.header("content-range"), Some(&*expected));
            assert!(part.body == content[first..=last], "{version} {range}");
        }
        let several = get("0-9,200000-200009");
        let kind = several.header("content-type").unwrap_or_default();
        assert_eq!(several.status, 206);
        assert!(kind.starts_with("multipart/byteranges"), "{kind}");
        for part in [&content[..10], &content[200_000..200_010]] {
            let found = memchr::memmem::find(&several.body, part);
            assert!(found.is_some(), "{version}");
        }
        let behind = get("300001-");
        let expected = format!("bytes */{RANGED_BYTES}");
        assert_eq!(behind.status, 416);
        assert_eq!(behind.header("content-range"), Some(&*expected));
    }
}

/// Both have the tag of the present version. The file has the content of the one that got 204.
pub(super) fn one_of_two_writers_with_the_same_tag_wins(files: &FilesClient) {
    const PATH: &str = "docs/race.txt";
    let mut now = files.put(PATH, b"the first", &[]);
    assert_eq!(now.status, 201, "{}", now.text());
    for race in 0..RACES {
        let tag = now.header("etag").expect("a version");
        let header = format!("If-Match: {tag}");
        let header = header.as_str();
        let contents = ["left", "right"].map(|writer| format!("{writer} {race}"));
        let statuses = thread::scope(|scope| {
            let writers = contents.each_ref().map(|content| {
                let condition = ["--header", header];
                scope.spawn(move || files.put(PATH, content.as_bytes(), &condition).status)
            });
            writers.map(|writer| writer.join().expect("curl ends"))
        });
        let winner = match statuses {
            [204, 412] => 0,
            [412, 204] => 1,
            other => panic!("{other:?}"),
        };
        now = files.curl(PATH, &[]);
        assert_eq!(now.text(), contents[winner], "{statuses:?}");
    }
}

/// curl waits for 100 before it sends a body. The node refuses a request without it.
pub(super) fn a_body_is_awaited_only_if_it_is_taken(files: &FilesClient) {
    const PATH: &str = "docs/awaited.txt";
    let waits = ["--http1.1", "--header", "Expect: 100-continue"];
    let stored = files.put(PATH, b"awaited", &waits);
    assert_eq!((&stored.interim[..], stored.status), (&[100][..], 201));
    let other = ["--header", "If-Match: \"b3-00\""];
    let refused = files.put(PATH, b"refused", &[&waits[..], &other].concat());
    assert_eq!((&refused.interim[..], refused.status), (&[][..], 412));
    assert_eq!(refused.header("etag"), stored.header("etag"));
    assert_eq!(files.curl(PATH, &[]).text(), "awaited");
}

/// Requests of litmus that it cannot send to this node: it cuts the header off, in which two tags of this node have no
/// room (`complex_cond_put` and `fail_complex_cond_put`).
pub(super) fn conditions_on_locks_and_versions_are_evaluated(files: &FilesClient) {
    const PATH: &str = "docs/locked.txt";
    let stored = files.put(PATH, b"first", &[]);
    let tag = stored.header("etag").expect("a version");
    let lock = ["--request", "LOCK", "--data-binary", LOCK];
    let how = ["--header", "Depth: 0", "--header", "Timeout: Second-600"];
    let kind = ["--header", "Content-Type: application/xml"];
    let locked = files.curl(PATH, &[&lock[..], &how, &kind].concat());
    assert_eq!(locked.status, 200, "{}", locked.text());
    let token = locked.header("lock-token").expect("a token");
    let put = |tag: &str| {
        let condition = format!("If: ({token} [{tag}]) (Not <DAV:no-lock> [{tag}])");
        files.put(PATH, b"second", &["--header", &condition]).status
    };
    // Of each list one condition holds.
    assert_eq!(put("\"b3-00\""), 412);
    assert_eq!(files.put(PATH, b"second", &[]).status, 423);
    assert_eq!(put(tag), 204);
    let token = format!("Lock-Token: {token}");
    let unlocked = files.curl(PATH, &["--request", "UNLOCK", "--header", &token]);
    assert_eq!(unlocked.status, 204, "{}", unlocked.text());
    assert_eq!(files.put(PATH, b"third", &[]).status, 204);
}

/// curl is killed when the half of its file is on the disk of the node. Readers see the old version before and after,
/// and the room is free again.
pub(super) fn an_upload_that_was_killed_changes_nothing(files: &FilesClient, node: &MachineNode) {
    const PATH: &str = "docs/killed.bin";
    let before = files.put(PATH, b"the old version", &[]);
    assert_eq!(before.status, 201, "{}", before.text());
    let shows_the_old_version = || {
        let now = files.curl(PATH, &[]);
        assert_eq!(now.text(), "the old version");
        assert_eq!(now.header("etag"), before.header("etag"));
    };
    for version in VERSIONS {
        let pipe = files.folder.join(format!("pipe{version}"));
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).expect("the folder is ours");
        let mut curl = files.start_upload(PATH, &pipe, &[version]);
        // Without a reader this attempt fails, and one that waits would wait for ever if curl ended.
        let opened = eventually("curl reads the file", || {
            let mut options = File::options();
            let options = options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
            options.open(&pipe).ok()
        });
        let mut half = File::options().write(true).open(&pipe).expect("curl reads");
        drop(opened);
        half.write_all(&noise(HALF_BYTES)).expect("curl reads");
        eventually("half of the file is on the disk", || {
            (staged_bytes(node, "docs") >= NOTED_BYTES).then_some(())
        });
        shows_the_old_version();
        curl.kill().expect("it is our child");
        curl.wait().expect("it is our child");
        drop(half);
        eventually("the node gives the upload up", || {
            (staged_bytes(node, "docs") == 0).then_some(())
        });
        shows_the_old_version();
    }
    let history = node.call("fs/history", &json!({ "path": "docs:/killed.bin" }));
    let versions = history["versions"].as_array().map(Vec::len);
    assert_eq!(versions, Some(1), "{history:#}");
}

//! Tensor files with curl, which has no special support for them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use alknet_test_support::seconds;
use alknet_tests::{Curl, CurlResponse, TestBench, WebNode};
use data_encoding::BASE64;
use serde_json::{Value, json};

/// Elements of the first tensor: several blocks of a single read.
const LARGE: usize = 600_000;
/// The content of the second one.
const SMALL: [u8; 5] = [3, 1, 4, 1, 5];
/// Bytes that are stored at once. They are sent as an argument of the command line.
const PIECE: usize = 60_000;

/// A safetensors file, made by hand.
fn file() -> Vec<u8> {
    let header = json!({
        "large": { "dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE] },
        "small": { "dtype": "U8", "shape": [SMALL.len()],
                   "data_offsets": [LARGE, LARGE + SMALL.len()] },
    });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend((0..LARGE).map(|at| (at * 31 % 251) as u8));
    file.extend(SMALL);
    file
}

/// The length before the header, and the header.
fn header_len(file: &[u8]) -> usize {
    let len = file.first_chunk().map(|len| u64::from_le_bytes(*len));
    8 + len.expect("more than eight bytes") as usize
}

/// Stores a file under this path, and returns its ID.
fn put(web: &WebNode, path: &str, file: &[u8]) -> String {
    let call = |input: Value| web.node.call("tensor/put", &input);
    let (header, data) = file.split_at(header_len(file));
    let begun = call(json!({ "header": BASE64.encode(header), "path": path }));
    let upload = &begun["upload"];
    let mut at = header.len();
    for piece in data.chunks(PIECE) {
        call(json!({ "upload": upload, "offset": at, "bytes": BASE64.encode(piece) }));
        at += piece.len();
    }
    let stored = call(json!({ "upload": upload, "commit": true }));
    stored["id"].as_str().expect("an id").to_owned()
}

/// The hash of these bytes from another tool.
fn b3sum(bytes: &[u8]) -> String {
    let mut command = Command::new("b3sum");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut b3sum = command.spawn().expect("b3sum is installed by the set-up");
    let mut input = b3sum.stdin.take().expect("it was asked for above");
    input.write_all(bytes).expect("it reads");
    drop(input);
    let said = b3sum.wait_with_output().expect("it ends");
    let said = String::from_utf8(said.stdout).expect("digits");
    said.split(' ').next().unwrap_or_default().trim().to_owned()
}

/// Runs curl for the body only, which may end too early.
fn body(web: &WebNode, token: &str, path: &str, arguments: &[&str]) -> Output {
    let (within, url) = (seconds(Duration::from_secs(300)), web.url(path));
    let bearer = format!("Authorization: Bearer {token}");
    let fixed = ["--silent", "--insecure", "--max-time", &within];
    let asks = ["--header", &bearer, "--url", &url];
    Curl::new(&[&fixed[..], &asks, arguments].concat()).output()
}

/// A token with only this scope.
fn token(web: &WebNode, scope: &str) -> String {
    let made = web.node.call("token/make", &json!({ "scopes": [scope] }));
    made["token"].as_str().expect("a token").to_owned()
}

/// The answer without the request's ID.
fn face(told: &CurlResponse) -> (u16, Value) {
    let mut error = told.json();
    error["error"]["request_id"].take();
    (told.status, error)
}

#[test]
fn parts_of_a_file_come_by_curl() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let file = file();
    let id = put(&web, "models/bert", &file);
    assert_eq!(id, b3sum(&file));
    let reader = token(&web, "tensor:read:models");
    let path = format!("/tensor/{id}");
    let tag = format!("\"{id}\"");
    for version in ["--http1.1", "--http2"] {
        let get = |more: &[&str]| web.curl_as(&reader, &path, &[&[version], more].concat());
        let range = |first: usize, len: usize| {
            let range = format!("{first}-{}", first + len - 1);
            let told = get(&["--range", &range]);
            let said = format!("bytes {range}/{}", file.len());
            assert_eq!(
                (told.status, told.header("content-range")),
                (206, Some(&*said))
            );
            assert_eq!(told.header("etag"), Some(&*tag));
            told.body
        };
        // The length, the header, a tensor: all that a reader of such files needs.
        let len = range(0, 8);
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes")) as usize;
        let header: Value = serde_json::from_slice(&range(8, len)).expect("a header");
        let place = &header["large"]["data_offsets"];
        let start = 8 + len + place[0].as_u64().expect("a number") as usize;
        let end = 8 + len + place[1].as_u64().expect("a number") as usize;
        let large = range(start, end - start);
        assert_eq!(b3sum(&large), b3sum(&file[start..end]));
        assert_eq!(range(end, SMALL.len()), SMALL);

        let told = get(&[]);
        assert_eq!((told.status, b3sum(&told.body)), (200, id.clone()));
        assert_eq!(told.header("etag"), Some(&*tag));
        let head = get(&["--head"]);
        let len = file.len().to_string();
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some(&*len))
        );
        let known = get(&["--header", &format!("If-None-Match: {tag}")]);
        assert_eq!((known.status, known.body.len()), (304, 0));
        let behind = get(&["--range", &format!("{len}-")]);
        let said = format!("bytes */{len}");
        assert_eq!(
            (behind.status, behind.header("content-range")),
            (416, Some(&*said))
        );
        let several = get(&["--range", "0-1,5-6"]);
        assert_eq!((several.status, several.body.len()), (200, file.len()));
    }
    // An interrupted download continues where it ended.
    let part = bench.path().join("part");
    fs::write(&part, &file[..300_001]).expect("room");
    let target = part.to_str().expect("UTF-8");
    let resumed = ["--continue-at", "-", "--fail", "--output", target];
    let resumed = body(&web, &reader, "/tensor/models/bert", &resumed);
    assert!(resumed.status.success(), "{resumed:?}");
    assert_eq!(b3sum(&fs::read(&part).expect("there")), id);
}

#[test]
fn a_caller_without_read_access_cannot_see_that_a_file_exists() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let id = put(&web, "models/bert", &file());
    let other = token(&web, "tensor:read:other");
    let writer = token(&web, "tensor:write:models");
    let path = format!("/tensor/{id}");
    let nothing = format!("/tensor/{}", "0".repeat(64));
    let absent = face(&web.curl_as(&web.admin, &nothing, &[]));
    assert_eq!(
        (absent.0, &absent.1["error"]["code"]),
        (404, &json!("NOT_FOUND"))
    );
    for path in [&*path, "/tensor/models/bert"] {
        assert_eq!(face(&web.curl(path, &[])), absent, "{path}");
        for token in [&other, &writer, &web.reader] {
            assert_eq!(face(&web.curl_as(token, path, &[])), absent, "{path}");
        }
        assert_eq!(web.curl_as(&web.expired, path, &[]).status, 401);
    }
    let told = web.curl_as(&web.admin, &path, &["--request", "DELETE"]);
    assert_eq!(
        (told.status, told.header("allow")),
        (405, Some("GET, HEAD"))
    );
    assert_eq!(web.curl_as(&web.admin, &path, &["--head"]).status, 200);
}

#[test]
fn a_file_that_is_damaged_is_not_served_to_its_end() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let file = file();
    let id = put(&web, "models/bert", &file);
    let path = format!("/tensor/{id}");
    assert_eq!(body(&web, &web.admin, &path, &[]).stdout, file);
    let object = web.node.state().join("state/tensors/objects");
    let object = object.join(&id[..2]).join(&id);
    let own = Permissions::from_mode(0o600);
    fs::set_permissions(&object, own).expect("ours");
    let disk = OpenOptions::new().write(true).open(&object).expect("ours");
    let at = file.len() / 2;
    disk.write_all_at(&[file[at] ^ 1], at as u64)
        .expect("writable");
    for version in ["--http1.1", "--http2"] {
        let cut = body(&web, &web.admin, &path, &[version]);
        assert!(!cut.status.success(), "{version}");
        assert!(cut.stdout.len() <= at, "{version}");
        assert!(cut.stdout == file[..cut.stdout.len()], "{version}");
        let good = body(&web, &web.admin, &path, &[version, "--range", "0-9999"]);
        assert!(good.status.success() && good.stdout == file[..10_000]);
    }
}

//! A message about a file names the file.

use super::tree::sources;

/// This file contains what it searches for.
const RULE: &str = "tests/tests/house/errors.rs";

/// Errors that forward a system error without a path, by their file, and why they need none.
const WITHOUT_PATH: [(&str, &str); 9] = [
    (
        "compute/embedded-exe/src/lib.rs",
        "the only file is the executable that runs",
    ),
    (
        "crates/core/src/handler.rs",
        "a stream of a connection has no path",
    ),
    (
        "crates/core/src/stream.rs",
        "a stream of a connection has no path",
    ),
    (
        "crates/delta/src/error.rs",
        "the caller opened the programs, the delta and the output, and its message names them",
    ),
    (
        "crates/hub/src/client.rs",
        "a stream of the connection to a hub has no path",
    ),
    (
        "crates/fs/src/blobs/receive.rs",
        "the stream of a peer has no path",
    ),
    (
        "crates/fs/src/sync/error.rs",
        "the stream of a peer has no path",
    ),
    (
        "crates/worker/src/error.rs",
        "the socket pair between host and worker has no path",
    ),
    (
        "init/src/data/gpt.rs",
        "the caller opened the disk, and its message names it",
    ),
];

#[test]
fn an_error_of_the_system_comes_with_the_path_of_its_file() {
    let forms = ["#[from] io::Error", "#[from] std::io::Error"];
    let others = sources().iter().filter(|source| source.path != RULE);
    let passing = others.filter(|source| forms.iter().any(|form| source.text.contains(form)));
    let passing: Vec<_> = passing.map(|source| source.path.as_str()).collect();
    for path in &passing {
        assert!(
            WITHOUT_PATH.iter().any(|(known, _)| known == path),
            "{path}: say which file it was, in a field beside the error of the system"
        );
    }
    for (path, why) in WITHOUT_PATH {
        assert!(passing.contains(&path), "{path} needs no exception: {why}");
    }
}

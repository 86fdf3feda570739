//! Attacks that are about the memory of the machine: 512 MiB of it.

use alknet_tests::{AtOnce, Bench};

use super::Machine;
use super::gateway::{BODY_BYTES_MAX, JSON, body};

/// What all of an attack may make of the node's memory.
const GROWTH_BYTES: u64 = 64 << 20;

/// Bodies at once.
const BODIES: usize = 200;

/// Lists of short values at once.
const LISTS: usize = 8;

/// With a token of the least scope: 200 of the longest bodies at once, and then bodies of the shortest values there
/// are.
pub(super) fn bodies_cost_little_memory(bench: &Bench, web: &Machine) {
    let file = bench.path().join("attack");
    let options = format!(
        "http2\nheader = \"Authorization: Bearer {}\"\nheader = \"{JSON}\"\n\
         header = \"Accept: application/json, text/event-stream\"\ndata-binary = \"@{}\"\n",
        web.reader,
        file.display()
    );
    let write = |text: &str| std::fs::write(&file, text).expect("the folder is ours");
    let before = resident(web);

    write(&body(BODY_BYTES_MAX));
    // As fast as they go, each would be answered before the next one begins.
    let slow = format!("{options}limit-rate = \"1M\"\n");
    let (statuses, mut most) =
        meanwhile(web, web.at_once(bench, &["/call"; BODIES], BODIES, &slow));
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    let (served, refused, late, unconnected) = (count(200), count(429), count(408), count(0));
    let all = served + refused + late + unconnected;
    assert_eq!(all, BODIES, "{statuses:?}");
    // A network has so many connections, and no more. An emulated machine reads so many bodies more slowly than
    // a body may come.
    assert!(
        served > 0 && refused > 0 && served + refused + late >= 64,
        "{statuses:?}"
    );

    let list = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2));
    let call = |input: &str| format!(r#"{{"operation":"/services/list","input":{input}}}"#);
    let tool = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"call","arguments":{}}}}}"#,
        call(&list((4 << 20) - 500))
    );
    for (path, text, most_says) in [
        ("/call", call(&list(BODY_BYTES_MAX - 200)), 422),
        // A tool says in its answer that it failed.
        ("/mcp", tool, 200),
    ] {
        write(&text);
        let (statuses, seen) = meanwhile(web, web.at_once(bench, &[path; LISTS], LISTS, &options));
        let known = |status: &u16| [413, 429, most_says].contains(status);
        assert!(
            statuses.len() == LISTS && statuses.iter().all(known),
            "{path}: {statuses:?}"
        );
        most = most.max(seen);
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= GROWTH_BYTES, "{before} became {most}");
    let info = web.node.info();
    assert_eq!(info["node_restarts"], 0, "{info:#}");
}

/// The statuses of an attack, and the most memory that the node was seen with. It answers others all the while.
fn meanwhile(web: &Machine, mut attack: AtOnce) -> (Vec<u16>, u64) {
    let mut most = 0;
    while !attack.is_over() {
        most = most.max(resident(web));
        let calls = r#"{"calls":[{"id":"a","operation":"/node/info"}]}"#;
        let told = web.post(&web.admin, "/batch", calls).json();
        assert_eq!(told["results"][0]["status"], 200, "{told}");
    }
    (attack.statuses(), most)
}

/// Memory of the node, by its own account.
fn resident(web: &Machine) -> u64 {
    let told = web.curl_as(&web.admin, "/metrics", &[]);
    assert_eq!(told.status, 200, "{told:?}");
    let text = told.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("alknet_resident_bytes "));
    let bytes = line.and_then(|bytes| bytes.trim().parse::<f64>().ok());
    bytes.expect("a number") as u64
}

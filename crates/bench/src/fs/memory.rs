//! Memory of a node, a process of its own: with 1,000,000 entries over one without files, while all of their names are
//! listed, while 64 clients read slowly, and while 1,000 watch and nothing happens.

use std::time::Duration;

use alknet_call::{CallConnection, Subscription};
use alknet_endpoint::EndpointDialer;
use alknet_store::{FileStoreOptions, Store};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::client::{DavClient, UploadBody, noise};
use super::node::{BUCKET, FsBenchNode, NodeSetup};
use super::process::{forget_peak, peak_mib, resident_mib};
use super::tree::{fill, flat_path, make_bucket, tree_path};
use super::{BENCH, goals};
use crate::call::measure::failed;
use crate::call::sides::SideRuntimes;
use crate::rows::{BenchRow, Goal};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Files of one directory.
const FLAT: usize = 500_000;

/// The directory.
const DIRECTORY: &str = "flat";

/// Files of a tree beside it.
const TREE: usize = 500_000;

/// Entries that are looked at before the memory is.
const LOOKS: usize = 2000;

/// Bytes of the file that is read slowly. No buffer on the way holds it.
const SLOW_BYTES: u64 = 256 << 20;

/// Clients that read it.
const SLOW_READERS: usize = 64;

/// How long the memory of a node may change after the last client came.
const SETTLE: Duration = Duration::from_secs(2);

/// Peers that watch, and subscriptions of each: a connection may have 64.
const WATCHING_PEERS: usize = 20;
const WATCHES: usize = 50;

/// Measures once: memory hardly differs between runs.
pub(super) fn run(cx: &mut XtaskContext, _: usize) -> Result<Vec<BenchRow>> {
    let program = binary::plain(cx)?;
    let sides = SideRuntimes::new()?;
    let idle = NodeSetup::make(&program, 0, 1)?;
    let node = idle.start()?;
    // Both nodes have answered over the same protocol.
    sides
        .client
        .block_on(call(&node, "node/info", &json!({})))?;
    let idle_mib = resident_mib(node.pid())?;
    drop(node);
    let setup = NodeSetup::make(&program, SLOW_READERS, WATCHING_PEERS)?;
    eprintln!("making {} entries ...", FLAT + TREE);
    make_entries(&setup)?;
    let node = setup.start()?;
    sides.client.block_on(measure(&node, idle_mib))
}

fn make_entries(setup: &NodeSetup) -> Result<()> {
    let opened = Store::open(&setup.store(), FileStoreOptions::default());
    let store = opened.map_err(failed("opening a store"))?;
    let main = make_bucket(store.db(), BUCKET)?;
    fill(store.db(), main, (0..FLAT).map(|n| flat_path(DIRECTORY, n)))?;
    fill(store.db(), main, (0..TREE).map(tree_path))
}

async fn measure(node: &FsBenchNode<'_>, idle_mib: f64) -> Result<Vec<BenchRow>> {
    use_entries(node).await?;
    let entries = resident_mib(node.pid())? - idle_mib;
    eprintln!("listing ...");
    let listed = more_at_peak(node, list_all(node)).await?;
    let page = more_at_peak(node, list_directory(node)).await?;
    eprintln!("reading slowly ...");
    let slow = slow_readers(node).await?;
    eprintln!("watching ...");
    let watching = watchers(node).await?;
    let row = |case: &str, ours| BenchRow::lower(BENCH, case, "MiB more", ours);
    Ok(vec![
        row("memory: 1,000,000 entries", entries).goal(Goal::Ours(goals::ENTRIES_MIB)),
        row("memory: list of them, by fs/list", listed),
        row("memory: list of 500,000 over HTTP", page),
        row("memory: 64 slow readers of a file", slow),
        row("memory: 1,000 idle watches", watching),
    ])
}

/// What a client does with them: looks, pages, a branch.
async fn use_entries(node: &FsBenchNode<'_>) -> Result<()> {
    let (_dialer, caller) = node.caller(0).await?;
    for look in 0..LOOKS {
        let path = format!("{BUCKET}:{}", tree_path(look * (TREE / LOOKS)));
        let stat = caller.call("fs/stat", &json!({ "path": path })).await;
        stat.map_err(failed("fs/stat"))?;
    }
    let branch = json!({ "bucket": BUCKET, "name": "draft" });
    let made = caller.call("fs/branch/create", &branch).await;
    made.map_err(failed("fs/branch/create"))?;
    Ok(())
}

async fn call(node: &FsBenchNode<'_>, operation: &'static str, input: &Value) -> Result<()> {
    let (_dialer, caller) = node.caller(0).await?;
    let answer = caller.call(operation, input).await;
    answer.map(drop).map_err(failed(operation))
}

/// Memory at its peak during work, over that of before, in MiB.
async fn more_at_peak(
    node: &FsBenchNode<'_>,
    work: impl Future<Output = Result<()>>,
) -> Result<f64> {
    let pid = node.pid();
    forget_peak(pid)?;
    let before = resident_mib(pid)?;
    work.await?;
    Ok(peak_mib(pid)? - before)
}

/// Reads every page.
async fn list_all(node: &FsBenchNode<'_>) -> Result<()> {
    let (_dialer, caller) = node.caller(0).await?;
    let mut input = json!({ "path": format!("{BUCKET}:/"), "recursive": true });
    let mut files = 0;
    loop {
        let answer = caller.call("fs/list", &input).await;
        let answer = answer.map_err(failed("fs/list"))?;
        let page = answer.value();
        let entries = page["entries"].as_array().into_iter().flatten();
        files += entries.filter(|entry| entry["kind"] == "file").count();
        if page["next"].is_null() {
            break;
        }
        input["page"] = page["next"].clone();
    }
    match files == FLAT + TREE {
        true => Ok(()),
        false => Err(failed("fs/list")(format!("{files} files"))),
    }
}

async fn list_directory(node: &FsBenchNode<'_>) -> Result<()> {
    let mut client = DavClient::open(node.root(0)?).await?;
    client.get(&format!("/{DIRECTORY}/")).await.map(drop)
}

/// Memory while so many clients have read the begin of a file, in MiB over that of before.
async fn slow_readers(node: &FsBenchNode<'_>) -> Result<f64> {
    let mut client = DavClient::open(node.root(0)?).await?;
    let content = UploadBody::long(0, SLOW_BYTES, &noise());
    client.put("/slow", content).await?;
    let before = resident_mib(node.pid())?;
    let mut readers = Vec::new();
    for reader in 0..SLOW_READERS {
        let mut client = DavClient::open(node.root(reader)?).await?;
        let mut body = client.begin_get("/slow").await?.into_body();
        let first = body.frame().await;
        let first = first.ok_or_else(|| failed("reading")("the answer is empty"))?;
        first.map_err(failed("reading"))?;
        readers.push((client, body));
    }
    tokio::time::sleep(SETTLE).await;
    let more = resident_mib(node.pid())? - before;
    drop(readers);
    Ok(more)
}

/// Memory while so many subscriptions wait, in MiB over that of before.
async fn watchers(node: &FsBenchNode<'_>) -> Result<f64> {
    let before = resident_mib(node.pid())?;
    let mut watching: Vec<(EndpointDialer, CallConnection, Vec<Subscription>)> = Vec::new();
    for peer in 0..WATCHING_PEERS {
        let (dialer, caller) = node.caller(peer).await?;
        let mut events = Vec::new();
        for _ in 0..WATCHES {
            let input = json!({ "path": format!("{BUCKET}:/") });
            let begun = caller.subscribe("fs/watch", &input).await;
            let mut watch = begun.map_err(failed("fs/watch"))?;
            // Where it begins.
            let first = watch.next().await;
            let first = first.ok_or_else(|| failed("fs/watch")("it ended"))?;
            first.map_err(failed("fs/watch"))?;
            events.push(watch);
        }
        watching.push((dialer, caller, events));
    }
    tokio::time::sleep(SETTLE).await;
    let more = resident_mib(node.pid())? - before;
    drop(watching);
    Ok(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_cases() {
        assert_eq!(FLAT + TREE, 1_000_000);
        assert_eq!(WATCHING_PEERS * WATCHES, 1000);
        assert_eq!(SLOW_READERS, 64);
    }
}

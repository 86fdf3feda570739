//! Operations that look at names: `fs/stat`, `fs/list` and `fs/history`.

use alknet_call::Registration;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{EntryPath, ListRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FsCall, once, query, schema, shown};
use crate::error::FsError;
use crate::path::address_at;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![stat(service), list(service), history(service)]
}

fn stat(service: &FsService) -> Registration {
    let spec = query("fs/stat", "Describes the entry at a path, in any version.")
        .with_input(schema::input(
            &["path"],
            json!({ "path": schema::address(), "as_of": schema::seq() }),
            json!({ "path": "docs:/2026/report.txt" }),
        ))
        .with_output(schema::entry());
    once(service, spec, run_stat)
}

#[derive(Deserialize)]
struct StatInput {
    path: String,
    as_of: Option<u64>,
}

async fn run_stat(call: FsCall) -> Result<Value, FsError> {
    let input: StatInput = call.parse()?;
    let address = call.address(FsRight::Read, &input.path)?;
    let address = address_at(address, input.as_of)?;
    let entry = call.read(move |tx| tx.stat(&tx.view_of(&address)?, &address.path));
    Ok(shown::entry(&entry.await?))
}

fn list(service: &FsService) -> Registration {
    let members = json!({
        "path": schema::address(), "as_of": schema::seq(),
        "recursive": schema::flag("Whether to list what is below its directories too"),
    });
    let spec = query("fs/list", "Lists the entries of a directory, in pages.")
        .with_input(schema::input(
            &["path"],
            schema::joined(&[members, schema::page_members()]),
            json!({ "path": "docs:/2026", "limit": 100 }),
        ))
        .with_output(schema::page(
            "entries",
            &schema::entry(),
            &schema::next_text(),
        ));
    once(service, spec, run_list)
}

#[derive(Deserialize)]
struct EntryListInput {
    path: String,
    as_of: Option<u64>,
    #[serde(default)]
    recursive: bool,
    page: Option<String>,
    limit: Option<usize>,
}

async fn run_list(call: FsCall) -> Result<Value, FsError> {
    let input: EntryListInput = call.parse()?;
    let address = call.address(FsRight::Read, &input.path)?;
    let address = address_at(address, input.as_of)?;
    let request = ListRequest {
        directory: address.path.clone(),
        is_recursive: input.recursive,
        after: input.page.as_deref().map(EntryPath::parse).transpose()?,
        limit: input.limit.unwrap_or(PAGE_ENTRIES_MAX),
    };
    let page = call.read(move |tx| tx.list(&tx.view_of(&address)?, &request));
    let page = page.await?;
    let rows = shown::within_page(page.entries.iter().map(shown::entry));
    let next = match page.entries.get(rows.len().saturating_sub(1)) {
        // The answer is full before the page is.
        Some(last) if rows.len() < page.entries.len() => Some(last.path.clone()),
        _ => page.next,
    };
    let mut answer = json!({ "entries": rows });
    if let Some(next) = next {
        answer["next"] = next.as_str().into();
    }
    Ok(answer)
}

fn history(service: &FsService) -> Registration {
    let version = schema::joined(&[
        schema::entry()["properties"].clone(),
        json!({
            "time_ms": schema::time(), "actor": schema::actor(),
            "op": { "type": "string" }, "message": { "type": "string" },
        }),
    ]);
    let version = schema::output(&["kind", "seq", "time_ms", "actor", "op"], version);
    let spec = query(
        "fs/history",
        "Lists the versions of the entry at a path, the newest first.",
    )
    .with_input(schema::input(
        &["path"],
        json!({
            "path": schema::address(), "before": schema::seq(),
            "limit": schema::limit(PAGE_ENTRIES_MAX),
        }),
        json!({ "path": "docs:/2026/report.txt" }),
    ))
    .with_output(schema::page("versions", &version, &schema::seq()));
    once(service, spec, run_history)
}

#[derive(Deserialize)]
struct HistoryInput {
    path: String,
    before: Option<u64>,
    limit: Option<usize>,
}

async fn run_history(call: FsCall) -> Result<Value, FsError> {
    let input: HistoryInput = call.parse()?;
    let address = call.address(FsRight::Read, &input.path)?;
    let limit = input
        .limit
        .unwrap_or(PAGE_ENTRIES_MAX)
        .min(PAGE_ENTRIES_MAX);
    let versions = call.read(move |tx| {
        let view = tx.view_of(&address)?;
        tx.history(&view, &address.path, input.before, limit)
    });
    let versions = versions.await?;
    let rows = shown::within_page(versions.iter().map(shown::version));
    let has_more = rows.len() < versions.len() || versions.len() >= limit;
    let last = versions.get(rows.len().saturating_sub(1));
    let mut answer = json!({ "versions": rows });
    if let Some(last) = last.filter(|_| has_more) {
        answer["next"] = last.seq.into();
    }
    Ok(answer)
}

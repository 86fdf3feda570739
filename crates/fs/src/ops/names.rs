//! Lists, in pages, of what a bucket has by name: its branches and its snapshots.

use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{BranchName, BucketId, ReadTransaction, StoreError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::FsCall;
use crate::error::FsError;
use crate::rights::FsRight;

#[derive(Deserialize)]
struct NameListInput {
    bucket: String,
    page: Option<String>,
    limit: Option<usize>,
}

/// Answers with one page of the rows that `rows` reads behind a name, in the member `list`. Each row has the member
/// `name`, by which the next page begins.
pub(super) async fn run_list<F>(call: FsCall, list: &'static str, rows: F) -> Result<Value, FsError>
where
    F: Fn(
            &ReadTransaction<'_>,
            BucketId,
            Option<&BranchName>,
            usize,
        ) -> Result<Vec<Value>, StoreError>
        + Send
        + 'static,
{
    let input: NameListInput = call.parse()?;
    let bucket = call.bucket(FsRight::Read, &input.bucket)?;
    let after = input.page.as_deref().map(BranchName::parse).transpose()?;
    let limit = input
        .limit
        .unwrap_or(PAGE_ENTRIES_MAX)
        .min(PAGE_ENTRIES_MAX);
    let found = call.read(move |tx| {
        let bucket = tx.bucket_by_name(&bucket)?.id;
        rows(tx, bucket, after.as_ref(), limit)
    });
    let found = found.await?;
    // A page that is not full is the last one, so that the caller needs no empty page to know the end. A full one may
    // be the last one, too: the next one is empty then.
    let last = found.last().filter(|_| found.len() >= limit);
    let next = last.map(|row| row["name"].clone());
    let mut answer = json!({});
    answer[list] = found.into();
    if let Some(next) = next {
        answer["next"] = next;
    }
    Ok(answer)
}

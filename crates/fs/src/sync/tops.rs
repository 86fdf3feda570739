//! The names in the root of a branch of a split bucket: which documents two nodes have to synchronise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alknet_store::limits::SYNC_TOPS_MAX;
use alknet_store::{BranchId, Store, SyncTops};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{ByeCode, SyncError};
use super::limits::{GOODBYE_TIME, MESSAGE_TIME, TOMBSTONE_MS};
use super::message::{SyncMessage, UNKNOWN_HEADS, heads_digest, read_message, write_message};
use super::session::{SessionContext, blocking};

/// What two nodes have said of the names in the root of a branch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExchangedTops {
    /// Number of the last commit of this node's branch then.
    pub(super) head_seq: u64,
    /// Names whose documents both have to look at.
    pub(super) differing: BTreeSet<String>,
}

/// Exchanges the names, and ends the session.
pub(super) async fn exchange_tops(
    context: &SessionContext,
    mut input: impl AsyncRead + Send + Unpin,
    mut output: impl AsyncWrite + Send + Unpin,
) -> Result<ExchangedTops, SyncError> {
    let (store, branch) = (Arc::clone(&context.lease), context.branch.key().branch);
    let tops = blocking(move || read_tops(&store, branch)).await;
    let own = match &tops {
        Ok(tops) => SyncMessage::Tops(digests(tops)),
        Err(error) => SyncMessage::Bye(error.code().unwrap_or(ByeCode::Internal)),
    };
    let bytes = own.encode()?;
    let work = async {
        // Both lists may be longer than what the streams take in without a reader.
        let written = write_message(&mut output, &bytes);
        let (written, theirs) = tokio::join!(written, read_message(&mut input));
        written?;
        theirs
    };
    let late = |_| SyncError::refused(ByeCode::Timeout, "the names of the root did not come");
    let theirs = timeout(MESSAGE_TIME, work).await.map_err(late)?;
    let own = tops?;
    let exchanged = match theirs? {
        SyncMessage::Tops(theirs) => compare(&own, &theirs),
        SyncMessage::Bye(code) => Err(SyncError::Ended(code)),
        _ => Err(SyncError::refused(
            ByeCode::InvalidMessage,
            "another message than the names of the root",
        )),
    };
    let code = match &exchanged {
        Ok(_) => ByeCode::Done,
        Err(error) => error.code().unwrap_or(ByeCode::Internal),
    };
    let end = async {
        let bye = SyncMessage::Bye(code).encode()?;
        write_message(&mut output, &bye).await?;
        output.shutdown().await?;
        // The connection may end with this session, and would take the goodbye of this side along.
        read_message(&mut input).await?;
        Ok::<_, SyncError>(())
    };
    // All that had to be said was said: the peer may be gone by now.
    let _ = timeout(GOODBYE_TIME, end).await;
    exchanged
}

/// The names of this side, with the chores of their documents. Blocks.
fn read_tops(store: &Store, branch: BranchId) -> Result<SyncTops, SyncError> {
    let before_ms = store.db().unix_ms().saturating_sub(TOMBSTONE_MS);
    let read = store.read(move |tx| {
        let tops = tx.sync_tops(branch)?;
        let is_untidy = tx.has_untidy_sync_tops(branch, &tops, before_ms)?;
        Ok((tops, is_untidy))
    });
    let (tops, is_untidy) = read.wait()?;
    if !is_untidy {
        return Ok(tops);
    }
    let write = store.write(move |tx| {
        tx.tidy_sync_tops(branch, &tops, before_ms)?;
        tx.sync_tops(branch)
    });
    Ok(write.wait()?)
}

/// What this side says of its documents. A document without paths, of a name that is not there, is left out.
fn digests(tops: &SyncTops) -> BTreeMap<String, [u8; 32]> {
    let mut digests = BTreeMap::new();
    for (top, heads) in &tops.heads {
        let is_empty = heads.as_ref().is_some_and(Vec::is_empty);
        if !is_empty || tops.live.contains(top) {
            let digest = heads.as_deref().map_or(UNKNOWN_HEADS, heads_digest);
            digests.insert(top.clone(), digest);
        }
    }
    digests
}

/// The names whose documents differ, or have to be looked at on one side.
fn compare(
    own: &SyncTops,
    theirs: &BTreeMap<String, [u8; 32]>,
) -> Result<ExchangedTops, SyncError> {
    let ours = digests(own);
    let all: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    if all.len() > SYNC_TOPS_MAX {
        let reason = format!("{} names in the root of a split bucket", all.len());
        return Err(SyncError::refused(ByeCode::TooLarge, reason));
    }
    let is_equal = |top: &str| match (ours.get(top), theirs.get(top)) {
        (Some(one), Some(other)) => one == other && *one != UNKNOWN_HEADS,
        _ => false,
    };
    let differing = all.into_iter().filter(|top| !is_equal(top));
    Ok(ExchangedTops {
        head_seq: own.head_seq,
        differing: differing.cloned().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names with their heads; `None` for a document that has to be looked at.
    fn tops(rows: &[(&str, Option<u8>)]) -> SyncTops {
        let heads = rows.iter().map(|(top, head)| {
            let heads = head.map(|number| vec![[number; 32]]);
            ((*top).to_owned(), heads)
        });
        let heads: BTreeMap<_, _> = heads.collect();
        SyncTops {
            head_seq: 5,
            live: heads.keys().cloned().collect(),
            heads,
            ..SyncTops::default()
        }
    }

    fn differing(ours: &SyncTops, theirs: &SyncTops) -> Vec<String> {
        let compared = compare(ours, &digests(theirs)).expect("few names");
        assert_eq!(compared.head_seq, 5);
        compared.differing.into_iter().collect()
    }

    #[test]
    fn only_documents_that_differ_or_are_not_known_are_looked_at() {
        let ours = tops(&[("a", Some(1)), ("b", Some(2)), ("c", None), ("d", Some(4))]);
        let theirs = tops(&[("a", Some(1)), ("b", Some(3)), ("c", None), ("e", Some(5))]);
        assert_eq!(differing(&ours, &theirs), ["b", "c", "d", "e"]);
        assert_eq!(differing(&ours, &ours), ["c"]);
        // The order of heads says nothing.
        let heads = [[[1; 32], [2; 32]], [[2; 32], [1; 32]]];
        assert_eq!(heads_digest(&heads[0]), heads_digest(&heads[1]));
        assert_ne!(heads_digest(&heads[0]), heads_digest(&heads[0][..1]));
    }

    #[test]
    fn an_empty_document_of_no_name_is_left_out() {
        let mut ours = tops(&[("a", Some(1)), ("gone", Some(2))]);
        ours.heads.insert("gone".to_owned(), Some(Vec::new()));
        ours.live.remove("gone");
        assert_eq!(digests(&ours).into_keys().collect::<Vec<_>>(), ["a"]);
        // Its deletion is not yet in the document.
        ours.heads.insert("gone".to_owned(), None);
        assert_eq!(digests(&ours)["gone"], UNKNOWN_HEADS);
    }

    /// The attack: names on both sides, of which each side alone has as many as it may.
    #[test]
    fn the_names_of_both_sides_are_limited_together() {
        let names = |prefix: &str| {
            let rows: Vec<_> = (0..SYNC_TOPS_MAX)
                .map(|number| format!("{prefix}{number}"))
                .collect();
            let rows: Vec<_> = rows.iter().map(|it| (it.as_str(), Some(1))).collect();
            tops(&rows)
        };
        let ours = names("a");
        assert!(compare(&ours, &digests(&ours)).is_ok());
        let refused = compare(&ours, &digests(&names("b"))).expect_err("too many");
        assert_eq!(refused.code(), Some(ByeCode::TooLarge));
    }
}

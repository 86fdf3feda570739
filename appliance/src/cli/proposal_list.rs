//! The proposals of a node, page by page, for as long as it lists new ones.

use std::collections::HashSet;

use alknet_promotion::limits::BUNDLES_MAX;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::caller::NodeCaller;
use super::promotion::ask;
use super::{CommandError, CommandExit, DialArgs};

/// What a node listed so far. A node has no more proposals than its store keeps, and lists each once: a hostile node
/// cannot keep a command reading for ever, or fill its memory.
#[derive(Default)]
struct ListedProposals {
    /// Hashes of the ids, since an id of a hostile node has any length.
    seen: HashSet<[u8; 32]>,
}

impl ListedProposals {
    /// Takes one answer: hands its proposals to `take`, and says what asks for the next page.
    ///
    /// # Errors
    /// `INVALID_OUTPUT`: the node lists a proposal twice, lists more than a store keeps, or goes on without a
    /// proposal; and what `take` fails with.
    fn page(
        &mut self,
        answer: &Value,
        take: &mut impl FnMut(&Value) -> Result<(), CommandError>,
    ) -> Result<Option<Value>, CommandError> {
        let proposals = answer["proposals"].as_array().map(Vec::as_slice);
        let proposals = proposals.unwrap_or_default();
        for proposal in proposals {
            let id = proposal["id"].as_str().unwrap_or_default();
            if !self.seen.insert(Sha256::digest(id).into()) {
                return Err(no_list("it lists a proposal twice"));
            }
            // Nor may a node that makes up ids fill the memory.
            if self.seen.len() as u64 > BUNDLES_MAX {
                let text = format!("it lists more than the {BUNDLES_MAX} that a node keeps");
                return Err(no_list(&text));
            }
            take(proposal)?;
        }
        match &answer["next"] {
            Value::Null => Ok(None),
            _ if proposals.is_empty() => Err(no_list("it has a next page and no proposal")),
            next => Ok(Some(next.clone())),
        }
    }
}

fn no_list(why: &str) -> CommandError {
    let text = format!("the node answered with no list of proposals: {why}");
    CommandError::new(CommandExit::Failed, "INVALID_OUTPUT", text)
}

/// Every proposal of a listing, over all of its pages.
///
/// # Errors
/// Those of the calls and of `take`, and `INVALID_OUTPUT` for a list without end.
pub(super) async fn each_proposal(
    node: &NodeCaller,
    dial: &DialArgs,
    mut input: Value,
    mut take: impl FnMut(&Value) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut listed = ListedProposals::default();
    loop {
        let answer = ask(node, dial, "ops/proposals", &input).await?;
        match listed.page(&answer, &mut take)? {
            None => return Ok(()),
            Some(next) => input["cursor"] = next,
        }
    }
}

/// Ids of all proposals whose id begins so.
///
/// # Errors
/// As [`each_proposal`].
pub(super) async fn ids_with(
    node: &NodeCaller,
    dial: &DialArgs,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<String>, CommandError> {
    let mut found = Vec::new();
    each_proposal(node, dial, json!({}), |proposal| {
        let id = proposal["id"].as_str().unwrap_or_default();
        if is_wanted(id) {
            found.push(id.to_owned());
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a page, by their numbers.
    fn page(numbers: std::ops::Range<u64>, next: Option<u64>) -> Value {
        let rows = numbers.map(|n| json!({ "id": format!("{n:064x}") }));
        json!({ "proposals": rows.collect::<Vec<_>>(), "next": next })
    }

    /// How many proposals were taken before a list of these pages ended or was refused, and whether it ended well.
    fn read(pages: impl Iterator<Item = Value>) -> (u64, bool) {
        let mut listed = ListedProposals::default();
        let mut taken = 0;
        for page in pages {
            let next = listed.page(&page, &mut |_| {
                taken += 1;
                Ok(())
            });
            match next {
                Ok(Some(_)) => {}
                Ok(None) => return (taken, true),
                Err(_) => return (taken, false),
            }
        }
        panic!("the list has no end: {taken} proposals were taken");
    }

    /// More pages than any list has: who reads them all reads for ever.
    const ENDLESS: u64 = BUNDLES_MAX * 2;

    #[test]
    fn a_list_without_end_is_read_no_further_than_a_store_goes() {
        let new = |n: u64| page(n..n + 1, Some(n));
        assert_eq!(read((0..ENDLESS).map(new)), (BUNDLES_MAX, false));
        let same = |n: u64| page(0..1, Some(n));
        assert_eq!(read((0..ENDLESS).map(same)), (1, false));
        let empty = |n: u64| page(0..0, Some(n));
        assert_eq!(read((0..ENDLESS).map(empty)), (0, false));
    }

    #[test]
    fn all_that_a_store_keeps_is_read() {
        let last = BUNDLES_MAX / 64 - 1;
        let full = |n: u64| page(n * 64..(n + 1) * 64, (n < last).then_some(n));
        assert_eq!(read((0..ENDLESS).map(full)), (BUNDLES_MAX, true));
        assert_eq!(read(std::iter::once(page(0..0, None))), (0, true));
    }
}

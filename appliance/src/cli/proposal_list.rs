//! The proposals of a node, page by page, for as long as it lists new ones.

use std::collections::HashSet;

use alknet_promotion::Blake3Hash;
use alknet_promotion::limits::BUNDLES_MAX;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::caller::NodeCaller;
use super::promotion::ask;
use super::{CommandError, CommandExit, DialArgs};

/// Hexadecimal digits of the shortest beginning of an id that is looked for: fewer fit many proposals.
const ID_PREFIX_MIN: usize = 4;
/// Hexadecimal digits of a whole id.
const ID_LEN: usize = 64;
/// Ids that a message lists where a word fits several proposals.
const IDS_SHOWN_MAX: usize = 4;
/// Bytes of the longest name of an operation: four segments of 63.
const NAME_BYTES_MAX: usize = 255;
/// What stands before the name of a promoted operation, unless its reviewer gave another path.
const PROMOTED: &str = "js/";
/// The state of a proposal that waits for its review.
const WAITING: &str = "proposed";

/// Which proposals a word may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProposalChoice {
    /// All. If some that wait for a review have the name, only these.
    Any,
    /// By its name one that waits for a review; by its id any.
    Waiting,
}

/// A proposal that a word may stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProposalMatch {
    id: String,
    /// Whether its id begins with the word; else its operation is called so.
    by_id: bool,
    waits: bool,
}

impl ProposalMatch {
    /// `None` where the word does not stand for it.
    fn new(proposal: &Value, word: &str) -> Option<Self> {
        let id = proposal["id"].as_str()?;
        id.parse::<Blake3Hash>().ok()?;
        let name = proposal["name"].as_str().unwrap_or_default();
        let by_id = is_id_or_prefix(word) && id.starts_with(word);
        let by_name = name == word || word.strip_prefix(PROMOTED) == Some(name);
        (by_id || by_name).then(|| Self {
            id: id.to_owned(),
            by_id,
            waits: proposal["state"] == WAITING,
        })
    }
}

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

/// The id of the one proposal that a word stands for: its id, the beginning of it, or the name of its operation. A
/// whole id is taken as it is.
///
/// # Errors
/// As [`each_proposal`], and: the word stands for no proposal, or for several.
pub(super) async fn proposal_named(
    node: &NodeCaller,
    dial: &DialArgs,
    word: &str,
    choice: ProposalChoice,
) -> Result<String, CommandError> {
    if word.parse::<Blake3Hash>().is_ok() {
        return Ok(word.to_owned());
    }
    let word = word.trim_start_matches('/');
    let mut found = Vec::new();
    each_proposal(node, dial, json!({}), |proposal| {
        found.extend(ProposalMatch::new(proposal, word));
        Ok(())
    })
    .await?;
    the_only(found, word, choice)
}

/// The one that is meant.
fn the_only(
    found: Vec<ProposalMatch>,
    word: &str,
    choice: ProposalChoice,
) -> Result<String, CommandError> {
    let none = |text: String| CommandError::new(CommandExit::Failed, "NOT_FOUND", text);
    let (by_id, by_name): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it.by_id);
    let (waiting, decided): (Vec<_>, Vec<_>) = by_name.into_iter().partition(|it| it.waits);
    let (meant, what) = match choice {
        _ if !by_id.is_empty() => (by_id, format!("have an id that begins with '{word}'")),
        _ if !waiting.is_empty() => (waiting, format!("of '{word}' wait for a review")),
        ProposalChoice::Any => (decided, format!("have the name '{word}'")),
        ProposalChoice::Waiting if decided.is_empty() => (decided, String::new()),
        ProposalChoice::Waiting => {
            return Err(none(format!("no proposal of '{word}' waits for a review")));
        }
    };
    let mut ids: Vec<_> = meant.into_iter().map(|it| it.id).collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [] => Err(none(format!(
            "no proposal has the name '{word}', or an id that begins with it"
        ))),
        [_] => Ok(ids.swap_remove(0)),
        several => {
            let shown = &several[..several.len().min(IDS_SHOWN_MAX)];
            Err(CommandError::usage(format!(
                "{} proposals {what}: give more of the id ({})",
                several.len(),
                shown.join(", ")
            )))
        }
    }
}

/// Whether a word is an id, or the beginning of one.
pub(super) fn is_id_or_prefix(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (ID_PREFIX_MIN..=ID_LEN).contains(&text.len()) && text.bytes().all(is_digit)
}

/// What names a proposal. A user may have copied the first digits of an id with a mark that something is left out.
///
/// # Errors
/// The text is no id and no name of an operation.
pub(super) fn proposal_word(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('…');
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'.');
    let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
    match is_name {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "'{text}' names no proposal: give the name of its operation, or {ID_PREFIX_MIN} to {ID_LEN} digits of its id"
        )),
    }
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

    fn proposal(id: &str, name: &str, state: &str) -> Value {
        json!({ "id": id, "name": name, "state": state })
    }

    /// What a word stands for among these proposals.
    fn chosen(all: &[Value], word: &str, choice: ProposalChoice) -> Result<String, CommandError> {
        let found = all.iter().filter_map(|it| ProposalMatch::new(it, word));
        the_only(found.collect(), word, choice)
    }

    #[test]
    fn a_word_stands_for_one_proposal() {
        use ProposalChoice::{Any, Waiting};
        let [one, two, three] =
            ["1", "2", "3"].map(|end| format!("{}{end}", "ab".repeat(31)) + "0");
        let cafe = format!("cafe{}", "0".repeat(60));
        let all = [
            proposal(&one, "invoice/total", "promoted"),
            proposal(&two, "invoice/total", "proposed"),
            proposal(&three, "helpful", "rejected"),
            proposal(&cafe, "abab", "proposed"),
        ];
        for (word, choice, expected) in [
            ("cafe", Waiting, &cafe),
            ("invoice/total", Waiting, &two),
            ("js/invoice/total", Any, &two),
            ("helpful", Any, &three),
        ] {
            assert_eq!(chosen(&all, word, choice), Ok(expected.clone()), "{word}");
        }
        // Digits are an id first, and then a name.
        let several = chosen(&all, "abab", Any).expect_err("three ids begin so");
        assert!(
            several.message.starts_with("3 proposals have an id") && several.message.contains(&one),
            "{several}"
        );
        assert_eq!(chosen(&all[3..], "abab", Any), Ok(cafe.clone()));
        let decided = chosen(&all, "helpful", Waiting).expect_err("it was rejected");
        assert_eq!(
            decided.message,
            "no proposal of 'helpful' waits for a review"
        );
        for word in ["total", "ffff", "js/x"] {
            let none = chosen(&all, word, Waiting).expect_err(word);
            assert_eq!(none.code, "NOT_FOUND", "{word}");
        }
        let twice = [
            proposal(&one, "a/b", "proposed"),
            proposal(&two, "a/b", "proposed"),
        ];
        let several = chosen(&twice, "a/b", Waiting).expect_err("two wait");
        assert!(
            several.message.starts_with("2 proposals of 'a/b' wait"),
            "{several}"
        );
    }

    #[test]
    fn words_that_name_a_proposal_differ_from_others() {
        for good in ["3f00", "3f00…", "invoice/total", "js/a", "helpful"] {
            assert!(proposal_word(good).is_ok(), "{good}");
        }
        for bad in ["", "…", "a b", "a?", &"a".repeat(256)] {
            assert!(proposal_word(bad).is_err(), "{bad}");
        }
        for (word, is_id) in [
            ("3f00", true),
            ("3f0", false),
            ("3F00", false),
            ("js/a", false),
        ] {
            assert_eq!(is_id_or_prefix(word), is_id, "{word}");
        }
        assert!(!is_id_or_prefix(&"a".repeat(65)));
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

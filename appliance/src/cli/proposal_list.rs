//! The proposals of a node, page by page, for as long as it lists new ones.

use std::collections::HashSet;

use alknet_promotion::Blake3Hash;
use alknet_promotion::limits::BUNDLES_MAX;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::credential::moment;
use super::node_caller::NodeCaller;
use super::promotion::ask;
use super::{CommandError, CommandExit, DialArgs, confirmation};

/// Hexadecimal digits of the shortest beginning of an id that is looked for: fewer fit many proposals.
const ID_PREFIX_MIN: usize = 4;
/// Hexadecimal digits of a whole id.
const ID_LEN: usize = 64;
/// Ids that a message lists where a word fits several proposals.
const IDS_SHOWN_MAX: usize = 4;
/// Characters of an author that a question shows: more than a peer id has, which a hostile node may not know.
const AUTHOR_CHARS_MAX: usize = 64;
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
    digest: Option<Blake3Hash>,
    /// Whether its id begins with the word; else its operation is called so.
    by_id: bool,
    waits: bool,
    /// Who proposed it, and when.
    summary: String,
}

/// The proposal that a word stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChosenProposal {
    pub(super) id: String,
    /// The digest of the document, if the node listed it.
    digest: Option<Blake3Hash>,
    /// For a word that is a name: the id with what a person compares before a decision.
    by_name: Option<String>,
}

impl ProposalMatch {
    /// `None` where the word does not stand for it.
    fn new(proposal: &Value, word: &str) -> Option<Self> {
        let id = proposal["id"].as_str()?;
        // A hostile node could write any text into the question that shows the id.
        id.parse::<Blake3Hash>().ok()?;
        let name = proposal["name"].as_str().unwrap_or_default();
        let by_id = is_id_or_prefix(word) && id.starts_with(word);
        let by_name = name == word || word.strip_prefix(PROMOTED) == Some(name);
        (by_id || by_name).then(|| Self {
            id: id.to_owned(),
            digest: proposal["digest"].as_str().and_then(|it| it.parse().ok()),
            by_id,
            waits: proposal["state"] == WAITING,
            summary: summary(proposal),
        })
    }

    fn chosen(self) -> ChosenProposal {
        let by_name = (!self.by_id).then(|| format!("{} ({})", self.id, self.summary));
        ChosenProposal {
            id: self.id,
            digest: self.digest,
            by_name,
        }
    }
}

impl ChosenProposal {
    /// Names it in a decision, with the digest of the document that the user `read`, or else of the one that the node
    /// listed: a proposal of the same code may take its place until the node decides.
    pub(super) fn name_in(&self, decision: &mut Value, read: Option<Blake3Hash>) {
        decision["id"] = self.id.as_str().into();
        if let Some(digest) = read.or(self.digest) {
            decision["digest"] = digest.to_string().into();
        }
    }
}

/// What tells a proposal from others of the same name.
fn summary(proposal: &Value) -> String {
    let author = proposal["author"].as_str().unwrap_or_default().chars();
    let author: String = author.take(AUTHOR_CHARS_MAX).collect();
    let at = proposal["at_s"].as_u64().and_then(moment);
    let at = at.unwrap_or_else(|| "a time that the node does not know".to_owned());
    format!("proposed by '{author}' at {at}")
}

/// Has a person confirm what a name stands for. Since the person read a proposal, another reviewer may have decided on
/// it, and its author may have proposed another one of that name.
///
/// # Errors
/// `USAGE` with the id where no person can be asked, and `ABORTED` where the person does not say yes.
pub(super) async fn confirm_named(
    chosen: &ChosenProposal,
    accept: bool,
    json: bool,
) -> Result<(), CommandError> {
    let Some(summary) = &chosen.by_name else {
        return Ok(());
    };
    if !confirmation::is_person(json) {
        return Err(CommandError::usage(format!(
            "a name may stand for another proposal by now than the one that was read: give the id of that one; the \
             name stands for {summary}"
        )));
    }
    let verb = if accept { "Promote" } else { "Reject" };
    let question = format!("{verb} {summary}? [y/N] ");
    confirmation::ask_beside_work(false, question, json).await
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
/// The errors of the calls and of `take`, and `INVALID_OUTPUT` for a list without end.
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

/// The one proposal that a word stands for: its id, the beginning of it, or the name of its operation. A
/// whole id is taken as it is.
///
/// # Errors
/// The errors of [`each_proposal`], and: the word stands for no proposal, or for several.
pub(super) async fn proposal_named(
    node: &NodeCaller,
    dial: &DialArgs,
    word: &str,
    choice: ProposalChoice,
) -> Result<ChosenProposal, CommandError> {
    if word.parse::<Blake3Hash>().is_ok() {
        return Ok(ChosenProposal {
            id: word.to_owned(),
            digest: None,
            by_name: None,
        });
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
) -> Result<ChosenProposal, CommandError> {
    let none = |text: String| CommandError::new(CommandExit::Failed, "NOT_FOUND", text);
    let (by_id, by_name): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it.by_id);
    let (waiting, decided): (Vec<_>, Vec<_>) = by_name.into_iter().partition(|it| it.waits);
    let has_name = !waiting.is_empty() || !decided.is_empty();
    let (mut meant, what) = match choice {
        // An author chooses its id by trying, so that it begins with a name that a reviewer will type.
        _ if has_name && !by_id.is_empty() => (
            by_id.into_iter().chain(waiting).chain(decided).collect(),
            format!("have the name '{word}', or an id that begins with it"),
        ),
        _ if !by_id.is_empty() => (by_id, format!("have an id that begins with '{word}'")),
        _ if !waiting.is_empty() => (waiting, format!("of '{word}' wait for a review")),
        ProposalChoice::Any => (decided, format!("have the name '{word}'")),
        ProposalChoice::Waiting if decided.is_empty() => (decided, String::new()),
        ProposalChoice::Waiting => {
            return Err(none(format!("no proposal of '{word}' waits for a review")));
        }
    };
    meant.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    meant.dedup_by(|a, b| a.id == b.id);
    match meant.as_slice() {
        [] => Err(none(format!(
            "no proposal has the name '{word}', or an id that begins with it; 'alknet ops proposals' lists them"
        ))),
        [_] => Ok(meant.swap_remove(0).chosen()),
        several => {
            let shown = several.iter().take(IDS_SHOWN_MAX);
            let shown: Vec<_> = shown.map(|it| it.id.as_str()).collect();
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
        the_only(found.collect(), word, choice).map(|it| it.id)
    }

    #[test]
    fn a_name_that_begins_an_id_stands_for_neither() {
        let id = format!("feed{}", "0".repeat(60));
        let other = "1".repeat(64);
        for state in ["proposed", "rejected"] {
            let all = [
                proposal(&id, "a/b", "proposed"),
                proposal(&other, "feed", state),
            ];
            for choice in [ProposalChoice::Any, ProposalChoice::Waiting] {
                let several = chosen(&all, "feed", choice).expect_err("both are meant");
                assert_eq!(several.code, "USAGE", "{state}: {several}");
                assert!(several.message.contains(&other), "{state}: {several}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_alone_decides_on_nothing() {
        let id = "12ab".repeat(16);
        let mut row = proposal(&id, "a/b", "proposed");
        (row["author"], row["at_s"]) = ("ada".into(), 1_900_000_000.into());
        let found = |word: &str| {
            let found = ProposalMatch::new(&row, word).into_iter().collect();
            the_only(found, word, ProposalChoice::Waiting).expect("it is the only one")
        };
        // No terminal is here: the error has what a person would compare.
        let refused = confirm_named(&found("a/b"), true, true).await;
        let refused = refused.expect_err("it was not read");
        assert_eq!(refused.code, "USAGE", "{refused}");
        for said in [&id, "'ada'", "2030-03-17T17:46:40Z"] {
            assert!(refused.message.contains(said), "{said}: {refused}");
        }
        assert_eq!(confirm_named(&found("12ab"), true, true).await, Ok(()));
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
        let several = chosen(&all[..3], "abab", Any).expect_err("three ids begin so");
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
            let lists = "; 'alknet ops proposals' lists them";
            assert!(none.message.ends_with(lists), "{none}");
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

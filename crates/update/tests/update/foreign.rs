//! What the tests of other implementations of TUF offer to their clients: this program accepts the good repositories,
//! and refuses each bad one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use alknet_update::{
    RepositoryFolder, TrustAnchor, UnixSeconds, UpdateClock, UpdateError, UpdateTrust,
};
use serde::Deserialize;

use crate::reference::{PACKAGES_VARIABLE, python_with, set_up_path};

/// The source of the reference implementation, with its tests.
const PYTHON_TUF_VARIABLE: &str = "ALKNET_TEST_PYTHON_TUF";
/// The package by which these tests set their clock.
const FREEZEGUN_VARIABLE: &str = "ALKNET_TEST_FREEZEGUN";
/// The repositories of tough's tests.
const TOUGH_VARIABLE: &str = "ALKNET_TEST_TOUGH";

/// Each test of the reference implementation and what this program says to what the test offers.
const PYTHON_TUF_OUTCOMES: &str = include_str!("python_tuf.txt");

/// How this program names a repository that it accepts.
const ACCEPTED: &str = "accepted";

/// 2027-12-28: the good repositories of tough are valid then.
const TOUGH_NOW: UnixSeconds = UnixSeconds(1_830_000_000);

/// A repository, or a part of one, that a test of the reference implementation offers.
#[derive(Deserialize)]
struct OfferedRepository {
    folder: String,
    test: String,
    case: Option<String>,
    client: String,
    now_s: i64,
    /// The target that the client downloads; without one it refreshes its metadata.
    target: Option<String>,
    /// How the reference client refuses it.
    error: Option<String>,
}

/// What the script says about the run of the tests.
#[derive(Deserialize)]
struct TestRun {
    run: u64,
    failed: Vec<String>,
}

/// What the clients of the tests trust, by the name of each client and of its case.
#[derive(Default)]
struct ReplayedClients(BTreeMap<(String, Option<String>), UpdateTrust>);

impl ReplayedClients {
    /// What this program says to what a client of the tests was offered.
    fn judge(&mut self, offer: &OfferedRepository, folder: &Path) -> Result<(), UpdateError> {
        let client = (offer.client.clone(), offer.case.clone());
        let trust = match self.0.get(&client) {
            Some(trust) => trust.clone(),
            None => UpdateTrust::new(bootstrap(folder, "bootstrap.json")?),
        };
        // The test gave the client a root and nothing else.
        if !folder.join("metadata").exists() {
            self.0.insert(client, trust);
            return Ok(());
        }
        let now = UpdateClock::Known(UnixSeconds(offer.now_s));
        let (trust, checked) = verify(trust, folder, now, offer.target.as_deref());
        self.0.insert(client, trust);
        match checked {
            // Tests of the core give it one document after the other, and the next one is not there yet.
            Err(UpdateError::Missing { .. }) if offer.client.starts_with("core") => Ok(()),
            checked => checked,
        }
    }
}

fn bootstrap(folder: &Path, file: &str) -> Result<TrustAnchor, UpdateError> {
    TrustAnchor::root(&fs::read(folder.join(file)).expect("the script wrote it"))
}

/// Verifies the metadata of a repository, and a target of it.
fn verify(
    trust: UpdateTrust,
    folder: &Path,
    now: UpdateClock,
    target: Option<&str>,
) -> (UpdateTrust, Result<(), UpdateError>) {
    let mut repository = RepositoryFolder::new(folder);
    let (trust, verified) = trust.refresh(now).run(&mut repository);
    let checked = verified.and_then(|verified| {
        let Some(name) = target else {
            return Ok(());
        };
        let mut file = repository.open_target(&verified, name)?;
        verified.target(name)?.copy(&mut file, &mut io::sink())
    });
    (trust, checked)
}

/// The name of an error in this library.
fn name(error: &UpdateError) -> String {
    let text = format!("{error:?}");
    let end = text.find(|letter: char| !letter.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

/// Runs the tests of the reference implementation. Returns what they offered, which the script wrote to `folder`.
fn offers(folder: &Path) -> (Vec<OfferedRepository>, TestRun) {
    let source = set_up_path(PYTHON_TUF_VARIABLE);
    let packages = [PACKAGES_VARIABLE, FREEZEGUN_VARIABLE].map(set_up_path);
    let printed = python_with(&packages, "python_tuf.py", &[&source, folder]);
    let printed = printed.expect("the script ends well");
    let mut lines: Vec<&str> = printed.lines().collect();
    let run = lines.pop().expect("the last line is about the run");
    let read = |line: &&str| serde_json::from_str(line).expect("an offer");
    let offers = lines.iter().map(read).collect();
    (offers, serde_json::from_str(run).expect("about the run"))
}

/// A list that a person reads, in the form of `python_tuf.txt`.
fn listed(outcomes: &BTreeMap<String, Vec<String>>) -> String {
    let line = |(test, said): (&String, &Vec<String>)| format!("{test}: {}\n", said.join(", "));
    outcomes.iter().map(line).collect()
}

/// The tests run as their authors wrote them, against the reference client. Each repository that they offer to it is
/// offered to this program too, with the time and in the order of the test. What the reference client refuses, this
/// program refuses. What it accepts, this program accepts, except where the list says `stricter`.
#[test]
fn what_the_tests_of_the_reference_implementation_refuse_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (offers, run) = offers(folder.path());
    assert_eq!(run.failed, Vec::<String>::new(), "of {} tests", run.run);
    let mut clients = ReplayedClients::default();
    let mut outcomes = BTreeMap::<_, Vec<_>>::new();
    let mut wrong = Vec::new();
    for offer in &offers {
        let case = offer.case.as_ref().map(|case| format!(" {case}"));
        let test = format!("{}{}", offer.test, case.unwrap_or_default());
        let said = clients.judge(offer, &folder.path().join(&offer.folder));
        let said = match (said, &offer.error) {
            (Ok(()), None) => ACCEPTED.to_owned(),
            (Ok(()), Some(theirs)) => {
                wrong.push(format!("{test}: accepted, and refused there: {theirs}"));
                ACCEPTED.to_owned()
            }
            (Err(error), None) => format!("stricter {}", name(&error)),
            (Err(error), Some(_)) => name(&error),
        };
        outcomes.entry(test).or_default().push(said);
    }
    assert_eq!(wrong, Vec::<String>::new());
    let expected = PYTHON_TUF_OUTCOMES
        .lines()
        .filter(|line| !line.starts_with('#'));
    let expected: Vec<_> = expected.collect();
    let listed = listed(&outcomes);
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected, "\n{listed}");
}

/// A repository of tough: its name, a target of it, and the beginning of the text with which this program refuses the
/// repository; empty if it accepts it.
const TOUGH: [(&str, Option<&str>, &str); 18] = [
    ("consistent-snapshots", Some("data1.txt"), ""),
    ("rotated-root", None, ""),
    ("tuf-reference-impl", Some("file1.txt"), ""),
    // A root alone, which this program begins with.
    ("simple-rsa", None, "timestamp.json is missing"),
    // Good there. The specification writes times without fractions of a second (section 4.2), and so does this program.
    (
        "dubious-role-names",
        None,
        "timestamp.json cannot be read: its time of expiry is not like 2030-01-01T00:00:00Z",
    ),
    (
        "cross-sign-root",
        None,
        "the built-in root.json has 0 valid signatures by keys of the root role in root version 1, and 1",
    ),
    (
        "duplicate-keyid",
        None,
        "the built-in root.json cannot be read: ",
    ),
    (
        "duplicate-sig-keys",
        None,
        "the built-in root.json cannot be read: it has two signatures with one key ID",
    ),
    (
        "duplicate-sigs",
        None,
        "the built-in root.json cannot be read: it has two signatures with one key ID",
    ),
    (
        "ecdsa-new-type-sig-keys",
        None,
        "9.root.json expired at 2024-09-12T06:53:10Z",
    ),
    (
        "expired-repository",
        None,
        "timestamp.json expired at 1999-01-01T00:00:00Z",
    ),
    (
        "expired-root-json-signature",
        None,
        "1.root.json expired at 1970-03-30T03:30:30Z",
    ),
    // Expired in 2022, and with a fraction of a second.
    (
        "hex-encoded-ecdsa-sig-keys",
        None,
        "the built-in root.json cannot be read: its time of expiry is not like 2030-01-01T00:00:00Z",
    ),
    (
        "invalid-root-json-signature",
        None,
        "the built-in root.json has 0 valid signatures by keys of the root role in root version 1, and 1",
    ),
    (
        "mismatched-root-json-keyids",
        None,
        "the built-in root.json cannot be read: role 'root' names a key that is not there",
    ),
    (
        "no-root-json-signatures",
        None,
        "the built-in root.json has 0 valid signatures by keys of the root role in root version 1, and 1",
    ),
    (
        "pem-encoded-ecdsa-sig-keys",
        None,
        "5.root.json expired at 2023-04-18T18:13:43Z",
    ),
    (
        "safe-target-paths",
        None,
        "targets.json cannot be read: 'foo/../bar/../baz/../data1.txt' is no name of a target",
    ),
];

/// What this program says to a repository of tough whose keys are replaced by Ed25519 keys.
fn judge_tough(folder: &Path, target: Option<&str>) -> Result<(), UpdateError> {
    let trust = UpdateTrust::new(bootstrap(folder, "bootstrap.json")?);
    verify(trust, folder, UpdateClock::Known(TOUGH_NOW), target).1
}

#[test]
fn each_bad_repository_of_the_tests_of_tough_is_refused_for_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let data: PathBuf = set_up_path(TOUGH_VARIABLE);
    let packages = [set_up_path(PACKAGES_VARIABLE)];
    let printed = python_with(&packages, "tough.py", &[&data, folder.path()]);
    let printed = printed.expect("the script ends well");
    let mut names: Vec<_> = TOUGH.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(printed.lines().collect::<Vec<_>>(), names);
    for (name, target, refusal) in TOUGH {
        let path = folder.path().join(name);
        match (judge_tough(&path, target), refusal) {
            (Ok(()), "") => {}
            (Err(error), refusal) if !refusal.is_empty() => {
                let text = error.to_string();
                assert!(text.starts_with(refusal), "{name}: {text}");
            }
            (said, refusal) => panic!("{name}: {said:?} instead of {refusal:?}"),
        }
        // As tough has it: no key of the root role is one whose signatures this program verifies.
        let error = bootstrap(&path, "published.json").expect_err("other keys");
        let is_unsigned = matches!(error, UpdateError::Signatures { valid: 0, .. });
        let is_malformed = matches!(error, UpdateError::Malformed { .. });
        assert!(is_unsigned || is_malformed, "{name}: {error}");
    }
}

//! What the first version of PID 1 stored, with a member that a later version may add: this version reads it, and
//! passes over the addition.

use super::super::{history, starts};
use super::*;

/// A SHA-256, and the same for what a TPM measures.
const SHA256: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const MEASURED: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

/// A folder of updates with this file.
fn folder_with(file: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::write(folder.path().join(file), text).expect("writable");
    folder
}

#[test]
fn the_first_format_of_known_programs_is_read() {
    let sample = format!(
        r#"{{"a":{{"version":"1.0.0","sha256":"{SHA256}","measured":["{MEASURED}","{SHA256}","{MEASURED}"],"later":1}},"b":{{"version":"1.1.0","sha256":"{MEASURED}"}},"later":[]}}"#
    );
    let folder = folder_with("programs.json", &sample);
    let store = KnownStore::new(Some(folder.path().to_owned()));
    let known = store.load();
    let a = known.of_slot(BootSlot::A).expect("slot a");
    assert_eq!(
        (&*a.version.to_string(), &*a.sha256),
        ("1.0.0", SHA256),
        "{known:?}"
    );
    assert!(a.measured().is_some());
    let b = known.of_slot(BootSlot::B).expect("slot b");
    assert_eq!((&*b.version.to_string(), &*b.sha256), ("1.1.0", MEASURED));
    assert!(b.measured().is_none());
    // What this version writes is the same without the additions.
    store.save(&known).expect("writable");
    let written = fs::read_to_string(folder.path().join("programs.json"));
    let first = sample
        .replace(r#","later":1"#, "")
        .replace(r#","later":[]"#, "");
    assert_eq!(written.expect("readable"), first);
}

#[test]
fn the_first_format_of_a_staged_release_is_read() {
    let sample = format!(
        r#"{{"slot":"b","version":"1.1.0","bytes":41943040,"sha256":"{SHA256}","floor":"1.0.1","later":{{}}}}"#
    );
    let folder = folder_with("staged.json", &sample);
    let staged = StagedRelease::load(folder.path()).expect("a release");
    assert!(staged.is_of(BootSlot::B) && !staged.is_of(BootSlot::A));
    assert_eq!(staged.version.to_string(), NEW);
    assert_eq!((staged.bytes, &*staged.sha256), (41_943_040, SHA256));
    let floor = staged.floor.as_ref().map(ToString::to_string);
    assert_eq!(floor.as_deref(), Some("1.0.1"));
    staged.save(folder.path()).expect("writable");
    let written = fs::read_to_string(folder.path().join("staged.json"));
    let first = sample.replace(r#","later":{}"#, "");
    assert_eq!(written.expect("readable"), first);
    // Later versions note the caller as well.
    assert_eq!(staged.stager, None);
    let later = r#","stager":{"by":"eve","limited":true,"later":1},"later":{}"#;
    let folder = folder_with("staged.json", &sample.replace(r#","later":{}"#, later));
    let staged = StagedRelease::load(folder.path()).expect("a release");
    let stager = staged.stager.expect("a caller");
    assert_eq!((&*stager.by, stager.limited), ("eve", true));
}

#[test]
fn the_first_format_of_versions_that_were_left_is_read() {
    let sample = r#"{"versions":["1.1.0","1.2.0"],"later":null}"#;
    let folder = folder_with("left.json", sample);
    let left = LeftVersions::load(Some(folder.path()));
    assert_eq!(left.names(), ["1.1.0", "1.2.0"]);
    left_versions::leave(folder.path(), &"1.2.0".parse().expect("a version")).expect("writable");
    let written = fs::read_to_string(folder.path().join("left.json"));
    assert_eq!(
        written.expect("readable"),
        r#"{"versions":["1.1.0","1.2.0"]}"#
    );
}

#[test]
fn the_first_format_of_counted_starts_is_read() {
    let now = crate::clock::rfc3339_now().expect("the clock is set");
    let start = format!(r#"{{"time":"{now}","by":"hub","later":1}}"#);
    let hub_starts = vec![start; starts::STARTS_PER_HOUR_MAX].join(",");
    let sample = format!(r#"{{"starts":[{hub_starts}],"later":1}}"#);
    let folder = folder_with("starts.json", &sample);
    let refused = starts::check(folder.path(), "hub").expect_err("too often");
    assert_eq!(refused.code, RefusalCode::TooOften);
    assert!(starts::check(folder.path(), "another").is_ok());
}

#[test]
fn the_first_format_of_the_log_is_read() {
    let sample = concat!(
        r#"{"time":"2026-11-28T10:00:00.000Z","event":"staged","version":"1.1.0","by":"ada","reason":"","seq":3,"later":1}"#,
        "\n",
        r#"{"time":null,"event":"failed","version":"1.1.0","by":"the machine","reason":"its node ended","seq":5}"#,
        "\n",
    );
    let folder = folder_with("log.jsonl", sample);
    let records = history::read(folder.path());
    let [staged, failed] = records.as_slice() else {
        panic!("two records: {records:?}");
    };
    assert_eq!(staged.time.as_deref(), Some("2026-11-28T10:00:00.000Z"));
    assert_eq!((&*staged.event, &*staged.version), ("staged", NEW));
    assert_eq!((&*staged.by, &*staged.reason), ("ada", ""));
    assert_eq!((&failed.time, &*failed.event), (&None, "failed"));
    assert_eq!(
        (&*failed.by, &*failed.reason),
        ("the machine", "its node ended")
    );
    assert!(history::has_end(folder.path(), 5) && !history::has_end(folder.path(), 3));
}

//! The examples and tables of `docs/promotion.md`.

use std::fs;
use std::path::Path;

use alknet_promotion::{
    ActivationTime, BundleContent, PromotionBundle, PromotionConfig, limits, read_draft,
};
use serde_json::{Value, json};

use crate::support::*;

const PAGE: &str = include_str!("../../../../../docs/promotion.md");

/// Blocks with a file's name behind their language.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for block in PAGE.split("\n```").skip(1).step_by(2) {
        let (head, body) = block.split_once('\n').expect("a block has lines");
        if let Some((_, name)) = head.split_once(' ') {
            files.push((name.to_owned(), body.to_owned()));
        }
    }
    files
}

/// Writes the files of the page below a folder.
fn write_files(drafts: &Path) {
    let files = files();
    assert_eq!(files.len(), 7);
    // This one lies beside the folders, and runs what is in one of them.
    for (name, text) in files.into_iter().filter(|(name, _)| name != "try.ts") {
        let file = drafts.join(name);
        let folder = file.parent().expect("each file is in a folder");
        fs::create_dir_all(folder).expect("room");
        fs::write(&file, text).expect("room");
    }
}

/// The bundle of a folder, as ada signs it.
fn signed(folder: &Path) -> PromotionBundle {
    let content: BundleContent =
        read_draft(folder, "ada".parse().expect("a name"), key("ada")).expect("a draft");
    let pair = pair("ada");
    let sign = |text: &[u8]| pair.sign(text).as_ref().try_into().expect("64 bytes");
    PromotionBundle::sign(&content, sign).expect("a bundle")
}

#[tokio::test]
async fn the_example_is_proposed_promoted_and_called() {
    let drafts = folder();
    write_files(drafts.path());
    let [rate, total] = ["rate", "total"].map(|name| drafts.path().join(name));
    // What the page records is what it wrote by hand before.
    let written = |name: &str| {
        let text = fs::read_to_string(total.join(name)).expect("a file of the page");
        parsed(&text)
    };
    let (mut operation, recorded) = (written("operation.json"), written("two-items.json"));
    let by_hand = operation["tests"][0]["calls"].take();
    assert_eq!(recorded, by_hand);
    operation["tests"][0]["calls"] = json!("two-items.json");
    fs::write(total.join("operation.json"), operation.to_string()).expect("room");
    // Every member of the table is one of the document, and the other way round.
    let document = parsed(signed(&total).document());
    for name in document.as_object().expect("an object").keys() {
        assert!(PAGE.contains(&format!("`{name}`")), "{name}");
    }
    let place = folder();
    let node = PromotionNode::start(place.path(), live()).await;
    node.identities
        .set("ada", &["ops:propose", "call:js:tax:rate"]);
    let mut path = String::new();
    for folder in [rate, total] {
        let proposed = node.propose("ada", &signed(&folder)).await;
        let proposed = proposed.expect("it passes");
        let yes = json!({ "id": proposed["id"], "accept": true, "external": true });
        let promoted = node.call("eve", "ops/promote", &yes).await;
        let promoted = promoted.expect("reviewed");
        promoted["path"]
            .as_str()
            .expect("a path")
            .clone_into(&mut path);
    }
    let answer = node.call("cal", &path, &json!({ "items": [1, 3] })).await;
    assert_eq!(answer, Ok(json!(6)));
    let schema = node.client("eve").schema(&path).await.expect("a spec");
    assert_eq!(
        schema.access_control.required_scopes,
        ["call:js:invoice:total"]
    );
    for operation in node.promotion.operations() {
        let spec = operation.spec();
        assert!(
            PAGE.contains(&format!("| `{}` |", spec.name)),
            "{}",
            spec.name
        );
        for error in &spec.error_schemas {
            assert!(PAGE.contains(&error.code) || error.code == "STORE_FULL");
        }
    }
}

#[test]
fn the_page_tells_the_limits_and_settings_that_there_are() {
    use limits::*;
    for row in [
        format!(
            "| bundle | {} MiB, {NESTING_MAX} levels |",
            BUNDLE_BYTES_MAX >> 20
        ),
        format!("| modules, cases | {MODULES_MAX}, {CASES_MAX} |"),
        format!("| `uses`, declared errors | {USES_MAX}, {ERRORS_MAX} |"),
        format!("| all tests together | {} s |", TRIAL_MAX.as_secs()),
        format!("| findings told at once | {FINDINGS_MAX} |"),
        format!("| imports of `op:` through `op:` | {IMPORT_DEPTH_MAX} |"),
        format!("| proposals whose tests run at the same time | {TRIALS_AT_ONCE} |"),
        format!(
            "| bundles kept | {BUNDLES_MAX}, {} GiB |",
            STORE_BYTES_MAX >> 30
        ),
        format!("| proposals of one author that wait | {WAITING_PER_AUTHOR_MAX} |"),
        format!("| promoted operations | {PATHS_MAX} |"),
        format!("| scopes for callers | {SCOPES_MAX} of {SCOPE_BYTES_MAX} bytes |"),
        format!("| reason | {REASON_BYTES_MAX} bytes |"),
        format!("| page of a listing | {PAGE_MAX} |"),
        format!("| difference shown | {} KiB |", DIFFERENCE_BYTES_MAX >> 10),
        format!("| record shown | {AUDIT_SHOWN_MAX} entries |"),
        format!("| `reviews` | 1 (default) to {REVIEWS_MAX} |"),
        format!("if too many of its first {WATCHED_CALLS} calls fail"),
        format!("and {WORSE_PERCENT_MAX} percentage points more"),
    ] {
        assert!(PAGE.contains(&row), "{row}");
    }
    let words: Vec<_> = PAGE.split_whitespace().collect();
    let crashes = format!(
        "loses {CRASHES_MAX} workers within {} s",
        CRASHES_WITHIN.as_secs()
    );
    assert!(words.join(" ").contains(&crashes), "{crashes}");
    let usual = PromotionConfig::default();
    assert_eq!((usual.activate, usual.reviews), (ActivationTime::Boot, 1));
    let names = serde_json::to_value(usual).expect("JSON");
    for name in names.as_object().map(|it| it.keys()).into_iter().flatten() {
        assert!(PAGE.contains(&format!("| `{name}` |")), "{name}");
    }
    assert_ne!(names, Value::Null);
}

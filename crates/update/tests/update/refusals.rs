//! Each kind of bad bundle, with the exact text that a person reads.

use std::collections::BTreeMap;
use std::io;

use alknet_update::{
    BundleReader, DowngradeConsent, MetadataSigner as _, RootPlan, TufRole, UnixSeconds,
    UpdateClock, UpdateTarget, UpdateTrust, canonical, limits, sign_root,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{
    LATE, NOW, PROGRAM, Publisher, body, keys, machine, read, refusal, release, signed, signer,
    target,
};

fn fresh(publisher: &Publisher) -> UpdateTrust {
    UpdateTrust::new(publisher.anchor())
}

/// The text with which the documents of a release are refused after a change.
fn refused_files(
    publisher: &Publisher,
    change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>),
) -> String {
    let mut files = publisher.files(&Publisher::plan(1, vec![target("1.1.0")]));
    change(&mut files.0);
    let refresh = fresh(publisher).refresh(UpdateClock::Known(NOW));
    let (_, verified) = refresh.run(&mut files);
    verified.expect_err("refused").to_string()
}

#[test]
fn a_bad_signature() {
    let publisher = Publisher::new(1);
    let text = refused_files(&publisher, |files| {
        let timestamp = files.get_mut("timestamp.json").expect("a timestamp");
        let changed = String::from_utf8_lossy(timestamp).replace("2096-10-02", "2097-10-02");
        *timestamp = changed.into_bytes();
    });
    assert_eq!(
        text,
        "timestamp.json has 0 valid signatures by keys of the timestamp role in root version 1, and 1 are necessary. Use a \
         bundle that the holders of these keys have signed"
    );
}

#[test]
fn a_missing_signature() {
    let publisher = Publisher::new(1);
    let text = refused_files(&publisher, |files| {
        let unsigned = signed(&body(&files["timestamp.json"]), &[]);
        files.insert("timestamp.json".to_owned(), unsigned);
    });
    assert!(
        text.starts_with("timestamp.json has 0 valid signatures by keys of the timestamp role"),
        "{text}"
    );
}

#[test]
fn too_few_signatures() {
    let [one, two, three] = [1, 2, 3].map(signer);
    let plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &two, &three], 2));
    let root = sign_root(&plan, None, &[&one, &three]).expect("two keys sign");
    let publisher = Publisher {
        signer: one,
        roots: vec![root],
    };
    let mut files = Publisher::new(9).files(&Publisher::plan(1, vec![]));
    let timestamp = body(&files.0["timestamp.json"]);
    let mut read_with = |signers: &[&_]| {
        let document = signed(&timestamp, signers);
        files.0.insert("timestamp.json".to_owned(), document);
        let refresh = fresh(&publisher).refresh(UpdateClock::Known(NOW));
        refresh.run(&mut files).1.expect_err("refused").to_string()
    };
    let too_few = "timestamp.json has 1 valid signatures by keys of the timestamp role in root version 1, and 2 are necessary. \
                   Use a bundle that the holders of these keys have signed";
    assert_eq!(read_with(&[&publisher.signer]), too_few);
    assert_eq!(read_with(&[&publisher.signer, &signer(7)]), too_few);
    // With two of them the timestamp is good, and the next document is another publisher's.
    let next = read_with(&[&publisher.signer, &two]);
    assert!(
        next.starts_with("1.snapshot.json has 0 valid signatures"),
        "{next}"
    );
}

#[test]
fn expired() {
    let publisher = Publisher::new(1);
    let mut plan = Publisher::plan(1, vec![target("1.1.0")]);
    plan.timestamp_expires = NOW;
    assert_eq!(
        refusal(fresh(&publisher), &publisher.bundle_of(&plan)),
        "timestamp.json expired at 2033-05-18T03:33:20Z, and it is 2033-05-18T03:33:20Z now. Get a newer bundle, because this \
         one may hide a newer version; if the clock of this machine is wrong, correct it first"
    );
    plan.timestamp_expires = UnixSeconds(NOW.0 + 1);
    let (_, verified) = read(fresh(&publisher), &publisher.bundle_of(&plan));
    assert_eq!(
        verified.expect("valid for a second").expires(),
        plan.timestamp_expires
    );
}

#[test]
fn older_than_the_floor() {
    let publisher = Publisher::new(1);
    let (mut trust, verified) = read(fresh(&publisher), &publisher.bundle(1, "1.1.0"));
    let verified = verified.expect("a good bundle");
    trust.raise_floor(Some(&"1.2.0".parse().expect("a version")));
    let running = "1.3.0".parse().expect("a version");
    let chosen = verified.choose(&machine(), &running, trust.floor(), DowngradeConsent::Given);
    assert_eq!(
        chosen.expect_err("below the floor").to_string(),
        "version 1.1.0 is older than 1.2.0, the oldest version that this machine may run again. Install 1.2.0 or a newer \
         version; no option lowers this limit"
    );
}

#[test]
fn replayed_metadata() {
    let publisher = Publisher::new(1);
    let (trust, verified) = read(fresh(&publisher), &publisher.bundle(7, "1.2.0"));
    verified.expect("a good bundle");
    assert_eq!(
        refusal(trust, &publisher.bundle(6, "1.1.0")),
        "timestamp.json has version 6, and this machine has seen version 7. The bundle is older than one before it, or was \
         replayed. Get the newest bundle"
    );
}

/// An attacker who has the keys of the timestamp alone cannot show two machines two releases of one version.
#[test]
fn another_document_of_a_version_that_was_seen() {
    let publisher = Publisher::new(1);
    let (trust, verified) = read(fresh(&publisher), &publisher.bundle(7, "1.2.0"));
    verified.expect("a good bundle");
    let (trust, again) = read(trust, &publisher.bundle(7, "1.2.0"));
    again.expect("the same bundle");
    assert_eq!(
        refusal(trust, &publisher.bundle(7, "1.2.1")),
        "timestamp.json has version 7, and an earlier timestamp.json of this version had another content. Get the bundle again \
         from its publisher; the publisher has to raise the version with each change"
    );
}

#[test]
fn the_wrong_architecture_or_board() {
    let publisher = Publisher::new(1);
    let (_, verified) = read(fresh(&publisher), &publisher.bundle(1, "1.1.0"));
    let verified = verified.expect("a good bundle");
    let refused = |arch: &str, board: &str| {
        let mut machine = machine();
        machine.arch = arch.to_owned();
        machine.board = board.to_owned();
        let running = "1.0.0".parse().expect("a version");
        let chosen = verified.choose(&machine, &running, None, DowngradeConsent::NotGiven);
        chosen.expect_err("another machine").to_string()
    };
    assert_eq!(
        refused("aarch64", "generic"),
        "the bundle has no target for aarch64 generic (raw), only for x86_64 generic (raw). Get the bundle for this machine"
    );
    assert_eq!(
        refused("x86_64", "pi-5"),
        "the bundle has no target for x86_64 pi-5 (raw), only for x86_64 generic (raw). Get the bundle for this machine"
    );
}

/// A later release may need a newer loader, which no update writes to the disk.
#[test]
fn a_need_that_the_machine_does_not_know() {
    let publisher = Publisher::new(1);
    let mut needy = release("1.1.0");
    needy.needs = ["loader-2", "shelf", "loader-3"]
        .map(str::to_owned)
        .to_vec();
    let target = UpdateTarget::describe("alknet.efi", Some(needy), &mut &*PROGRAM);
    let plan = Publisher::plan(1, vec![target.expect("a description")]);
    let (_, verified) = read(fresh(&publisher), &publisher.bundle_of(&plan));
    let verified = verified.expect("a good bundle");
    let running = "1.0.0".parse().expect("a version");
    let mut machine = machine();
    machine.provides = vec!["shelf".to_owned()];
    let chosen = verified.choose(&machine, &running, None, DowngradeConsent::NotGiven);
    assert_eq!(
        chosen.expect_err("two names are not known").to_string(),
        "version 1.1.0 needs loader-2 and loader-3, which this machine lacks or does not know. No update brings that: make a \
         backup, write a newer image to the disk of the machine, and restore the backup"
    );
    machine
        .provides
        .extend(["loader-2", "loader-3"].map(str::to_owned));
    verified
        .choose(&machine, &running, None, DowngradeConsent::NotGiven)
        .expect("the machine has all of it");
}

#[test]
fn a_target_that_is_too_large() {
    let publisher = Publisher::new(1);
    let text = refused_files(&publisher, |files| {
        let mut targets = body(&files["1.targets.json"]);
        targets["targets"]["alknet.efi"]["length"] = (limits::TARGET_BYTES_MAX + 1).into();
        relink(files, &publisher, targets);
    });
    assert_eq!(
        text,
        "alknet.efi has more than 89478485 bytes, the most that this program reads. Get the bundle again from its publisher"
    );
}

/// Puts other targets into a release, and signs the documents that name them.
fn relink(files: &mut BTreeMap<String, Vec<u8>>, publisher: &Publisher, targets: Value) {
    let mut snapshot = body(&files["1.snapshot.json"]);
    snapshot["meta"]["targets.json"] = json!({ "version": 1 });
    let mut timestamp = body(&files["timestamp.json"]);
    timestamp["meta"]["snapshot.json"] = json!({ "version": 1 });
    for (name, body) in [
        ("1.targets.json", targets),
        ("1.snapshot.json", snapshot),
        ("timestamp.json", timestamp),
    ] {
        files.insert(name.to_owned(), signed(&body, &[&publisher.signer]));
    }
}

#[test]
fn a_description_that_breaks_a_rule() {
    let publisher = Publisher::new(1);
    let text = refused_files(&publisher, |files| {
        let mut targets = body(&files["1.targets.json"]);
        let mut release = release("1.1.0");
        release.floor = Some("2.0.0".parse().expect("a version"));
        targets["targets"]["alknet.efi"]["custom"]["alknet"] = json!(release);
        relink(files, &publisher, targets);
    });
    assert_eq!(
        text,
        "target 'alknet.efi' has a wrong description: its floor 2.0.0 is above its own version 1.1.0. Get the bundle again from \
         its publisher"
    );
}

#[test]
fn a_document_that_is_too_long() {
    let publisher = Publisher::new(1);
    let text = refused_files(&publisher, |files| {
        let timestamp = files.get_mut("timestamp.json").expect("a timestamp");
        timestamp.resize(16 * 1024 + 1, b' ');
    });
    assert_eq!(
        text,
        "timestamp.json has more than 16384 bytes, the most that this program reads. Get the bundle again from its publisher"
    );
}

#[test]
fn each_document_is_necessary() {
    let publisher = Publisher::new(1);
    for name in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let text = refused_files(&publisher, |files| {
            files.remove(name).expect("it was there");
        });
        assert_eq!(
            text,
            format!(
                "{name} is missing. The bundle is incomplete. Get the bundle again from its publisher"
            )
        );
    }
}

/// A snapshot that stops to name a document would hide it.
#[test]
fn a_document_that_the_snapshot_names_no_more() {
    let publisher = Publisher::new(1);
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let mut files = publisher.files(&plan);
    let mut snapshot = body(&files.0["1.snapshot.json"]);
    snapshot["meta"]["boards.json"] = json!({ "version": 1 });
    let mut timestamp = body(&files.0["timestamp.json"]);
    timestamp["meta"]["snapshot.json"] = json!({ "version": 1 });
    let key = [&publisher.signer];
    files
        .0
        .insert("1.snapshot.json".to_owned(), signed(&snapshot, &key));
    files
        .0
        .insert("timestamp.json".to_owned(), signed(&timestamp, &key));
    let refresh = fresh(&publisher).refresh(UpdateClock::Known(NOW));
    let (trust, verified) = refresh.run(&mut files);
    verified.expect("more documents than this client reads");
    assert_eq!(
        refusal(trust, &publisher.bundle(2, "1.2.0")),
        "2.snapshot.json does not name boards.json, which an earlier one named. Get the bundle again from its publisher"
    );
}

/// Each wrong member of a root is refused, also if the root's own keys have signed it.
#[test]
fn a_root_that_breaks_a_rule() {
    let publisher = Publisher::new(1);
    let id = publisher.signer_id();
    let refused = |change: &dyn Fn(&mut Value), why: &str| {
        let mut root = body(publisher.root());
        root["version"] = 2.into();
        change(&mut root);
        let text = refused_files(&publisher, |files| {
            files.insert(
                "2.root.json".to_owned(),
                signed(&root, &[&publisher.signer]),
            );
        });
        assert!(text.contains(why), "{text}");
    };
    refused(
        &|it| it["version"] = 3.into(),
        "2.root.json has version 3, and its place names version 2",
    );
    refused(
        &|it| it["version"] = 0.into(),
        "its version is no number from 1",
    );
    refused(
        &|it| it["expires"] = "tomorrow".into(),
        "its time of expiry is not like 2030-01-01T00:00:00Z",
    );
    refused(
        &|it| it["expires"] = "2090-01-01T00:00:00+01:00".into(),
        "its time of expiry is not like",
    );
    refused(
        &|it| it["spec_version"] = "2.0.0".into(),
        "it follows another version of the specification than 1.0",
    );
    refused(
        &|it| it["_type"] = "snapshot".into(),
        "is metadata of the role 'snapshot', and 'root' belongs there",
    );
    refused(
        &|it| it["roles"]["snapshot"] = json!(null),
        "role 'snapshot' has no threshold from 1",
    );
    refused(
        &|it| it["roles"]["targets"]["threshold"] = 0.into(),
        "role 'targets' has no threshold from 1",
    );
    refused(
        &|it| it["roles"]["root"]["keyids"] = json!([id, id]),
        "role 'root' names one key twice",
    );
    refused(
        &|it| it["roles"]["root"]["keyids"] = json!(["00"]),
        "role 'root' names a key that is not there",
    );
    refused(
        &|it| it["roles"]["root"]["threshold"] = 2.into(),
        "has 1 valid signatures by keys of the root role in root version 2, and 2",
    );
    refused(
        &|it| it["keys"][&id]["keyval"]["public"] = "00".into(),
        "a key ID is not the SHA-256 of its key",
    );
    refused(
        &|it| {
            it["keys"].take();
        },
        "'keys' is no object",
    );
}

impl Publisher {
    fn signer_id(&self) -> String {
        self.signer.public_key().id()
    }
}

#[test]
fn a_root_with_two_members_of_one_name() {
    let publisher = Publisher::new(1);
    let mut root = body(publisher.root());
    root["version"] = 2.into();
    let document = String::from_utf8(signed(&root, &[&publisher.signer])).expect("JSON");
    let doubled = document.replace("\"version\":2", "\"version\":9,\"version\":2");
    assert_ne!(document, doubled);
    let text = refused_files(&publisher, |files| {
        files.insert("2.root.json".to_owned(), doubled.into_bytes());
    });
    assert!(text.contains("'version' is there twice"), "{text}");
}

/// A key object may have members that this client does not know, so one key can have two IDs.
#[test]
fn one_key_under_two_names_counts_once() {
    let publisher = Publisher::new(1);
    let id = publisher.signer_id();
    let mut root = body(publisher.root());
    let mut other = root["keys"][&id].clone();
    other["comment"] = "the same key".into();
    let other_id = HEXLOWER.encode(&Sha256::digest(canonical(&other)));
    root["version"] = 2.into();
    root["keys"][&other_id] = other;
    root["roles"]["timestamp"] = json!({ "keyids": [id, other_id], "threshold": 2 });
    let text = refused_files(&publisher, |files| {
        files.insert(
            "2.root.json".to_owned(),
            signed(&root, &[&publisher.signer]),
        );
        let mut timestamp: Value = serde_json::from_slice(&files["timestamp.json"]).expect("JSON");
        let mut again = timestamp["signatures"][0].clone();
        again["keyid"] = other_id.as_str().into();
        timestamp["signatures"]
            .as_array_mut()
            .expect("a list")
            .push(again);
        files.insert(
            "timestamp.json".to_owned(),
            timestamp.to_string().into_bytes(),
        );
    });
    assert_eq!(
        text,
        "timestamp.json has 1 valid signatures by keys of the timestamp role in root version 2, and 2 are necessary. Use a \
         bundle that the holders of these keys have signed"
    );
}

#[test]
fn too_many_signatures_or_keys() {
    let publisher = Publisher::new(1);
    let signers: Vec<_> = (0..=limits::KEYS_MAX).map(|at| signer(at as u8)).collect();
    let many: Vec<_> = signers.iter().collect();
    let with = |number: usize| {
        refused_files(&publisher, |files| {
            let timestamp = body(&files["timestamp.json"]);
            files.insert(
                "timestamp.json".to_owned(),
                signed(&timestamp, &many[..number]),
            );
            files.remove("1.snapshot.json").expect("it was there");
        })
    };
    // Signer 1 is the publisher, so 64 signatures are good, and the next document is asked for.
    assert!(with(limits::KEYS_MAX).starts_with("1.snapshot.json is missing"));
    assert!(with(limits::KEYS_MAX + 1).contains("it has more than 64 signatures"));
}

#[test]
fn a_target_that_no_document_names() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    let mut files = publisher.files(&Publisher::plan(1, vec![]));
    let refresh = fresh(&publisher).refresh(UpdateClock::Known(NOW));
    let verified = refresh
        .run(&mut files)
        .1
        .expect("a release without targets");
    let mut reader = BundleReader::open(&*bundle).expect("a bundle");
    let copied = reader.copy_target(&verified, &mut io::sink());
    let error = copied.expect_err("not signed").to_string();
    assert!(
        error.starts_with("the signed metadata names no target '"),
        "{error}"
    );
    assert_eq!(
        verified
            .target("alknet.efi")
            .expect_err("not signed")
            .to_string(),
        "the signed metadata names no target 'alknet.efi'. Get the bundle again from its publisher"
    );
}

#[test]
fn a_role_has_its_own_limit_and_name() {
    let limits: Vec<_> = TufRole::ALL
        .iter()
        .map(|it| (it.name(), it.bytes_max()))
        .collect();
    let expected = [
        ("root", 65_536),
        ("snapshot", 65_536),
        ("targets", 262_144),
        ("timestamp", 16_384),
    ];
    assert_eq!(limits, expected);
}

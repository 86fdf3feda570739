//! An owner's own keys, and keys of a vault.

use alknet_update::{
    MetadataSigner, RootPlan, SeedSigner, SigningError, TrustAnchor, TufRole, UnixSeconds,
    UpdateTrust, sign_release, sign_root,
};
use alknet_vault::{Entropy, KeyPurpose, SecretStr, Vault};

use crate::support::{LATE, NOW, Publisher, keys, read, refusal, signer};

/// The words of the vault's table of paths.
const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

#[test]
fn owners_keys_replace_the_release_keys() {
    let [release, owner] = [1, 2].map(Publisher::new);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    let (mut trust, verified) = read(
        UpdateTrust::new(release.anchor()),
        &release.bundle(7, "1.2.0"),
    );
    verified.expect("a good bundle");
    trust.raise_floor(Some(&"1.1.0".parse().expect("a version")));
    trust.save(&path).expect("saved");
    let anchor = || TrustAnchor::keys(keys(&[&owner.signer], 1));
    let trust = UpdateTrust::load(&path, anchor()).expect("the saved file");
    // The floor is of the machine, and stays with any keys.
    assert_eq!(
        trust.floor().map(ToString::to_string).as_deref(),
        Some("1.1.0")
    );
    assert_eq!(
        refusal(trust.clone(), &release.bundle(8, "1.3.0")),
        "root.json has 0 valid signatures by keys of the root role in the configuration, and 1 are necessary. Use a bundle that \
         the holders of these keys have signed"
    );
    let (trust, verified) = read(trust, &owner.bundle(1, "1.3.0"));
    verified.expect("the owner's own release");
    trust.save(&path).expect("saved");
    // Without the owner's keys the release keys count again, and the owner's do not.
    let trust = UpdateTrust::load(&path, release.anchor()).expect("the saved file");
    let text = refusal(trust.clone(), &owner.bundle(2, "1.4.0"));
    assert!(
        text.starts_with("timestamp.json has 0 valid signatures"),
        "{text}"
    );
    read(trust, &release.bundle(8, "1.4.0"))
        .1
        .expect("the release keys");
}

#[test]
fn an_owners_root_needs_the_owners_threshold_and_its_own() {
    let [one, two, three] = [1, 2, 3].map(signer);
    let owner = || UpdateTrust::new(TrustAnchor::keys(keys(&[&one, &two], 2)));
    // A root that one of the owner's keys and a foreign key have signed, which is enough for itself.
    let plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &three], 2));
    let root = sign_root(&plan, None, &[&one, &three]).expect("two keys sign");
    let publisher = Publisher {
        roots: vec![root],
        signer: signer(1),
    };
    let mut files = Publisher::new(1).files(&Publisher::plan(1, vec![]));
    files
        .0
        .insert("root.json".to_owned(), publisher.root().to_vec());
    let refresh = owner().refresh(alknet_update::UpdateClock::Known(NOW));
    let text = refresh.run(&mut files).1.expect_err("refused").to_string();
    assert!(
        text.starts_with(
            "root.json has 1 valid signatures by keys of the root role in the configuration, and 2"
        ),
        "{text}"
    );
    // A root of the owner's keys that asks for two signatures.
    let plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &two], 2));
    let root = sign_root(&plan, None, &[&one, &two]).expect("two keys sign");
    files.0.insert("root.json".to_owned(), root);
    let refresh = owner().refresh(alknet_update::UpdateClock::Known(NOW));
    let text = refresh.run(&mut files).1.expect_err("refused").to_string();
    assert!(
        text.starts_with("timestamp.json has 1 valid signatures by keys of the timestamp role"),
        "{text}"
    );
}

/// The image key of a vault signs, and a build machine without the vault signs with the exported file.
#[test]
fn the_image_key_of_a_vault_signs() {
    let vault = Vault::locked();
    let words = Entropy::parse(WORDS).expect("the words of the table");
    vault
        .unlock(&words, &SecretStr::from(""))
        .expect("unlocked");
    let image = vault
        .signer(KeyPurpose::ImageSigning)
        .expect("a signing key");
    let public = image.public_key();
    let plan = RootPlan::with_keys(
        1,
        LATE,
        &alknet_update::KeyThreshold::new([public], 1).expect("one key"),
    );
    let root = sign_root(&plan, None, &[&image]).expect("signed by the vault");
    let pem = image
        .pkcs8(alknet_vault::ExportReason::Console)
        .expect("exported");
    let body = data_encoding::BASE64.encode(pem.expose());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    let file = SeedSigner::from_pem(&pem).expect("the exported key");
    assert_eq!(file.public_key(), public);
    assert_eq!(
        sign_root(&plan, None, &[&file]).expect("signed by the file"),
        root
    );
    vault.lock_hard();
    let locked = sign_root(&plan, None, &[&image]).expect_err("the vault is locked");
    assert!(matches!(locked, SigningError::Key { .. }), "{locked}");
}

#[test]
fn a_root_that_clients_would_refuse_is_not_signed() {
    let publisher = Publisher::new(1);
    let new = signer(2);
    let plan = |version| RootPlan::with_keys(version, LATE, &keys(&[&new], 1));
    let refused = |plan: &RootPlan, signers: &[&dyn MetadataSigner]| {
        let signed = sign_root(plan, Some(publisher.root()), signers);
        signed.expect_err("refused").to_string()
    };
    assert!(
        refused(&plan(2), &[&new]).starts_with(
            "clients would refuse the document: root.json has 0 valid signatures by keys of the root role in root version 1"
        )
    );
    assert!(
        refused(&plan(2), &[&publisher.signer]).starts_with(
            "clients would refuse the document: root.json has 0 valid signatures by keys of the root role in root version 2"
        )
    );
    assert!(
        refused(&plan(3), &[&publisher.signer, &new])
            .contains("has version 3, and the root before it names version 2")
    );
}

#[test]
fn a_release_needs_enough_keys_of_each_role() {
    let [one, two] = [1, 2].map(signer);
    let mut plan = RootPlan::with_keys(1, LATE, &keys(&[&one], 1));
    plan.roles.insert(TufRole::Targets, keys(&[&one, &two], 2));
    let root = sign_root(&plan, None, &[&one]).expect("signed");
    let release = Publisher::plan(1, vec![]);
    let signed = sign_release(&root, &release, &[&one, &signer(9)]);
    assert_eq!(
        signed.expect_err("one key is missing").to_string(),
        "1 of the given keys belong to the role 'targets', and 2 have to sign. Give more of its keys"
    );
    sign_release(&root, &release, &[&two, &one]).expect("both sign");
    let mut endless = release;
    endless.expires = UnixSeconds(i64::MAX);
    let error = sign_release(&root, &endless, &[&one, &two])
        .expect_err("no time")
        .to_string();
    assert_eq!(
        error,
        "9223372036854775807 s since 1970 is no time of expiry: choose one before the year 10000"
    );
}

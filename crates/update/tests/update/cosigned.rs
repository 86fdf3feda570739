//! Documents that several people sign, each on a computer of their own.

use alknet_update::{
    BundleReader, CosignedBundle, MetadataSigner, RootPlan, SeedSigner, SigningError, TrustAnchor,
    TufRole, UpdateError, UpdateTarget, UpdateTrust, begin_release, begin_root, cosign_bundle,
    cosign_root, sign_release, sign_root, write_bundle,
};
use serde_json::{Value, json};

use crate::deltas::{DELTA, delta};
use crate::support::{LATE, PROGRAM, Publisher, body, keys, read, release, signed, signer, target};

/// A root of two keys that both sign everything.
fn root_of(one: &SeedSigner, two: &SeedSigner) -> Vec<u8> {
    let plan = RootPlan::with_keys(1, LATE, &keys(&[one, two], 2));
    sign_root(&plan, None, &[one, two]).expect("both sign")
}

/// A bundle that these keys alone have signed.
fn begun(root: &[u8], signers: &[&dyn MetadataSigner]) -> Vec<u8> {
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let (release, missing) = begin_release(root, &plan, signers).expect("a named key");
    assert!(!missing.is_empty(), "another key has to sign");
    let mut bundle = Vec::new();
    let roots = [root.to_vec()];
    write_bundle(&mut bundle, &roots, &release, &plan.targets, |_| {
        Ok(PROGRAM)
    })
    .expect("written");
    bundle
}

/// What a machine says of a bundle and of the program in it.
fn installed(root: &[u8], bundle: &[u8]) -> Result<(), UpdateError> {
    let anchor = TrustAnchor::root(root).expect("a root");
    let (_, verified) = read(UpdateTrust::new(anchor), bundle);
    let verified = verified?;
    let mut reader = BundleReader::open(bundle)?;
    reader.copy_target(&verified, &mut std::io::sink())
}

/// What the signer of a good bundle gets.
fn cosigned(bundle: &[u8], root: &[u8], signer: &SeedSigner) -> CosignedBundle {
    cosign_bundle(bundle, &[], root, &[signer]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_bundle_counts_once_the_second_key_has_signed() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let bundle = begun(&root, &[&one]);
    let refused = installed(&root, &bundle).expect_err("one key is missing");
    assert!(
        matches!(refused, UpdateError::Signatures { valid: 1, .. }),
        "{refused}"
    );
    let whole = cosigned(&bundle, &root, &two);
    assert!(whole.missing.is_empty());
    assert_eq!((whole.number, whole.expires), (1, LATE));
    assert_eq!(whole.targets, [target("1.1.0")]);
    installed(&root, &whole.bundle).unwrap_or_else(|error| panic!("{error}"));
    // The order of the signers does not matter.
    assert!(cosigned(&begun(&root, &[&two]), &root, &one).bundle == whole.bundle);
    let refused = cosign_bundle(&whole.bundle, &[], &root, &[&two]).expect_err("it is complete");
    assert!(matches!(refused, SigningError::NothingMissing), "{refused}");
}

#[test]
fn one_key_counts_once_and_a_key_that_is_not_named_not_at_all() {
    let [one, two, other] = [1, 2, 9].map(signer);
    let root = root_of(&one, &two);
    let bundle = begun(&root, &[&one, &one]);
    installed(&root, &bundle).expect_err("one key signed twice");
    let again = cosign_bundle(&bundle, &[], &root, &[&one]).expect_err("it has signed");
    assert!(matches!(again, SigningError::NothingToAdd), "{again}");
    let foreign = cosign_bundle(&bundle, &[], &root, &[&other]).expect_err("another key");
    assert!(
        matches!(foreign, SigningError::Unnamed(key) if key == other.public_key()),
        "{foreign}"
    );
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let foreign = begin_release(&root, &plan, &[&other]).expect_err("another key");
    assert!(matches!(foreign, SigningError::Unnamed(_)), "{foreign}");
}

/// A key signs only what the root names it for.
#[test]
fn each_role_is_signed_by_its_own_keys() {
    let [one, two, online] = [1, 2, 3].map(signer);
    let mut plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &two], 2));
    for role in [TufRole::Snapshot, TufRole::Timestamp] {
        plan.roles.insert(role, keys(&[&online], 1));
    }
    let root = sign_root(&plan, None, &[&one, &two]).expect("both sign");
    let second = cosigned(&begun(&root, &[&one]), &root, &two);
    let missing: Vec<_> = second.missing.iter().map(ToString::to_string).collect();
    assert_eq!(
        missing,
        [
            "timestamp: 0 of 1 signatures by keys in root version 1",
            "snapshot: 0 of 1 signatures by keys in root version 1",
        ]
    );
    assert!(second.missing[0].keys.contains(&online.public_key()));
    installed(&root, &second.bundle).expect_err("the timestamp is not signed");
    let whole = cosigned(&second.bundle, &root, &online);
    installed(&root, &whole.bundle).unwrap_or_else(|error| panic!("{error}"));
}

/// The first signer makes a bundle with a root of their own keys, or with a newer one behind the root that both know.
#[test]
fn a_bundle_with_another_root_than_the_signers_own_is_not_signed() {
    let [one, two, other] = [1, 2, 9].map(signer);
    let own = root_of(&one, &two);
    let foreign = root_of(&other, &two);
    let plan = RootPlan::with_keys(2, LATE, &keys(&[&one, &two], 2));
    let newer = sign_root(&plan, Some(&own), &[&one, &two]).expect("both sign");
    for (roots, signer, name) in [
        (vec![foreign], &other, "1.root.json"),
        (vec![own.clone(), newer.clone()], &one, "2.root.json"),
    ] {
        let newest = roots.last().expect("a root");
        let plan = Publisher::plan(1, vec![target("1.1.0")]);
        let (release, _) = begin_release(newest, &plan, &[signer]).expect("a named key");
        let mut bundle = Vec::new();
        write_bundle(&mut bundle, &roots, &release, &plan.targets, |_| {
            Ok(PROGRAM)
        })
        .expect("written");
        let refused = cosign_bundle(&bundle, &[], &own, &[&two]).expect_err("another root");
        assert!(
            matches!(&refused, SigningError::OtherRoot { file, .. } if file == name),
            "{refused}"
        );
        cosigned(&bundle, newest, &two);
    }
}

/// A person tries the program in the bundle, and signs its description.
#[test]
fn a_bundle_with_another_program_than_the_described_one_is_not_signed() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let mut bundle = begun(&root, &[&one]);
    let mut places = bundle.windows(PROGRAM.len());
    let at = places.position(|it| it == PROGRAM);
    bundle[at.expect("the program is in it")] ^= 1;
    let refused = cosign_bundle(&bundle, &[], &root, &[&two]).expect_err("another program");
    assert!(
        matches!(refused, SigningError::Document(UpdateError::Hash { .. })),
        "{refused}"
    );
}

/// The first signer adds a newer program, which the second signer would sign without having seen it.
#[test]
fn a_described_program_that_is_not_in_the_bundle_is_not_signed() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let hidden = release("9.9.9");
    let hidden = UpdateTarget::describe("hidden.efi", Some(hidden), &mut &b"another"[..]);
    let hidden = hidden.expect("a description that clients accept");
    let shown = target("1.1.0");
    let plan = Publisher::plan(1, vec![shown.clone(), hidden]);
    let (documents, _) = begin_release(&root, &plan, &[&one]).expect("a named key");
    let mut bundle = Vec::new();
    let roots = [root.clone()];
    write_bundle(&mut bundle, &roots, &documents, &[shown], |_| Ok(PROGRAM)).expect("written");
    let refused = cosign_bundle(&bundle, &[], &root, &[&two]).expect_err("a program is hidden");
    assert!(
        matches!(&refused, SigningError::Unseen(names) if *names == ["hidden.efi"]),
        "{refused}"
    );
}

/// The first signer's bundles of a release with a delta: one with the program, and one with the delta.
fn begun_with_delta(number: u64, root: &[u8], signer: &SeedSigner) -> [Vec<u8>; 2] {
    let plan = Publisher::plan(number, vec![target("1.1.0"), delta()]);
    let (release, _) = begin_release(root, &plan, &[signer]).expect("a named key");
    let roots = [root.to_vec()];
    let bundle_of = |file: UpdateTarget| {
        let mut bundle = Vec::new();
        let open = |file: &UpdateTarget| Ok(if file.delta.is_some() { DELTA } else { PROGRAM });
        write_bundle(&mut bundle, &roots, &release, &[file], open).expect("written");
        bundle
    };
    [target("1.1.0"), delta()].map(bundle_of)
}

#[test]
fn the_bundles_of_a_release_are_signed_together() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let [whole, delta] = begun_with_delta(1, &root, &one);
    let refused = cosign_bundle(&delta, &[], &root, &[&two]).expect_err("no program is in it");
    assert!(
        matches!(&refused, SigningError::Unseen(names) if *names == ["alknet.efi"]),
        "{refused}"
    );
    let signed = cosign_bundle(&whole, &[&delta], &root, &[&two]);
    let signed = signed.unwrap_or_else(|error| panic!("{error}"));
    assert!(signed.missing.is_empty());
    assert_eq!(signed.targets.len(), 2, "{:?}", signed.targets);
    let [signed_delta] = &*signed.others else {
        panic!(
            "one bundle was given, and {} came back",
            signed.others.len()
        );
    };
    for bundle in [&signed.bundle, signed_delta] {
        installed(&root, bundle).unwrap_or_else(|error| panic!("{error}"));
    }
    let swapped = cosign_bundle(&delta, &[&whole], &root, &[&two]);
    let swapped = swapped.unwrap_or_else(|error| panic!("{error}"));
    assert!(swapped.bundle == *signed_delta && swapped.others == [signed.bundle]);
}

/// The first signer keeps the bundle with a delta back. The signature on the program would be for that delta, too.
#[test]
fn a_described_delta_that_is_in_no_bundle_is_not_signed() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let [whole, _delta] = begun_with_delta(1, &root, &one);
    let given: [&[&[u8]]; 2] = [&[], &[&whole]];
    for others in given {
        let refused = cosign_bundle(&whole, others, &root, &[&two]).expect_err("a delta is hidden");
        assert!(
            matches!(&refused, SigningError::Unseen(names) if *names == ["alknet.delta"]),
            "{refused}"
        );
        assert!(
            refused
                .to_string()
                .contains("name all bundles of the release in one call"),
            "{refused}"
        );
    }
}

/// The first signer puts the delta of another release, or another delta, beside the program that both know.
#[test]
fn a_bundle_beside_the_program_is_compared_before_it_is_signed() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let [whole, delta] = begun_with_delta(1, &root, &one);
    let [_, later] = begun_with_delta(2, &root, &one);
    let others: [&[u8]; 2] = [&delta, &later];
    let refused = cosign_bundle(&whole, &others, &root, &[&two]).expect_err("another release");
    assert!(
        matches!(refused, SigningError::OtherDocuments { at: 1 }),
        "{refused}"
    );
    let mut changed = delta;
    let mut places = changed.windows(DELTA.len());
    let at = places.position(|it| it == DELTA);
    changed[at.expect("the delta is in it")] ^= 1;
    let refused = cosign_bundle(&whole, &[&changed], &root, &[&two]).expect_err("another delta");
    assert!(
        matches!(
            refused,
            SigningError::OtherBundle {
                at: 0,
                why: UpdateError::Hash { .. }
            }
        ),
        "{refused}"
    );
}

/// The first signer changes a document of the release before the second one signs it.
fn cosigned_with(at: usize, change: impl Fn(&mut Value)) -> SigningError {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let (mut release, _) = begin_release(&root, &plan, &[&one]).expect("a named key");
    let (_, document) = &mut release.documents[at];
    let mut changed = body(document);
    change(&mut changed);
    *document = signed(&changed, &[&one]);
    let mut bundle = Vec::new();
    let roots = [root.clone()];
    write_bundle(&mut bundle, &roots, &release, &plan.targets, |_| {
        Ok(PROGRAM)
    })
    .expect("written");
    cosign_bundle(&bundle, &[], &root, &[&two]).expect_err("no release has such documents")
}

/// Machines that have seen such documents would refuse the releases that follow.
#[test]
fn documents_that_no_release_has_are_not_signed() {
    for (at, name) in [(0, "timestamp.json"), (1, "1.snapshot.json")] {
        let more = cosigned_with(at, |body| {
            body["meta"]["more.json"] = json!({ "version": 1 })
        });
        assert!(
            matches!(&more, SigningError::Entries { file, .. } if file == name),
            "{more}"
        );
    }
    let high = cosigned_with(0, |body| body["version"] = u64::from(u32::MAX).into());
    assert!(
        matches!(high, SigningError::Versions { below: 1, .. }),
        "{high}"
    );
}

/// A signature more would change the bytes that the document above states.
#[test]
fn a_document_whose_bytes_are_stated_takes_no_signature() {
    let [one, two] = [1, 2].map(signer);
    let root = root_of(&one, &two);
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let mut release = sign_release(&root, &plan, &[&one, &two]).expect("both sign");
    let (_, targets) = &mut release.documents[2];
    // The first signature becomes one of a key that no root names.
    let text = String::from_utf8(targets.clone()).expect("JSON");
    *targets = text
        .replace(&one.public_key().id(), &signer(9).public_key().id())
        .into_bytes();
    let mut bundle = Vec::new();
    write_bundle(
        &mut bundle,
        std::slice::from_ref(&root),
        &release,
        &plan.targets,
        |_| Ok(PROGRAM),
    )
    .expect("written");
    let refused = cosign_bundle(&bundle, &[], &root, &[&one]).expect_err("it is fixed");
    assert!(matches!(refused, SigningError::Fixed { .. }), "{refused}");
}

#[test]
fn a_root_is_signed_by_one_person_after_the_other() {
    let [one, two, new] = [1, 2, 3].map(signer);
    let plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &two], 2));
    let first = begin_root(&plan, None, &[&one]).expect("a named key");
    assert_eq!((first.missing.len(), first.missing[0].valid), (1, 1));
    TrustAnchor::root(&first.document).expect_err("one key is missing");
    begin_release(
        &first.document,
        &Publisher::plan(1, vec![target("1.1.0")]),
        &[&one],
    )
    .expect_err("the root is not complete");
    let again = cosign_root(&first.document, None, &[&one]).expect_err("it has signed");
    assert!(matches!(again, SigningError::NothingToAdd), "{again}");
    let whole = cosign_root(&first.document, None, &[&two]).expect("the other key");
    assert!(whole.missing.is_empty());
    assert_eq!(whole.roles, plan.roles);
    // The bytes are those of a root that both signed at once.
    assert!(whole.document == root_of(&one, &two));

    // The keys of the root before sign the next one, which does not name all of them any more.
    let plan = RootPlan::with_keys(2, LATE, &keys(&[&two, &new], 2));
    let before = Some(&*whole.document);
    let second = begin_root(&plan, before, &[&new]).expect("a key of the new root");
    assert_eq!(second.missing.len(), 2);
    let refused = cosign_root(&second.document, None, &[&one]).expect_err("of which root?");
    assert!(matches!(refused, SigningError::Previous(2)), "{refused}");
    let second = cosign_root(&second.document, before, &[&two]).expect("a key of both");
    assert_eq!(second.missing.len(), 1);
    let second = cosign_root(&second.document, before, &[&one]).expect("a key of the root before");
    assert!(second.missing.is_empty());
    assert!(second.document == sign_root(&plan, before, &[&one, &two, &new]).expect("all sign"));
}

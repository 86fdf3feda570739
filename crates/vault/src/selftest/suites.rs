//! The check of each set's lines.

use argon2::{Algorithm, Argon2, AssociatedData, Block, ParamsBuilder, Version};
use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use sha2::Sha256;

use super::Check;
use crate::bip39::Entropy;
use crate::blob::{SealedBlob, blob_key};
use crate::crypto;
use crate::derive::slip10::ExtendedPrivateKey;
use crate::derive::{Curve, DerivationPath, KeyVersion};
use crate::secret::SecretArr;

macro_rules! data {
    ($name:literal) => {
        include_str!(concat!("../../tests/data/", $name, ".txt"))
    };
}

/// Name, lines and check of every set.
pub(super) const ALL: &[(&str, &str, Check)] = &[
    ("bip39", data!("bip39"), bip39),
    ("slip10", data!("slip10"), node),
    ("paths", data!("paths"), path),
    ("blob", data!("blob"), blob),
    ("ed25519-rfc8032", data!("ed25519-rfc8032"), signature),
    (
        "ed25519-wycheproof",
        data!("ed25519-wycheproof"),
        verification,
    ),
    ("aes-gcm-nist", data!("aes-gcm-nist"), decryption),
    (
        "aes-gcm-wycheproof",
        data!("aes-gcm-wycheproof"),
        decryption,
    ),
    ("hkdf-rfc5869", data!("hkdf-rfc5869"), hkdf),
    ("argon2id-rfc9106", data!("argon2id-rfc9106"), argon2id),
    #[cfg(feature = "secp256k1")]
    ("slip10-secp256k1", data!("slip10-secp256k1"), node),
    #[cfg(feature = "secp256k1")]
    ("bip32", data!("bip32"), node),
];

/// The seed of the words in this project's own table.
const TABLE_SEED: &str = "5eb00bbddcf069084889a8ab9155568165f5c453ccb85e70811aaed6f6da5fc1\
                          9a5ac40b389cd370d086206dec8aa6c43daea6690f20ad3d8d48b2d2ce9e38e4";

fn bip39(fields: &[&str]) -> Option<()> {
    let (entropy, rest) = fields.split_first()?;
    let (seed, words) = rest.split_first()?;
    let phrase = words.join(" ");
    let parsed = Entropy::parse(&phrase).ok()?;
    let stored = Entropy::from_bytes(&hex(entropy)?).ok()?;
    let derived = stored.seed(&"TREZOR".into()).ok()?;
    same(parsed.bytes(), stored.bytes())?;
    same(stored.phrase().expose().as_bytes(), phrase.as_bytes())?;
    same(derived.expose(), &hex(seed)?)
}

fn node(fields: &[&str]) -> Option<()> {
    let [curve, seed, path, chain, private, public] = fields.try_into().ok()?;
    let curve = curve_of(curve)?;
    let mut node = ExtendedPrivateKey::master(&hex(seed)?, curve).ok()?;
    // The path is parsed here, because some vectors have unhardened levels where the vault's
    // grammar allows none.
    for level in path.split('/').skip(1) {
        let plain = level.trim_end_matches('\'');
        let hardened = u32::from(plain != level) << 31;
        let number = plain.parse::<u32>().ok()?;
        node = node.child(number | hardened, curve).ok()?;
    }
    same(node.key.expose(), &hex(private)?)?;
    same(node.chain.expose(), &hex(chain)?)?;
    let expected = hex(public)?;
    match curve {
        Curve::Ed25519 => same(&ed25519(node.key.expose()), expected.strip_prefix(&[0])?),
        _ => same(
            &crate::derive::slip10::public(&node.key, curve).ok()?,
            &expected,
        ),
    }
}

fn path(fields: &[&str]) -> Option<()> {
    let [curve, path, private, public] = fields.try_into().ok()?;
    let path = DerivationPath::parse(path, curve_of(curve)?).ok()?;
    let node = ExtendedPrivateKey::at(&hex(TABLE_SEED)?, &path).ok()?;
    same(node.key.expose(), &hex(private)?)?;
    match public {
        "-" => Some(()),
        public => same(&ed25519(node.key.expose()), &hex(public)?),
    }
}

fn blob(fields: &[&str]) -> Option<()> {
    let [key, salt, iv, label, plaintext, own, sealed] = fields.try_into().ok()?;
    let key = SecretArr::from_slice(&hex(key)?)?;
    let salt: [u8; 32] = hex(salt)?.try_into().ok()?;
    let iv = hex(iv)?.try_into().ok()?;
    let label = label.parse().ok()?;
    let plaintext = plaintext.as_bytes();
    same(blob_key(&key, &salt).expose(), &hex(own)?)?;
    let made =
        SealedBlob::seal_with(&key, KeyVersion::FIRST, &label, plaintext, (&salt, &iv)).ok()?;
    same(&made.as_bytes()[56..], &hex(sealed)?)?;
    let again = SealedBlob::from_json(&made.to_json()).ok()?;
    same(again.open(&key, &label).ok()?.expose(), plaintext)
}

fn signature(fields: &[&str]) -> Option<()> {
    use ed25519_dalek::Signer as _;
    let [seed, public, message, signature] = fields.try_into().ok()?;
    let key = ed25519_dalek::SigningKey::from_bytes(&hex(seed)?.try_into().ok()?);
    same(key.verifying_key().as_bytes(), &hex(public)?)?;
    same(&key.sign(&hex(message)?).to_bytes(), &hex(signature)?)
}

fn verification(fields: &[&str]) -> Option<()> {
    let [public, message, signature, verdict] = fields.try_into().ok()?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&hex(public)?.try_into().ok()?).ok()?;
    let message = hex(message)?;
    let good = ed25519_dalek::Signature::from_slice(&hex(signature)?)
        .is_ok_and(|signature| key.verify_strict(&message, &signature).is_ok());
    (good == (verdict == "OK")).then_some(())
}

fn decryption(fields: &[&str]) -> Option<()> {
    let [key, iv, aad, ciphertext, tag, plaintext] = fields.try_into().ok()?;
    let key = SecretArr::from_slice(&hex(key)?)?;
    let (iv, aad) = (hex(iv)?.try_into().ok()?, hex(aad)?);
    let sealed = [hex(ciphertext)?, hex(tag)?].concat();
    let opened = crypto::decrypt(&key, &iv, &aad, &sealed);
    // A vector that must fail proves that the check of the tag works.
    if plaintext == "FAIL" {
        return opened.err().map(|_| ());
    }
    let plaintext = hex(plaintext)?;
    same(opened.ok()?.expose(), &plaintext)?;
    let mut again = Vec::new();
    crypto::encrypt(&key, &iv, &aad, &plaintext, &mut again);
    same(&again, &sealed)
}

fn hkdf(fields: &[&str]) -> Option<()> {
    let [input, salt, info, output] = fields.try_into().ok()?;
    let output = hex(output)?;
    let mut got = vec![0; output.len()];
    Hkdf::<Sha256>::new(Some(&hex(salt)?), &hex(input)?)
        .expand(&hex(info)?, &mut got)
        .ok()?;
    same(&got, &output)
}

fn argon2id(fields: &[&str]) -> Option<()> {
    let [kib, passes, lanes, password, salt, secret, data, output] = fields.try_into().ok()?;
    let params = ParamsBuilder::new()
        .m_cost(kib.parse().ok()?)
        .t_cost(passes.parse().ok()?)
        .p_cost(lanes.parse().ok()?)
        .data(AssociatedData::new(&hex(data)?).ok()?)
        .build()
        .ok()?;
    let mut blocks = vec![Block::default(); params.block_count()];
    let secret = hex(secret)?;
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let argon2 = Argon2::new_with_secret(&secret, algorithm, version, params).ok()?;
    let mut got = [0; 32];
    argon2
        .hash_password_into_with_memory(&hex(password)?, &hex(salt)?, &mut got, &mut blocks)
        .ok()?;
    same(&got, &hex(output)?)
}

fn ed25519(seed: &[u8; 32]) -> [u8; 32] {
    ed25519_dalek::SigningKey::from_bytes(seed)
        .verifying_key()
        .to_bytes()
}

fn curve_of(name: &str) -> Option<Curve> {
    match name {
        "ed25519" => Some(Curve::Ed25519),
        "nist256p1" => Some(Curve::NistP256),
        "secp256k1" => Some(Curve::Secp256k1),
        _ => None,
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    match text {
        "-" => Some(Vec::new()),
        text => HEXLOWER.decode(text.as_bytes()).ok(),
    }
}

fn same(got: &[u8], expected: &[u8]) -> Option<()> {
    (got == expected).then_some(())
}

//! Everything that must not be in the memory of a locked machine, derived from its words, its
//! passphrase or its medium, if the vault has one of these, and its disk. And the search for it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use alknet_qemu::PatternSearch;
use alknet_sealed::SealedPartition;
use alknet_vault::slots::{
    FileCopyStorage, OpenAlkv, SeedKey, UnlockKey, VaultCopies, luks_phrase,
};
use alknet_vault::{Curve, DerivationPath, Entropy, SecretStr};
use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::{Sha256, Sha512};

/// This many bytes of a text in a row are no accident. Sixteen were: a vault had the words "initial receive" in a row, and
/// a library has them in a message.
const TELLING_TEXT: usize = 24;
/// The same for a key: a register of the processor.
const TELLING_KEY: usize = 8;
/// How many bytes on each side of a find are printed.
const AROUND: usize = 512;
/// The head of a data partition: its header, its key slots, and the vault.
const HEAD_BYTES: u64 = 16 << 20;
/// How much more the library needs for a partition.
const MORE_BYTES: u64 = 1 << 20;
/// Memory that the tests' passphrase may take.
const CAP_KIB: u32 = 1 << 20;

/// The key of the data, the only one that a locked machine still needs.
pub(super) const VOLUME_KEY: &str = "the volume key";
/// TLS signs with this: it is in the memory of any serving node.
pub(super) const IDENTITY: &str = "the node's key";
/// The seed of all keys, in the page that PID 1 and the node share.
pub(super) const SEED: &str = "the seed";

/// Key slots of the data: for the vault, and for the words (docs/sealed.md).
const BY_VAULT: u32 = 0;
const BY_WORDS: u32 = 1;
/// The name of a key that opens the data with the words alone.
const RECOVERY_KEY: &str = "the data recovery key";

/// The paths of docs/vault.md, and the purpose of their keys.
const PATHS: [(&str, &str); 7] = [
    (IDENTITY, "m/74'/0'/0'/0'"),
    ("the SSH host key", "m/74'/0'/1'/0'"),
    ("the SSH authority", "m/74'/0'/1'/1'"),
    ("the key of credentials", "m/74'/2'/0'/0'"),
    (RECOVERY_KEY, "m/74'/2'/1'/0'"),
    ("the key of the audit log", "m/74'/2'/2'/0'"),
    ("the branch of identities", "m/74'/0'/0'"),
];

/// What opens the first slot of the vault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opener<'a> {
    /// 32 bytes of a `seed.key`, on a medium.
    Medium([u8; 32]),
    /// Typed at the console.
    Passphrase(&'a str),
    /// The machine's TPM. It gives the key to no program of the tests, which search for what follows
    /// from the words.
    Tpm,
}

/// Names and bytes.
#[derive(Debug)]
pub(crate) struct NamedSecrets(Vec<(&'static str, Vec<u8>)>);

impl NamedSecrets {
    /// The secrets of a machine whose data partition begins at byte `at` of `disk`. `head` is a
    /// file for a copy of that beginning, because nothing here writes to a running machine's disk.
    pub(crate) fn collect(
        words: &Entropy,
        opener: Opener<'_>,
        disk: &Path,
        at: u64,
        head: &Path,
    ) -> Self {
        copy_head(disk, at, head);
        let nothing = SecretStr::empty();
        let mut secrets = vec![
            ("the entropy", words.bytes().to_vec()),
            ("the words", words.phrase().expose().as_bytes().to_vec()),
            (SEED, seed(words)),
        ];
        if let Opener::Passphrase(typed) = opener {
            secrets.push(("the passphrase", typed.as_bytes().to_vec()));
        }
        for (name, path) in PATHS {
            let path = DerivationPath::parse(path, Curve::Ed25519).expect("a path of the table");
            let key = words.key_at(&nothing, &path).expect("24 words");
            if name == RECOVERY_KEY {
                let phrase = luks_phrase(&key);
                let text = phrase.expose().as_bytes().to_vec();
                secrets.push(("the phrase of the recovery key", text));
                secrets.push((VOLUME_KEY, volume_key(head, BY_WORDS, &phrase)));
            }
            secrets.push((name, key.expose().to_vec()));
        }
        if let Some((open, [kek, master])) = opened(head, opener) {
            let data = open.data_secret();
            let phrase = luks_phrase(&data);
            let text = phrase.expose().as_bytes().to_vec();
            let volume_key = volume_key(head, BY_VAULT, &phrase);
            let is_same = secrets.contains(&(VOLUME_KEY, volume_key));
            assert!(is_same, "both slots of the data have one key");
            secrets.extend([
                ("the key of the slot", kek),
                ("the vault's master key", master),
                ("the data secret", data.expose().to_vec()),
                ("its phrase", text),
            ]);
        }
        Self(secrets)
    }

    /// The secrets that are in a file, with a line for each position: all parts of all secrets, at
    /// any offset, in one pass. The file is read into `memory`, whose pages the next search reuses.
    pub(super) fn found_in(
        &self,
        dump: &Path,
        memory: &mut Vec<u8>,
    ) -> Vec<(&'static str, String)> {
        memory.clear();
        let mut dump = File::open(dump).expect("the dump is ours");
        dump.read_to_end(memory).expect("the dump is ours");
        let parts = self.0.iter().flat_map(|(name, secret)| {
            let is_text = secret.is_ascii();
            let telling = if is_text { TELLING_TEXT } else { TELLING_KEY };
            assert!(secret.len() >= telling, "{name} is not searched for");
            secret.windows(telling).map(move |part| (*name, part))
        });
        let (names, parts): (Vec<_>, Vec<_>) = parts.unzip();
        let found = PatternSearch::for_patterns(parts)
            .found_in(memory)
            .into_iter();
        found
            .map(|(at, number)| (names[number], around(memory, at)))
            .collect()
    }
}

/// The position and the bytes around it, for a developer who searches for the cause.
fn around(memory: &[u8], at: usize) -> String {
    let from = at.saturating_sub(AROUND);
    let to = (at + TELLING_TEXT + AROUND).min(memory.len());
    let text = memory[from..to].escape_ascii().to_string();
    format!("at {at:#x} of the file: {text}")
}

fn copy_head(disk: &Path, at: u64, head: &Path) {
    use std::io::{Seek, SeekFrom};
    let mut disk = File::open(disk).expect("the disk is ours");
    disk.seek(SeekFrom::Start(at)).expect("it is long enough");
    let mut copy = File::create(head).expect("the folder is ours");
    std::io::copy(&mut disk.take(HEAD_BYTES), &mut copy).expect("the folder is ours");
    let length = copy.set_len(HEAD_BYTES + MORE_BYTES);
    length.expect("the file is ours");
}

/// The vault, the key of its first slot, and its master key. `None` if only the TPM opens the slot.
fn opened(head: &Path, opener: Opener<'_>) -> Option<(OpenAlkv, [Vec<u8>; 2])> {
    let area = |at| FileCopyStorage::at(head, at);
    let mut copies = VaultCopies::new(area(super::VAULT_A_AT), area(super::VAULT_B_AT));
    let found = copies.load().expect("a vault").expect("a vault");
    let uuid = found.newest.uuid();
    match opener {
        Opener::Tpm => None,
        Opener::Medium(bytes) => {
            let line = format!("alknet-seed-1 {uuid} {}", BASE64.encode(&bytes));
            let seed = SeedKey::parse(&line).expect("as docs/vault.md has it");
            let open = found.open(&mut UnlockKey::Seed(&seed)).expect("its medium");
            let keys = master_key(&open, |_| key_of_medium(&bytes, &uuid.bytes()));
            Some((open, keys))
        }
        Opener::Passphrase(typed) => {
            let mut key = UnlockKey::Passphrase {
                passphrase: &SecretStr::from(typed),
                cap_kib: CAP_KIB,
            };
            let open = found.open(&mut key).expect("its passphrase");
            let keys = master_key(&open, |params| key_of_passphrase(typed, params));
            Some((open, keys))
        }
    }
}

fn seed(words: &Entropy) -> Vec<u8> {
    let mut seed = vec![0; 64];
    let phrase = words.phrase();
    pbkdf2::pbkdf2_hmac::<Sha512>(phrase.expose().as_bytes(), b"mnemonic", 2048, &mut seed);
    seed
}

fn volume_key(head: &Path, slot: u32, phrase: &SecretStr) -> Vec<u8> {
    let file = File::options().read(true).write(true).open(head);
    let file = file.expect("the file is ours");
    let sealed = SealedPartition::load(file, HEAD_BYTES + MORE_BYTES).expect("a header");
    let key = sealed.unlock(slot, phrase.expose().as_bytes());
    key.expect("the slot opens").expose().to_vec()
}

/// The key of the first slot, which `kek` computes from the slot's parameters, and the key that it
/// wraps, from the vault's text, because the library reveals neither.
fn master_key(open: &OpenAlkv, kek: impl FnOnce(&Value) -> Vec<u8>) -> [Vec<u8>; 2] {
    let alkv: Value = serde_json::from_str(&open.alkv().to_text()).expect("it is JSON");
    let slot = &alkv["slots"][0];
    let uuid = open.alkv().uuid().bytes();
    let kek = kek(&slot["params"]);
    let kind = slot["type"].as_str().expect("a text");
    let id = u32::try_from(slot["id"].as_u64().expect("a number")).expect("it is small");
    let length = u16::try_from(kind.len()).expect("it is short");
    let bound = [
        uuid.as_slice(),
        &id.to_be_bytes(),
        &length.to_be_bytes(),
        kind.as_bytes(),
        slot["params"].to_string().as_bytes(),
    ]
    .concat();
    let wrap = bytes(&slot["wrap"]);
    let (iv, sealed) = wrap.split_at(12);
    let cipher = Aes256Gcm::new_from_slice(&kek).expect("32 bytes");
    let nonce: [u8; 12] = iv.try_into().expect("12 bytes");
    let message = Payload {
        msg: sealed,
        aad: &bound,
    };
    let master = cipher.decrypt(&Nonce::from(nonce), message);
    [kek, master.expect("the slot is as docs/vault.md has it")]
}

fn bytes(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("a text");
    BASE64.decode(text.as_bytes()).expect("base64")
}

/// Argon2id, with the costs of the slot.
fn key_of_passphrase(typed: &str, params: &Value) -> Vec<u8> {
    let number = |name: &str| {
        let number = params[name].as_u64().expect("a number");
        u32::try_from(number).expect("it is small")
    };
    let costs = Params::new(number("m"), number("t"), number("p"), Some(32));
    let argon = Argon2::new(
        Algorithm::Argon2id,
        Version::V0x13,
        costs.expect("a cost of ours"),
    );
    let mut kek = vec![0; 32];
    let salt = bytes(&params["salt"]);
    let done = argon.hash_password_into(typed.as_bytes(), &salt, &mut kek);
    done.expect("a cost of ours");
    kek
}

/// HKDF-SHA256 of the medium's bytes, one block long (RFC 5869).
fn key_of_medium(seed: &[u8], uuid: &[u8]) -> Vec<u8> {
    let mac = |key: &[u8], message: &[u8]| {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key);
        let mut mac = mac.expect("any length");
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    };
    let extracted = mac(uuid, seed);
    mac(&extracted, b"alknet/vault/slot/provisioning\x01")
}

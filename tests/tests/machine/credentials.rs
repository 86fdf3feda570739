//! Other services' secrets on a booted machine: read from a medium and erased there, stored, used
//! by an operation that never sees them, locked, and sealed again with another key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::VirtioDisk;
use alknet_tests::tools::{fat_volume, tool, tool_says};
use alknet_tests::{BootVariant, CliRunner, MachineBuilder, MachineNode, TestBench, eventually};
use alknet_vault::{Entropy, SecretStr, Vault};
use serde_json::{Value, json};

/// Time from a lock until the console asks.
const ASKED_WITHIN: Duration = Duration::from_secs(30);

/// The text that must not be found in the wrong places.
const HUSH: &str = "sk-0c1f-this-is-nobodys-business-77aa90d3";
/// The text to sign.
const MESSAGE: &str = "one coin";

/// Signs with the capability that the input names.
const SOURCE: &str = "
export async function mint({ name, text }) {
  const key = await capabilities.get(name);
  const signature = await key.sign(new TextEncoder().encode(text));
  return Array.from(new Uint8Array(signature));
}
";

struct CredentialUsers {
    ada: CliRunner,
    rev: CliRunner,
    bob: CliRunner,
}

impl CredentialUsers {
    fn enrol(bench: &TestBench) -> Self {
        let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
        Self { ada, rev, bob }
    }

    fn entries(&self) -> String {
        let one = |name: &str, who: &CliRunner, scopes: &str| {
            let key = who.identity();
            format!(
                "[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = [\"{scopes}\"]\n"
            )
        };
        [
            one("ada", &self.ada, "ops:propose"),
            one("rev", &self.rev, "ops:promote"),
            one("bob", &self.bob, "call:js:mint"),
        ]
        .concat()
    }
}

/// A record sealed with another node's words.
fn foreign_record() -> String {
    let vault = Vault::locked();
    let words = Entropy::from_bytes(&[9; 16]).expect("16 bytes");
    vault.unlock(&words, &SecretStr::empty()).expect("locked");
    let label = "cred:stolen".parse().expect("a label");
    let blob = vault.seal(&label, HUSH.as_bytes()).expect("sealed");
    let record: Value = serde_json::from_str(&blob.to_json()).expect("JSON");
    let fields = record.as_object().expect("an object").iter();
    let lines: Vec<_> = fields
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    lines.join("\n")
}

fn document(bench: &TestBench, people: &CredentialUsers, vault: &str, secrets: &str) -> String {
    format!(
        "[node]\nadmin_keys = [\"{}\"]\n{secrets}\n\n[promotion]\nactivate = \"live\"\n\n\
         [vault]\n{vault}\n\
         [[credentials]]\nname = \"mint\"\nkind = \"signer\"\n\
         [[credentials]]\nname = \"openai\"\nkind = \"bearer\"\n\
         [[credentials]]\nname = \"stolen\"\nkind = \"bytes\"\n[credentials.record]\n{}\n\n\
         [[operations]]\nname = \"js/mint\"\ncapabilities = [\"mint\", \"stolen\"]\n{}",
        bench.admin().identity(),
        foreign_record(),
        people.entries()
    )
}

fn machine<'a>(bench: &'a TestBench, volume: &Path) -> MachineBuilder<'a> {
    let machine = bench.machine(BootVariant::MicrovmErofs).config("");
    machine.disk(VirtioDisk::file(volume))
}

/// The folder that is proposed.
fn bundle(bench: &TestBench) -> PathBuf {
    let folder = bench.path().join("mint");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    let operation = json!({
        "spec": { "name": "mint", "kind": "query", "description": "Signs.", "uses": [] },
        "entry": "./main.js",
        "export": "mint",
        "tests": [{
            "input": { "name": "mint", "text": "abc" },
            "calls": [
                { "path": "capability/get", "input": { "name": "mint" },
                  "output": { "name": "mint", "kind": "signer", "public_key": "AA==" } },
                { "path": "capability/sign", "input": { "name": "mint", "data": "YWJj" },
                  "output": { "signature": "AQI=" } },
            ],
            "expect": { "output": [1, 2] },
        }],
    });
    std::fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(folder.join("main.js"), SOURCE).expect("room");
    folder
}

fn promote(node: &MachineNode, people: &CredentialUsers, bench: &TestBench) {
    let target = node.target();
    let mut propose = people
        .ada
        .command(&["ops", "propose", &target, "--as", "ada"]);
    propose.arg(bundle(bench));
    let proposed = people.ada.run(propose).json();
    let id = proposed["id"].as_str().expect("an id");
    let promote = people
        .rev
        .command(&["ops", "promote", &target, id, "--external"]);
    let promoted = people.rev.run(promote).json();
    assert_eq!(promoted["active"], true, "{promoted:#}");
}

/// Whether OpenSSL confirms that the node signed with the key in that file.
fn is_signed(bench: &TestBench, key: &Path, signature: &Value) {
    let bytes = signature.as_array().expect("bytes").iter();
    let bytes: Vec<u8> = bytes
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(bytes.len(), 64);
    let [message, sig] = ["message", "signature"].map(|name| bench.path().join(name));
    std::fs::write(&message, MESSAGE).expect("the folder is ours");
    std::fs::write(&sig, bytes).expect("the folder is ours");
    let arguments = ["pkeyutl", "-verify", "-rawin", "-inkey"].map(std::ffi::OsStr::new);
    let mut arguments = arguments.to_vec();
    arguments.extend([key.as_os_str(), "-in".as_ref(), message.as_os_str()]);
    arguments.extend(["-sigfile".as_ref(), sig.as_os_str()]);
    let said = tool_says("openssl", &arguments);
    assert!(said.contains("Success"), "{said}");
}

fn state_of(status: &Value, name: &str) -> (Value, Value) {
    let all = status["credentials"].as_array().expect("a list");
    let one = all
        .iter()
        .find(|one| one["name"] == name)
        .expect("it is there");
    (one["state"].clone(), one["key_version"].clone())
}

#[test]
fn a_promoted_operation_signs_with_an_imported_key_that_stays_hidden() {
    let bench = TestBench::new();
    let people = CredentialUsers::enrol(&bench);
    let key = bench.path().join("mint.pem");
    let make = ["genpkey", "-algorithm", "ed25519", "-out"].map(std::ffi::OsStr::new);
    tool("openssl", &[&make[..], &[key.as_os_str()]].concat());
    let pem = std::fs::read_to_string(&key).expect("made");
    let body = pem.lines().nth(1).expect("base64").to_owned();
    let secrets = format!("[secrets.credentials]\nopenai = \"{HUSH}\"\nmint = '''\n{pem}'''\n");
    let volume = fat_volume(&bench, "seed", &document(&bench, &people, "", &secrets));
    let node = machine(&bench, &volume).boot();
    let status = node.call("vault/status", &Value::Null);
    let two = json!(2);
    assert_eq!(state_of(&status, "mint"), (json!("ready"), two.clone()));
    assert_eq!(state_of(&status, "openai"), (json!("ready"), two.clone()));
    assert_eq!(
        state_of(&status, "stolen"),
        (json!("credential_unusable"), two)
    );
    let problems = node.info()["problems"].take();
    let text = problems.to_string();
    assert_eq!(problems.as_array().map(Vec::len), Some(1), "{problems:#}");
    assert!(
        text.contains("credential stolen: ") && text.contains("other words"),
        "{text}"
    );

    promote(&node, &people, &bench);
    let target = node.target();
    let mint = |name: &str| {
        let input = json!({ "name": name, "text": MESSAGE });
        people.bob.call(&target, "js/mint", &input, &[])
    };
    is_signed(&bench, &key, &mint("mint").json());
    // It was not given to this script, and an administrator's script has none at all.
    let refused = mint("openai");
    assert!(refused.errors.contains("FORBIDDEN"), "{refused:?}");
    let source = "export default (await capabilities.get('mint')).kind";
    let eval = node.try_call("runtime/eval", &json!({ "source": source }), &[]);
    assert!(eval.errors.contains("FORBIDDEN"), "{eval:?}");
    for act in [
        "capability/sign",
        "capability/get",
        "vault/open",
        "vault/unlock",
    ] {
        let input = json!({ "name": "mint", "data": "" });
        assert_eq!(node.try_call(act, &input, &[]).code(), "NOT_FOUND", "{act}");
    }

    assert_eq!(
        node.call("vault/lock", &Value::Null),
        json!({ "state": "locked" })
    );
    let locked = mint("mint");
    assert_eq!(locked.code(), "UNAVAILABLE", "{locked:?}");
    assert!(locked.errors.contains("vault_locked"), "{locked:?}");
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(state_of(&status, "mint").0, "vault_locked");
    let asked = "alknet: asks: passphrase of the vault";
    let waited = node.vm().wait_for(asked, ASKED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    node.vm()
        .console()
        .send("\r")
        .expect("the console takes it");
    eventually("the vault is open again", || {
        (mint("mint").status == 0).then_some(())
    });

    let log = node.try_call("node/log", &json!({ "last": 100_000 }), &[]);
    let said = [
        ("the log", log.output + &log.errors),
        ("the console", node.vm().console().text()),
        ("the state of the vault", status.to_string()),
        ("the node's account", node.info().to_string()),
        ("the medium", lossy(&volume)),
    ];
    for (what, said) in said {
        for secret in [HUSH, &body] {
            assert!(!said.contains(secret), "{what} has a secret");
        }
    }
    node.end();
    let disk = alknet_qemu::content(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    for secret in [HUSH, &body] {
        let found = memchr::memmem::find(&disk, secret.as_bytes());
        assert!(found.is_none(), "the disk has a secret");
    }
    drop(disk);

    // Without the medium's secrets, and with a newer key: the stored secret still exists.
    let newer = document(&bench, &people, "key_version = 3\nmin_version = 3", "");
    let volume = fat_volume(&bench, "newer", &newer);
    let node = machine(&bench, &volume).boot();
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(state_of(&status, "mint"), (json!("ready"), json!(3)));
    assert_eq!(state_of(&status, "openai"), (json!("ready"), json!(3)));
    let input = json!({ "name": "mint", "text": MESSAGE });
    let signature = people.bob.call(&node.target(), "js/mint", &input, &[]);
    is_signed(&bench, &key, &signature.json());
    let info = node.info();
    let problems = info["problems"].to_string();
    assert!(problems.contains("vault.min_version"), "{problems}");
}

fn lossy(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("the disk is ours");
    String::from_utf8_lossy(&bytes).into_owned()
}

use proptest::prelude::*;

use super::*;

const PAGE: &str = include_str!("../../../../docs/configuration.md");

const COMPLETE: &str = r#"
version = 1

[listen]
port = 8443
addrs = ["192.0.2.10", "::1"]

[node]
name = "edge-1"
domain = "edge-1.example.org"
admin_keys = ["ed25519:1111111111111111111111111111111111111111111111111111111111111111"]
time_servers = ["time.example.org", "192.0.2.1"]

[[network]]
match = "eth0"
method = "static"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateways = ["192.0.2.1", "fe80::1"]
dns = ["192.0.2.53"]

[[network]]
match = "52:54:00:AB:CD:EF"
method = "off"

[[peers]]
peer_id = "laptop"
keys = ["SHA256:2222222222222222222222222222222222222222222222222222222222222222"]
tokens = ["a1b2c3d4:3333333333333333333333333333333333333333333333333333333333333333"]
scopes = ["fs:read:*", "metrics:read"]
resources = { disk = ["vda", "vdb"], share = ["*"] }
addresses = ["laptop.example.org", "[2001:db8::1]:4433"]
display_name = "The laptop of Ada"
enabled = false
expires = "2030-01-31T12:00:00Z"
max_connections = 1

[[api_keys]]
key_id = "monitor0"
sha256 = "4444444444444444444444444444444444444444444444444444444444444444"
scopes = ["metrics:read"]
resources = { disk = ["vda"] }
description = "scrapes the metrics"
expires = "2029-12-31T23:59:59+01:00"

[limits]
connections = 1000
connections_per_address = 32
connections_per_peer = 8
handshake_burst = 100
handshakes_per_second = 50
failures_per_minute = 5

[log]
level = "debug"
hash_addresses = true

[iroh]
enabled = true
port = 4433
relays = ["https://relay.example.org", "https://192.0.2.1:8443/"]

[promotion]
activate = "live"
reviews = 2
rollback_on_errors = true

[vault]
init = "provisioned"
unlock = ["tpm2", "provisioning", "kms"]
tpm_pin = true
device = 3
key_version = 4
min_version = 3
words_to = ["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"]

[[credentials]]
name = "openai"
kind = "api-key"
header = "x-api-key"

[credentials.record]
alg = "ALK1"
key_version = 3
salt = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
iv = "oKGioKGioKGioKGi"
data = "jyHDUTdgLJOrjfayE8bIVmZpKfE9n7Z3m6il"

[[credentials]]
name = "mail"
kind = "basic"
user = "ada"

[[credentials]]
name = "zone"
kind = "signer"
purpose = "dns-zone-1-0"

[[operations]]
name = "js/mint"
capabilities = ["openai", "zone"]

[vault.kms]
code = "alkjoin1_AAAA-_09"
approve = true
from = ["192.0.2.0/24", "2001:db8::/32"]
"#;

fn refused(document: &str) -> Vec<String> {
    let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
    errors.iter().map(ToString::to_string).collect()
}

/// The one complaint about a document, which names `words`.
fn complaint(document: &str, words: &[&str]) {
    let errors = refused(document);
    assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {}", errors[0]);
    }
}

#[test]
fn an_empty_document_is_the_default() {
    for empty in ["", "\n", "# nothing\n", "\u{feff}", "[listen]\n[node]\n"] {
        assert_eq!(
            NodeConfig::parse(empty.as_bytes()),
            Ok(NodeConfig::default()),
            "{empty:?}"
        );
    }
}

#[test]
fn a_complete_document_is_read_as_serde_reads_it() {
    let config = NodeConfig::parse(COMPLETE.as_bytes()).expect("a correct document");
    let mut expected: NodeConfig = toml::from_str(COMPLETE).expect("a correct document");
    expected.network[1].matches = "52:54:00:ab:cd:ef".into();
    assert_eq!(config, expected);
    assert_eq!(config.listen.port, 8443);
    assert!(!config.peers[0].enabled);
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_match() {
    let near = "did you mean 'admin_keys'?";
    complaint(
        "[node]\nadmin_key = []\n",
        &["line 2, node.admin_key:", near],
    );
    complaint("[node]\nadmin-keys = []\n", &[near]);
    complaint("[lisen]\nport = 1\n", &["line 1", "'listen'"]);
    complaint(
        "xyzzy = 1\n",
        &["known here: listen, node, credentials, network, peers"],
    );
}

#[test]
fn every_mistake_is_reported_at_once_in_the_order_of_the_document() {
    let errors = refused(
        "[listen]\nport = 0\naddrs = [\"::\", 5]\n[node]\nname = \"Edge\"\nadmin_keys = [\"ssh-ed25519 AAAA\"]\n\
         [[peers]]\npeer_id = \"admin\"\nkeys = []\nscopes = [\"\"]\n",
    );
    let places = [
        "line 2, listen.port:",
        "line 3, listen.addrs[1]:",
        "line 5, node.name:",
        "line 6, node.admin_keys[0]:",
        "line 8, peers[0].peer_id:",
        "line 9, peers[0].keys:",
        "line 10, peers[0].scopes[0]:",
    ];
    assert_eq!(errors.len(), places.len(), "{errors:#?}");
    for (error, place) in errors.iter().zip(places) {
        assert!(error.starts_with(place), "{error}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    complaint("listen = 1", &["expected a table", "found integer"]);
    complaint("listen.port = \"443\"", &["expected a whole number"]);
    complaint("node.name = 1", &["expected a string"]);
    complaint("node.admin_keys = \"x\"", &["expected a list"]);
    complaint("[node]\n[[listen]]", &["expected a table", "found array"]);
    complaint(
        "[[peers]]\npeer_id = \"a\"\nkeys = [\"ed25519:1111111111111111111111111111111111111111111111111111111111111111\"]\nenabled = 1",
        &["expected true or false"],
    );
    complaint("peers = [1]", &["peers[0]", "expected a table"]);
}

#[test]
fn ports_have_bounds_and_any_radix() {
    for (text, port) in [("1", 1), ("65535", 65535), ("0x1bb", 443), ("4_43", 443)] {
        let config = NodeConfig::parse(format!("listen.port = {text}").as_bytes());
        assert_eq!(config.map(|config| config.listen.port), Ok(port));
    }
    for text in ["0", "65536", "-1", "99999999999999999999999"] {
        complaint(&format!("listen.port = {text}"), &["from 1 to 65535"]);
    }
}

#[test]
fn names_follow_their_grammar() {
    let long = "a".repeat(64);
    for bad in ["", "-a", "a-", "A", "a.b", "ä", long.as_str()] {
        complaint(&format!("node.name = \"{bad}\""), &["is no host name"]);
    }
    for bad in ["example", "example..org", "Example.org", "1.2.3.4"] {
        complaint(
            &format!("node.domain = \"{bad}\""),
            &["is no public domain"],
        );
    }
    for bad in ["time.example.org:123", "", "http://x"] {
        complaint(&format!("node.time_servers = [\"{bad}\"]"), &["neither"]);
    }
}

#[test]
fn links_follow_their_rules() {
    let link = |rest: &str| format!("[[network]]\nmatch = \"eth0\"\n{rest}\n");
    complaint(
        "[[network]]\nmethod = \"off\"",
        &["network[0].match", "missing"],
    );
    complaint(&link("method = \"dhcp\""), &["auto, static or off"]);
    complaint(&link("method = \"static\""), &["needs an address"]);
    complaint(
        &link("gateways = [\"192.0.2.1\"]"),
        &["method = \"static\""],
    );
    complaint(
        &link("method = \"off\"\naddresses = [\"192.0.2.1/24\"]"),
        &["is off"],
    );
    let fixed = |rest: &str| link(&format!("method = \"static\"\n{rest}"));
    for bad in [
        "192.0.2.1",
        "192.0.2.1/33",
        "192.0.2.1/0",
        "2001:db8::1/129",
        "::/64",
        "x/24",
    ] {
        let errors = refused(&fixed(&format!("addresses = [\"{bad}\"]")));
        assert!(errors.iter().any(|e| e.contains("addresses[0]")), "{bad}");
    }
    let two = "addresses = [\"192.0.2.2/24\"]\ngateways = [\"192.0.2.1\", \"192.0.2.3\"]";
    complaint(&fixed(two), &["one router per family"]);
    let twice = "addresses = [\"192.0.2.2/24\", \"192.0.2.2/25\"]";
    complaint(&fixed(twice), &["listed twice"]);
    for bad in ["a/b", "0123456789abcdef", "52:54:00:12:34", "", ".."] {
        let errors = refused(&format!("[[network]]\nmatch = \"{bad}\""));
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
    let double =
        "[[network]]\nmatch = \"52:54:00:AB:CD:EF\"\n[[network]]\nmatch = \"52:54:00:ab:cd:ef\"";
    complaint(double, &["line 3, network[1]", "network[0]"]);
}

#[test]
fn a_key_belongs_to_one_holder() {
    let key = format!("ed25519:{}", "ab".repeat(32));
    let twice = format!("[node]\nadmin_keys = [\"{key}\",\n\"{key}\"]");
    complaint(&twice, &["line 3", "node.admin_keys[0]"]);
    let peer = |id: &str, n: &str| {
        format!(
            "[[peers]]\npeer_id = \"{id}\"\nkeys = [\"spki:{}\"]\n",
            n.repeat(32)
        )
    };
    let shared = peer("a", "01") + &peer("b", "01");
    complaint(&shared, &["peers[1].keys[0]", "peers[0].keys[0]"]);
    complaint(&(peer("a", "01") + &peer("a", "02")), &["'a' is taken"]);
    let admin =
        format!("node.admin_keys = [\"{key}\"]\n[[peers]]\npeer_id = \"x\"\nkeys = [\"{key}\"]");
    complaint(&admin, &["peers[0].keys[0]", "node.admin_keys[0]"]);
}

#[test]
fn peers_cannot_be_administrators_by_another_way() {
    let peer = |id: &str, scope: &str| {
        let key = format!("spki:{}", "01".repeat(32));
        format!("[[peers]]\npeer_id = \"{id}\"\nkeys = [\"{key}\"]\nscopes = [\"{scope}\"]\n")
    };
    for id in ["admin", "admin-2", "admin-07"] {
        complaint(&peer(id, "fs:read"), &["node.admin_keys"]);
    }
    for scope in ["*", "admin", "admin:*"] {
        complaint(&peer("a", scope), &["belongs to administrators"]);
    }
    for scope in ["", ":", "a::b", "*:a", "a*", "a b", "a:*:*", "a\\tb"] {
        complaint(&peer("a", scope), &["is no scope"]);
    }
    for scope in ["a", "a:b", "a:*", "fs:read:docs/2026", "ssh:exec:uptime"] {
        assert!(NodeConfig::parse(peer("admin-x", scope).as_bytes()).is_ok());
    }
}

#[test]
fn documents_that_are_no_toml_say_where() {
    complaint("[node]\nname = \n", &["line 2", "TOML"]);
    complaint("#cloud-config\nhostname: x\n", &["line 1", "cloud-init"]);
    complaint(
        "[node]\nname = \"a\"\nname = \"b\"\n",
        &["line 3", "duplicate key"],
    );
    let errors = NodeConfig::parse(b"a = 1\n\xff").expect_err("not UTF-8");
    assert_eq!(errors[0].line, Some(2));
    let full = vec![b'#'; CONFIG_BYTES_MAX];
    assert!(NodeConfig::parse(&full).is_ok());
    let long = vec![b'#'; CONFIG_BYTES_MAX + 1];
    let errors = NodeConfig::parse(&long).expect_err("too long");
    assert!(errors[0].to_string().contains("longer than 65536 bytes"));
}

const AGE: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

/// A line as ssh-keygen writes it.
fn ssh_line(kind: &str, fields: &[&[u8]]) -> String {
    let field = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let all = [&[kind.as_bytes()][..], fields].concat();
    let bytes: Vec<u8> = all.iter().flat_map(|it| field(it)).collect();
    let encoded = data_encoding::BASE64.encode(&bytes);
    format!("{kind} {encoded} ada@laptop")
}

#[test]
fn a_vault_is_made_unless_it_is_off() {
    let standard = NodeConfig::default().vault;
    assert_eq!(standard.init, VaultInit::Generate);
    assert!(standard.unlock.is_empty() && standard.words_to.is_empty() && !standard.tpm_pin);
    assert_eq!((standard.device, standard.key_version), (0, 2));
    let vault = |rest: &str| format!("[vault]\n{rest}\n");
    complaint(
        &vault("init = \"import\""),
        &[
            "line 2, vault.init:",
            "'import' is no source",
            "provisioned",
        ],
    );
    complaint(&vault("unlok = []"), &["did you mean 'unlock'?"]);
    complaint(
        &vault("unlock = [\"tpm2\", \"pin\"]"),
        &["vault.unlock[1]:", "'pin' opens no vault", "passphrase"],
    );
    complaint(&vault("unlock = \"tpm2\""), &["expected a list"]);
    complaint(
        &vault("unlock = [\"tpm2\", \"tpm2\"]"),
        &["vault.unlock[1]:", "twice"],
    );
    complaint(&vault("unlock = [\"none\", \"tpm2\"]"), &["'none' leaves"]);
    complaint(&vault("device = 2147483648"), &["0 to 2147483647"]);
    complaint(&vault("device = -1"), &["vault.device"]);
    complaint(&vault("key_version = 1"), &["2 to 2147483649"]);
    complaint(
        &vault("key_version = 3\nmin_version = 4"),
        &["line 3, vault.min_version:", "above vault.key_version, 3"],
    );
    complaint(&vault("min_version = 3"), &["above vault.key_version, 2"]);
    complaint(
        &vault("init = \"off\"\nunlock = [\"tpm2\"]"),
        &["vault.unlock:", "there is no vault"],
    );
    complaint(&vault("tpm_pin = 1"), &["vault.tpm_pin"]);
    for unlock in ["", "unlock = [\"passphrase\"]\n"] {
        complaint(
            &vault(&format!("{unlock}tpm_pin = true")),
            &["vault.tpm_pin:", "vault.unlock lists none"],
        );
    }
    let pin = vault("tpm_pin = true\nunlock = [\"passphrase\", \"tpm2\"]");
    let pin = NodeConfig::parse(pin.as_bytes()).expect("a slot for it is listed");
    assert!(pin.vault.tpm_pin);
    let full = vault("device = 2147483647\nkey_version = 2147483649");
    assert!(NodeConfig::parse(full.as_bytes()).is_ok());
}

#[test]
fn words_are_encrypted_to_public_keys_only() {
    let to = |list: &[&str]| format!("[vault]\nwords_to = {list:?}\n");
    let elliptic = ssh_line("ssh-ed25519", &[&[7; 32]]);
    let rsa = |bytes: usize| {
        let modulus = [&[0][..], &vec![0x80; bytes]].concat();
        ssh_line("ssh-rsa", &[&[1, 0, 1], &modulus])
    };
    let (least, most) = (rsa(256), rsa(512));
    let good = [AGE, elliptic.as_str(), least.as_str(), most.as_str()];
    let config = NodeConfig::parse(to(&good).as_bytes()).expect("all of them are keys");
    assert_eq!(config.vault.words_to, good);

    let typo = AGE.replace("zvky", "zvkx");
    let upper = AGE.to_uppercase();
    let cut = &elliptic[..60];
    let named = elliptic.replacen("ssh-ed25519", "ssh-rsa", 1);
    let (short, weak) = (ssh_line("ssh-ed25519", &[&[7; 31]]), rsa(255));
    let (long, wide) = (ssh_line("ssh-ed25519", &[&[7; 32], &[]]), rsa(513));
    for bad in [
        "",
        "age1",
        "ada",
        &typo,
        &upper,
        cut,
        &named,
        &short,
        &long,
        &weak,
        &wide,
        "ssh-ed25519",
        "ecdsa-sha2-nistp256 AAAA",
    ] {
        complaint(&to(&[bad]), &["vault.words_to[0]:", "nobody to encrypt to"]);
    }
    let secret = "AGE-SECRET-KEY-1QQPQYRNPWXHZ";
    let errors = refused(&to(&[secret]));
    assert!(errors[0].contains("private key") && !errors[0].contains("QQPQY"));
    complaint(&to(&[AGE, AGE]), &["words_to[1]", "twice"]);
    let many: Vec<_> = (0..9_u8)
        .map(|n| ssh_line("ssh-ed25519", &[&[n; 32]]))
        .collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    complaint(&to(&many), &["words_to[8]", "more than 8"]);
}

#[test]
fn a_document_of_a_newer_version_is_refused_by_that_one_word() {
    for ok in ["", "version = 1\n"] {
        assert!(NodeConfig::parse(ok.as_bytes()).is_ok());
    }
    let key = format!("ed25519:{}", "ab".repeat(32));
    let newer = format!("version = 2\nshape = 5\n[node]\nadmin_keys = [\"{key}\"]\n");
    complaint(
        &newer,
        &["line 1, version:", "newer than this program", "update"],
    );
    assert_eq!(NodeConfig::salvage(newer.as_bytes()).node.admin_keys, [key]);
    complaint("version = 0", &["line 1, version:", "out of range"]);
    complaint("version = \"1\"", &["expected a whole number"]);
}

#[test]
fn promotion_waits_for_the_next_start_unless_somebody_says_so() {
    let standard = NodeConfig::default().promotion;
    assert_eq!((standard.activate, standard.reviews), (Activation::Boot, 1));
    assert!(!standard.rollback_on_errors);
    complaint(
        "[promotion]\nactivate = \"soon\"\n",
        &["promotion.activate", "boot"],
    );
    complaint(
        "[promotion]\nreviews = 0\n",
        &["promotion.reviews", "1 to 16"],
    );
    complaint(
        "[promotion]\nreviewers = 2\n",
        &["promotion.reviewers", "reviews"],
    );
}

#[test]
fn iroh_has_a_port_of_its_own_and_relays_are_named_in_full() {
    let iroh = |rest: &str| format!("[iroh]\nenabled = true\n{rest}\n");
    assert!(!NodeConfig::default().iroh.enabled);
    complaint(&iroh("port = 443"), &["line 3, iroh.port", "the one port"]);
    complaint(
        &(iroh("port = 8443") + "[listen]\nport = 8443\n"),
        &["line 3, iroh.port"],
    );
    complaint(&iroh("port = 0"), &["from 1 to 65535"]);
    for bad in [
        "http://relay.example.org",
        "relay.example.org",
        "https://",
        "https://relay.example.org/path",
        "https://user@relay.example.org",
    ] {
        complaint(&iroh(&format!("relays = [\"{bad}\"]")), &["is no relay"]);
    }
    let many = ["\"https://relay.example.org\""; 9].join(", ");
    complaint(&iroh(&format!("relays = [{many}]")), &["iroh.relays[8]"]);
}

#[test]
fn messages_are_bounded_in_number_and_each_is_one_line() {
    let many: String = (0..CONFIG_ERRORS_MAX * 3)
        .map(|n| format!("key{n} = 1\n"))
        .collect();
    let errors = refused(&many);
    assert_eq!(errors.len(), CONFIG_ERRORS_MAX);
    assert!(errors[CONFIG_ERRORS_MAX - 1].contains("101 more"));
    let nasty = format!(
        "node.name = \"\\u001b[2J\\n{}\"\n\"a\\nb\" = 1\n",
        "x".repeat(5000)
    );
    for error in refused(&nasty) {
        assert!(
            !error.contains(char::is_control) && error.len() < 400,
            "{error:?}"
        );
    }
}

#[test]
fn salvage_keeps_the_way_in_and_grants_nobody_else_anything() {
    let broken = COMPLETE.replace("domain =", "domian =");
    let salvaged = NodeConfig::salvage(broken.as_bytes());
    let whole = NodeConfig::parse(COMPLETE.as_bytes()).expect("a correct document");
    assert_eq!(salvaged.node.admin_keys, whole.node.admin_keys);
    assert_eq!(salvaged.node.name, whole.node.name);
    assert_eq!(
        (salvaged.listen, salvaged.network),
        (whole.listen, whole.network)
    );
    assert!(salvaged.peers.is_empty() && salvaged.node.domain.is_none());
}

#[test]
fn salvage_leaves_out_what_is_wrong_itself() {
    let good = format!("ed25519:{}", "11".repeat(32));
    let document = format!(
        "[listen]\nport = 0\n[node]\nname = \"Bad\"\nadmin_keys = [\"nonsense\", \"{good}\"]\n\
         [[network]]\nmatch = \"eth0\"\nmethod = \"static\"\n[[network]]\nmatch = \"eth1\"\n"
    );
    let salvaged = NodeConfig::salvage(document.as_bytes());
    assert_eq!(salvaged.node.admin_keys, [good]);
    assert_eq!((salvaged.listen.port, &salvaged.node.name), (443, &None));
    assert_eq!(salvaged.network.len(), 1);
    assert_eq!(salvaged.network[0].matches, "eth1");
    assert_eq!(
        NodeConfig::salvage(b"[node\nname = 1"),
        NodeConfig::default()
    );
}

/// A document that ends too early, as after a full disk, gives nobody more than the whole one.
#[test]
fn every_truncation_is_refused_or_says_less() {
    let keys = |config: &NodeConfig| config.node.admin_keys.clone();
    let whole = NodeConfig::parse(COMPLETE.as_bytes()).expect("complete");
    for end in 0..COMPLETE.len() {
        let cut = &COMPLETE.as_bytes()[..end];
        match NodeConfig::parse(cut) {
            Ok(config) => {
                let again = toml::to_string(&config).expect("a serialisable configuration");
                assert_eq!(NodeConfig::parse(again.as_bytes()), Ok(config.clone()));
                assert!(keys(&config).iter().all(|k| keys(&whole).contains(k)));
                assert!(config.peers.len() <= whole.peers.len());
            }
            Err(errors) => assert!((1..=CONFIG_ERRORS_MAX).contains(&errors.len())),
        }
        let salvaged = NodeConfig::salvage(cut);
        assert!(salvaged.peers.is_empty());
        assert!(keys(&salvaged).iter().all(|k| keys(&whole).contains(k)));
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for opening in ["[", "{a=", "[["] {
        let document = format!("listen = {}", opening.repeat(10_000));
        assert!(NodeConfig::parse(document.as_bytes()).is_err());
    }
    let dotted = format!("{}b = 1", "a.".repeat(20_000));
    assert!(NodeConfig::parse(dotted.as_bytes()).is_err());
}

#[test]
fn tokens_are_hashes_with_one_holder() {
    let hash = |name: &str| format!("{name}:{}", "ab".repeat(32));
    let peer =
        |id: &str, tokens: &str| format!("[[peers]]\npeer_id = \"{id}\"\ntokens = [{tokens}]\n");
    let one = peer("a", &format!("\"{}\"", hash("a1b2c3d4")));
    let config = NodeConfig::parse(one.as_bytes()).expect("a token instead of a key");
    assert_eq!(config.entries().peers[0].token_hashes.len(), 1);
    complaint(
        &peer("a", ""),
        &["peers[0].tokens", "needs a key or a token"],
    );
    complaint("[[peers]]\npeer_id = \"a\"", &["peers[0].keys", "missing"]);

    let api_key = format!(
        "[[api_keys]]\nkey_id = \"a1b2c3d4\"\nsha256 = \"{}\"\n",
        "cd".repeat(32)
    );
    let twice = format!("{one}{api_key}");
    complaint(&twice, &["api_keys[0].key_id", "peers[0].tokens[0]"]);
    let short = api_key.replace("a1b2c3d4", "a1b2");
    complaint(&short, &["the 8 characters after alk_"]);
    let upper = api_key.replace("cd", "CD");
    complaint(&upper, &["64 lower-case"]);
}

/// Whoever pastes the token itself finds no copy of it in a log.
#[test]
fn a_token_in_the_document_is_not_repeated() {
    let token = crate::AuthToken::generate().expect("randomness");
    let secret = &token.expose()[13..];
    let document = format!(
        "[[peers]]\npeer_id = \"a\"\ntokens = [\"{0}\"]\n[[api_keys]]\nkey_id = \"{0}\"\nsha256 = \"{0}\"\n",
        token.expose()
    );
    let errors = refused(&document);
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(
        errors.iter().all(|error| !error.contains(secret)),
        "{errors:#?}"
    );
}

#[test]
fn peers_have_bounds_and_an_end() {
    let peer = |rest: &str| {
        format!(
            "[[peers]]\npeer_id = \"a\"\nkeys = [\"spki:{}\"]\n{rest}\n",
            "01".repeat(32)
        )
    };
    let one = NodeConfig::parse(peer("expires = \"1970-01-01T00:01:00+00:00\"").as_bytes());
    assert_eq!(one.expect("correct").entries().peers[0].expires, Some(60));
    complaint(
        &peer("expires = \"tomorrow\""),
        &["is no moment", "2027-01-31"],
    );
    complaint(
        &peer("expires = 2027-01-31T12:00:00Z"),
        &["expected a string"],
    );
    for number in ["0", "4097", "-1"] {
        let wrong = peer(&format!("max_connections = {number}"));
        complaint(&wrong, &["out of range", "from 1 to 4096"]);
    }
    complaint(
        &peer("addresses = [\"http://x\"]"),
        &["no address of a peer"],
    );
    complaint(&peer("display_name = \"a\\nb\""), &["no line of text"]);
    complaint(&peer("resources = [\"a\"]"), &["expected a table"]);
    complaint(
        &peer("resources = { \"a b\" = [] }"),
        &["names no resource"],
    );
    complaint(
        &peer("resources = { disk = \"vda\" }"),
        &["expected a list"],
    );
}

#[test]
fn limits_and_log_have_their_values() {
    complaint(
        "limits.connections = 0",
        &["limits.connections", "from 1 to 4096"],
    );
    complaint("limits.handshake_burst = 10001", &["from 1 to 10000"]);
    complaint(
        "limits.failures_per_minute = \"10\"",
        &["expected a whole number"],
    );
    complaint("limits.conections = 1", &["did you mean 'connections'?"]);
    complaint("log.level = \"trace\"", &["error, warn, info or debug"]);
    complaint("log.hash_addresses = \"yes\"", &["expected true or false"]);
    complaint("log = \"info\"", &["expected a table"]);
}

/// Key paths of the published schema.
fn schema_keys(
    schema: &serde_json::Value,
    root: &serde_json::Value,
    path: &str,
    out: &mut Vec<String>,
) {
    let schema = match schema.get("$ref").and_then(|name| name.as_str()) {
        Some(name) => root
            .pointer(&name[1..])
            .expect("a definition of the schema"),
        None => schema,
    };
    if let Some(items) = schema.get("items") {
        schema_keys(items, root, path, out);
    }
    let properties = schema.get("properties").and_then(|map| map.as_object());
    for (key, inner) in properties.into_iter().flatten() {
        let path = format!("{path}{key}");
        schema_keys(inner, root, &format!("{path}."), out);
        out.push(path);
    }
}

#[test]
fn the_page_documents_every_key_of_the_schema() {
    let schema = NodeConfig::json_schema();
    let mut keys = Vec::new();
    schema_keys(&schema, &schema, "", &mut keys);
    assert!(keys.len() >= 19, "{keys:?}");
    for key in keys.iter().filter(|key| key.contains('.')) {
        assert!(
            PAGE.contains(&format!("`{key}`")),
            "{key} is not on the page"
        );
    }
}

/// What the schema publishes is what the reader asks for, neither less nor more.
#[test]
fn the_schema_and_the_reader_know_the_same_keys() {
    let schema = NodeConfig::json_schema();
    let mut keys = Vec::new();
    schema_keys(&schema, &schema, "", &mut keys);
    let lists = [
        "network",
        "peers",
        "api_keys",
        "join",
        "credentials",
        "operations",
    ];
    for key in &keys {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        let document = match table {
            "" => format!("{name} = 5"),
            _ if lists.contains(&table) => format!("[[{table}]]\n{name} = []"),
            _ => format!("[{table}]\n{name} = {{}}"),
        };
        // Where a table belongs this is none too few, and correct.
        let errors = NodeConfig::parse(document.as_bytes()).err();
        let errors: Vec<_> = errors.iter().flatten().map(ToString::to_string).collect();
        let unknown = errors.iter().any(|error| error.contains("unknown key"));
        assert!(!unknown, "the reader does not know {key}: {errors:?}");
    }
    let is_table = |key: &&String| !key.contains('.') && *key != "version";
    let tables = keys.iter().filter(is_table);
    for table in tables.map(String::as_str).chain([""]) {
        let document = match table {
            "" => "qqq = 1".to_owned(),
            _ if lists.contains(&table) => format!("[[{table}]]\nqqq = 1"),
            _ => format!("[{table}]\nqqq = 1"),
        };
        let errors = refused(&document);
        let advice = errors
            .iter()
            .find_map(|error| Some(error.split_once("known here: ")?.1));
        for name in advice.unwrap_or_else(|| panic!("{errors:?}")).split(", ") {
            let path = [table, name].join(".");
            let path = path.trim_start_matches('.');
            assert!(
                keys.iter().any(|key| key == path),
                "{path} is not in the schema"
            );
        }
    }
}

#[test]
fn the_examples_of_the_page_are_correct_documents() {
    let blocks: Vec<_> = PAGE.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let example = block.split("```").next().unwrap_or_default();
        if let Err(errors) = NodeConfig::parse(example.as_bytes()) {
            panic!("{example}\n{errors:#?}");
        }
    }
}

#[test]
fn the_schema_refuses_unknown_keys_everywhere() {
    let schema = NodeConfig::json_schema();
    let definitions = schema.get("$defs").and_then(|defs| defs.as_object());
    let tables = definitions.expect("definitions").values().chain([&schema]);
    for table in tables.filter(|table| table.get("properties").is_some()) {
        assert_eq!(
            table.get("additionalProperties"),
            Some(&false.into()),
            "{table}"
        );
    }
}

fn key() -> impl Strategy<Value = String> {
    "(ed25519|spki|SHA256):[0-9a-f]{64}"
}

fn link_config() -> impl Strategy<Value = LinkConfig> {
    let dns = prop::collection::vec(any::<IpAddr>(), 0..3);
    ("[a-z]{1,8}[0-9]{1,3}", any::<bool>(), dns).prop_map(|(matches, fixed, dns)| LinkConfig {
        matches,
        method: if fixed {
            LinkMethod::Static
        } else {
            LinkMethod::Auto
        },
        addresses: if fixed {
            vec!["192.0.2.2/24".into()]
        } else {
            Vec::new()
        },
        gateways: Vec::new(),
        dns,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_out_reads_back(
        port in 1u16..,
        name in prop::option::of("[a-z]([a-z0-9-]{0,20}[a-z0-9])?"),
        admin_keys in prop::collection::hash_set(key(), 0..4),
        link in prop::option::of(link_config()),
        peer in prop::option::of((key(), "[a-z0-9][a-z0-9._]{0,20}", any::<bool>())),
    ) {
        let mut config = NodeConfig::default();
        config.listen.port = port;
        config.node.name = name;
        config.node.admin_keys = admin_keys.into_iter().collect();
        config.network.extend(link);
        config.peers.extend(peer.map(|(key, peer_id, enabled)| PeerConfig {
            peer_id,
            keys: vec![key],
            tokens: Vec::new(),
            scopes: vec!["fs:read:*".into()],
            resources: BTreeMap::from([("disk".into(), vec!["vda".into()])]),
            addresses: vec!["edge:4433".into()],
            display_name: Some("\"Ada's\"".into()),
            enabled,
            expires: None,
            max_connections: Some(u32::from(port % 16) + 1),
        }));
        config.limits.connections = Some(u32::from(port % 4096) + 1);
        config.log.hash_addresses = port % 2 == 0;
        let document = toml::to_string(&config).expect("a serialisable configuration");
        prop_assert_eq!(NodeConfig::parse(document.as_bytes()), Ok(config));
    }

    #[test]
    fn no_bytes_make_it_panic(document in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = NodeConfig::parse(&document);
    }

    #[test]
    fn damage_to_a_document_is_survived(at in 0usize..COMPLETE.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut document = COMPLETE.as_bytes().to_vec();
        if cut { document.truncate(at) } else { document[at] = byte }
        let salvaged = NodeConfig::salvage(&document);
        prop_assert!(salvaged.peers.is_empty());
        if let Err(errors) = NodeConfig::parse(&document) {
            prop_assert!(!errors.is_empty() && errors.len() <= CONFIG_ERRORS_MAX);
        }
    }
}

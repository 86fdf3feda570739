//! `alknet pin`: what other programs need to trust a node by its key.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alknet_core::{DialHost, PeerAddr, PeerKey};
use alknet_tls::own_certificate;
use clap::Args;
use data_encoding::{BASE32_NOPAD, BASE64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::call::call_error;
use super::dial::{CliDialer, NO_ANSWER};
use super::node_book::NodeBook;
use super::open::PageAddress;
use super::target::{NodeArgs, NodeRoute};
use super::{CommandError, CommandExit, DialArgs, output};

/// Characters of a line of PEM (RFC 7468 section 2).
const PEM_LINE: usize = 64;
/// Permission bits of the file: a certificate is no secret.
const CERT_MODE: u32 = 0o644;
/// What is said of the file. For OpenSSL its certificate has no right to issue others, since it does not claim it (RFC
/// 5280 section 4.2.1.9); rustls looks at an authority's name, key and name constraints alone.
const FOR_OPENSSL: [&str; 3] = [
    "The file is for clients built on OpenSSL, and belongs into the environment of no other program: to a client",
    "built on rustls, such as uv, each certificate in it is an authority over every name, and the node could take",
    "the place of every server. Such a client needs a public certificate at the node.",
];

/// Writes a token from standard input into a file. On the command line it would stay in the history of the shell.
const TOKEN_FILE: &str =
    r#"(umask 077; read -rs token; printf 'Authorization: Bearer %s\n' "$token" >node.header)"#;

/// Arguments of `alknet pin`.
#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Fetch the node's own certificate into this file, for clients built on OpenSSL. A client built on rustls would take
    /// the node for every other server. The command refuses a certificate that is valid for another name.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
}

/// What is pinned, and by whose word.
#[derive(Debug, PartialEq, Eq)]
struct PinSubject {
    target: PeerAddr,
    /// The hub that said where the node is and which key it has. Without it the user said so.
    word_of: Option<String>,
}

impl PinSubject {
    /// The node of a route. A peer of a hub is asked through its hub.
    fn ask(route: &NodeRoute, dial: &DialArgs) -> Result<Self, CommandError> {
        if route.peer.is_none() {
            return Ok(Self {
                target: route.target.clone(),
                word_of: None,
            });
        }
        let book = NodeBook::load(&dial.state.dir()?)?;
        CliDialer::new(dial)?.run(async |dialer| {
            dialer
                .reached(route, async |node| {
                    let info = node.call("node/info", &Value::Null).await;
                    Self::said(info.map_err(call_error)?.value(), &book, route)
                })
                .await
        })
    }

    /// What a hub passed on of its peer. The hub may have made it, unless the key is one that a node has here.
    fn said(info: &Value, book: &NodeBook, route: &NodeRoute) -> Result<Self, CommandError> {
        let key = info["identity"].as_str().and_then(|key| key.parse().ok());
        let key = key.ok_or_else(|| {
            let text = "the node says no key";
            CommandError::new(CommandExit::Failed, "INVALID_OUTPUT", text)
        })?;
        Ok(match PageAddress::said(info, book, &route.target)? {
            PageAddress::Known(target) => Self {
                target,
                word_of: None,
            },
            PageAddress::Said(at) => Self {
                target: PeerAddr {
                    pins: vec![key],
                    ..at
                },
                word_of: Some(route.name.clone()),
            },
        })
    }

    /// Says to a program whose word it is: `answer`, with the hub's name if it is a hub's.
    fn marked(&self, mut answer: Value) -> Value {
        if let Some(hub) = &self.word_of {
            answer["word_of"] = json!(hub);
        }
        answer
    }

    /// Says to a person whose word it is.
    fn warn(&self) {
        if let Some(hub) = &self.word_of {
            output::note(&format!(
                "The key and the address are the word of the hub '{hub}', and nothing proves them: compare the key \
                 with the one that the console of the machine, or 'alknet serve' there, shows."
            ));
        }
    }
}

/// What is printed of one key of a node.
#[derive(Debug, PartialEq, Eq)]
struct KeyPin {
    /// As configurations have it.
    key: PeerKey,
    /// What curl compares the key with.
    curl: String,
    /// Of an Ed25519 key: what OpenSSL compares the key with, and the name in the node's own certificate.
    ed25519: Option<(String, String)>,
}

impl KeyPin {
    /// `None` for a pin of a certificate: clients that pin keys cannot use it.
    fn new(key: PeerKey) -> Option<Self> {
        let (hash, ed25519) = match &key {
            PeerKey::Ed25519(public) => {
                // curl compares the hash of the whole key structure, and not of the bare key.
                let spki = PeerKey::ed25519_spki(public);
                let name = BASE32_NOPAD.encode(public).to_ascii_lowercase();
                // No name server knows the top-level domain `invalid` (RFC 6761, 6.4), so that only /etc/hosts leads
                // there.
                let name = format!("{name}.alknet.invalid");
                (
                    Sha256::digest(spki).into(),
                    Some((pem("PUBLIC KEY", &spki), name)),
                )
            }
            PeerKey::Spki(hash) => (*hash, None),
            _ => return None,
        };
        let hash: [u8; 32] = hash;
        Some(Self {
            key,
            curl: format!("sha256//{}", BASE64.encode(&hash)),
            ed25519,
        })
    }

    fn json(&self) -> Value {
        let mut value = json!({ "key": self.key, "curl_pin": self.curl });
        if let Some((pem, name)) = &self.ed25519 {
            value["public_key_pem"] = json!(pem);
            value["server_name"] = json!(name);
        }
        value
    }

    /// Like `json`, for people: commands to copy.
    fn lines(&self, target: &PeerAddr) -> Vec<String> {
        let at = target.address();
        let mut lines = vec![
            format!("# {}", self.key),
            "# curl: --insecure switches off the check of names, and the pin replaces it"
                .to_owned(),
            format!(
                "curl --insecure --pinnedpubkey '{}' https://{at}/healthz",
                self.curl
            ),
        ];
        let Some((_, name)) = &self.ed25519 else {
            return lines;
        };
        lines.extend([
            String::new(),
            "# node.pem: the node's own certificate, once it is the one that a node makes of this key".to_owned(),
            format!("alknet pin {}@{at} --cert node.pem", self.key),
            String::new(),
            "# node.header, which no other user of this computer may read: run this, paste a token of 'alknet token add',"
                .to_owned(),
            "# which the terminal does not show, and press Enter".to_owned(),
            TOKEN_FILE.to_owned(),
            String::new(),
            "# curl with node.pem in the place of the pin".to_owned(),
            format!(
                "curl --cacert node.pem --connect-to ::{at} --header @node.header --json '{{\"operation\":\"/node/info\"}}' \
                 https://{name}:{}/call",
                target.port
            ),
            String::new(),
            "# openssl with node.pem: -verify_hostname compares the name, and without -verify_return_error s_client goes on"
                .to_owned(),
            format!(
                "openssl s_client -brief -connect {at} -servername {name} -verify_hostname {name} -CAfile node.pem \
                 -verify_return_error </dev/null"
            ),
            String::new(),
            "# an MCP client built on OpenSSL, with node.pem from above and a token of 'alknet token add'".to_owned(),
            hosts_line(target, name),
            "NODE_EXTRA_CA_CERTS=$PWD/node.pem node CLIENT   # Node.js".to_owned(),
            "SSL_CERT_FILE=$PWD/node.pem python3 CLIENT      # Python".to_owned(),
            format!("# the address: https://{name}:{}/mcp", target.port),
            String::new(),
        ]);
        lines.extend(FOR_OPENSSL.map(|line| format!("# {line}")));
        lines
    }
}

/// The name in the certificate resolves nowhere, so that the client's own computer leads it to the node.
fn hosts_line(target: &PeerAddr, name: &str) -> String {
    match &target.host {
        DialHost::Ip(address) => format!("echo '{address} {name}' | sudo tee -a /etc/hosts"),
        DialHost::Name(host) => {
            format!("# put the address of {host} and the name {name} on a line of /etc/hosts")
        }
    }
}

/// A public key or a certificate as OpenSSL prints it (RFC 7468 sections 13 and 5).
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.extend(line.iter().map(|b| char::from(*b)));
        pem.push('\n');
    }
    format!("{pem}-----END {label}-----\n")
}

/// Writes the certificate of the node to `file`. A client that takes the file for an authority trusts it for what it
/// says, so that nothing but the certificate that a node makes of this key is written.
fn written(
    subject: &PinSubject,
    file: &Path,
    within: Duration,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let target = &subject.target;
    let mut keys = target.pins.iter();
    let Some(key) = keys.find(|key| matches!(key, PeerKey::Ed25519(_))) else {
        let text = format!(
            "{target} has no pinned Ed25519 key, which a node's own certificate is made of"
        );
        return Err(CommandError::usage(text));
    };
    let der = presented(target, *key, within)?;
    let text = pem("CERTIFICATE", &der);
    alknet_durable::replace(file, text.as_bytes(), CERT_MODE)
        .map_err(|error| CommandError::local(format!("{}: {error}", file.display())))?;
    if json {
        let answer = json!({ "target": target, "cert": file, "key": key });
        output::json_line(&subject.marked(answer))?;
    } else {
        output::line(&format!(
            "wrote {}: the certificate of {key}",
            file.display()
        ))?;
        output::note(&FOR_OPENSSL.join("\n"));
    }
    Ok(CommandExit::Ok)
}

/// The node's own certificate, within this time.
fn presented(target: &PeerAddr, key: PeerKey, within: Duration) -> Result<Vec<u8>, CommandError> {
    let address = target.address();
    let at = address.clone();
    let (sends, asked) = mpsc::channel();
    // A server that sends one byte after the other is not waited for: the thread ends with the command.
    thread::spawn(move || {
        let answer = TcpStream::connect(&at);
        let answer = answer.and_then(|mut stream| own_certificate(&key, &mut stream));
        // The receiver is gone once the command has stopped waiting, and then the answer has no use.
        sends.send(answer).ok();
    });
    let Ok(answer) = asked.recv_timeout(within) else {
        let seconds = within.as_secs_f64();
        let text = format!("{address} did not answer within {seconds} s; {NO_ANSWER}");
        return Err(CommandError::new(CommandExit::Timeout, "TIMEOUT", text));
    };
    answer.map_err(|error| {
        let code = match error.kind() {
            ErrorKind::InvalidData => "PIN_MISMATCH",
            _ => "UNAVAILABLE",
        };
        let text = format!("{address}: {error}");
        CommandError::new(CommandExit::Unreachable, code, output::one_line(&text))
    })
}

/// The error of a node whose key is not known here: the text may have been meant as a name.
fn no_key(route: &NodeRoute, target: &PeerAddr) -> CommandError {
    CommandError::usage(match route.hint() {
        Some(hint) => hint.to_owned(),
        None => format!(
            "{target} has no pinned key: clients check its public certificate as they do for every server"
        ),
    })
}

/// Prints it. Without `--cert` no node is asked, since everything follows from the pinned key; but of a peer of a hub
/// the key is asked for.
pub(crate) fn run(args: &PinArgs, json: bool) -> Result<CommandExit, CommandError> {
    let dial = &args.node.dial;
    let route = args.node.route()?;
    let subject = PinSubject::ask(&route, dial)?;
    let target = &subject.target;
    if target.pins.is_empty() {
        return Err(no_key(&route, target));
    }
    if !json {
        subject.warn();
    }
    if let Some(file) = &args.cert {
        return written(&subject, file, dial.timeout, json);
    }
    let pins: Vec<_> = target
        .pins
        .iter()
        .filter_map(|key| KeyPin::new(*key))
        .collect();
    if pins.is_empty() {
        let text = format!("{target} is pinned by its certificate: curl and OpenSSL pin keys");
        return Err(CommandError::usage(text));
    }
    if json {
        let keys: Vec<_> = pins.iter().map(KeyPin::json).collect();
        let url = format!("https://{}", target.address());
        let answer = json!({ "target": target, "url": url, "keys": keys });
        output::json_line(&subject.marked(answer))?;
        return Ok(CommandExit::Ok);
    }
    let lines: Vec<_> = pins.iter().flat_map(|pin| pin.lines(target)).collect();
    output::text(&lines.join("\n"))?;
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use alknet_test_support::limited;
    use alknet_tls::NodeKey;
    use clap::Parser;

    use super::super::node_book::NamedNode;
    use super::*;

    #[derive(Parser)]
    struct PinTestCli {
        #[command(flatten)]
        args: PinArgs,
    }

    /// A key of RFC 8410 section 10.1, which OpenSSL prints so.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    const KEY: &str = "ed25519:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";

    #[test]
    fn a_key_is_printed_as_other_programs_have_it() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        let (pem, _) = pin.ed25519.as_ref().expect("it is Ed25519");
        assert_eq!(pem, PEM);
        let hash = Sha256::digest(
            BASE64
                .decode(PEM.lines().nth(1).expect("base64").as_bytes())
                .expect("DER"),
        );
        assert_eq!(pin.curl, format!("sha256//{}", BASE64.encode(&hash)));
        let spki = KeyPin::new(PeerKey::Spki(hash.into())).expect("it can be pinned");
        assert_eq!((spki.curl, spki.ed25519), (pin.curl, None));
        assert_eq!(KeyPin::new(PeerKey::Certificate([1; 32])), None);
    }

    #[test]
    fn the_name_is_that_of_the_node_s_own_certificate() {
        let key = NodeKey::from_seed(&[7; 32]);
        let pin = KeyPin::new(key.public()).expect("it can be pinned");
        let (_, name) = pin.ed25519.expect("it is Ed25519");
        assert_eq!(name, key.host_name());
    }

    /// A hub that lies about its peer is named, and a node that has a name here is not taken from it.
    #[test]
    fn the_key_of_a_peer_is_the_word_of_its_hub() {
        let hub = "hub.example:443".parse().expect("a target");
        let route = NodeRoute::behind_hub("attic", hub, "kitchen");
        let key: PeerKey = KEY.parse().expect("a key");
        let info = json!({
            "identity": KEY, "addresses": ["203.0.113.6"], "listen": { "port": 444 },
        });
        let mut book = NodeBook::default();
        let said = PinSubject::said(&info, &book, &route).expect("it says both");
        assert_eq!(said.target.to_string(), format!("{KEY}@203.0.113.6:444"));
        let marked = said.marked(json!({ "cert": "node.pem" }));
        assert_eq!(marked["word_of"], "attic");
        assert_eq!(
            (said.word_of.as_deref(), said.target.pins),
            (Some("attic"), vec![key])
        );
        let keyless = json!({ "addresses": ["203.0.113.6"], "listen": { "port": 444 } });
        let refused = PinSubject::said(&keyless, &book, &route).expect_err("no key");
        assert_eq!(refused.code, "INVALID_OUTPUT");
        let own = format!("{KEY}@192.0.2.9:8443").parse().expect("a target");
        book.add("oven", NamedNode::direct(&own)).expect("a name");
        let known = PinSubject::said(&info, &book, &route).expect("it is known");
        assert_eq!(known.marked(json!({})), json!({}));
        assert_eq!((known.target, known.word_of), (own, None));
    }

    #[test]
    fn a_misspelt_name_is_not_taken_for_a_node_with_a_public_certificate() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = format!("{KEY}@192.0.2.7:443").parse().expect("a target");
        NodeBook::change(dir.path(), |book| {
            book.add("kitchen", NamedNode::direct(&at))
        })
        .expect("a writable directory");
        let refused = |node: &str| {
            let state = dir.path().display().to_string();
            let cli = PinTestCli::try_parse_from(["pin", node, "--state", &state]);
            run(&cli.expect("a command line").args, true).expect_err(node)
        };
        let misspelt = refused("kitchn");
        assert_eq!(misspelt.exit, CommandExit::Usage);
        assert_eq!(
            misspelt.message,
            "no node is called 'kitchn' here; did you mean 'kitchen'? Known are kitchen"
        );
        for host in ["node.example", "kitchn:443"] {
            let public = refused(host).message;
            assert!(public.contains("public certificate"), "{public}");
        }
    }

    /// A token in a command stays in the history of the shell, where an attacker with a backup reads it.
    #[test]
    fn a_token_is_read_from_standard_input_and_is_in_no_command() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        let target = format!("{KEY}@192.0.2.7:8443").parse().expect("a target");
        let lines = pin.lines(&target);
        let commands = lines.iter().filter(|line| !line.starts_with('#'));
        let mut writing = commands.filter(|line| line.contains("Bearer"));
        let command = writing.next().expect("a command that writes the token");
        assert_eq!(writing.next(), None);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut shell = limited(Duration::from_secs(60), "bash");
        shell.args(["-c", command]).current_dir(dir.path());
        let mut shell = shell.stdin(Stdio::piped()).spawn().expect("bash");
        let mut input = shell.stdin.take().expect("it is piped");
        input.write_all(b"alk_t0ken\\n\n").expect("it reads");
        drop(input);
        assert!(shell.wait().expect("it ends").success());
        let file = dir.path().join("node.header");
        let header = std::fs::read_to_string(&file).expect("it is written");
        assert_eq!(header, "Authorization: Bearer alk_t0ken\\n\n");
        let mode = file.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A certificate that was only compared by its key made a node an authority over every name.
    #[test]
    fn no_command_takes_a_certificate_unseen() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        let target = format!("{KEY}@192.0.2.7:8443").parse().expect("a target");
        let lines = pin.lines(&target).join("\n");
        assert!(!lines.contains("-showcerts"), "{lines}");
        let by_openssl = lines.lines().filter(|it| it.starts_with("openssl "));
        for line in by_openssl {
            assert!(
                line.contains("-CAfile node.pem -verify_return_error"),
                "{line}"
            );
        }
        let asks = format!("alknet pin {KEY}@192.0.2.7:8443 --cert node.pem");
        assert!(lines.contains(&asks), "{lines}");
    }

    /// A variable of the shell reaches each program that is started from it, and some are built on rustls.
    #[test]
    fn the_file_is_set_for_one_program_with_a_warning() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        let target = format!("{KEY}@192.0.2.7:8443").parse().expect("a target");
        let lines = pin.lines(&target);
        assert!(lines.iter().all(|line| !line.starts_with("export")));
        for warning in FOR_OPENSSL {
            assert!(lines.contains(&format!("# {warning}")), "{lines:#?}");
        }
    }

    #[test]
    fn commands_name_the_node_s_address() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        for (host, hosts) in [
            ("192.0.2.7:8443", "echo '192.0.2.7 "),
            ("[2001:db8::1]:8443", "echo '2001:db8::1 "),
            (
                "hub.example.org:8443",
                "# put the address of hub.example.org",
            ),
        ] {
            let target = format!("{KEY}@{host}").parse().expect("a target");
            let lines = pin.lines(&target);
            let url = format!("https://{host}/healthz");
            assert!(lines.iter().any(|line| line.ends_with(&url)), "{lines:#?}");
            assert!(
                lines.iter().any(|line| line.starts_with(hosts)),
                "{lines:#?}"
            );
            assert!(
                lines.iter().any(|line| line.ends_with(":8443/mcp")),
                "{lines:#?}"
            );
        }
    }
}

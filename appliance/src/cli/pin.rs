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

use super::target::NodeNames;
use super::{CommandError, CommandExit, StateArgs, output};

/// Characters of a line of PEM (RFC 7468 section 2).
const PEM_LINE: usize = 64;
/// Permission bits of the file: a certificate is no secret.
const CERT_MODE: u32 = 0o644;
/// The longest that a node is waited for: a handshake takes a few round trips.
const CERT_WITHIN: Duration = Duration::from_secs(30);

/// Arguments of `alknet pin`.
#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The node: a name of 'alknet node list', or KEY@HOST:PORT [default: as for every verb]
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// Ask the node for its own certificate, and write it to this file. A certificate that can vouch for another
    /// name is refused.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    #[command(flatten)]
    state: StateArgs,
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

    /// The same for people: commands to copy.
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
            "# an MCP client, with node.pem from above and a token of 'alknet token add'".to_owned(),
            hosts_line(target, name),
            "export NODE_EXTRA_CA_CERTS=$PWD/node.pem   # Node.js".to_owned(),
            "export SSL_CERT_FILE=$PWD/node.pem         # Python and most others".to_owned(),
            format!("# the address: https://{name}:{}/mcp", target.port),
        ]);
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
fn written(target: &PeerAddr, file: &Path, json: bool) -> Result<CommandExit, CommandError> {
    let mut keys = target.pins.iter();
    let Some(key) = keys.find(|key| matches!(key, PeerKey::Ed25519(_))) else {
        let text = format!(
            "{target} has no pinned Ed25519 key, which a node's own certificate is made of"
        );
        return Err(CommandError::usage(text));
    };
    let der = presented(target, *key)?;
    let text = pem("CERTIFICATE", &der);
    alknet_durable::replace(file, text.as_bytes(), CERT_MODE)
        .map_err(|error| CommandError::local(format!("{}: {error}", file.display())))?;
    if json {
        output::json_line(&json!({ "target": target, "cert": file, "key": key }))?;
    } else {
        output::line(&format!(
            "wrote {}: the certificate of {key}",
            file.display()
        ))?;
    }
    Ok(CommandExit::Ok)
}

/// The node's own certificate, within [`CERT_WITHIN`].
fn presented(target: &PeerAddr, key: PeerKey) -> Result<Vec<u8>, CommandError> {
    let address = target.address();
    let at = address.clone();
    let (sends, asked) = mpsc::channel();
    // A server that sends one byte after the other is not waited for: the thread ends with the command.
    thread::spawn(move || {
        let answer = TcpStream::connect(&at);
        let answer = answer.and_then(|mut stream| own_certificate(&key, &mut stream));
        // Of a command that waits no more.
        sends.send(answer).ok();
    });
    let Ok(answer) = asked.recv_timeout(CERT_WITHIN) else {
        let text = format!(
            "{address} did not answer within {} s",
            CERT_WITHIN.as_secs()
        );
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

/// Prints it. Without `--cert` no node is asked: everything follows from the pinned key.
pub(crate) fn run(args: &PinArgs, json: bool) -> Result<CommandExit, CommandError> {
    let names = NodeNames::load(&args.state);
    let route = match &args.node {
        Some(node) => names.named(node)?,
        None => names.default_route()?,
    };
    let target = route.direct("connections of other programs")?;
    if target.pins.is_empty() {
        let text = format!(
            "{target} has no pinned key: clients check its public certificate as they do for every server"
        );
        return Err(CommandError::usage(text));
    }
    if let Some(file) = &args.cert {
        return written(&target, file, json);
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
        output::json_line(&json!({ "target": target, "url": url, "keys": keys }))?;
        return Ok(CommandExit::Ok);
    }
    let lines: Vec<_> = pins.iter().flat_map(|pin| pin.lines(&target)).collect();
    output::text(&lines.join("\n"))?;
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use alknet_tls::NodeKey;

    use super::*;

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

    /// A certificate that was only compared by its key made a node an authority over every name.
    #[test]
    fn no_command_takes_a_certificate_unseen() {
        let pin = KeyPin::new(KEY.parse().expect("a key")).expect("it can be pinned");
        let target = format!("{KEY}@192.0.2.7:8443").parse().expect("a target");
        let lines = pin.lines(&target).join("\n");
        assert!(!lines.contains("s_client"), "{lines}");
        let asks = format!("alknet pin {KEY}@192.0.2.7:8443 --cert node.pem");
        assert!(lines.contains(&asks), "{lines}");
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

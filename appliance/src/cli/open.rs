//! `alknet open`: the status page of a node, by a link that works once.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alknet_core::{DialHost, PeerAddr, PeerKey};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::call::call_error;
use super::node_book::NodeBook;
use super::node_caller::NodeCaller;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, StateArgs, dial, output};

/// The port that a link need not name.
const HTTPS_PORT: u16 = 443;
/// Characters of what a node calls a link; today 43.
const TICKET_CHARS: RangeInclusive<usize> = 16..=128;
/// Characters that are shown of what is no link.
const SHOWN_CHARS_MAX: usize = 200;
/// What opens a link on a desktop, by the order they are looked for.
const OPENERS: [&str; 2] = ["xdg-open", "open"];
/// File below the state directory that leads a browser to the link: an argument of a program can be
/// read by every user of this computer, this file by its owner.
const FILE: &str = "open.html";

/// Arguments of `alknet open`.
#[derive(Debug, Args)]
pub(crate) struct PageOpenArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print the link, and open no browser.
    #[arg(long)]
    print: bool,
    /// Open a page that asks for confirmation of this action, instead of the status page.
    #[arg(long, value_enum)]
    action: Option<OpenAction>,
}

/// What the page may do, once, by a link made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OpenAction {
    /// Lock the vault.
    Lock,
    /// Switch the machine off.
    Poweroff,
    /// Restart the machine.
    Reboot,
}

impl OpenAction {
    fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }
}

/// Gets a link, and opens it where a person at a desktop asks.
pub(crate) fn run(args: &PageOpenArgs, json: bool) -> Result<CommandExit, CommandError> {
    let route = args.node.route()?;
    dial::reached(&route, &args.node.dial, async |node| {
        let input = match args.action {
            Some(action) => json!({ "action": action.name() }),
            None => json!({}),
        };
        let at = match node.is_behind_hub() {
            true => PageAddress::behind(node, &args.node.dial.state, &route.target).await?,
            false => PageAddress::Known(route.target.clone()),
        };
        let answer = node.call("node/page-ticket", &input).await;
        let mut answer = answer.map_err(call_error)?.value().clone();
        if let Some(answer) = answer.as_object_mut().filter(|_| node.is_behind_hub()) {
            // A hub would name a host of its own, in the place of one that does not resolve.
            answer.remove("names");
        }
        let link = page_link(at.target(), &answer, args.action, resolved)?;
        let good_for = answer["expires_in"].as_u64().unwrap_or_default();
        if json {
            output::json_line(&at.json(&link, good_for))?;
            return Ok(CommandExit::Ok);
        }
        // A page at an address that only the hub names may be an attacker's, and ask for a token.
        let wanted = at.is_known() && !args.print && output::is_terminal() && has_display();
        if let Some(opener) = wanted.then(opener).flatten() {
            opened(&opener, &args.node.dial.state.dir()?, &link)?;
            output::line(&format!(
                "Opening the status page; if nothing happens: alknet open --print {}",
                route.as_argument()
            ))?;
            return Ok(CommandExit::Ok);
        }
        output::line(&link)?;
        if output::is_terminal() {
            output::note(&format!("Works once, within {good_for} s."));
        }
        if !at.is_known() {
            output::note(&format!(
                "The address in this link is the word of the hub '{}', and nothing proves it: open the link only if \
                 you know the address, and type no token there. 'alknet node add NAME KEY@HOST:PORT' makes it known.",
                route.name
            ));
        }
        Ok(CommandExit::Ok)
    })
}

/// Where a node serves its page, and everything else that does not go through a hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageAddress {
    /// The user wrote the address, now or by 'alknet node add'.
    Known(PeerAddr),
    /// The answer that a hub passed on has the address. The hub may have made it.
    Said(PeerAddr),
}

impl PageAddress {
    /// The address of a peer of a hub: a browser does not go through the hub, so that the link leads to an address of
    /// the peer's own.
    async fn behind(
        node: &NodeCaller,
        state: &StateArgs,
        hub: &PeerAddr,
    ) -> Result<Self, CommandError> {
        let info = node.call("node/info", &Value::Null).await;
        let info = info.map_err(call_error)?;
        let book = NodeBook::load(&state.dir()?)?;
        Self::said(info.value(), &book, hub)
    }

    /// The address in `info`, or that of the node of this key which has a name here.
    ///
    /// # Errors
    /// `UNAVAILABLE`: this computer could reach no address of it.
    pub(super) fn said(
        info: &Value,
        book: &NodeBook,
        hub: &PeerAddr,
    ) -> Result<Self, CommandError> {
        let key = info["identity"].as_str().and_then(|key| key.parse().ok());
        if let Some(target) = key.and_then(|key: PeerKey| book.target_of(&key)) {
            return Ok(Self::Known(target));
        }
        // Only a hub on this computer has peers at an address that leads back to this computer. Another hub would
        // send a browser to whatever listens here.
        let is_near = match &hub.host {
            DialHost::Ip(address) => address.is_loopback(),
            DialHost::Name(name) => name == "localhost",
        };
        let addresses = info["addresses"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
        // `::ffff:127.0.0.1` counts as a loopback address only in its IPv4 form.
        let addresses = addresses.map(|address| address.to_canonical());
        let addresses = addresses.filter(|it| !it.is_unspecified());
        let addresses = addresses.filter(|it| is_near || !it.is_loopback());
        let address = addresses.min_by_key(IpAddr::is_loopback);
        let port = info["listen"]["port"].as_u64();
        let port = port.and_then(|port| u16::try_from(port).ok());
        match (address, port) {
            (Some(address), Some(port)) => Ok(Self::Said(PeerAddr {
                pins: Vec::new(),
                host: DialHost::Ip(address),
                port,
            })),
            _ => Err(CommandError::new(
                CommandExit::Failed,
                "UNAVAILABLE",
                "the node has no address that this computer could reach it at",
            )),
        }
    }

    fn target(&self) -> &PeerAddr {
        let (Self::Known(target) | Self::Said(target)) = self;
        target
    }

    fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// What scripts get.
    fn json(&self, link: &str, good_for: u64) -> Value {
        json!({ "url": link, "expires_in": good_for, "address_known": self.is_known() })
    }
}

/// The link, by a name that both the browser and the node know: a node answers to its addresses and to
/// the names it has, and to no other. What the node says becomes a part of a link that a browser follows, and is
/// held against what a link of its kind looks like.
fn page_link(
    target: &PeerAddr,
    answer: &Value,
    action: Option<OpenAction>,
    resolve: impl Fn(&str, u16) -> Option<IpAddr>,
) -> Result<String, CommandError> {
    let names = answer["names"].as_array().into_iter().flatten();
    let names = names.filter_map(Value::as_str);
    let names: Vec<_> = names.filter(|name| is_host_name(name)).collect();
    let host = match &target.host {
        DialHost::Name(name) if !names.iter().any(|own| own.eq_ignore_ascii_case(name)) => {
            match resolve(name, target.port) {
                Some(address) => literal(address),
                None => names
                    .iter()
                    // This name would lead the browser to whatever listens on this computer.
                    .find(|own| **own != "localhost")
                    .map_or_else(|| name.clone(), |own| (*own).to_owned()),
            }
        }
        DialHost::Name(name) => name.clone(),
        DialHost::Ip(address) => literal(*address),
    };
    let port = match target.port {
        HTTPS_PORT => String::new(),
        port => format!(":{port}"),
    };
    let path = answer["path"].as_str().unwrap_or_default();
    let begins = match action {
        None => "/status/enter/",
        Some(_) => "/status/act/",
    };
    if !path.strip_prefix(begins).is_some_and(is_ticket) {
        let text = format!(
            "the node answered with no link to its status page: {}",
            output::one_line(&path.chars().take(SHOWN_CHARS_MAX).collect::<String>())
        );
        return Err(CommandError::new(
            CommandExit::Failed,
            "INVALID_OUTPUT",
            text,
        ));
    }
    Ok(format!("https://{host}{port}{path}"))
}

/// What a node calls a link: characters of base64url (RFC 4648 section 5) and nothing else.
fn is_ticket(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    TICKET_CHARS.contains(&text.len()) && text.bytes().all(plain)
}

/// A name of a host (RFC 1123 section 2.1), underscores besides.
fn is_host_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    text.len() <= 253 && text.split('.').all(label)
}

fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn resolved(name: &str, port: u16) -> Option<IpAddr> {
    let mut found = (name, port).to_socket_addrs().ok()?;
    found.next().map(|address| address.ip())
}

/// Whether a browser could show itself here.
fn has_display() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY")
}

/// The first opener there is, by its whole path.
fn opener() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<_> = std::env::split_paths(&path).collect();
    find(&dirs)
}

fn find(dirs: &[PathBuf]) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let mut candidates = OPENERS.iter().flat_map(|name| {
        dirs.iter()
            // A relative folder in PATH would start a program from where the user happens to be.
            .filter(|dir| dir.is_absolute())
            .map(move |dir| dir.join(name))
    });
    candidates.find(runs)
}

fn opened(opener: &Path, state: &Path, link: &str) -> Result<(), CommandError> {
    let file = state.join(FILE);
    let failed = |at: &Path, error: io::Error| {
        let text = format!(
            "cannot open a browser: {}: {error}; use --print",
            at.display()
        );
        CommandError::local(text)
    };
    write_leading_to(&file, link).map_err(|error| failed(&file, error))?;
    let mut command = Command::new(opener);
    // The file and not the link, whose ticket would stand in the list of processes.
    command.arg(&file);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.spawn();
    started.map(drop).map_err(|error| failed(opener, error))
}

fn write_leading_to(file: &Path, link: &str) -> io::Result<()> {
    // Removed and made again: a link or a file of others in its place would show the ticket to them.
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = fs::OpenOptions::new();
    let mut out = out.write(true).create_new(true).mode(0o600).open(file)?;
    let link = escaped(link);
    writeln!(
        out,
        "<!DOCTYPE html><meta charset=\"utf-8\"><title>alknet</title>\
         <meta http-equiv=\"refresh\" content=\"0;url={link}\"><a href=\"{link}\">Go on</a>"
    )
}

/// Text as HTML has it in an attribute. A link has no such character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::node_book::NamedNode;
    use super::*;

    const TICKET: &str = "0123456789abcdefABCDEF_-0123456789abcdefABC";

    fn link_of(target: &str, names: &[&str], resolved: Option<&str>) -> String {
        let answer = json!({ "path": format!("/status/enter/{TICKET}"), "names": names });
        let target = target.parse().expect("a target");
        let link = page_link(&target, &answer, None, |_, _| resolved?.parse().ok());
        link.expect("it is a link")
    }

    #[test]
    fn where_a_hub_says_that_its_peer_is_nothing_is_opened() {
        let key = PeerKey::Ed25519([7; 32]);
        let own: PeerAddr = format!("{key}@192.0.2.9:8443").parse().expect("a target");
        let hub = "hub.example:443".parse().expect("a target");
        let mut book = NodeBook::default();
        let info = |addresses: &[&str]| json!({ "identity": key, "addresses": addresses, "listen": { "port": 444 } });
        let said = |book: &NodeBook, hub: &PeerAddr, addresses: &[&str]| {
            PageAddress::said(&info(addresses), book, hub)
        };
        let at = said(&book, &hub, &["203.0.113.6"]).expect("an address");
        assert!(!at.is_known(), "{at:?}");
        assert_eq!(at.target().address(), "203.0.113.6:444");
        assert_eq!(at.json("l", 60)["address_known"], false);
        // What listens on the user's own computer is no peer of a hub elsewhere.
        for near in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            let refused = said(&book, &hub, &[near]).expect_err(near);
            assert_eq!(refused.code, "UNAVAILABLE", "{near}");
        }
        let near = "127.0.0.1:443".parse().expect("a target");
        assert!(said(&book, &near, &["127.0.0.1"]).is_ok());
        // The user wrote where the node of this key is.
        let named = NamedNode::direct(&own);
        book.add("kitchen", named).expect("a name");
        let at = said(&book, &hub, &["203.0.113.6"]).expect("an address");
        assert_eq!(at, PageAddress::Known(own));
    }

    #[test]
    fn what_is_no_link_is_refused() {
        let key = format!("ed25519:{}", "01".repeat(32));
        let target = format!("{key}@192.0.2.7:443").parse().expect("a target");
        let link = |path: &str, action| {
            let answer = json!({ "path": path, "names": [] });
            page_link(&target, &answer, action, |_, _| None)
        };
        let (enter, act) = (
            format!("/status/enter/{TICKET}"),
            format!("/status/act/{TICKET}"),
        );
        assert!(link(&enter, None).is_ok() && link(&act, Some(OpenAction::Lock)).is_ok());
        let acts = format!("{enter}\u{1b}]0;x\u{7}");
        let long = format!("/status/enter/{}", "a".repeat(129));
        for (path, action) in [
            (act.as_str(), None),
            (enter.as_str(), Some(OpenAction::Lock)),
            ("", None),
            ("/", None),
            ("@evil.example/status/enter/0123456789abcdef", None),
            ("/status/enter/", None),
            ("/status/enter/short", None),
            (
                "/status/enter/0123456789abcdef\"><script>alert(1)</script>",
                None,
            ),
            ("/status/enter/0123456789abcdef#", None),
            ("/status/enter/../../0123456789abcdef", None),
            (acts.as_str(), None),
            (long.as_str(), None),
        ] {
            let refused = link(path, action).expect_err(path);
            assert!(!refused.message.contains('\u{1b}'), "{refused}");
        }
    }

    #[test]
    fn names_that_are_none_are_left_out() {
        let key = format!("ed25519:{}", "01".repeat(32));
        let at = format!("{key}@other.example:443");
        let long = "a".repeat(64);
        let names = [
            "evil.example/x?",
            "a b",
            "x\u{1b}[2J",
            "",
            "a..b",
            &long,
            "*.c",
            "box",
        ];
        assert_eq!(
            link_of(&at, &names, None),
            format!("https://box/status/enter/{TICKET}")
        );
    }

    #[test]
    fn a_link_has_a_name_that_both_sides_know() {
        let key = format!("ed25519:{}", "01".repeat(32));
        for (at, names, found, host) in [
            ("192.0.2.7:443", &["box"][..], None, "192.0.2.7"),
            ("[2001:db8::1]:4433", &[], None, "[2001:db8::1]:4433"),
            (
                "hub.example.org:443",
                &["hub.example.org"],
                None,
                "hub.example.org",
            ),
            (
                "other.example:8443",
                &["box"],
                Some("192.0.2.8"),
                "192.0.2.8:8443",
            ),
            (
                "other.example:443",
                &["*.b", "box", "localhost"],
                None,
                "box",
            ),
            ("other.example:443", &[], None, "other.example"),
        ] {
            let expected = format!("https://{host}/status/enter/{TICKET}");
            assert_eq!(link_of(&format!("{key}@{at}"), names, found), expected);
        }
    }

    #[test]
    fn an_opener_is_a_program_on_the_path() {
        let dir = tempfile::tempdir().expect("a folder");
        let dirs = [PathBuf::from("relative"), dir.path().to_owned()];
        assert_eq!(find(&dirs), None);
        let file = dir.path().join("xdg-open");
        fs::write(&file, "").expect("ours");
        assert_eq!(find(&dirs), None, "it cannot be run");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("ours");
        assert_eq!(find(&dirs), Some(file));
    }

    #[test]
    fn the_file_is_its_owners_and_new_each_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join(FILE);
        for n in 0..2 {
            write_leading_to(&file, &format!("https://192.0.2.7/status/enter/{n}")).expect("ours");
            let text = fs::read_to_string(&file).expect("written");
            assert!(text.contains(&format!("/enter/{n}\"")));
            write_leading_to(&file, "https://a/\"'><script>&").expect("ours");
            let foreign = fs::read_to_string(&file).expect("written");
            assert!(foreign.contains("https://a/&quot;&#39;&gt;&lt;script&gt;&amp;\""));
            let mode = fs::metadata(&file).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

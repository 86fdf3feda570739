//! `alknet enroll`: becoming a peer of a hub, and remembering where it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use alknet_core::{Carriage, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_hub::{EnrolClientError, JoinAcceptance, JoinCode, JoinRequest, enrol};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::call::{of_dial_kind, read_stdin, within_time};
use super::{CommandError, CommandExit, DialArgs, output};

/// File of the hubs inside the state directory.
const HUBS_FILE: &str = "hubs.json";
/// What a hub is called here that says nothing usable.
const HUB: &str = "hub";

/// Arguments of `alknet enroll`.
#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// The join string, as 'alknet hub invite' prints it; - reads it from standard input, which
    /// keeps it out of the list of processes.
    join: String,
    /// What this key is to be called on the hub.
    #[arg(long)]
    name: Option<String>,
    /// What the hub is to be called here [default: as it calls itself]
    #[arg(long, value_name = "NAME")]
    hub: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// The hubs this computer knows, by what they are called here.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownHubs {
    #[serde(default)]
    hubs: BTreeMap<String, KnownHub>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownHub {
    /// As the command line takes it.
    target: String,
    /// Which peer of the hub this key is.
    peer_id: String,
    /// What the peer is called.
    name: String,
}

impl KnownHubs {
    /// Reads the hubs of a state directory; empty where the file does not exist.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn load(dir: &Path) -> Result<Self, CommandError> {
        let path = dir.join(HUBS_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(of_file(&path, error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| of_file(&path, error))
    }

    /// The target of the hub that is called so.
    pub(crate) fn target(&self, name: &str) -> Option<&str> {
        self.hubs.get(name).map(|known| known.target.as_str())
    }

    fn store(&self, dir: &Path) -> Result<(), CommandError> {
        let path = dir.join(HUBS_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(CommandError::local)?;
        alknet_durable::replace(&path, &text, 0o600).map_err(|error| of_file(&path, error))
    }

    /// Remembers a hub, under a name that is free or its own.
    fn remember(&mut self, wanted: Option<&str>, known: KnownHub) -> Result<String, CommandError> {
        let key = |target: &str| target.split_once('@').map(|(key, _)| key.to_owned());
        let own = key(&known.target);
        let is_free = |name: &str| {
            let there = self.hubs.get(name);
            there.is_none_or(|there| key(&there.target) == own)
        };
        let name = match wanted {
            Some(name) if is_free(name) => name.to_owned(),
            Some(name) => {
                let text = format!("'{name}' is another hub already: choose another --hub NAME");
                return Err(CommandError::usage(text));
            }
            None => {
                let hub = HUB.to_owned();
                let mut names = (2..).map(|n| format!("{HUB}-{n}"));
                match is_free(&hub) {
                    true => hub,
                    false => names.find(|name| is_free(name)).unwrap_or(hub),
                }
            }
        };
        self.hubs.insert(name.clone(), known);
        Ok(name)
    }
}

fn of_file(path: &Path, error: impl std::fmt::Display) -> CommandError {
    CommandError::local(format!("{}: {error}", path.display()))
}

/// `alknet enroll`
pub(crate) fn run(args: &EnrollArgs, json: bool) -> Result<CommandExit, CommandError> {
    let text = match args.join.as_str() {
        "-" => String::from_utf8(read_stdin()?)
            .map_err(|_| CommandError::usage("the join string is no text"))?,
        text => text.to_owned(),
    };
    let code: JoinCode = text
        .parse()
        .map_err(|error| CommandError::new(CommandExit::Usage, "JOIN_STRING", error))?;
    if let Some(hub) = &args.hub {
        check_name(hub)?;
    }
    if args.dial.anonymous {
        return Err(CommandError::usage(
            "enrolling needs a key: leave --anonymous out",
        ));
    }
    let dir = args.dial.state.dir()?;
    let mut hubs = KnownHubs::load(&dir)?;
    let (enrolled, at) = ask(args, &code)?;
    let known = KnownHub {
        target: at.to_string(),
        peer_id: enrolled.peer_id.to_string(),
        name: enrolled.name.clone(),
    };
    let suggested = enrolled.hub.names.iter().find_map(|name| plain(name));
    let wanted = args.hub.as_deref();
    let hub = match wanted {
        Some(name) => hubs.remember(Some(name), known)?,
        None => match hubs.remember(suggested, known.clone()) {
            Ok(name) => name,
            Err(_) => hubs.remember(None, known)?,
        },
    };
    hubs.store(&dir)?;
    if json {
        output::json_line(&json!({
            "hub": hub, "target": at.to_string(), "peer_id": enrolled.peer_id,
            "name": enrolled.name,
        }))?;
        return Ok(CommandExit::Ok);
    }
    output::line(&format!(
        "{} is peer {} of the hub, which is called '{hub}' here.",
        enrolled.name, enrolled.peer_id
    ))?;
    output::line(&format!("try: alknet ops {hub}"))?;
    Ok(CommandExit::Ok)
}

fn ask(args: &EnrollArgs, code: &JoinCode) -> Result<(JoinAcceptance, PeerAddr), CommandError> {
    let request = JoinRequest {
        token: Some(code.token.expose().to_string()),
        name: args.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        ..JoinRequest::default()
    };
    let dialer = EndpointDialer::new(Some(args.dial.state.key()?));
    let carriage = args.dial.carriage.map_or(Carriage::Both, Into::into);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::local(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let asked = enrol(&dialer, code.targets(), carriage, &request);
        let outcome = within_time(args.dial.timeout, "the hub", asked).await;
        dialer.close().await;
        outcome?.map_err(of_enrol)
    })
}

fn of_enrol(error: EnrolClientError) -> CommandError {
    match error {
        EnrolClientError::Refused(refusal) => {
            let exit = match refusal.code.as_ref() {
                "ENROLL_INVALID" | "UNAUTHENTICATED" => CommandExit::Denied,
                "INVALID_INPUT" => CommandExit::Usage,
                _ => CommandExit::Failed,
            };
            CommandError::new(exit, &refusal.code, refusal.message)
        }
        EnrolClientError::Dial(error) => of_dial_kind(&error),
        EnrolClientError::Silent => CommandError::new(CommandExit::Timeout, "TIMEOUT", error),
        error => CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", error),
    }
}

/// A name without dots and colons cannot be mistaken for another target, nor put in its place.
fn plain(name: &str) -> Option<&str> {
    let first = name.split('.').next().unwrap_or_default();
    check_name(first).ok().map(|()| first)
}

fn check_name(name: &str) -> Result<(), CommandError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let letter = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if letter && name.len() <= 63 && name.bytes().all(plain) && name != "localhost" {
        return Ok(());
    }
    let text =
        "a hub is called 1 to 63 of a-z, 0-9 and '-' here, a letter first, and not localhost";
    Err(CommandError::usage(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(key: u8) -> KnownHub {
        let key = alknet_core::PeerKey::Ed25519([key; 32]);
        KnownHub {
            target: format!("{key}@hub:443"),
            peer_id: "p1".to_owned(),
            name: "laptop".to_owned(),
        }
    }

    #[test]
    fn hubs_are_remembered_by_names_of_their_own() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut hubs = KnownHubs::load(dir.path()).expect("no file is no hubs");
        assert_eq!(
            hubs.remember(Some("attic"), known(1)).as_deref(),
            Ok("attic")
        );
        assert_eq!(
            hubs.remember(Some("attic"), known(1)).as_deref(),
            Ok("attic")
        );
        assert!(hubs.remember(Some("attic"), known(2)).is_err());
        assert_eq!(hubs.remember(None, known(2)).as_deref(), Ok("hub"));
        assert_eq!(hubs.remember(None, known(3)).as_deref(), Ok("hub-2"));
        hubs.store(dir.path()).expect("a writable directory");
        let read = KnownHubs::load(dir.path()).expect("its own file");
        assert_eq!(read, hubs);
        assert!(
            read.target("attic")
                .is_some_and(|target| target.ends_with("@hub:443"))
        );
        assert_eq!(read.target("cellar"), None);
        fs::write(dir.path().join(HUBS_FILE), "{").expect("a writable directory");
        assert!(KnownHubs::load(dir.path()).is_err());
    }

    /// A hub that calls itself by another machine's host name must not be dialled in that machine's
    /// place.
    #[test]
    fn what_a_hub_calls_itself_is_one_label() {
        assert_eq!(plain("hub.example.org"), Some("hub"));
        for bad in [
            "",
            "Hub",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "-a",
            "a_b",
            "localhost.x",
        ] {
            assert_eq!(plain(bad), None, "{bad}");
        }
    }
}

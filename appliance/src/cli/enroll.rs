//! `alknet enroll`: becoming a peer of a hub, and remembering where it is.

use alknet_core::{Carriage, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_hub::{EnrolClientError, JoinAcceptance, JoinCode, JoinRequest, enrol};
use clap::Args;
use serde_json::json;

use super::call::read_stdin;
use super::dial::{dial_time, of_dial_kind, within_time};
use super::node_book::{NamedNode, NodeBook, check_name, first_label};
use super::{CommandError, CommandExit, DialArgs, output};

/// Arguments of `alknet enroll`.
#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// The join string that 'alknet hub invite' printed; - reads it from standard input, where no list of
    /// processes shows it.
    join: String,
    /// The name of this peer on the hub.
    #[arg(long)]
    name: Option<String>,
    /// The name of the hub on this computer [default: the hub's own name]
    #[arg(long, value_name = "NAME")]
    hub: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
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
    // A file that cannot be read is found before the token is used.
    NodeBook::load(&dir)?;
    let (enrolled, at) = ask(args, &code)?;
    let other_name = other_name(args.name.as_deref(), &enrolled)?;
    let named = NamedNode {
        peer_id: Some(enrolled.peer_id.to_string()),
        peer_name: Some(enrolled.name.clone()),
        ..NamedNode::direct(&at)
    };
    // The hub's own name is a suggestion only: the administrator's choice wins.
    let suggested = enrolled.hub.names.iter().find_map(|name| first_label(name));
    let hub = NodeBook::change(&dir, |book| {
        book.remember(args.hub.as_deref(), suggested, named)
    })?;
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
    if let Some(note) = other_name {
        output::note(&note);
    }
    output::line(&format!("try: alknet ops {hub}"))?;
    Ok(CommandExit::Ok)
}

/// What to say of a name that the user asked for and that the hub did not give.
///
/// # Errors
/// The key is one of the hub's configuration. The hub has changed nothing, and the invitation is as good as before.
fn other_name(
    asked: Option<&str>,
    enrolled: &JoinAcceptance,
) -> Result<Option<String>, CommandError> {
    let Some(asked) = asked.filter(|asked| *asked != enrolled.name) else {
        return Ok(None);
    };
    let (name, id) = (enrolled.name.as_str(), enrolled.peer_id.as_str());
    // A peer that enrolled by this name has an id of its own beside it. Of an entry of the configuration the hub
    // answers the id in both places.
    if name == id {
        return Err(CommandError::usage(format!(
            "the configuration of the hub has this key, and calls it '{name}': leave out --name {asked}, or enrol with \
             another key by --state DIR"
        )));
    }
    Ok(Some(format!(
        "The hub did not take the name {asked}: an invitation may name its peers, and a peer that enrolled before \
         keeps its name. 'alknet hub set' changes it."
    )))
}

fn ask(args: &EnrollArgs, code: &JoinCode) -> Result<(JoinAcceptance, PeerAddr), CommandError> {
    let request = JoinRequest {
        token: Some(code.token.expose().to_string()),
        name: args.name.clone(),
        version: alknet_init::image_version().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        ..JoinRequest::default()
    };
    let dial_time = dial_time(args.dial.timeout, code.targets().count());
    let dialer = EndpointDialer::new(Some(args.dial.state.key()?)).with_dial_timeout(dial_time);
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
            let code = output::one_line(&refusal.code);
            CommandError::new(exit, &code, output::one_line(&refusal.message))
        }
        EnrolClientError::Dial(error) => of_dial_kind(&error),
        EnrolClientError::Silent => CommandError::new(CommandExit::Timeout, "TIMEOUT", error),
        error => CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", error),
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::PeerKey;
    use alknet_hub::HubInfo;

    use super::*;

    fn answer(peer_id: &str, name: &str) -> JoinAcceptance {
        JoinAcceptance {
            peer_id: peer_id.parse().expect("a peer id"),
            name: name.to_owned(),
            hub: HubInfo {
                key: PeerKey::Ed25519([7; 32]),
                names: Vec::new(),
            },
        }
    }

    #[test]
    fn a_name_that_the_hub_did_not_give_is_not_dropped_in_silence() {
        let enrolled = answer("p1", "ada");
        assert_eq!(other_name(None, &enrolled), Ok(None));
        assert_eq!(other_name(Some("ada"), &enrolled), Ok(None));
        let note = other_name(Some("bob"), &enrolled).expect("it has enrolled");
        assert!(note.is_some_and(|note| note.contains("did not take the name bob")));
        let configured = other_name(Some("ada"), &answer("admin", "admin"));
        let refused = configured.expect_err("the hub's configuration names it");
        assert_eq!(refused.exit, CommandExit::Usage);
        assert!(refused.message.contains("calls it 'admin'"), "{refused}");
    }
}

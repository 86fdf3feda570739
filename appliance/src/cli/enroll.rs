//! `alknet enroll`: becoming a peer of a hub, and remembering where it is.

use alknet_core::{Carriage, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_hub::{EnrolClientError, JoinAcceptance, JoinCode, JoinRequest, enrol};
use clap::Args;
use serde_json::json;

use super::call::read_stdin;
use super::dial::{of_dial_kind, within_time};
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
            let code = output::one_line(&refusal.code);
            CommandError::new(exit, &code, output::one_line(&refusal.message))
        }
        EnrolClientError::Dial(error) => of_dial_kind(&error),
        EnrolClientError::Silent => CommandError::new(CommandExit::Timeout, "TIMEOUT", error),
        error => CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", error),
    }
}
